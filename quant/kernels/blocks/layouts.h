// Block layouts of all types except those with grids (iq_layouts.h): what each byte means.
//
// A block is a run of `elements` values along `in`. Fields have ggml's names: d is the scale, m the
// minimum, dmin the scale of the minimums, qs the codes, qh their high bits, e an exponent. float16
// fields hold bits. Blocks are aligned to at most 2 bytes; rows in a file may start anywhere, so a
// block is copied out with memcpy. types.inc states the sizes, and abi/types.cpp asserts them.
// Source of the layouts: block_* in ggml-common.h.
#pragma once

#include <cstdint>

namespace weightcast {
namespace {

constexpr int kSuper = 256;  // elements of a super-block

// Plain floats are blocks of one.
struct BlockF32 {
  static constexpr int elements = 1;
  float x;
};
struct BlockF16 {
  static constexpr int elements = 1;
  uint16_t x;
};
struct BlockBF16 {
  static constexpr int elements = 1;
  uint16_t x;
};

// Nibbles: qs[j] holds code j in its low half and code j + 16 in its high half.

// x = d * (q - 8), q of 4 bits; 4.5 bits per weight.
struct BlockQ4_0 {
  static constexpr int elements = 32;
  uint16_t d;
  uint8_t qs[16];
};

// x = d * q + m, q of 4 bits; 5 bits per weight.
struct BlockQ4_1 {
  static constexpr int elements = 32;
  uint16_t d, m;
  uint8_t qs[16];
};

// x = d * (q - 16), q of 5 bits, of which bit j of qh (little-endian) is the fifth of code j; 5.5 bits
// per weight.
struct BlockQ5_0 {
  static constexpr int elements = 32;
  uint16_t d;
  uint8_t qh[4];
  uint8_t qs[16];
};

// x = d * q + m, q of 5 bits as in Q5_0; 6 bits per weight.
struct BlockQ5_1 {
  static constexpr int elements = 32;
  uint16_t d, m;
  uint8_t qh[4];
  uint8_t qs[16];
};

// x = d * q, q of 8 bits with a sign; 8.5 bits per weight.
struct BlockQ8_0 {
  static constexpr int elements = 32;
  uint16_t d;
  int8_t qs[32];
};

// x = d where bit j % 8 of qs[j / 8] is set, -d elsewhere; 1.125 bits per weight.
struct BlockQ1_0 {
  static constexpr int elements = 128;
  uint16_t d;
  uint8_t qs[16];
};

// x = d * (q - 1), q of 2 bits: q_j are bits 2 * (j % 4) of qs[j / 4]; 2.25 bits per weight.
struct BlockQ2_0 {
  static constexpr int elements = 64;
  uint16_t d;
  uint8_t qs[16];
};

// Ternary: x = d * (t - 1), t of 0, 1, 2.

// Five trits a byte: the byte b stands for the fraction b / 256, whose first digits in base 3 are the
// trits. qs[0..31] hold values 0 to 159 (byte m: m, m + 32, ...), qs[32..47] values 160 to 239 likewise
// in steps of 16, and qh the last 16 in steps of 4, four trits a byte. 1.6875 bits per weight.
struct BlockTQ1_0 {
  static constexpr int elements = kSuper;
  uint8_t qs[48];
  uint8_t qh[4];
  uint16_t d;
};

// Two bits each: bits 2 * n of qs[32 * h + m] are value 128 * h + 32 * n + m; 2.0625 bits per weight.
struct BlockTQ2_0 {
  static constexpr int elements = kSuper;
  uint8_t qs[64];
  uint16_t d;
};

// 4-bit floats (E2M1) and codebooks; nibbles as in Q4_0, within each sub-block.

// x = 2^(e - 127) * fp4(q); 4.25 bits per weight.
struct BlockMXFP4 {
  static constexpr int elements = 32;
  uint8_t e;
  uint8_t qs[16];
};

// Four sub-blocks of 16: x = ue4m3(d) * fp4(q); 4.5 bits per weight.
struct BlockNVFP4 {
  static constexpr int elements = 64;
  uint8_t d[4];
  uint8_t qs[32];
};

// x = d * codebook[q]; 4.5 bits per weight.
struct BlockIQ4_NL {
  static constexpr int elements = 32;
  uint16_t d;
  uint8_t qs[16];
};

// Eight sub-blocks of 32: x = d * (s - 32) * codebook[q], s of 6 bits: its low four are nibble b of
// scales_l, its high two are bits 2 * b of scales_h. 4.25 bits per weight.
struct BlockIQ4_XS {
  static constexpr int elements = kSuper;
  uint16_t d;
  uint16_t scales_h;
  uint8_t scales_l[4];
  uint8_t qs[128];
};

// K types: sub-blocks with quantized scales in a super-block. Codes of two bits: bits 2 * n of
// qs[32 * h + m] are value 128 * h + 32 * n + m.

// Sixteen sub-blocks of 16: x = d * s * q - dmin * m, q of 2 bits, s and m the low and the high half
// of scales[b]; 2.625 bits per weight.
struct BlockQ2_K {
  static constexpr int elements = kSuper;
  uint8_t scales[16];
  uint8_t qs[64];
  uint16_t d, dmin;
};

// Sixteen sub-blocks of 16: x = d * (s - 32) * (q - 4), q of 3 bits, of which bit n of hmask[m] is the
// third of value 32 * n + m. s has 6 bits: the low four of sub-block b are in byte b % 8 of scales
// (in the high half from b = 8 on), the high two are bits 2 * (b / 4) of byte 8 + b % 4. 3.4375 bits
// per weight.
struct BlockQ3_K {
  static constexpr int elements = kSuper;
  uint8_t hmask[32];
  uint8_t qs[64];
  uint8_t scales[12];
  uint16_t d;
};

// Eight sub-blocks of 32: x = d * s * q - dmin * m, q of 4 bits: sub-blocks 2 * k and 2 * k + 1 are
// the low and the high halves of qs[32 * k ..]. s and m have 6 bits: in sub-blocks 0 to 3, the low six
// of scales[b] and scales[b + 4]; in 4 to 7, the low and the high half of scales[b + 4], below the
// high two bits of scales[b - 4] and scales[b]. 4.5 bits per weight.
struct BlockQ4_K {
  static constexpr int elements = kSuper;
  uint16_t d, dmin;
  uint8_t scales[12];
  uint8_t qs[128];
};

// Like Q4_K with q of 5 bits, of which bit b of qh[m] is the fifth of value 32 * b + m; 5.5 bits per
// weight.
struct BlockQ5_K {
  static constexpr int elements = kSuper;
  uint16_t d, dmin;
  uint8_t scales[12];
  uint8_t qh[32];
  uint8_t qs[128];
};

// Sixteen sub-blocks of 16: x = d * scales[b] * (q - 32), q of 6 bits. For value 128 * h + 32 * n + m,
// the low four are in ql[64 * h + 32 * (n % 2) + m] (in the high half from n = 2 on), and the high two
// are bits 2 * n of qh[32 * h + m]. 6.5625 bits per weight.
struct BlockQ6_K {
  static constexpr int elements = kSuper;
  uint8_t ql[128];
  uint8_t qh[64];
  int8_t scales[16];
  uint16_t d;
};

}  // namespace
}  // namespace weightcast
