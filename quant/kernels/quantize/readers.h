// Readers: what the blocks that are being made stand for, in each of kLanes columns. They repeat the
// operations of dequantize/ in lanes, so that a search can weigh the errors that a reader sees.
//
//   Reader<Type>::read(block, visit)  calls visit(i, y) for the value y of each in-row i.
//
// tests/quant/test_least_error.py compares blocks through dequantize/ itself.
#pragma once

#include "dequantize/rows.h"
#include "quantize/all.h"

namespace weightcast {
namespace {

WC_INLINE I load_half(Bytes block) { return load_bytes(block[0]) | load_bytes(block[1]) << 8; }
WC_INLINE F read_half(Bytes block) { return from_f16(load_half(block)); }

// Visit the 32 codes of 4 bits at qs: byte j holds codes j and j + 16.
template <class Visit>
WC_INLINE void read_nibbles(Bytes qs, Visit visit) {
  for (int j = 0; j < 16; ++j) {
    const I byte = load_bytes(qs[j]);
    visit(j, byte & 15);
    visit(j + 16, byte >> 4);
  }
}

// The same with fifth bits: bit j of the little-endian word at qh belongs to code j.
template <class Visit>
WC_INLINE void read_five_bits(Bytes qh, Bytes qs, Visit visit) {
  for (int half = 0; half < 2; ++half) {
    const I fifth = load_half(qh + 2 * half);
    for (int j = 0; j < 16; ++j) {
      const I byte = load_bytes(qs[j]);
      visit(16 * half + j, (half == 0 ? byte & 15 : byte >> 4) | ((fifth >> j) & 1) << 4);
    }
  }
}

// Types whose codes are not unpacked in lanes: dequantize/ does it, a column at a time.
template <class Type>
struct Reader;

template <>
struct Reader<Q40> {
  template <class Visit>
  WC_INLINE static void read(Bytes block, Visit visit) {
    const F d = read_half(block);
    read_nibbles(block + 2, [&](int i, I q) { visit(i, floats(q - 8) * d); });
  }
};

template <>
struct Reader<Q41> {
  template <class Visit>
  WC_INLINE static void read(Bytes block, Visit visit) {
    const F d = read_half(block), m = read_half(block + 2);
    read_nibbles(block + 4, [&](int i, I q) { visit(i, floats(q) * d + m); });
  }
};

template <>
struct Reader<Q50> {
  template <class Visit>
  WC_INLINE static void read(Bytes block, Visit visit) {
    const F d = read_half(block);
    read_five_bits(block + 2, block + 6, [&](int i, I q) { visit(i, floats(q - 16) * d); });
  }
};

template <>
struct Reader<Q51> {
  template <class Visit>
  WC_INLINE static void read(Bytes block, Visit visit) {
    const F d = read_half(block), m = read_half(block + 2);
    read_five_bits(block + 4, block + 8, [&](int i, I q) { visit(i, floats(q) * d + m); });
  }
};

template <>
struct Reader<Q80> {
  template <class Visit>
  WC_INLINE static void read(Bytes block, Visit visit) {
    const F d = read_half(block);
    for (int i = 0; i < Q80::elements; ++i) {
      visit(i, floats(as_int8(load_bytes(block[2 + i]))) * d);
    }
  }
};

template <>
struct Reader<Q10> {
  template <class Visit>
  WC_INLINE static void read(Bytes block, Visit visit) {
    const F d = read_half(block);
    for (int b = 0; b < Q10::elements / 8; ++b) {
      const I byte = load_bytes(block[2 + b]);
      for (int j = 0; j < 8; ++j) visit(8 * b + j, select(((byte >> j) & 1) == 1, d, -d));
    }
  }
};

template <>
struct Reader<Q20> {
  template <class Visit>
  WC_INLINE static void read(Bytes block, Visit visit) {
    const F d = read_half(block);
    for (int b = 0; b < Q20::elements / 4; ++b) {
      const I byte = load_bytes(block[2 + b]);
      for (int j = 0; j < 4; ++j) visit(4 * b + j, floats(((byte >> 2 * j) & 3) - 1) * d);
    }
  }
};

constexpr float kIq4Low[8] = {codebook(0), codebook(1), codebook(2), codebook(3),
                              codebook(4), codebook(5), codebook(6), codebook(7)};
constexpr float kIq4High[8] = {codebook(8),  codebook(9),  codebook(10), codebook(11),
                               codebook(12), codebook(13), codebook(14), codebook(15)};

struct Iq4Values {
  Table low{kIq4Low}, high{kIq4High};

