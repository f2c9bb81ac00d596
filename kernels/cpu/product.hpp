// Shared by the convolutions of conv.cpp: their arguments, the register kernel, and the end of each output pixel.

#pragma once

#include <immintrin.h>
#include <omp.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <utility>

namespace {

using bf16 = uint16_t;

constexpr int64_t kVector = 16;      // fp32 values per register
constexpr int64_t kColumn = 32;      // output channels that one product yields: two registers
constexpr int64_t kRows = 14;        // output pixels, or tiles, of one product: 28 of the 32 registers hold sums
constexpr int64_t kCache = 1 << 18;  // bytes of pixels, and of weight, per pass: a share of L2
constexpr int64_t kAhead = 4096;     // values of weight that are prefetched into L2
constexpr int64_t kFewGroups = 4;    // groups of rows per thread; with fewer, threads share the columns too

// kernels/cpu/conv.py declares the same fields in the same order.
struct Sizes {
  int64_t n, h, w;
  int64_t c;  // input channels; a multiple of 16 for winograd
  int64_t k;  // output channels, a multiple of 32
  int64_t kernel, stride, padding, out_h, out_w, relu, threads;
};

struct Conv : Sizes {
  const bf16* x;         // [n, h, w, c]
  const bf16* weight;    // packed by columns: [k / 32, taps or points, pairs of a tap, 32, 2]
  const float* bias;     // [k]
  const bf16* residual;  // [n, out_h, out_w, k], or null; may be `out`
  bf16* out;             // [n, out_h, out_w, k]
  bf16* scratch;         // as many values as <algorithm>_scratch returns
};

__m512 widen(__m256i values) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(values), 16));
}

__m512 load(const bf16* from) { return widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))); }

// sums[row][32] = sum over taps and pairs of a[tap][row][pair] . weight[tap][pair][32]
template <int Rows>
void product(const bf16* const* a, int64_t taps, const bf16* weight, int64_t pairs, float* sums) {
  __m512 sum[Rows][2];
#pragma GCC unroll 14
  for (int r = 0; r < Rows; ++r) sum[r][0] = sum[r][1] = _mm512_setzero_ps();
  for (int64_t tap = 0; tap < taps; ++tap, a += kRows) {
    const bf16* line[Rows];
    for (int r = 0; r < Rows; ++r) line[r] = a[r];
    for (int64_t pair = 0; pair < pairs; ++pair, weight += 2 * kColumn) {
      _mm_prefetch(reinterpret_cast<const char*>(weight + kAhead), _MM_HINT_T1);
      _mm_prefetch(reinterpret_cast<const char*>(weight + kAhead + kColumn), _MM_HINT_T1);
      const __m512bh low = (__m512bh)_mm512_loadu_si512(weight);
      const __m512bh high = (__m512bh)_mm512_loadu_si512(weight + kColumn);
#pragma GCC unroll 14
      for (int r = 0; r < Rows; ++r) {
        int32_t two;
        std::memcpy(&two, line[r] + 2 * pair, sizeof two);
        const __m512bh spread = (__m512bh)_mm512_set1_epi32(two);
        sum[r][0] = _mm512_dpbf16_ps(sum[r][0], spread, low);
        sum[r][1] = _mm512_dpbf16_ps(sum[r][1], spread, high);
      }
    }
  }
#pragma GCC unroll 14
  for (int r = 0; r < Rows; ++r) {
    _mm512_storeu_ps(sums + r * kColumn, sum[r][0]);
    _mm512_storeu_ps(sums + r * kColumn + kVector, sum[r][1]);
  }
}

using Product = void (*)(const bf16* const*, int64_t, const bf16*, int64_t, float*);

struct Products {
  Product by_rows[kRows];
};

template <int... Rows>
constexpr Products products(std::integer_sequence<int, Rows...>) {
  return {{product<Rows + 1>...}};
}

constexpr Products kProducts = products(std::make_integer_sequence<int, kRows>{});

// Adds bias and residual to 32 channels of one output pixel, applies the ReLU, and stores them.
void finish(const Conv& conv, int64_t pixel, int64_t channel, __m512 low, __m512 high) {
  const int64_t offset = pixel * conv.k + channel;
  low = _mm512_add_ps(low, _mm512_loadu_ps(conv.bias + channel));
  high = _mm512_add_ps(high, _mm512_loadu_ps(conv.bias + channel + kVector));
  if (conv.residual) {
    low = _mm512_add_ps(low, load(conv.residual + offset));
    high = _mm512_add_ps(high, load(conv.residual + offset + kVector));
  }
  if (conv.relu) {  // the operand order keeps NaN
    low = _mm512_max_ps(_mm512_setzero_ps(), low);
    high = _mm512_max_ps(_mm512_setzero_ps(), high);
  }
  _mm512_storeu_si512(conv.out + offset, (__m512i)_mm512_cvtne2ps_pbh(high, low));
}

// The number of chunks of about `cache` bytes: a multiple of the number of threads.
int64_t chunks_of(int64_t bytes, int64_t cache, int64_t threads) {
  return (std::max<int64_t>(bytes / cache, 1) + threads - 1) / threads * threads;
}

// The start of the k'th of `parts` nearly equal parts of `count`.
int64_t part(int64_t count, int64_t k, int64_t parts) { return k * count / parts; }

}  // namespace
