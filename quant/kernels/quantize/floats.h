// Driver of the plain float outputs F32, F16 and BF16: converts tiles, transposed to rows along `in`.
#pragma once

#include "quantize/driver.h"

namespace weightcast {
namespace {

// Stands for the quantizer of a plain float type in types.inc. On the CPU, quantize_floats does the work.
template <class Emit>
struct FloatRows;

constexpr int kDepth = 32;  // in-rows of a tile

// Convert a finite tile. Returns false if a value overflows, with the place of the first in `result`.
template <class Emit>
bool convert_tile(const Tile& tile, int depth, typename Emit::stored (&out)[kDepth][kWidth],
                  int64_t out0, int64_t in0, weightcast_result& result) {
  for (int i = 0; i < depth; ++i) {
    for (int c = 0; c < kWidth; ++c) out[i][c] = Emit::convert(tile.x[i][c]);
  }
  if constexpr (sizeof(typename Emit::stored) == 2) {
    uint16_t worst = 0;
    for (int i = 0; i < depth; ++i) {
      for (int c = 0; c < kWidth; ++c) {
        const uint16_t magnitude = out[i][c] & 0x7fffu;
        worst = worst > magnitude ? worst : magnitude;
      }
    }
    if (worst < Emit::infinity) return true;
    for (int c = 0; c < kWidth; ++c) {
      for (int i = 0; i < depth; ++i) {
        if (Emit::overflows(out[i][c])) {
          result.bad_out = out0 + c;
          result.bad_in = in0 + i;
          return false;
        }
      }
    }
  }
  return true;
}

// Buffers of a conversion to stored floats: part of the source, one tile of it, what it becomes.
template <class stored>
struct FloatWorkspace {
  Stage stage;
  Tile tile;
  alignas(64) stored out[kDepth][kWidth];
  alignas(64) stored rows[kWidth][kDepth];
};

template <class Emit>
int32_t quantize_floats(const weightcast_source& s, uint8_t* dst, int64_t dst_stride,
                        weightcast_result& result) {
  using stored = typename Emit::stored;
  const OnHeap<FloatWorkspace<stored>> buffers;
  if (!buffers) return WEIGHTCAST_NO_MEMORY;
  auto& [stage, tile, out, rows] = *buffers;
  std::memset(out, 0, sizeof out);
  const int run = run_columns(s);
  for (int64_t out0 = 0; out0 < s.n_out; out0 += run) {
    const int columns = at_most(s.n_out - out0, run);
    for (int64_t in0 = 0; in0 < s.n_in; in0 += kDepth) {
      const int depth = at_most(s.n_in - in0, kDepth);
      const MemoryView view = view_at(s, out0, columns, in0, depth, stage);
      for (int skip = 0; skip < columns; skip += kWidth) {
        const int64_t first = out0 + skip;
        const int width = at_most(columns - skip, kWidth);
        load_tile(s, view, skip, first, width, in0, depth, tile);
        if (!tile_is_finite(s, tile, first, in0, depth, result)) return WEIGHTCAST_NOT_FINITE;
        if (!convert_tile<Emit>(tile, depth, out, first, in0, result)) return WEIGHTCAST_OVERFLOW;
        transpose_tile(out, rows);
        uint8_t* row = dst + first * dst_stride + in0 * static_cast<int64_t>(sizeof(stored));
        for (int c = 0; c < width; ++c, row += dst_stride) {
          if (depth == kDepth) {
            std::memcpy(row, rows[c], sizeof rows[c]);
          } else {
            std::memcpy(row, rows[c], static_cast<size_t>(depth) * sizeof(stored));
          }
        }
      }
    }
  }
  return WEIGHTCAST_OK;
}

}  // namespace
}  // namespace weightcast
