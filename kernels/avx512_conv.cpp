// Convolution for inference on CPU: bf16 in and out, fp32 sums, channels_last, then bias, residual add and ReLU.
//
// Two algorithms over one register kernel of AVX512-BF16 dot products (`product`):
//   direct    each output pixel is the sum over the taps of (the channels of an input pixel) x (a slice of the weight);
//   winograd  3x3 at stride 1 as F(2x2, 3x3) of Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks",
//             CVPR 2016, section 4.1: 16 products of tiles in place of 36, 2.25 times fewer multiplications.
// The transformed tiles are rounded to bf16 once more, so winograd's error is about 1.5 times that of direct.
//
// Bytes: the input is read once per pass over the weight's columns from cache, the weight once per chunk of pixels,
// the output written once (and the residual read once). Subnormal bf16 numbers count as zero, as the instructions do.

#include <immintrin.h>
#include <omp.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <utility>

namespace {

using bf16 = uint16_t;

constexpr int64_t kVector = 16;           // fp32 numbers a register
constexpr int64_t kColumn = 32;           // output channels that one product yields: two registers
constexpr int64_t kRows = 14;             // output pixels, or tiles, of one product: 28 of the 32 registers hold sums
constexpr int64_t kPoints = 16;           // products of F(2x2, 3x3)
constexpr int64_t kMostKernel = 7;        // 7x7 taps at most
constexpr int64_t kCache = 1 << 18;       // bytes of pixels, and of weight, that are worked on together: a share of L2
constexpr int64_t kTilesCache = 1 << 19;  // bytes of transformed tiles that are
constexpr int64_t kAhead = 4096;          // numbers of weight that are fetched into L2 before they are needed
constexpr int64_t kFewGroups = 4;         // groups of rows a thread; with fewer, threads share the columns as well

// One call. kernels/avx512_conv.py has the same fields in the same order.
struct Conv {
  const bf16* x;         // [n, h, w, c]
  const bf16* weight;    // packed by columns: [k / 32, taps or points, c / 2, 32, 2]
  const float* bias;     // [k]
  const bf16* residual;  // [n, out_h, out_w, k], or null; may be `out`
  bf16* out;             // [n, out_h, out_w, k]
  bf16* scratch;         // direct: c zeros; winograd: as many numbers as winograd_scratch says
  int64_t n, h, w;
  int64_t c;  // input channels, even; a multiple of 16 for winograd
  int64_t k;  // output channels, a multiple of 32
  int64_t kernel, stride, padding, out_h, out_w, relu, threads;
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
  Product of[kRows];
};

template <int... Rows>
constexpr Products products(std::integer_sequence<int, Rows...>) {
  return {{product<Rows + 1>...}};
}

constexpr Products kProducts = products(std::make_integer_sequence<int, kRows>{});

// Bias, residual and ReLU for 32 channels of one output pixel.
void finish(const Conv& conv, int64_t pixel, int64_t channel, __m512 low, __m512 high) {
  const int64_t at = pixel * conv.k + channel;
  low = _mm512_add_ps(low, _mm512_loadu_ps(conv.bias + channel));
  high = _mm512_add_ps(high, _mm512_loadu_ps(conv.bias + channel + kVector));
  if (conv.residual) {
    low = _mm512_add_ps(low, load(conv.residual + at));
    high = _mm512_add_ps(high, load(conv.residual + at + kVector));
  }
  if (conv.relu) {  // the operand order keeps NaN
    low = _mm512_max_ps(_mm512_setzero_ps(), low);
    high = _mm512_max_ps(_mm512_setzero_ps(), high);
  }
  _mm512_storeu_si512(conv.out + at, (__m512i)_mm512_cvtne2ps_pbh(high, low));
}

// A number of chunks that all threads share evenly, each of about `cache` bytes.
int64_t chunks_of(int64_t bytes, int64_t cache, int64_t threads) {
  return (std::max<int64_t>(bytes / cache, 1) + threads - 1) / threads * threads;
}

// The k'th of `parts` nearly equal parts of `count` begins here.
int64_t part(int64_t count, int64_t k, int64_t parts) { return k * count / parts; }

void direct_group(const Conv& conv, int64_t begin, int64_t rows, int64_t first, int64_t last) {
  const int64_t taps = conv.kernel * conv.kernel;
  const bf16* a[kMostKernel * kMostKernel * kRows];
  int64_t out_x = begin % conv.out_w, out_y = begin / conv.out_w % conv.out_h;
  int64_t image = begin / (conv.out_w * conv.out_h);
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t y = out_y * conv.stride - conv.padding, x = out_x * conv.stride - conv.padding;
    const bf16* corner = conv.x + ((image * conv.h + y) * conv.w + x) * conv.c;
    const bf16** to = a + r;
    for (int64_t i = 0; i < conv.kernel; ++i, corner += conv.w * conv.c) {
      const bool in_rows = y + i >= 0 && y + i < conv.h;
      for (int64_t j = 0; j < conv.kernel; ++j, to += kRows)
        *to = in_rows && x + j >= 0 && x + j < conv.w ? corner + j * conv.c : conv.scratch;
    }
    if (++out_x == conv.out_w) {
      out_x = 0;
      if (++out_y == conv.out_h) out_y = 0, ++image;
    }
  }
  alignas(64) float sums[kRows * kColumn];
  for (int64_t column = first; column < last; ++column) {
    kProducts.of[rows - 1](a, taps, conv.weight + column * taps * conv.c * kColumn, conv.c / 2, sums);
    for (int64_t r = 0; r < rows; ++r)
      finish(conv, begin + r, column * kColumn, _mm512_load_ps(sums + r * kColumn),
             _mm512_load_ps(sums + r * kColumn + kVector));
  }
}

