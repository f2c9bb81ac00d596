// Direct convolution; conv.cpp distributes it over the threads.

#pragma once

#include "product.hpp"

namespace {

constexpr int64_t kMostKernel = 7;  // 7x7 taps at most

// Computes groups of at most 14 consecutive output pixels, which may span rows and images.
struct Direct {
  const Conv& conv;
  const bool gathers = conv.c % 2;
  const int64_t area = conv.kernel * conv.kernel;
  const int64_t taps = gathers ? 1 : area;
  const int64_t run = gathers ? area * conv.c + area % 2 : conv.c;  // values of a tap, padded to an even number

  // Values that a thread copies for a group, and room for the last store, which writes whole vectors.
  int64_t copies() const { return kRows * run + 2 * kVector; }

  // Values of scratch: what the threads copy, or one tap of zeros.
  int64_t scratch() const { return gathers ? conv.threads * copies() : conv.c; }

  // Zeroes the tap of zeros; call it before the first product.
  void clear() const {
    if (!gathers) std::memset(conv.scratch, 0, conv.c * sizeof(bf16));
  }

  // Sets a[tap][row] to where the values of each tap begin.
  void locate(int64_t begin, int64_t rows, const bf16** a) const {
    int64_t out_x = begin % conv.out_w, out_y = begin / conv.out_w % conv.out_h;
    int64_t image = begin / (conv.out_w * conv.out_h);
    bf16* copy = conv.scratch + omp_get_thread_num() * copies();
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t y = out_y * conv.stride - conv.padding, x = out_x * conv.stride - conv.padding;
      const bf16* corner = conv.x + ((image * conv.h + y) * conv.w + x) * conv.c;
      if (gathers)
        gather(y, x, corner, copy + r * run), a[r] = copy + r * run;
      else
        point(y, x, corner, a + r);
      if (++out_x == conv.out_w) {
        out_x = 0;
        if (++out_y == conv.out_h) out_y = 0, ++image;
      }
    }
  }

  void point(int64_t y, int64_t x, const bf16* corner, const bf16** to) const {
    for (int64_t i = 0; i < conv.kernel; ++i, corner += conv.w * conv.c) {
      const bool in_rows = y + i >= 0 && y + i < conv.h;
      for (int64_t j = 0; j < conv.kernel; ++j, to += kRows)
        *to = in_rows && x + j >= 0 && x + j < conv.w ? corner + j * conv.c : conv.scratch;
    }
  }

  // Copies the pixels under the kernel, row by row, with zeros outside the image and up to the end of a vector.
  void gather(int64_t y, int64_t x, const bf16* corner, bf16* to) const {
    const int64_t first = std::max<int64_t>(-x, 0) * conv.c;
    const int64_t last = std::clamp<int64_t>(conv.w - x, 0, conv.kernel) * conv.c;
    const __mmask32 inside = static_cast<__mmask32>((uint64_t{1} << last) - (uint64_t{1} << std::min(first, last)));
    for (int64_t i = y; i < y + conv.kernel; ++i, corner += conv.w * conv.c, to += conv.kernel * conv.c)
      _mm512_storeu_si512(to, _mm512_maskz_loadu_epi16(i >= 0 && i < conv.h ? inside : 0, corner));
  }

  // Computes `rows` output pixels from `begin` on, in the columns from `first` to `last`.
  void multiply(int64_t begin, int64_t rows, int64_t first, int64_t last) const {
    const bf16* a[kMostKernel * kMostKernel * kRows];
    locate(begin, rows, a);
    alignas(64) float sums[kRows * kColumn];
    for (int64_t column = first; column < last; ++column) {
      kProducts.by_rows[rows - 1](a, taps, conv.weight + column * taps * run * kColumn, run / 2, sums);
      for (int64_t r = 0; r < rows; ++r)
        finish(conv, begin + r, column * kColumn, _mm512_load_ps(sums + r * kColumn),
               _mm512_load_ps(sums + r * kColumn + kVector));
    }
  }
};

}  // namespace
