// Dequantization of rows: a table from type to the function that unpacks a block.
#pragma once

#include <cstring>

#include "dequantize/blocks.h"
#include "weightcast.h"

namespace weightcast {
namespace {

struct Dequantizer {
  int32_t type;
  int elements, bytes;  // of a block
  void (*blocks)(const uint8_t* src, int64_t n_blocks, float* dst);
};

template <class Block>
constexpr Dequantizer dequantizer(int32_t type) {
  return {type, Block::elements, sizeof(Block), dequantize_blocks<Block>};
}

// A type joins with one line here: a layout with `elements` and an overload of dequantize_block.
constexpr Dequantizer kDequantizers[] = {
    dequantizer<BlockF32>(WEIGHTCAST_F32),
    dequantizer<BlockF16>(WEIGHTCAST_F16),
    dequantizer<BlockBF16>(WEIGHTCAST_BF16),
    dequantizer<BlockQ4_0>(WEIGHTCAST_Q4_0),
    dequantizer<BlockQ4_1>(WEIGHTCAST_Q4_1),
    dequantizer<BlockQ5_0>(WEIGHTCAST_Q5_0),
    dequantizer<BlockQ5_1>(WEIGHTCAST_Q5_1),
    dequantizer<BlockQ8_0>(WEIGHTCAST_Q8_0),
    dequantizer<BlockQ1_0>(WEIGHTCAST_Q1_0),
    dequantizer<BlockQ2_0>(WEIGHTCAST_Q2_0),
    dequantizer<BlockTQ1_0>(WEIGHTCAST_TQ1_0),
    dequantizer<BlockTQ2_0>(WEIGHTCAST_TQ2_0),
    dequantizer<BlockMXFP4>(WEIGHTCAST_MXFP4),
    dequantizer<BlockNVFP4>(WEIGHTCAST_NVFP4),
    dequantizer<BlockQ2_K>(WEIGHTCAST_Q2_K),
    dequantizer<BlockQ3_K>(WEIGHTCAST_Q3_K),
    dequantizer<BlockQ4_K>(WEIGHTCAST_Q4_K),
    dequantizer<BlockQ5_K>(WEIGHTCAST_Q5_K),
    dequantizer<BlockQ6_K>(WEIGHTCAST_Q6_K),
    dequantizer<BlockIQ4_NL>(WEIGHTCAST_IQ4_NL),
    dequantizer<BlockIQ4_XS>(WEIGHTCAST_IQ4_XS),
    dequantizer<BlockIQ3_S>(WEIGHTCAST_IQ3_S),
    dequantizer<BlockIQ3_XXS>(WEIGHTCAST_IQ3_XXS),
    dequantizer<BlockIQ2_S>(WEIGHTCAST_IQ2_S),
    dequantizer<BlockIQ2_XS>(WEIGHTCAST_IQ2_XS),
    dequantizer<BlockIQ2_XXS>(WEIGHTCAST_IQ2_XXS),
    dequantizer<BlockIQ1_M>(WEIGHTCAST_IQ1_M),
    dequantizer<BlockIQ1_S>(WEIGHTCAST_IQ1_S),
};

inline int32_t dequantize(int32_t type, const void* src, int64_t n_elements, float* dst) {
  for (const Dequantizer& entry : kDequantizers) {
    if (entry.type != type) continue;
    if (n_elements % entry.elements != 0) return WEIGHTCAST_BAD_SHAPE;
    entry.blocks(static_cast<const uint8_t*>(src), n_elements / entry.elements, dst);
    return WEIGHTCAST_OK;
  }
  return WEIGHTCAST_BAD_TYPE;
}

}  // namespace
}  // namespace weightcast
