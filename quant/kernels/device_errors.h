// Errors on a device: one thread sums one chunk of one row, then one adds the chunks of a row.
#pragma once

#include "dequantize_blocks.h"
#include "device_tile.h"
#include "errors.h"

namespace weightcast {
namespace {

// Weights of a row that are unpacked together: one block, or a run of plain floats.
template <class Block>
constexpr int kUnpacked = Block::elements > 1 ? Block::elements : 32;

// Chunk `index` % n_out of row `index` / n_out, in parts [chunks, n_out]. `dst` of the arguments are
// the blocks.
template <class Block>
void measure_chunk(const QuantizeArguments& a, weightcast_moments* parts, int64_t index) {
  constexpr int unpacked = kUnpacked<Block>;
  const int64_t out = index % a.n_out, begin = index / a.n_out * kChunk;
  if (begin >= a.n_in) return;
  const int64_t end = begin + kChunk < a.n_in ? begin + kChunk : a.n_in;
  Sums sums;
  int64_t zeroed = 0;
  for (int64_t in = begin; in < end; in += unpacked) {
    const int rows = end - in < unpacked ? static_cast<int>(end - in) : unpacked;
    float y[unpacked];
    const uint8_t* blocks =
        a.dst + out * a.dst_stride + in / Block::elements * int64_t{sizeof(Block)};
    dequantize_blocks<Block>(blocks, rows / Block::elements, y);
    const Column x = column_at(a, out, in, rows);
    uint32_t source_bits = 0, output_bits = 0;
    for (int i = 0; i < rows; ++i) {
      const float value = x[i];
      sums.template add<Block::elements == 1>(static_cast<double>(value),
                                              static_cast<double>(y[i]),
                                              static_cast<double>(in + i));
      source_bits |= float_bits(value);
      output_bits |= float_bits(y[i]);
    }
    if (Block::elements > 1 && output_bits << 1 == 0 && source_bits << 1 != 0) ++zeroed;
  }
  parts[index] = sums.of(0);
  parts[index].zeroed_blocks += zeroed;
}

// The chunks of row `out`, in order; the row takes the place of its first.
inline void add_chunks(weightcast_moments* parts, int64_t n_out, int64_t chunks, int64_t out) {
  if (out >= n_out) return;
  weightcast_moments row = parts[out];
  for (int64_t chunk = 1; chunk < chunks; ++chunk) add_chunk(row, parts[chunk * n_out + out]);
  parts[out] = row;
}

}  // namespace
}  // namespace weightcast
