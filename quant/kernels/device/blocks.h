// Dequantizers on a device: neighbouring threads unpack neighbouring blocks, or the same part of them.
//
// The blocks of a thread block are copied to shared memory first, and the floats from there, so that
// neighbouring threads read and write neighbouring words. Shared memory limits the blocks of a tile;
// more threads than blocks share the copies, and the parts of blocks that have some.
#pragma once

#include "dequantize/blocks.h"

namespace weightcast {
namespace {

struct DequantizeArguments {
  const uint8_t* src;  // n_blocks blocks
  float* dst;
  int64_t n_blocks;
  int32_t word_bytes;  // 1, 2 or 4; divides src and the bytes of a thread block's blocks
  int32_t reserved;
};

template <class Block>
struct DequantizeTile {
  static constexpr int elements = Block::elements;
  static constexpr int bytes = sizeof(Block);
  static constexpr int blocks = elements >= 256 ? 32 : elements >= 128 ? 64 : elements >= 64 ? 128 : 256;
  static constexpr int threads = blocks < 128 ? 128 : blocks;
  static constexpr int pitch = elements + 1;  // floats of a block: threads write to banks of their own

  struct Staged {
    float x[blocks * pitch];
    alignas(4) uint8_t packed[blocks * bytes];
  };

  const DequantizeArguments& a;
  int64_t block0;
  int count;  // blocks

  DequantizeTile(const DequantizeArguments& arguments, int64_t tile) : a(arguments) {
    block0 = tile * blocks;
    count = a.n_blocks - block0 < blocks ? static_cast<int>(a.n_blocks - block0) : blocks;
  }

  void load(int thread, Staged& staged) const {
    switch (a.word_bytes) {
      case 4: return copy<uint32_t>(thread, staged);
      case 2: return copy<uint16_t>(thread, staged);
      default: return copy<uint8_t>(thread, staged);
    }
  }

  template <class Word>
  void copy(int thread, Staged& staged) const {
    const auto* from = reinterpret_cast<const Word*>(a.src + block0 * bytes);
    auto* to = reinterpret_cast<Word*>(staged.packed);
    constexpr int size = sizeof(Word);
    for (int w = thread; w < count * bytes / size; w += threads) to[w] = from[w];
    // The last blocks of all may end within a word.
    for (int i = count * bytes / size * size + thread; i < count * bytes; i += threads) {
      staged.packed[i] = a.src[block0 * bytes + i];
    }
  }

  void make(int thread, Staged& staged) const {
    const int n = thread % blocks;
    if (n >= count) return;
    const Block& block = reinterpret_cast<const Block*>(staged.packed)[n];
    float* x = staged.x + n * pitch;
    if constexpr (kParts<Block> > 1) {
      for (int part = thread / blocks; part < kParts<Block>; part += threads / blocks) {
        dequantize_part(block, part, x);
      }
    } else if (thread < blocks) {
      dequantize_block(block, x);
    }
  }

  void store(int thread, const Staged& staged) const {
    float* to = a.dst + block0 * elements;
    for (int i = thread; i < count * elements; i += threads) {
      to[i] = staged.x[i / elements * pitch + i % elements];
    }
  }
};

}  // namespace
}  // namespace weightcast
