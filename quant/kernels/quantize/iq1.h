// Quantizers of IQ1: groups of 8 ternary weights from a grid, shifted by +-1/8, a scale per 32 or 16
// weights. Layouts in blocks/iq_layouts.h. Sources of the rules: quantize_row_iq1_s_impl and
// quantize_row_iq1_m_impl in ggml-quants.c. The notes on overflow in iq_search.h apply here as well.
//
// ggml sorts the weights of a block with the C library's qsort. glibc's keeps equals in order, and so
// does this code.
#pragma once

#include "quantize/iq.h"
#include "quantize/iq_search.h"

namespace weightcast {
namespace {

using GridIQ1 = Neighbours<8, 2, 2, 3, 22647, 0>;

// The values of levels 0, 1, 2, shifted up or down.
constexpr float kValuesUp[4] = {-1 + kIQ1Delta, kIQ1Delta, 1 + kIQ1Delta, 0};
constexpr float kValuesDown[4] = {-1 - kIQ1Delta, -kIQ1Delta, 1 - kIQ1Delta, 0};

WC_INLINE F ternary_value(I level, M up) {
  const F low = select(up, F(kValuesUp[0]), F(kValuesDown[0]));
  const F middle = select(up, F(kValuesUp[1]), F(kValuesDown[1]));
  const F high = select(up, F(kValuesUp[2]), F(kValuesDown[2]));
  return select(level == 0, low, select(level == 1, middle, high));
}

// Store each lane of a row at a place of its own.
template <class T, class Rows>
WC_INLINE void scatter(const T& row, const int32_t (&place)[kLanes], Rows& rows) {
  float values[kLanes];
  std::memcpy(values, &row, sizeof row);
  for (int c = 0; c < kLanes; ++c) std::memcpy(&rows[place[c]][c], &values[c], sizeof values[c]);
}

// One block in each of kLanes columns. All pairs of bounds in the sorted weights are tried: weights up
// to `first` get level 0, those up to `second` level 1, the rest level 2.
template <int size>
struct IQ1Block {
  static constexpr int groups = size / 8;

  F x[size], w[size];
  I rank[size];  // of x in ascending order, the first of equals first
  F max;
  M active;

  F scale;
  F best;
  I first, second;
  M up[groups];  // whether the values of a group are shifted up, else down
  I code[groups];

  WC_OUT_OF_LINE void prepare(Strip from, float eps) {
    for (int i = 0; i < size; ++i) x[i] = from[i];
    max = magnitude(x[0]);
    for (int i = 1; i < size; ++i) {
      const F a = magnitude(x[i]);
      max = select(max > a, max, a);
    }
    active = !(max < eps);
    for (I& r : rank) r = 0;
    for (int i = 0; i < size; ++i) {
      for (int j = i + 1; j < size; ++j) {
        const M later = x[j] < x[i];
        rank[i] = select(later, rank[i] + 1, rank[i]);
        rank[j] = select(later, rank[j], rank[j] + 1);
      }
    }
    scale = max;
    best = -FLT_MAX;
    first = second = -1;
  }

  // Keep these sums in lanes where they are the best so far. Returns those lanes.
  WC_INLINE M consider(F sumqx, F sumq2, int i1, int i2) {
    const M better = (sumq2 > 0.0f) & (sumqx * sumqx > best * sumq2);
    if (any(better)) {
      scale = select(better, sumqx / sumq2, scale);
      best = select(better, scale * sumqx, best);
      first = select(better, I(i1), first);
      second = select(better, I(i2), second);
    }
    return better;
  }

