// Measures the errors of blocks against their source on the CPU, tile by tile as the quantizers go.
#pragma once

#include "dequantize.h"
#include "driver.h"
#include "errors.h"

namespace weightcast {
namespace {

static_assert(kChunk % kMaxDepth == 0, "chunks are whole tiles");

// Rows of blocks, stride bytes apart.
struct Rows {
  const Dequantizer& layout;
  const uint8_t* first;
  int64_t stride;

  const uint8_t* at(int64_t out, int64_t in) const {
    return first + out * stride + in / layout.elements * layout.bytes;
  }
};

// What measuring keeps at hand: a tile of the source, and a few columns of what was made of it.
struct MeasureWorkspace {
  Stage stage;
  Tile tile;
  alignas(64) float rows[kTransposed][kMaxDepth];
  alignas(64) float columns[kMaxDepth][kTransposed];
  Sums sums[kMaxRun / kDoubles];  // of the chunk that is at hand
};

inline bool all_zero(const float* x, int n, int64_t stride) {
  uint32_t bits = 0;
  for (int i = 0; i < n; ++i) bits |= float_bits(x[i * stride]);
  return bits << 1 == 0;
}

// Blocks of a column that are all zeros, though their weights in the tile are not.
inline int64_t zeroed_blocks(const float* row, const float* column, int depth, int elements) {
  int64_t zeroed = 0;
  for (int i = 0; i < depth; i += elements) {
    if (!all_zero(row + i, elements, 1)) continue;
    if (!all_zero(column + i * kWidth, elements, kWidth)) ++zeroed;
  }
  return zeroed;
}

template <bool blocks_of_one>
void add_columns(const MeasureWorkspace& work, int c0, int64_t in0, int depth, Sums* sums) {
  for (int c = 0; c < kTransposed; c += kDoubles) {
    Sums sum = sums[c / kDoubles];
    D in = D{} + static_cast<double>(in0);
    for (int i = 0; i < depth; ++i) {
      sum.add<blocks_of_one>(load_doubles(&work.tile.x[i][c0 + c]),
                             load_doubles(&work.columns[i][c]), in);
      in += 1.0;
    }
    sums[c / kDoubles] = sum;
  }
}

// Add the tile at hand, columns [out0, out0 + width), to `sums`.
inline void measure_tile(const Rows& rows, int64_t out0, int width, int64_t in0, int depth,
                         MeasureWorkspace& work, Sums* sums, weightcast_moments* moments) {
  const int elements = rows.layout.elements;
  for (int c0 = 0; c0 < width; c0 += kTransposed) {
    const int count = at_most(width - c0, kTransposed);
    for (int c = 0; c < count; ++c) {
      const int64_t out = out0 + c0 + c;
      const uint8_t* blocks = rows.at(out, in0);
      prefetch(blocks, kTransposed * rows.stride, depth / elements * rows.layout.bytes);
      rows.layout.blocks(blocks, depth / elements, work.rows[c]);
      if (elements > 1) {
        moments[out].zeroed_blocks +=
            zeroed_blocks(work.rows[c], &work.tile.x[0][c0 + c], depth, elements);
      }
    }
    for (int i = 0; i < depth; i += kSquare<float>) {
      transpose_rows(work.rows[0] + i, kMaxDepth, work.columns[i], kTransposed);
    }
    if (elements > 1) {
      add_columns<false>(work, c0, in0, depth, sums + c0 / kDoubles);
    } else {
      add_columns<true>(work, c0, in0, depth, sums + c0 / kDoubles);
    }
  }
}

inline void measure_rows(const weightcast_source& s, const Rows& rows,
                         weightcast_moments* moments) {
  MeasureWorkspace work;
  std::memset(work.rows, 0, sizeof work.rows);  // columns beyond the last are summed too
  const int run = run_columns(s);
  for (int64_t out0 = 0; out0 < s.n_out; out0 += run) {
    const int columns = at_most(s.n_out - out0, run);
    for (int c = 0; c < columns; ++c) moments[out0 + c] = weightcast_moments{};
    for (int64_t in0 = 0; in0 < s.n_in; in0 += kMaxDepth) {
      if (in0 % kChunk == 0) {
        for (Sums& sums : work.sums) sums = Sums{};
      }
      const int depth = at_most(s.n_in - in0, kMaxDepth);
      const Piece piece = piece_at(s, out0, columns, in0, depth, work.stage);
      for (int skip = 0; skip < columns; skip += kWidth) {
        const int width = at_most(columns - skip, kWidth);
        load_tile(s, piece, skip, out0 + skip, width, in0, depth, work.tile);
        measure_tile(rows, out0 + skip, width, in0, depth, work, work.sums + skip / kDoubles,
                     moments);
      }
      if ((in0 + depth) % kChunk != 0 && in0 + depth < s.n_in) continue;
      for (int c = 0; c < columns; ++c) {
        add_chunk(moments[out0 + c], work.sums[c / kDoubles].of(c % kDoubles));
      }
    }
  }
}

inline int32_t measure(const weightcast_source& s, int32_t type, const void* blocks, int64_t stride,
                       weightcast_moments* moments) {
  for (const Dequantizer& layout : kDequantizers) {
    if (layout.type != type) continue;
    if (s.n_in % layout.elements != 0) return WEIGHTCAST_BAD_SHAPE;
    measure_rows(s, {layout, static_cast<const uint8_t*>(blocks), stride}, moments);
    return WEIGHTCAST_OK;
  }
  return WEIGHTCAST_BAD_TYPE;
}

}  // namespace
}  // namespace weightcast
