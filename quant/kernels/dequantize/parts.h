// Dequantizes blocks that consist of parts, one part after another. On a device threads share them.
#pragma once

namespace weightcast {
namespace {

// The parts of a block that dequantize_part unpacks one of, each to its place in the block at x; 1 for
// blocks that are only unpacked whole.
template <class Block>
constexpr int kParts = 1;

// Dequantize a block of parts; blocks without have an overload of their own.
template <class Block>
inline void dequantize_block(const Block& block, float* __restrict x) {
  static_assert(kParts<Block> > 1, "the block has parts");
  for (int part = 0; part < kParts<Block>; ++part) dequantize_part(block, part, x);
}

}  // namespace
}  // namespace weightcast