  // Turn the bounds found into levels on the grid, then choose the scale that fits them best.
  WC_OUT_OF_LINE void settle(const GridIQ1& grid) {
    active = active & !(first < I(0));
    const M minus = scale < 0.0f;
    scale = select(minus, -scale, scale);
    scale = select(scale == scale, scale, max);
    for (M& u : up) u = (u & !minus) | (!u & minus);
    M all_on_grid = !no_lane();
    for (int k = 0; k < groups; ++k) {
      I key = 0;
      code[k] = 0;
      for (int i = 7; i >= 0; --i) {
        const I r = rank[8 * k + i];
        I level = select(r < first, I(0), select(r < second, I(1), I(2)));
        level = select(minus, 2 - level, level);
        key = key + key + key + level;
        code[k] = code[k] << 2 | level;
      }
      all_on_grid = all_on_grid & snap(grid, k, key);
    }
    F sumqx = 0.0f, sumq2 = 0.0f;
    for (int i = 0; i < size; ++i) {
      const F q = ternary_value((code[i / 8] >> 2 * (i % 8)) & 3, up[i / 8]);
      sumqx += w[i] * q * x[i];
      sumq2 += w[i] * q * q;
    }
    const F fitted = sumqx / sumq2;
    const M better = !all_on_grid & (sumqx > 0.0f) & (sumq2 > 0.0f) & (fitted == fitted);
    scale = select(active, select(better, fitted, scale), 0.0f);
    for (I& c : code) c = select(active, c, 0);
  }

  // Replace the codes of a group that are not on the grid. Returns the lanes that were on it.
  WC_OUT_OF_LINE M snap(const GridIQ1& grid, int k, I key) {
    const LevelValues values[2] = {level_values<2>(kValuesDown), level_values<2>(kValuesUp)};
    const I is_up = select(up[k], I(1), I(0)), is_active = select(active, I(1), I(0));
    int32_t keys[kLanes], codes[kLanes], ups[kLanes], actives[kLanes];
    float scales[kLanes];
    std::memcpy(keys, &key, sizeof key);
    std::memcpy(codes, &code[k], sizeof codes);
    std::memcpy(ups, &is_up, sizeof is_up);
    std::memcpy(actives, &is_active, sizeof is_active);
    std::memcpy(scales, &scale, sizeof scale);
    for (int c = 0; c < kLanes; ++c) {
      const int32_t point = grid.point(keys[c]);
      if (point >= 0 && actives[c] != 0) {
        codes[c] = best_neighbour<GridIQ1>(grid.full_list(keys[c]), rows(x + 8 * k) + c,
                                           rows(w + 8 * k) + c, scales[c], values[ups[c]]);
      }
      keys[c] = point;
    }
    std::memcpy(&code[k], codes, sizeof codes);
    I points;
    std::memcpy(&points, keys, sizeof keys);
    return points < I(0);
  }

  WC_OUT_OF_LINE I index(const GridIQ1& grid, int k) const {
    int32_t codes[kLanes];
    std::memcpy(codes, &code[k], sizeof codes);
    for (int32_t& c : codes) c = ~grid.point(grid.key_of(c));
    I result;
    std::memcpy(&result, codes, sizeof codes);
    return result;
  }
};

struct IQ1S : TypeIQ<BlockIQ1_S, GridIQ1, kGridIQ1> {
  static void quantize(Strip x, const float* importance, F, Bytes out) {
    const Grid& grid = tables();
    const F sigma2 = super_sigma2(x, 2.0f);
    F scales[8];
    I high[8];
    for (int ib = 0; ib < 8; ++ib) {
      IQ1Block<32> block;
      importance_weights(x + 32 * ib, importance + 32 * ib, sigma2, block.w);
      block.prepare(x + 32 * ib, 1e-12f);
      search(block);
      block.settle(grid);
      scales[ib] = block.scale;
      high[ib] = select(block.active & !block.up[0], I(0x8000), I(0));
      for (int k = 0; k < 4; ++k) {
        const I index = select(block.active, block.index(grid, k), 0);
        store_bytes(out[2 + 4 * ib + k], index);
        high[ib] = high[ib] | (index >> 8) << 3 * k;
      }
    }
    const SmallScales<8> small(scales, 7);
    store_half(out, to_f16(small.d * 1.125f));
    for (int ib = 0; ib < 8; ++ib) {
      const I qh = high[ib] | small.s[ib] << 12;
      store_half(out + 34 + 2 * ib, select(small.empty, qh & 0x0fff, qh));
    }
  }