  WC_INLINE F operator[](I q) const { return select(q < I(8), low[q], high[q]); }
};

template <>
struct Reader<IQ4NL> {
  template <class Visit>
  WC_INLINE static void read(Bytes block, Visit visit) {
    const Iq4Values values;
    const F d = read_half(block);
    read_nibbles(block + 2, [&](int i, I q) { visit(i, values[q] * d); });
  }
};

template <>
struct Reader<IQ4XS> {
  template <class Visit>
  WC_INLINE static void read(Bytes block, Visit visit) {
    const Iq4Values values;
    const F d = read_half(block);
    for (int b = 0; b < 8; ++b) {
      const F scale = d * floats(scale_of(block, b) - 32);
      read_nibbles(block + (8 + 16 * b), [&](int i, I q) { visit(32 * b + i, values[q] * scale); });
    }
  }

  WC_INLINE static I scale_of(Bytes block, int b) {
    const I low = (load_bytes(block[4 + b / 2]) >> 4 * (b % 2)) & 15;
    return low | ((load_half(block + 2) >> 2 * b) & 3) << 4;
  }
};

// The value of a 4-bit float, doubled.
WC_INLINE F fp4_value(I q) {
  const I size = q & 7;
  const F value = floats(select(size < I(5), size, select(size == 5, I(6), select(size == 6, I(8), I(12)))));
  return of_bits(bits(value) | (q & 8) << 28);
}

template <>
struct Reader<MXFP4> {
  template <class Visit>
  WC_INLINE static void read(Bytes block, Visit visit) {
    const I e = load_bytes(block[0]);
    const F d = of_bits(select(e < I(2), select(e == 0, I(0x00200000), I(0x00400000)), (e - 1) << 23));
    read_nibbles(block + 1, [&](int i, I q) { visit(i, fp4_value(q) * d); });
  }
};

template <>
struct Reader<NVFP4> {
  template <class Visit>
  WC_INLINE static void read(Bytes block, Visit visit) {
    for (int s = 0; s < 4; ++s) {
      const F d = of_bits(load_bytes(block[s]) << 20) * 0x1p119f;
      for (int j = 0; j < 8; ++j) {
        const I byte = load_bytes(block[4 + 8 * s + j]);
        visit(16 * s + j, fp4_value(byte & 15) * d);
        visit(16 * s + j + 8, fp4_value(byte >> 4) * d);
      }
    }
  }
};

// Visit codes of two bits of a super-block: bits 2 * n of qs[32 * h + m] are value 128 * h + 32 * n + m.
template <class Visit>
WC_INLINE void read_two_bits(Bytes qs, int b, Visit visit) {
  for (int m = 0; m < 16; ++m) {
    visit(m, (load_bytes(qs[32 * (b / 8) + 16 * (b % 2) + m]) >> 2 * (b / 2 % 4)) & 3);
  }
}

template <>
struct Reader<TQ20> {
  template <class Visit>
  WC_INLINE static void read(Bytes block, Visit visit) {
    const F d = read_half(block + 64);
    for (int b = 0; b < 16; ++b) {
      read_two_bits(block, b, [&](int i, I q) { visit(16 * b + i, floats(q - 1) * d); });
    }
  }
};

template <>
struct Reader<TQ10> {
  template <class Visit>
  WC_INLINE static void read(Bytes block, Visit visit) {
    const F d = read_half(block + 52);
    read_trits<32, 5>(block, d, 0, visit);
    read_trits<16, 5>(block + 32, d, 160, visit);
    read_trits<4, 4>(block + 48, d, 240, visit);
  }

