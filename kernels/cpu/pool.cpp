// Max pooling 3x3, stride 2, padding 1, on CPU: bf16, channels_last, NaN kept. The input is read from memory once, the
// output written once; the maxima are taken in pairs of fp32, which hold bf16 exactly.

#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <limits>

extern "C" void max_pool(const uint16_t* x, uint16_t* out, int64_t n, int64_t h, int64_t w, int64_t c, int64_t threads) {
  const int64_t out_h = (h + 1) / 2, out_w = (w + 1) / 2;
  const __m512i odd = _mm512_set1_epi32(static_cast<int>(0xffff0000));
  const auto larger = [](__m512 most, __m512i value) {  // max_ps gives its second operand where either is NaN
    const __m512 next = _mm512_castsi512_ps(value);
    return _mm512_mask_mov_ps(_mm512_max_ps(most, next), _mm512_cmp_ps_mask(most, most, _CMP_UNORD_Q), most);
  };
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t line = 0; line < n * out_h; ++line) {
    const int64_t image = line / out_h, y = line % out_h * 2 - 1;
    for (int64_t out_x = 0; out_x < out_w; ++out_x) {
      const int64_t x0 = out_x * 2 - 1;
      for (int64_t channel = 0; channel < c; channel += 32) {
        __m512 evens = _mm512_set1_ps(-std::numeric_limits<float>::infinity()), odds = evens;
        for (int64_t i = std::max<int64_t>(y, 0); i < std::min(y + 3, h); ++i)
          for (int64_t j = std::max<int64_t>(x0, 0); j < std::min(x0 + 3, w); ++j) {
            const __m512i pairs = _mm512_loadu_si512(x + ((image * h + i) * w + j) * c + channel);
            evens = larger(evens, _mm512_slli_epi32(pairs, 16));
            odds = larger(odds, _mm512_and_si512(pairs, odd));
          }
        const __m512i low = _mm512_srli_epi32(_mm512_castps_si512(evens), 16);
        _mm512_storeu_si512(out + (line * out_w + out_x) * c + channel,
                            _mm512_or_si512(low, _mm512_castps_si512(odds)));
      }
    }
  }
}