  WC_OUT_OF_LINE static void search(IQ1Block<32>& block) {
    alignas(64) float wx[32][kLanes], w[32][kLanes];
    for (int i = 0; i < 32; ++i) {
      int32_t rank[kLanes];
      std::memcpy(rank, &block.rank[i], sizeof rank);
      scatter(F(block.w[i] * block.x[i]), rank, wx);
      scatter(block.w[i], rank, w);
    }
    F sumx[33], sumw[33];
    sumx[0] = sumw[0] = 0.0f;
    for (int j = 0; j < 32; ++j) {
      F row;
      std::memcpy(&row, wx[j], sizeof row);
      sumx[j + 1] = sumx[j] + row;
      std::memcpy(&row, w[j], sizeof row);
      sumw[j + 1] = sumw[j] + row;
    }
    M up = no_lane();
    for (int i1 = 0; i1 <= 32; ++i1) {
      for (int i2 = i1; i2 <= 32; ++i2) {
        for (int down = 0; down < 2; ++down) {
          const float* q = down ? kValuesDown : kValuesUp;
          const F sumqx = sumx[i1] * q[0] + (sumx[i2] - sumx[i1]) * q[1] +
                          (sumx[32] - sumx[i2]) * q[2];
          const F sumq2 = sumw[i1] * q[0] * q[0] + (sumw[i2] - sumw[i1]) * q[1] * q[1] +
                          (sumw[32] - sumw[i2]) * q[2] * q[2];
          const M better = block.consider(sumqx, sumq2, i1, i2);
          up = down ? up & !better : up | better;
        }
      }
    }
    for (M& u : block.up) u = up;
  }
};

// The float16 d of IQ1_M lies in the upper four bits of four words.
struct SpreadHalf {};

inline bool column_overflows(Bytes block, int c, SpreadHalf) {
  return (block[53][c] & 0xc0) == 0xc0 && (block[55][c] & 0x70) == 0x70;
}

inline bool has_overflow(Bytes block, SpreadHalf half) {
  bool found = false;
  for (int c = 0; c < kLanes; ++c) found |= column_overflows(block, c, half);
  return found;
}

struct IQ1M : TypeIQ<BlockIQ1_M, GridIQ1, kGridIQ1> {
  using halves = SpreadHalf;

  static void weigh_block(Strip from, const float* importance, F sigma2, F (&w)[16]) {
    if (importance != nullptr) {
      importance_weights(from, importance, sigma2, w);
    } else {
      weigh_by_square(from, w);
    }
  }

  static void quantize(Strip x, const float* importance, F, Bytes out) {
    const Grid& grid = tables();
    const F sigma2 = super_sigma2(x, 2.0f);
    F scales[16];
    I high[16], codes[16][2];
    M up[16][2];
    for (int ib = 0; ib < 16; ++ib) {
      IQ1Block<16> block;
      const float* weights = importance == nullptr ? nullptr : importance + 16 * ib;
      weigh_block(x + 16 * ib, weights, sigma2, block.w);
      block.prepare(x + 16 * ib, 1e-7f);
      search(block);
      block.settle(grid);
      scales[ib] = block.scale;
      high[ib] = 0;
      for (int k = 0; k < 2; ++k) {
        codes[ib][k] = block.code[k];
        up[ib][k] = block.up[k] | !block.active;
        const I index = select(block.active, block.index(grid, k), 0);
        store_bytes(out[2 * ib + k], index);
        high[ib] = high[ib] | (index >> 8) << 4 * k;
      }
    }
    const SmallScales<16> small(scales, 7);
    F sumqx = 0.0f, sumq2 = 0.0f;
    for (int ib = 0; ib < 16; ++ib) {
      F w[16];
      const float* weights = importance == nullptr ? nullptr : importance + 16 * ib;
      weigh_block(x + 16 * ib, weights, sigma2, w);
      const F s = floats(small.s[ib] + small.s[ib] + 1);
      for (int i = 0; i < 16; ++i) {
        const I level = (codes[ib][i / 8] >> 2 * (i % 8)) & 3;
        const F q = ternary_value(level, up[ib][i / 8]) * s;
        sumqx += w[i] * q * x[16 * ib + i];
        sumq2 += w[i] * q * q;
      }
      const I down = select(up[ib][0], I(0), I(0x08)) | select(up[ib][1], I(0), I(0x80));
      store_bytes(out[32 + ib], high[ib] | select(small.empty, 0, down));
    }
    const F d = select(sumq2 > 0.0f, sumqx / sumq2, small.d);
    store_scales(small.s, select(small.empty, 0, to_f16(d * 1.1125f)), out + 48);
  }

