// Quantizers of IQ2 and IQ3: groups of 8 or 4 magnitudes from a grid, signs, a scale per 16 or 32 weights.
// Layouts in blocks/iq_layouts.h. Sources of the rules: quantize_row_iq2_xxs_impl,
// quantize_row_iq2_xs_impl, quantize_row_iq2_s_impl, quantize_row_iq3_xxs_impl and
// quantize_row_iq3_s_impl in ggml-quants.c.
#pragma once

#include "quantize/iq_search.h"
#include "quantize/super_blocks.h"

namespace weightcast {
namespace {

// The part that all types with grids share: what the driver asks for, and the tables of the grid.
template <class Block, class GridTables, const auto& entries>
struct TypeIQ {
  static constexpr int elements = Block::elements;
  static constexpr int depth = elements;
  static constexpr int bytes = sizeof(Block);
  static constexpr bool uses_row_sum = false;
  using halves = Halves<0>;
  using Grid = GridTables;
  using Layout = Block;
  static const Grid& tables() { return tables_of<Grid>(entries); }
};

template <int size>
WC_INLINE void weigh_by_square(Strip from, F (&w)[size]) {
  for (int i = 0; i < size; ++i) w[i] = from[i] * from[i];
}

WC_INLINE void store_word(Bytes out, I word) {
  for (int b = 0; b < 4; ++b) store_bytes(out[b], word >> 8 * b);
}

// Store scales of four bits, two in a byte.
template <int blocks>
WC_INLINE void store_nibbles(const I (&small)[blocks], Bytes out) {
  for (int ib = 0; ib < blocks; ib += 2) store_bytes(out[ib / 2], small[ib] | small[ib + 1] << 4);
}

inline void clear(M empty, Bytes first, int count) {
  if (!any(empty)) return;
  for (int b = 0; b < count; ++b) store_bytes(first[b], select(empty, 0, load_bytes(first[b])));
}

struct IQ2XXS : TypeIQ<BlockIQ2_XXS, GridIQ2XXS, kGridIQ2XXS> {
  static void quantize(Strip x, const float* importance, F, Bytes out) {
    const Grid& grid = tables();
    const F sigma2 = super_sigma2(x, 1.0f);
    F scales[8];
    I signs[8];
    for (int ib = 0; ib < 8; ++ib) {
      IQBlock<GridIQ2XXS, 32> block;
      importance_weights(x + 32 * ib, importance + 32 * ib, sigma2, block.w);
      block.take_magnitudes(x + 32 * ib);
      block.make_signs_even();
      block.prepare(kGroupMaxEps);
      fit(grid, block);
      block.finish();
      scales[ib] = block.scale;
      signs[ib] = 0;
      for (int k = 0; k < 4; ++k) {
        store_bytes(out[2 + 8 * ib + k], block.index(grid, k));
        signs[ib] = signs[ib] | (block.signs[k] & 127) << 7 * k;
      }
    }
    const SmallScales<8> small(scales, 15);
    store_half(out, to_f16(small.d));
    for (int ib = 0; ib < 8; ++ib) store_word(out + 6 + 8 * ib, signs[ib] | small.s[ib] << 28);
    clear(small.empty, out + 2, 64);
  }