  // The first digit of the fraction byte / 256 in base 3; the next ones after multiplications by 3.
  template <int bytes, int trits, class Visit>
  WC_INLINE static void read_trits(Bytes qs, F d, int first, Visit visit) {
    for (int m = 0; m < bytes; ++m) {
      I rest = load_bytes(qs[m]);
      for (int n = 0; n < trits; ++n) {
        const I thrice = rest + rest + rest;
        visit(first + n * bytes + m, floats((thrice >> 8) - 1) * d);
        rest = thrice & 0xff;
      }
    }
  }
};

// The scales of sub-blocks as a reader finds them: y = scale * q - min.
template <int blocks>
struct SubScales {
  I scale[blocks], min[blocks];
};

WC_INLINE void read_scales_k4(Bytes scales, SubScales<8>& found) {
  for (int b = 0; b < 4; ++b) {
    const I first = load_bytes(scales[b]), second = load_bytes(scales[b + 4]);
    const I third = load_bytes(scales[b + 8]);
    found.scale[b] = first & 63;
    found.min[b] = second & 63;
    found.scale[b + 4] = (third & 15) | (first >> 6) << 4;
    found.min[b + 4] = third >> 4 | (second >> 6) << 4;
  }
}

template <>
struct Reader<Q4K> {
  template <class Visit>
  WC_INLINE static void read(Bytes block, Visit visit) {
    const F d = read_half(block), dmin = read_half(block + 2);
    SubScales<8> s;
    read_scales_k4(block + 4, s);
    for (int b = 0; b < 8; ++b) {
      const F scale = d * floats(s.scale[b]), min = dmin * floats(s.min[b]);
      for (int m = 0; m < 32; ++m) {
        const I q = (load_bytes(block[16 + 32 * (b / 2) + m]) >> 4 * (b % 2)) & 15;
        visit(32 * b + m, scale * floats(q) - min);
      }
    }
  }
};

template <>
struct Reader<Q5K> {
  template <class Visit>
  WC_INLINE static void read(Bytes block, Visit visit) {
    const F d = read_half(block), dmin = read_half(block + 2);
    SubScales<8> s;
    read_scales_k4(block + 4, s);
    for (int b = 0; b < 8; ++b) {
      const F scale = d * floats(s.scale[b]), min = dmin * floats(s.min[b]);
      for (int m = 0; m < 32; ++m) {
        const I low = (load_bytes(block[48 + 32 * (b / 2) + m]) >> 4 * (b % 2)) & 15;
        const I q = low | ((load_bytes(block[16 + m]) >> b) & 1) << 4;
        visit(32 * b + m, scale * floats(q) - min);
      }
    }
  }
};

template <>
struct Reader<Q2K> {
  template <class Visit>
  WC_INLINE static void read(Bytes block, Visit visit) {
    const F d = read_half(block + 80), dmin = read_half(block + 82);
    for (int b = 0; b < 16; ++b) {
      const I both = load_bytes(block[b]);
      const F scale = d * floats(both & 15), min = dmin * floats(both >> 4);
      read_two_bits(block + 16, b,
                    [&](int i, I q) { visit(16 * b + i, scale * floats(q) - min); });
    }
  }
};

template <>
struct Reader<Q3K> {
  template <class Visit>
  WC_INLINE static void read(Bytes block, Visit visit) {
    const F d = read_half(block + 108);
    for (int b = 0; b < 16; ++b) {
      const F scale = d * floats(scale_of(block, b) - 32);
      read_two_bits(block + 32, b, [&](int i, I q) {
        const I high = (load_bytes(block[16 * (b % 2) + i]) >> b / 2) & 1;
        visit(16 * b + i, scale * floats((q | high << 2) - 4));
      });
    }
  }

  WC_INLINE static I scale_of(Bytes block, int b) {
    const I low = (load_bytes(block[96 + b % 8]) >> 4 * (b / 8)) & 15;
    return low | ((load_bytes(block[104 + b % 4]) >> 2 * (b / 4)) & 3) << 4;
  }
};

template <>
struct Reader<Q6K> {
  template <class Visit>
  WC_INLINE static void read(Bytes block, Visit visit) {
    const F d = read_half(block + 208);
    for (int b = 0; b < 16; ++b) {
      const F scale = d * floats(as_int8(load_bytes(block[192 + b])));
      const int n = b / 2 % 4;
      for (int m = 0; m < 16; ++m) {
        const I low = load_bytes(block[64 * (b / 8) + 32 * (n % 2) + 16 * (b % 2) + m]);
        const I high = load_bytes(block[128 + 32 * (b / 8) + 16 * (b % 2) + m]);
        const I q = ((low >> 4 * (n / 2)) & 15) | ((high >> 2 * n) & 3) << 4;
        visit(16 * b + m, scale * floats(q - 32));
      }
    }
  }
};

}  // namespace
}  // namespace weightcast