  // Store four words, each with four scales of three bits and four bits of d.
  static void store_scales(const I (&ls)[16], I half, Bytes out) {
    for (int i = 0; i < 4; ++i) {
      I word = ((half >> 4 * i) & 15) << 12;
      for (int j = 0; j < 4; ++j) word = word | ls[4 * i + j] << 3 * j;
      store_half(out + 2 * i, word);
    }
  }

  // Sums of the weights below each bound, for one half of the block: halves are shifted independently.
  struct Prefix {
    F x[17], w[17];
  };

  static void prefix_sums(const IQ1Block<16>& block, Prefix (&sums)[2]) {
    alignas(64) float wx[16][kLanes], w[16][kLanes];
    alignas(64) int32_t half[16][kLanes];
    for (int i = 0; i < 16; ++i) {
      int32_t rank[kLanes];
      std::memcpy(rank, &block.rank[i], sizeof rank);
      scatter(F(block.w[i] * block.x[i]), rank, wx);
      scatter(block.w[i], rank, w);
      scatter(I(i / 8), rank, half);
    }
    for (Prefix& sum : sums) sum.x[0] = sum.w[0] = 0.0f;
    for (int j = 0; j < 16; ++j) {
      F row_x, row_w;
      I h;
      std::memcpy(&row_x, wx[j], sizeof row_x);
      std::memcpy(&row_w, w[j], sizeof row_w);
      std::memcpy(&h, half[j], sizeof h);
      for (int side = 0; side < 2; ++side) {
        Prefix& sum = sums[side];
        sum.x[j + 1] = select(h == side, sum.x[j] + row_x, sum.x[j]);
        sum.w[j + 1] = select(h == side, sum.w[j] + row_w, sum.w[j]);
      }
    }
  }

  // Each half may be shifted up or down: four combinations for each pair of bounds.
  WC_OUT_OF_LINE static void search(IQ1Block<16>& block) {
    Prefix sums[2];
    prefix_sums(block, sums);
    const auto square = [](float value) { return value * value; };
    M up[2] = {no_lane(), no_lane()};
    for (int i1 = 0; i1 <= 16; ++i1) {
      for (int i2 = i1; i2 <= 16; ++i2) {
        F qx[2][2], q2[2][2];  // [half][down]
        for (int h = 0; h < 2; ++h) {
          const Prefix& sum = sums[h];
          const F below = sum.x[i1] + sum.x[i2];
          for (int down = 0; down < 2; ++down) {
            const float* q = down ? kValuesDown : kValuesUp;
            qx[h][down] = sum.x[16] * q[2] - below;
            q2[h][down] = sum.w[16] * q[2] * q[2] + sum.w[i1] * (square(q[0]) - square(q[1])) +
                          sum.w[i2] * (square(q[1]) - square(q[2]));
          }
        }
        for (int k = 0; k < 4; ++k) {
          const M better = block.consider(qx[0][k / 2] + qx[1][k % 2], q2[0][k / 2] + q2[1][k % 2],
                                          i1, i2);
          up[0] = k / 2 == 0 ? up[0] | better : up[0] & !better;
          up[1] = k % 2 == 0 ? up[1] | better : up[1] & !better;
        }
      }
    }
    block.up[0] = up[0];
    block.up[1] = up[1];
  }
};

}  // namespace
}  // namespace weightcast