  // The first guess ignores the grid: its levels are equally spaced from 0.
  static void fit(const GridIQ2XXS& grid, IQBlock<GridIQ2XXS, 32>& block) {
    I free_levels[32];
    const F guess = fit_positive<32>(block.x, block.w, 4, free_levels);
    block.scale = select(guess == guess, guess, block.max / block.top);
    const F span = block.scale * 3.0f;
    block.active = block.active & !(span <= 0.0f);
    for (M& hit : block.on_grid) hit = no_lane();
    block.search(grid, span, 0.1f, 6);
    block.refine(grid, block.active & (block.scale > 0.0f), false);
  }
};

struct IQ2XS : TypeIQ<BlockIQ2_XS, GridIQ2XS, kGridIQ2XS> {
  static void quantize(Strip x, const float* importance, F, Bytes out) {
    const Grid& grid = tables();
    const F sigma2 = super_sigma2(x, 1.0f);
    F scales[16];
    for (int ib = 0; ib < 16; ++ib) {
      IQBlock<GridIQ2XS, 16> block;
      importance_weights(x + 16 * ib, importance + 16 * ib, sigma2, block.w);
      block.take_magnitudes(x + 16 * ib);
      block.make_signs_even();
      block.prepare(kGroupMaxEps);
      block.search_and_refine(grid, 0.1f, 9, true);
      block.finish();
      scales[ib] = block.scale;
      for (int k = 0; k < 2; ++k) {
        store_half(out + 2 + 4 * ib + 2 * k,
                   block.index(grid, k) | (block.signs[k] & 127) << 9);
      }
    }
    const SmallScales<16> small(scales, 15);
    store_half(out, to_f16(small.d));
    store_nibbles(small.s, out + 66);
    clear(small.empty, out + 2, 64);
  }
};

struct IQ2S : TypeIQ<BlockIQ2_S, GridIQ2S, kGridIQ2S> {
  static void quantize(Strip x, const float* importance, F, Bytes out) {
    const Grid& grid = tables();
    const F sigma2 = super_sigma2(x, 2.0f);
    F scales[16];
    I high[8];
    for (int ib = 0; ib < 16; ++ib) {
      IQBlock<GridIQ2S, 16> block;
      const Strip from = x + 16 * ib;
      if (importance != nullptr) {
        importance_weights(from, importance + 16 * ib, sigma2, block.w);
      } else {
        for (int i = 0; i < 16; ++i) block.w[i] = 0.25f * sigma2 + from[i] * from[i];
      }
      block.take_magnitudes(from);
      block.prepare(1e-8f);
      block.search_and_refine(grid, 0.1f, 9, true);
      block.finish();
      scales[ib] = block.scale;
      if (ib % 2 == 0) high[ib / 2] = 0;
      for (int k = 0; k < 2; ++k) {
        const I index = block.index(grid, k);
        store_bytes(out[2 + 2 * ib + k], index);
        store_bytes(out[34 + 2 * ib + k], block.signs[k]);
        high[ib / 2] = high[ib / 2] | (index >> 8) << (4 * (ib % 2) + 2 * k);
      }
    }
    for (int i = 0; i < 8; ++i) store_bytes(out[66 + i], high[i]);
    const SmallScales<16> small(scales, 15);
    store_half(out, to_f16(small.d * 0.9875f));
    store_nibbles(small.s, out + 74);
  }
};

struct IQ3XXS : TypeIQ<BlockIQ3_XXS, GridIQ3XXS, kGridIQ3XXS> {
  static void quantize(Strip x, const float* importance, F, Bytes out) {
    const Grid& grid = tables();
    const F sigma2 = super_sigma2(x, 2.0f);
    F scales[8];
    I signs[8];
    for (int ib = 0; ib < 8; ++ib) {
      IQBlock<GridIQ3XXS, 32> block;
      const Strip from = x + 32 * ib;
      if (importance != nullptr) {
        importance_weights(from, importance + 32 * ib, sigma2, block.w);
      } else {
        weigh_by_square(from, block.w);
      }
      block.take_magnitudes(from);
      block.make_signs_even();
      block.prepare(1e-8f);
      block.search_and_refine(grid, 0.2f, 15, true);
      block.finish();
      scales[ib] = block.scale;
      for (int k = 0; k < 8; ++k) store_bytes(out[2 + 8 * ib + k], block.index(grid, k));
      signs[ib] = 0;
      for (int k = 0; k < 4; ++k) signs[ib] = signs[ib] | (block.signs[k] & 127) << 7 * k;
    }
    const SmallScales<8> small(scales, 15);
    store_half(out, to_f16(small.d * 1.0125f));
    for (int ib = 0; ib < 8; ++ib) store_word(out + 66 + 4 * ib, signs[ib] | small.s[ib] << 28);
    clear(small.empty, out + 2, 96);
  }
};

struct IQ3S : TypeIQ<BlockIQ3_S, GridIQ3S, kGridIQ3S> {
  static void quantize(Strip x, const float* importance, F, Bytes out) {
    const Grid& grid = tables();
    const F sigma2 = super_sigma2(x, 2.0f);
    F scales[8];
    M zero[8];
    for (int ib = 0; ib < 8; ++ib) {
      IQBlock<GridIQ3S, 32> block;
      const Strip from = x + 32 * ib;
      if (importance != nullptr) {
        importance_weights(from, importance + 32 * ib, sigma2, block.w);
      } else {
        weigh_by_square(from, block.w);
      }
      block.take_magnitudes(from);
      block.prepare(0.0f);
      block.active = not_equal(block.max, 0.0f);
      block.search_and_refine(grid, 0.2f, 9, false);
      block.finish();
      scales[ib] = block.scale;
      zero[ib] = !block.active;
      I high = 0;
      for (int k = 0; k < 8; ++k) {
        const I index = block.index(grid, k);
        store_bytes(out[2 + 8 * ib + k], index);
        high = high | (index >> 8) << k;
      }
      store_bytes(out[66 + ib], high);
      for (int k = 0; k < 4; ++k) store_bytes(out[74 + 4 * ib + k], block.signs[k]);
    }
    close_gaps(zero, out);
    const SmallScales<8> small(scales, 15);
    store_half(out, to_f16(small.d * 1.033f));
    store_nibbles(small.s, out + 106);
  }

  // A quirk of ggml's: it does not step over a block of zeros in qs and signs, so that the blocks after
  // it move up, while their qh and scales stay. A reader sees other weights; the bytes are ggml's.
  static void close_gaps(const M (&zero)[8], Bytes out) {
    M some = zero[0];
    for (int ib = 1; ib < 8; ++ib) some = some | zero[ib];
    if (!any(some)) return;
    int32_t is_zero[8][kLanes];
    for (int ib = 0; ib < 8; ++ib) {
      const I flag = select(zero[ib], I(1), I(0));
      std::memcpy(is_zero[ib], &flag, sizeof flag);
    }
    for (int c = 0; c < kLanes; ++c) {
      int to = 0;
      for (int ib = 0; ib < 8; ++ib) {
        if (is_zero[ib][c] != 0) continue;
        for (int k = 0; k < 8; ++k) out[2 + 8 * to + k][c] = out[2 + 8 * ib + k][c];
        for (int k = 0; k < 4; ++k) out[74 + 4 * to + k][c] = out[74 + 4 * ib + k][c];
        ++to;
      }
      for (; to < 8; ++to) {
        for (int k = 0; k < 8; ++k) out[2 + 8 * to + k][c] = 0;
        for (int k = 0; k < 4; ++k) out[74 + 4 * to + k][c] = 0;
      }
    }
  }
};

}  // namespace
}  // namespace weightcast
