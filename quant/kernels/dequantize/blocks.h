// Runs of blocks at any alignment to floats, whatever the layout.
#pragma once

#include "dequantize/codebook.h"
#include "dequantize/iq.h"
#include "dequantize/k.h"
#include "dequantize/simple.h"

namespace weightcast {
namespace {

// Blocks at any alignment to floats, by the overload of dequantize_block for this layout. Unaligned
// ones are copied first, which costs half the speed.
template <class Block>
void dequantize_blocks(const uint8_t* src, int64_t n_blocks, float* dst) {
  if (reinterpret_cast<uintptr_t>(src) % alignof(Block) == 0) {
    const auto* blocks = reinterpret_cast<const Block*>(src);
    for (int64_t i = 0; i < n_blocks; ++i) dequantize_block(blocks[i], dst + i * Block::elements);
    return;
  }
  for (int64_t i = 0; i < n_blocks; ++i) {
    Block block;
    std::memcpy(&block, src + i * static_cast<int64_t>(sizeof block), sizeof block);
    dequantize_block(block, dst + i * Block::elements);
  }
}

}  // namespace
}  // namespace weightcast
