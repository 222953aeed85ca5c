// Tile loader: reads part of any source as float32, with columns of the matrix side by side.
//
// Lanes are output columns: sixteen neighbouring `out` are sixteen SIMD lanes, and blocks run down
// `in`. A JAX source is contiguous along `out`, so loading, dequantizing and transposing are one
// pass; a row-major source is transposed on the way.
#pragma once

#include "simd/transpose.h"
#include "source/elements.h"
#include "source/strip.h"
#include "weightcast.h"

namespace weightcast {
namespace {

constexpr int kMaxDepth = 256;  // in-rows of a tile, at most: one super-block

struct alignas(64) Tile {
  float x[kMaxDepth][kWidth];
};

// The elements of a source from some (out0, in0) on: where they are stored, or copied to a Stage.
struct MemoryView {
  const void* first;
  int64_t stride_out, stride_in;
};

inline int64_t group_rows(const weightcast_source& s) { return s.n_in / s.groups; }

// Prefetch a run that is needed soon: there are more runs than a processor follows by itself. A run
// beyond the source does no harm.
inline void prefetch(const void* run, int64_t bytes_ahead, int64_t bytes) {
  const uintptr_t next = reinterpret_cast<uintptr_t>(run) + static_cast<uintptr_t>(bytes_ahead);
  for (int64_t line = 0; line < bytes; line += 64) {
    __builtin_prefetch(reinterpret_cast<const void*>(next + static_cast<uintptr_t>(line)));
  }
}

// Bytes that are read at once from a row along `out`: rows are far apart, often by a power of two, so
// that single cache lines of many rows would evict each other.
constexpr int kRunBytes = 256;

// Copies of some in-rows of a source, kRunBytes of each, side by side.
struct alignas(64) Stage {
  uint8_t rows[kMaxDepth][kRunBytes];
};

// The number of columns to work on together.
inline int run_columns(const weightcast_source& s) {
  return s.stride_out == 1 ? kRunBytes / element_bytes(s.type) : kWidth;
}

// View the elements from (out0, in0) on, `columns` wide: in place, or copied to `stage` if that pays.
inline MemoryView view_at(const weightcast_source& s, int64_t out0, int columns, int64_t in0,
                          int depth, Stage& stage) {
  constexpr int kAhead = 16;  // rows
  const int64_t size = element_bytes(s.type);
  const auto* first =
      static_cast<const uint8_t*>(s.data) + (out0 * s.stride_out + in0 * s.stride_in) * size;
  if (s.stride_out != 1 || columns <= kWidth) return {first, s.stride_out, s.stride_in};
  const int64_t bytes = columns * size;
  for (int i = 0; i < depth; ++i) {
    const uint8_t* row = first + i * s.stride_in * size;
    prefetch(row, kAhead * s.stride_in * size, bytes);
    if (bytes == kRunBytes) {
      std::memcpy(stage.rows[i], row, kRunBytes);
    } else {
      std::memcpy(stage.rows[i], row, static_cast<size_t>(bytes));
    }
  }
  return {stage.rows, 1, kRunBytes / size};
}

// Load from a source that is contiguous along `out`: rows of the tile are runs of the source.
template <int type>
void load_along_out(const typename Element<type>::stored* data, int64_t stride_in, int width,
                    int depth, Tile& tile) {
  for (int i = 0; i < depth; ++i) {
    const auto* row = data + i * stride_in;
    if (width == kWidth) {
      for (int c = 0; c < kWidth; ++c) tile.x[i][c] = Element<type>::value(row[c]);
    } else {
      for (int c = 0; c < width; ++c) tile.x[i][c] = Element<type>::value(row[c]);
    }
  }
}

// Transpose kTransposed columns, contiguous along `in`, to rows of the tile.
inline void transpose_columns(const float* columns, int64_t stride, int depth, int c0, Tile& tile) {
  for (int i = 0; i < depth; i += kSquare<float>) {
    transpose_rows(columns + i, stride, &tile.x[i][c0], kWidth);
  }
}

// Load from a source that is contiguous along `in`: a few columns at a time, transposed in squares.
template <int type>
void load_along_in(const typename Element<type>::stored* data, int64_t stride_out, int width,
                   int depth, Tile& tile) {
  constexpr int n = kTransposed;
  alignas(64) float columns[n][kMaxDepth];
  for (int c0 = 0; c0 < width; c0 += n) {
    const int count = width - c0 < n ? width - c0 : n;
    for (int c = 0; c < count; ++c) {
      constexpr int64_t size = sizeof *data;
      prefetch(data + (c0 + c) * stride_out, depth * size, depth * size);
    }
    if constexpr (type == WEIGHTCAST_F32) {
      if (count == n) {
        transpose_columns(data + c0 * stride_out, stride_out, depth, c0, tile);
        continue;
      }
    }
    for (int c = 0; c < count; ++c) {
      const auto* column = data + (c0 + c) * stride_out;
      for (int i = 0; i < depth; ++i) columns[c][i] = Element<type>::value(column[i]);
    }
    for (int c = count; c < n; ++c) std::memset(columns[c], 0, sizeof columns[c]);
    transpose_columns(columns[0], kMaxDepth, depth, c0, tile);
  }
}

// Load in-rows [in0, in0 + depth) of columns [out0, out0 + width), where `view` begins. Columns from
// `width` on become zeros; rows from `depth` on are undefined.
template <int type>
void load_typed(const weightcast_source& s, const MemoryView& view, int64_t out0, int width,
                int64_t in0, int depth, Tile& tile) {
  const auto* data = static_cast<const typename Element<type>::stored*>(view.first);
  if (width < kWidth) std::memset(&tile, 0, sizeof(tile.x[0]) * static_cast<size_t>(depth));
  if (view.stride_out == 1) {
    load_along_out<type>(data, view.stride_in, width, depth, tile);
  } else if (view.stride_in == 1 && depth % kSquare<float> == 0) {
    load_along_in<type>(data, view.stride_out, width, depth, tile);
  } else {
    for (int c = 0; c < width; ++c) {
      for (int i = 0; i < depth; ++i) {
        tile.x[i][c] = Element<type>::value(data[c * view.stride_out + i * view.stride_in]);
      }
    }
  }
  if constexpr (type == WEIGHTCAST_I8) {
    int64_t group = in0 / group_rows(s);
    for (int i = 0; i < depth;) {
      const int64_t group_end = (group + 1) * group_rows(s) - in0;
      const float* scales = s.scales + group * s.scale_stride + out0;
      for (; i < depth && i < group_end; ++i) {
        if (width == kWidth) {
          for (int c = 0; c < kWidth; ++c) tile.x[i][c] *= scales[c];
        } else {
          for (int c = 0; c < width; ++c) tile.x[i][c] *= scales[c];
        }
      }
      ++group;
    }
  }
}

// Load a tile from column `skip` on of a view that begins at (out0 - skip, in0).
inline void load_tile(const weightcast_source& s, const MemoryView& view, int skip, int64_t out0,
                      int width, int64_t in0, int depth, Tile& tile) {
  const auto* first = static_cast<const uint8_t*>(view.first) +
                      skip * view.stride_out * element_bytes(s.type);
  const MemoryView from{first, view.stride_out, view.stride_in};
  switch (s.type) {
    case WEIGHTCAST_F32: return load_typed<WEIGHTCAST_F32>(s, from, out0, width, in0, depth, tile);
    case WEIGHTCAST_F16: return load_typed<WEIGHTCAST_F16>(s, from, out0, width, in0, depth, tile);
    case WEIGHTCAST_BF16:
      return load_typed<WEIGHTCAST_BF16>(s, from, out0, width, in0, depth, tile);
    default: return load_typed<WEIGHTCAST_I8>(s, from, out0, width, in0, depth, tile);
  }
}

// Return false if the tile contains NaN or infinity, and note the first in `result`. Products of codes
// and scales are finite, as the scales were checked before.
inline bool tile_is_finite(const weightcast_source& s, const Tile& tile, int64_t out0, int64_t in0,
                           int depth, weightcast_result& result) {
  if (s.type == WEIGHTCAST_I8) return true;
  uint32_t worst[kWidth] = {};
  for (int i = 0; i < depth; ++i) {
    for (int c = 0; c < kWidth; ++c) {
      const uint32_t exponent = float_bits(tile.x[i][c]) & 0x7f800000u;
      worst[c] = worst[c] > exponent ? worst[c] : exponent;
    }
  }
  for (int c = 0; c < kWidth; ++c) {
    if (worst[c] != 0x7f800000u) continue;
    for (int i = 0; i < depth; ++i) {
      if (!is_finite(tile.x[i][c])) {
        result.bad_out = out0 + c;
        result.bad_in = in0 + i;
        return false;
      }
    }
  }
  return true;
}

}  // namespace
}  // namespace weightcast
