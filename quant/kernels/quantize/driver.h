// Driver of the block quantizers on the CPU: walks a source tile by tile and stores the blocks that the
// quantizer of a type makes. All arithmetic is the quantizer's.
//
// A quantizer describes itself to the driver:
//   struct TypeX {
//     static constexpr int elements, bytes;  // of a block
//     static constexpr int depth;            // in-rows of a tile: whole blocks, at most kMaxDepth
//     static constexpr bool uses_row_sum;    // whether it needs `sigma2`
//     using halves = Halves<...>;            // where a block has float16 scales
//     // Make one block in each of kLanes columns. `importance` [elements] weighs the errors of the
//     // in-rows, or is null. `sigma2` is ggml's: the mean of x * x over whole rows, summed in order,
//     // if there is an importance and uses_row_sum; else 0.
//     static void quantize(Strip x, const float* importance, F sigma2, Bytes out);
//   };
#pragma once

#include "quantize/overflow.h"
#include "quantize/rules.h"
#include "simd/lanes.h"
#include "simd/transpose.h"
#include "source/buffers.h"
#include "source/strip.h"
#include "source/tile.h"

namespace weightcast {
namespace {

inline int at_most(int64_t n, int limit) { return n < limit ? static_cast<int>(n) : limit; }

constexpr int kMaxRun = kRunBytes;  // columns of one-byte elements in a run

// Buffers of a quantization: part of the source, one tile of it, means over rows.
struct Workspace {
  Stage stage;
  Tile tile;
  F means[kMaxRun / kLanes];
};

template <class Rule>
struct RuleWorkspace : Workspace {
  typename Rule::Scratch scratch;
};

// Compute the means of x * x over the rows [out0, out0 + columns), summed in order as ggml does.
inline void row_means(const weightcast_source& s, int64_t out0, int columns, Workspace& work) {
  for (F& mean : work.means) mean = 0.0f;
  for (int64_t in0 = 0; in0 < s.n_in; in0 += kMaxDepth) {
    const int depth = at_most(s.n_in - in0, kMaxDepth);
    const MemoryView view = view_at(s, out0, columns, in0, depth, work.stage);
    for (int skip = 0; skip < columns; skip += kWidth) {
      load_tile(s, view, skip, out0 + skip, at_most(columns - skip, kWidth), in0, depth,
                work.tile);
      for (int c0 = 0; c0 < kWidth; c0 += kLanes) {
        const Strip x{&work.tile.x[0][c0]};
        F& mean = work.means[(skip + c0) / kLanes];
        for (int i = 0; i < depth; ++i) mean += x[i] * x[i];
      }
    }
  }
  for (F& mean : work.means) mean = mean / static_cast<float>(s.n_in);
}

// Store bytes [rows][kLanes] of neighbouring columns to rows of the output `dst`.
inline void store_columns(const uint8_t* bytes, int rows, int columns, uint8_t* dst,
                          int64_t dst_stride) {
  constexpr int n = kSquare<uint8_t>;
  if constexpr (kLanes % n != 0) {
    for (int c = 0; c < columns; ++c) {
      for (int b = 0; b < rows; ++b) dst[c * dst_stride + b] = bytes[b * kLanes + c];
    }
  } else {
    alignas(64) uint8_t squares[n][n];
    for (int c0 = 0; c0 < columns; c0 += n) {
      const int count = columns - c0 < n ? columns - c0 : n;
      for (int b = 0; b < rows; b += n) {
        const int length = rows - b < n ? rows - b : n;
        transpose_square(bytes + b * kLanes + c0, kLanes, squares[0], n);
        for (int c = 0; c < count; ++c) {
          uint8_t* out = dst + (c0 + c) * dst_stride + b;
          if (length == n) {
            std::memcpy(out, squares[c], n);
          } else {
            std::memcpy(out, squares[c], static_cast<size_t>(length));
          }
        }
      }
    }
  }
}

// Note the first of these blocks, [blocks * Type::bytes][kLanes], that has an infinite or NaN scale.
template <class Type>
void note_overflow(Bytes bytes, int blocks, int columns, int64_t out0,
                   int64_t in0, weightcast_result& result, bool& overflow) {
  for (int block = 0; block < blocks; ++block) {
    const Bytes first = bytes + block * Type::bytes;
    if (overflow || !has_overflow(first, typename Type::halves{})) continue;
    for (int c = columns - 1; c >= 0; --c) {
      if (!column_overflows(first, c, typename Type::halves{})) continue;
      overflow = true;
      result.bad_out = out0 + c;
      result.bad_in = in0 + block * Type::elements;
    }
  }
}

// Make the blocks of one tile: columns [skip, skip + width) of a view that begins at (out0, in0).
template <class Type, class Rule>
void quantize_tile(Rule rule, const float* importance, int skip, int width, int64_t out0, int64_t in0,
                   int depth, RuleWorkspace<Rule>& work, uint8_t* dst, int64_t dst_stride,
                   weightcast_result& result, bool& overflow) {
  constexpr int kRows = Type::depth / Type::elements * Type::bytes;
  alignas(64) uint8_t made[(kRows + 15) / 16 * 16 * kLanes];
  std::memset(made + kRows * kLanes, 0, sizeof made - kRows * kLanes);
  const Bytes bytes{made};
  const int blocks = depth / Type::elements;
  for (int c0 = 0; c0 < width; c0 += kLanes) {
    for (int block = 0; block < blocks; ++block) {
      const int in = block * Type::elements;
      rule(Strip{&work.tile.x[in][c0]}, importance == nullptr ? nullptr : importance + in0 + in,
           work.means[(skip + c0) / kLanes], work.scratch, bytes + block * Type::bytes);
    }
    const int columns = at_most(width - c0, kLanes);
    note_overflow<Type>(bytes, blocks, columns, out0 + skip + c0, in0, result, overflow);
    store_columns(made, blocks * Type::bytes, columns, dst + c0 * dst_stride, dst_stride);
  }
}

// Make the blocks of a source, each by `rule`.
template <class Type, class Rule>
int32_t quantize_blocks(Rule rule, const weightcast_source& s, const float* importance, uint8_t* dst,
                        int64_t dst_stride, weightcast_result& result) {
  static_assert(Type::depth % Type::elements == 0 && Type::depth <= kMaxDepth);
  if (s.n_in % Type::elements != 0) return WEIGHTCAST_BAD_SHAPE;
  const OnHeap<RuleWorkspace<Rule>> buffers;
  if (!buffers) return WEIGHTCAST_NO_MEMORY;
  RuleWorkspace<Rule>& work = *buffers;
  for (F& mean : work.means) mean = 0.0f;
  bool overflow = false;
  const int run = run_columns(s);
  for (int64_t out0 = 0; out0 < s.n_out; out0 += run) {
    const int columns = at_most(s.n_out - out0, run);
    if (Type::uses_row_sum && importance != nullptr) row_means(s, out0, columns, work);
    for (int64_t in0 = 0; in0 < s.n_in; in0 += Type::depth) {
      const int depth = at_most(s.n_in - in0, Type::depth);
      const MemoryView view = view_at(s, out0, columns, in0, depth, work.stage);
      for (int skip = 0; skip < columns; skip += kWidth) {
        const int width = at_most(columns - skip, kWidth);
        load_tile(s, view, skip, out0 + skip, width, in0, depth, work.tile);
        if (!tile_is_finite(s, work.tile, out0 + skip, in0, depth, result)) {
          return WEIGHTCAST_NOT_FINITE;
        }
        quantize_tile<Type>(rule, importance, skip, width, out0, in0, depth, work,
                            dst + (out0 + skip) * dst_stride + in0 / Type::elements * Type::bytes,
                            dst_stride, result, overflow);
      }
    }
  }
  return overflow ? WEIGHTCAST_OVERFLOW : WEIGHTCAST_OK;
}

}  // namespace
}  // namespace weightcast
