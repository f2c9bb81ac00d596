// Winograd's convolution by tiles of 2x2 output pixels; see conv.cpp for the paper.

#pragma once

#include "product.hpp"

namespace {

constexpr int64_t kPoints = 16;           // products of F(2x2, 3x3)
constexpr int64_t kTilesCache = 1 << 19;  // bytes of transformed tiles per chunk

// The tiles of F(2x2, 3x3), 2x2 output pixels each, in groups of at most 14.
struct Tiles {
  const Conv& conv;
  const int64_t high = (conv.h + 1) / 2, wide = (conv.w + 1) / 2;
  const int64_t count = conv.n * high * wide, groups = (count + kRows - 1) / kRows;
  const int64_t block = kPoints * kRows * conv.c;  // values of one transformed group: [points, rows, c]

  int64_t begin(int64_t group) const { return part(count, group, groups); }

  int64_t rows(int64_t group) const { return begin(group + 1) - begin(group); }

  // Transforms one tile into its row of the group's block, in bf16: B^T d B, with
  // B^T = [1 0 -1 0; 0 1 1 0; 0 -1 1 0; 0 1 0 -1].
  void transform(int64_t group, int64_t row, bf16* to) const {
    const int64_t tile = begin(group) + row;
    to += row * conv.c;
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

  // Computes the 16 products of one transformed group and one column, then A^T m A with A^T = [1 1 1 0; 0 1 -1 -1].
  void multiply(int64_t group, int64_t column, const bf16* from) const {
    const int64_t rows = this->rows(group);
    alignas(64) float sums[kPoints * kRows * kColumn];
    for (int64_t p = 0; p < kPoints; ++p) {
      const bf16* a[kRows];
      for (int64_t r = 0; r < rows; ++r) a[r] = from + (p * kRows + r) * conv.c;
      kProducts.by_rows[rows - 1](a, 1, conv.weight + (column * kPoints + p) * conv.c * kColumn, conv.c / 2,
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

// Each thread transforms a chunk that fits its L2 and multiplies it by the whole weight.
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

// For few tiles: all threads transform, then share the columns of the weight, so that each is read by one thread.
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
