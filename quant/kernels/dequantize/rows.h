// Dequantizes rows of any type: a table from type to the function that unpacks its blocks.
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

// Every layout has `elements` and an overload of dequantize_block.
constexpr Dequantizer kDequantizers[] = {
#define WC_TYPE(name, number, elements, bytes, quantizer, importance, rows) \
  dequantizer<Block##name>(WEIGHTCAST_##name),
#include "types.inc"
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
