// Convolution for inference on CPU: bf16 in and out, fp32 sums, channels_last, then bias, residual add and ReLU.
//
// Two algorithms over one register kernel of AVX512-BF16 dot products (`product`):
//   direct    each output pixel is the sum over the taps of (the channels of an input pixel) x (a slice of the weight);
//             the instruction takes channels in pairs: if their number is odd, the pixels under the kernel are first
//             copied one after the other, and count as a single tap;
//   winograd  3x3 at stride 1 as F(2x2, 3x3) of Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks",
//             CVPR 2016, section 4.1: 16 products of tiles instead of 36, 2.25 times fewer multiplications.
// The transformed tiles are rounded to bf16 once more, so winograd's error is about 1.5 times that of direct.
//
// Bytes: the input is read from cache once per pass over the weight's columns, the weight once per chunk of pixels; the
// output is written once (and the residual read once). Subnormal bf16 values count as zero, as in the instructions.

#include "direct.hpp"
#include "winograd.hpp"

extern "C" int64_t direct_scratch(const Sizes* sizes) {
  const Conv conv{*sizes};
  return Direct{conv}.scratch();
}

extern "C" void direct(const Sizes* sizes, const bf16* x, const bf16* weight, const float* bias, const bf16* residual,
                       bf16* out, bf16* scratch) {
  const Conv conv{*sizes, x, weight, bias, residual, out, scratch};
  const Direct direct{conv};
  direct.clear();
  const int64_t pixels = conv.n * conv.out_h * conv.out_w, groups = (pixels + kRows - 1) / kRows;
  const int64_t columns = conv.k / kColumn;
  const int64_t group_bytes = kRows * (conv.stride * conv.stride * conv.c + 2 * conv.k) * 2;
  const int64_t column_bytes = direct.taps * direct.run * kColumn * 2;
  const auto multiply = [&](int64_t group, int64_t first, int64_t last) {
    const int64_t begin = part(pixels, group, groups);
    direct.multiply(begin, part(pixels, group + 1, groups) - begin, first, last);
  };
  if (groups < kFewGroups * conv.threads) {
#pragma omp parallel for schedule(static) num_threads(conv.threads)
    for (int64_t item = 0; item < groups * columns; ++item) multiply(item % groups, item / groups, item / groups + 1);
    return;
  }
  const int64_t chunks = chunks_of(groups * group_bytes, kCache, conv.threads);
  const int64_t pass = std::clamp<int64_t>(kCache / column_bytes, 1, columns);
#pragma omp parallel for schedule(static) num_threads(conv.threads)
  for (int64_t chunk = 0; chunk < chunks; ++chunk)
    for (int64_t first = 0; first < columns; first += pass)
      for (int64_t group = part(groups, chunk, chunks); group < part(groups, chunk + 1, chunks); ++group)
        multiply(group, first, std::min(first + pass, columns));
}

extern "C" int64_t winograd_scratch(const Sizes* sizes) {
  const Conv conv{*sizes};
  const Tiles tiles{conv};
  return tiles.block * (few(tiles) ? tiles.groups : conv.threads * groups_of_a_chunk(tiles));
}

extern "C" void winograd(const Sizes* sizes, const bf16* x, const bf16* weight, const float* bias, const bf16* residual,
                         bf16* out, bf16* scratch) {
  const Conv conv{*sizes, x, weight, bias, residual, out, scratch};
  const Tiles tiles{conv};
  (few(tiles) ? winograd_by_columns : winograd_by_chunks)(tiles, conv.k / kColumn);
}
