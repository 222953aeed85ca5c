// Layouts of the IQ types with grids: super-blocks of 256 weights, in groups of 4 or 8. The magnitudes
// of a group are one entry of a grid (iq_grids.h). Each block of 32 or 16 weights has a scale: a small
// integer s times the float16 d. Source of the layouts: block_iq2_xxs ... block_iq1_m in ggml-common.h.
#pragma once

#include <cstdint>

namespace weightcast {
namespace {

constexpr int kIQElements = 256;

// Read 32 bits that are stored as two halves, since blocks are aligned to 2 bytes.
inline uint32_t two_halves(const uint16_t* halves) {
  return halves[0] | static_cast<uint32_t>(halves[1]) << 16;
}

// Values that the levels of the grids stand for: IQ2 8, 25, 43; IQ3_XXS 4, 12, ... 52, 62; IQ3_S 1, 3,
// ... 15; IQ1 -1, 0, 1. They are computed, not looked up, so that loops vectorize.
inline int value_iq2(int level) { return 17 * level + 8 + (level >> 1); }
inline int value_iq3_xxs(int level) { return 8 * level + 4 + 2 * ((level + 1) >> 3); }
inline int value_iq3_s(int level) { return 2 * level + 1; }
inline int value_iq1(int level) { return level - 1; }

// Complete seven stored signs by an eighth that makes the number of minus signs even.
inline uint32_t eight_signs(uint32_t seven) {
  seven &= 127;
  uint32_t parity = seven ^ (seven >> 4);
  parity ^= parity >> 2;
  parity ^= parity >> 1;
  return seven | (parity & 1) << 7;
}

// x = d * (s + 1/2) / 4 * value * sign, effectively 2.0625 bits per weight.
struct BlockIQ2_XXS {
  static constexpr int elements = kIQElements;
  uint16_t d;  // float16
  // Per block of 32: 32 bits of 4 grid indices, then 32 bits of 4 times 7 signs and s.
  uint16_t qs[kIQElements / 32][4];
};

// x = d * (s + 1/2) / 4 * value * sign, effectively 2.3125 bits per weight.
struct BlockIQ2_XS {
  static constexpr int elements = kIQElements;
  uint16_t d;                       // float16
  uint16_t qs[kIQElements / 8];     // per group of 8: grid index of 9 bits, then 7 signs
  uint8_t scales[kIQElements / 32];  // per two blocks of 16: s, 4 bits each
};

// x = d * (s + 1/2) / 4 * value * sign, effectively 2.5625 bits per weight.
struct BlockIQ2_S {
  static constexpr int elements = kIQElements;
  uint16_t d;                       // float16
  uint8_t qs[kIQElements / 8];      // per group of 8: low 8 bits of the grid index
  uint8_t signs[kIQElements / 8];   // per group of 8
  uint8_t qh[kIQElements / 32];     // per 4 groups: upper 2 bits of the grid index
  uint8_t scales[kIQElements / 32];  // per two blocks of 16: s, 4 bits each
};

// x = d * (s + 1/2) / 2 * value * sign, effectively 3.0625 bits per weight.
struct BlockIQ3_XXS {
  static constexpr int elements = kIQElements;
  uint16_t d;                     // float16
  uint8_t qs[kIQElements / 4];    // per group of 4: grid index
  uint16_t ss[kIQElements / 32][2];  // per block of 32, 32 bits: 4 times 7 signs, then s
};

// x = d * (2 * s + 1) * value * sign, effectively 3.4375 bits per weight.
struct BlockIQ3_S {
  static constexpr int elements = kIQElements;
  uint16_t d;                       // float16
  uint8_t qs[kIQElements / 4];      // per group of 4: low 8 bits of the grid index
  uint8_t qh[kIQElements / 32];     // per 8 groups: ninth bit of the grid index
  uint8_t signs[kIQElements / 8];   // per 8 weights
  uint8_t scales[kIQElements / 64];  // per two blocks of 32: s, 4 bits each
};

// The shift of an IQ1 group's three values, up or down.
constexpr float kIQ1Delta = 0.125f;

// x = d * (2 * s + 1) * (value +- delta), effectively 1.5625 bits per weight.
struct BlockIQ1_S {
  static constexpr int elements = kIQElements;
  uint16_t d;                     // float16
  uint8_t qs[kIQElements / 8];    // per group of 8: low 8 bits of the grid index
  uint16_t qh[kIQElements / 32];  // per 4 groups: upper 3 bits of each; 3 bits s; the sign of delta
};

// x = d * (2 * s + 1) * (value +- delta), effectively 1.75 bits per weight.
struct BlockIQ1_M {
  static constexpr int elements = kIQElements;
  uint8_t qs[kIQElements / 8];        // per group of 8: low 8 bits of the grid index
  uint8_t qh[kIQElements / 16];       // per 2 groups: upper 3 bits of the index, sign of delta
  uint16_t scales[kIQElements / 64];  // per 4 blocks of 16: s, 3 bits each; a quarter of d's bits
};

}  // namespace
}  // namespace weightcast