// The tiles of F(2x2, 3x3), 2x2 output pixels each, in groups of at most 14.
struct Tiles {
  const Conv& conv;
  const int64_t high = (conv.h + 1) / 2, wide = (conv.w + 1) / 2;
  const int64_t count = conv.n * high * wide, groups = (count + kRows - 1) / kRows;
  const int64_t block = kPoints * kRows * conv.c;  // numbers of one transformed group: [points, rows, c]

  int64_t begin(int64_t group) const { return part(count, group, groups); }

  int64_t rows(int64_t group) const { return begin(group + 1) - begin(group); }

  // One tile into its row of the group's block: B^T d B, with B^T = [1 0 -1 0; 0 1 1 0; 0 -1 1 0; 0 1 0 -1], in bf16.
  void transform(int64_t group, int64_t of_group, bf16* to) const {
    const int64_t tile = begin(group) + of_group;
    to += of_group * conv.c;
    const int64_t y = tile / wide % high * 2 - 1, x = tile % wide * 2 - 1;
    const bf16* corner = conv.x + ((tile / (high * wide) * conv.h + y) * conv.w + x) * conv.c;
    __mmask16 inside[4][4];
    for (int i = 0; i < 4; ++i)
      for (int j = 0; j < 4; ++j)
        inside[i][j] = y + i >= 0 && y + i < conv.h && x + j >= 0 && x + j < conv.w ? 0xffff : 0;
    for (int64_t c = 0; c < conv.c; c += kVector, corner += kVector, to += kVector) {
      __m512 t[4][4];
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) {
        __m512 d[4];
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i)
          d[i] = widen(_mm256_maskz_loadu_epi16(inside[i][j], corner + (i * conv.w + j) * conv.c));
        t[0][j] = _mm512_sub_ps(d[0], d[2]);
        t[1][j] = _mm512_add_ps(d[1], d[2]);
        t[2][j] = _mm512_sub_ps(d[2], d[1]);
        t[3][j] = _mm512_sub_ps(d[1], d[3]);
      }
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        const __m512 v[4] = {_mm512_sub_ps(t[i][0], t[i][2]), _mm512_add_ps(t[i][1], t[i][2]),
                             _mm512_sub_ps(t[i][2], t[i][1]), _mm512_sub_ps(t[i][1], t[i][3])};
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j)
          _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + (4 * i + j) * kRows * conv.c),
                              (__m256i)_mm512_cvtneps_pbh(v[j]));
      }
    }
  }

  // The 16 products of one transformed group and one column, then A^T m A with A^T = [1 1 1 0; 0 1 -1 -1].
  void multiply(int64_t group, int64_t column, const bf16* from) const {
    const int64_t rows = this->rows(group);
    alignas(64) float sums[kPoints * kRows * kColumn];
    for (int64_t p = 0; p < kPoints; ++p) {
      const bf16* a[kRows];
      for (int64_t r = 0; r < rows; ++r) a[r] = from + (p * kRows + r) * conv.c;
      kProducts.of[rows - 1](a, 1, conv.weight + (column * kPoints + p) * conv.c * kColumn, conv.c / 2,
                             sums + p * kRows * kColumn);
    }
    for (int64_t r = 0; r < rows; ++r) finish_tile(begin(group) + r, column * kColumn, sums + r * kColumn);
  }

  void finish_tile(int64_t tile, int64_t channel, const float* sums) const {
    const int64_t y = tile / wide % high * 2, x = tile % wide * 2, image = tile / (high * wide);
    __m512 out[2][2][2];
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      __m512 t[2][4];
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) {
        __m512 m[4];
        for (int i = 0; i < 4; ++i) m[i] = _mm512_load_ps(sums + (4 * i + j) * kRows * kColumn + half * kVector);
        t[0][j] = _mm512_add_ps(_mm512_add_ps(m[0], m[1]), m[2]);
        t[1][j] = _mm512_sub_ps(_mm512_sub_ps(m[1], m[2]), m[3]);
      }
      for (int i = 0; i < 2; ++i) {
        out[i][0][half] = _mm512_add_ps(_mm512_add_ps(t[i][0], t[i][1]), t[i][2]);
        out[i][1][half] = _mm512_sub_ps(_mm512_sub_ps(t[i][1], t[i][2]), t[i][3]);
      }
    }
    for (int i = 0; i < 2; ++i)
      for (int j = 0; j < 2; ++j)
        if (y + i < conv.h && x + j < conv.w)
          finish(conv, (image * conv.h + y + i) * conv.w + x + j, channel, out[i][j][0], out[i][j][1]);
  }
};

