// Dequantizes runs of blocks, of any layout and at any alignment.
#pragma once

#include "dequantize/codebook.h"
#include "dequantize/iq.h"
#include "dequantize/k.h"
#include "dequantize/simple.h"

namespace weightcast {
namespace {

// Dequantize blocks with the layout's overload of dequantize_block. Unaligned blocks are copied first,
// which halves the speed.
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