bool few(const Tiles& tiles) { return tiles.groups < kFewGroups * tiles.conv.threads; }

int64_t chunks_of(const Tiles& tiles) {
  return chunks_of(tiles.groups * tiles.block * 2, kTilesCache, tiles.conv.threads);
}

int64_t groups_of_a_chunk(const Tiles& tiles) { return (tiles.groups + chunks_of(tiles) - 1) / chunks_of(tiles); }

// Each thread transforms a chunk that its L2 holds and multiplies it by the whole weight.
void winograd_by_chunks(const Tiles& tiles, int64_t columns) {
  const int64_t chunks = chunks_of(tiles), most = groups_of_a_chunk(tiles);
#pragma omp parallel for schedule(static) num_threads(tiles.conv.threads)
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    const int64_t first = part(tiles.groups, chunk, chunks), last = part(tiles.groups, chunk + 1, chunks);
    bf16* mine = tiles.conv.scratch + omp_get_thread_num() * most * tiles.block;
    for (int64_t group = first; group < last; ++group)
      for (int64_t row = 0; row < tiles.rows(group); ++row)
        tiles.transform(group, row, mine + (group - first) * tiles.block);
    for (int64_t column = 0; column < columns; ++column)
      for (int64_t group = first; group < last; ++group)
        tiles.multiply(group, column, mine + (group - first) * tiles.block);
  }
}

// Few tiles: all threads transform, then share the columns of the weight, so that each is read by one thread.
void winograd_by_columns(const Tiles& tiles, int64_t columns) {
  bf16* shared = tiles.conv.scratch;
#pragma omp parallel num_threads(tiles.conv.threads)
  {
#pragma omp for schedule(static)
    for (int64_t slot = 0; slot < tiles.groups * kRows; ++slot)
      if (slot % kRows < tiles.rows(slot / kRows))
        tiles.transform(slot / kRows, slot % kRows, shared + slot / kRows * tiles.block);
#pragma omp for schedule(static)
    for (int64_t item = 0; item < tiles.groups * columns; ++item)
      tiles.multiply(item % tiles.groups, item / tiles.groups, shared + item % tiles.groups * tiles.block);
  }
}

}  // namespace

extern "C" void direct(const Conv* call) {
  const Conv conv = *call;
  const int64_t pixels = conv.n * conv.out_h * conv.out_w, groups = (pixels + kRows - 1) / kRows;
  const int64_t columns = conv.k / kColumn;
  const int64_t group_bytes = kRows * (conv.stride * conv.stride * conv.c + 2 * conv.k) * 2;
  const int64_t column_bytes = conv.kernel * conv.kernel * conv.c * kColumn * 2;
  const auto multiply = [&](int64_t group, int64_t first, int64_t last) {
    const int64_t begin = part(pixels, group, groups);
    direct_group(conv, begin, part(pixels, group + 1, groups) - begin, first, last);
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

extern "C" void winograd(const Conv* call) {
  const Conv conv = *call;
  const Tiles tiles{conv};
  (few(tiles) ? winograd_by_columns : winograd_by_chunks)(tiles, conv.k / kColumn);
}

extern "C" int64_t winograd_scratch(const Conv* call) {
  const Tiles tiles{*call};
  return tiles.block * (few(tiles) ? tiles.groups : call->threads * groups_of_a_chunk(tiles));
}
