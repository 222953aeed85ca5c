// Search for the scale of a block and the grid entries of its groups, which IQ2 and IQ3 share. Sums run
// in order within a lane, so that each lane gets the bits of ggml's scalar code.
//
// Where ggml aborts, this continues: with the first neighbour if none has an error below FLT_MAX, and
// with the scale so far if sums overflow to NaN. It takes weights of about 1e12 and more (d is infinite
// then, which the driver reports) or importance of similar size. Where the mean of the squares
// overflows, from about 1e19 on, IQ2_XXS and IQ1 give zeros, as ggml's do.
// Source of the algorithm: quantize_row_iq2_xxs_impl ... quantize_row_iq3_s_impl in ggml-quants.c.
#pragma once

#include "blocks/iq_layouts.h"
#include "quantize/fits.h"
#include "quantize/iq_lanes.h"

namespace weightcast {
namespace {

using GridIQ2XXS = Neighbours<8, 2, 2, 2, 10071, 8142>;
using GridIQ2XS = Neighbours<8, 2, 2, 2, 14410, 9034>;
using GridIQ2S = Neighbours<8, 2, 2, 1, 6286, 0>;
using GridIQ3XXS = Neighbours<4, 3, 7, 2, 3902, 3847>;
using GridIQ3S = Neighbours<4, 3, 7, 3, 3706, 3591>;

constexpr float kOddValues2[4] = {1, 3, 5, 7};
constexpr float kOddValues3[8] = {1, 3, 5, 7, 9, 11, 13, 15};

// The position of x among levels that stand for 1, 3, 5 ... times 1 / inverse, and the nearest level.
WC_INLINE F odd_position(F x, F inverse) { return 0.5f * (inverse * x - 1.0f); }
WC_INLINE I odd_level(F x, F inverse, int max_level) {
  return clamped(nearest_int(odd_position(x, inverse)), 0, max_level);
}

// A position is clear of the bounds of rounding if it is no farther than this from its level.
constexpr float kClear = 0.4999f;

// One block in each of kLanes columns: the input of the search, and the best result so far.
template <class Grid, int size>
struct IQBlock {
  static constexpr int n = Grid::elements, bits = Grid::level_bits;
  static constexpr int groups = size / n;
  static constexpr float top = 2 * Grid::max_level + 1;  // the largest value

  F x[size];       // magnitudes; with even parity of signs, one of eight may be negative
  F w[size];       // weights of the errors
  F root_w[size];  // their roots, which is what ggml weighs neighbours by
  F wx[size];
  I signs[size / 8];
  F max;
  M active;  // lanes that are not zero

  F scale;
  I code[groups];    // levels, on the grid
  M on_grid[groups];  // whether they were on it without a search among neighbours

  WC_OUT_OF_LINE void take_magnitudes(Strip from) {
    for (int k = 0; k < size / 8; ++k) {
      signs[k] = 0;
      for (int i = 8 * k; i < 8 * k + 8; ++i) {
        const M minus = from[i] < 0.0f;
        x[i] = select(minus, -from[i], from[i]);
        signs[k] = signs[k] | select(minus, I(1 << i % 8), I(0));
      }
    }
  }

  // Change the sign that matters least where the number of minus signs is odd.
  WC_OUT_OF_LINE void make_signs_even() {
    for (int k = 0; k < size / 8; ++k) {
      const I s = signs[k];
      I parity = s ^ (s >> 4);
      parity = parity ^ (parity >> 2);
      const M odd = ((parity ^ (parity >> 1)) & 1) == 1;
      I where = 0;
      F least = w[8 * k] * x[8 * k] * x[8 * k];
      for (int i = 1; i < 8; ++i) {
        const F error = w[8 * k + i] * x[8 * k + i] * x[8 * k + i];
        where = select(error < least, i, where);
        least = select(error < least, error, least);
      }
      for (int i = 0; i < 8; ++i) {
        const M flip = odd & (where == i);
        x[8 * k + i] = select(flip, -x[8 * k + i], x[8 * k + i]);
        signs[k] = signs[k] ^ select(flip, I(1 << i), I(0));
      }
    }
  }

  // Compute what depends on the weights of errors. Lanes whose largest value is below eps count as zero.
  WC_OUT_OF_LINE void prepare(float eps) {
    max = x[0];
    for (int i = 1; i < size; ++i) max = select(max > x[i], max, x[i]);
    active = !(max < eps);
    for (int i = 0; i < size; ++i) {
      root_w[i] = root(w[i]);
      wx[i] = w[i] * x[i];
    }
    for (int k = 0; k < groups; ++k) code[k] = 0;
  }

  // Find the grid entries nearest to x / this_scale in `lanes`; other lanes get any entry.
  WC_OUT_OF_LINE void snap(const Grid& grid, F inverse, F this_scale, M lanes, I (&found)[groups],
                           M (&hit)[groups]) const {
    const I wanted = select(lanes, I(1), I(0));
    int32_t is_wanted[kLanes];
    float scales[kLanes];
    std::memcpy(is_wanted, &wanted, sizeof wanted);
    std::memcpy(scales, &this_scale, sizeof this_scale);
    const LevelValues values = level_values<bits>(odd_values());
    for (int k = 0; k < groups; ++k) {
      I packed = 0, key = 0;
      F farthest = 0.0f;
      for (int i = n - 1; i >= 0; --i) {
        const F position = odd_position(x[n * k + i], inverse);
        const I level = clamped(nearest_int(position), 0, Grid::max_level);
        packed = (packed << bits) | level;
        key = bits == 3 ? packed : key + key + key + level;
        const F inside = clamped(position, 0.0f, static_cast<float>(Grid::max_level));
        farthest = greater(magnitude(inside - floats(level)), farthest);
      }
      const I clear = select(farthest < kClear, I(1), I(0));
      int32_t keys[kLanes], points[kLanes], codes[kLanes], search[kLanes], is_clear[kLanes];
      std::memcpy(keys, &key, sizeof key);
      std::memcpy(codes, &packed, sizeof packed);
      std::memcpy(is_clear, &clear, sizeof clear);
      int searches = 0;
      for (int c = 0; c < kLanes; ++c) {
        points[c] = grid.point(keys[c]);
        search[searches] = c;
        searches += (points[c] >= 0) & is_wanted[c];
      }
      for (int j = 0; j < searches; ++j) {
        const int c = search[j];
        const NeighbourList list =
            is_clear[c] != 0 ? grid.short_list(points[c]) : grid.full_list(keys[c]);
        codes[c] = best_neighbour<Grid>(list, rows(x + n * k) + c, rows(root_w + n * k) + c,
                                        scales[c], values);
      }
      std::memcpy(&found[k], codes, sizeof codes);
      I point;
      std::memcpy(&point, points, sizeof points);
      hit[k] = point < I(0);
    }
  }

  WC_OUT_OF_LINE void sums(const I (&levels)[groups], F& sumqx, F& sumq2) const {
    sumqx = sumq2 = 0.0f;
    for (int i = 0; i < size; ++i) {
      const I level = (levels[i / n] >> bits * (i % n)) & ((1 << bits) - 1);
      const F q = floats(level + level + 1);
      sumqx += wx[i] * q;
      sumq2 += w[i] * q * q;
    }
  }

  // Try the scales span / (top + step * i), i from -steps to steps, each with its best grid entries.
  WC_OUT_OF_LINE void search(const Grid& grid, F span, float step, int steps) {
    F best = 0.0f;
    I found[groups];
    M hit[groups];
    for (int i = -steps; i <= steps; ++i) {
      const F inverse = (top + static_cast<float>(i) * step) / span;
      snap(grid, inverse, 1.0f / inverse, active, found, hit);
      F sumqx, sumq2;
      sums(found, sumqx, sumq2);
      const M better = (sumq2 > 0.0f) & (sumqx * sumqx > best * sumq2);
      const F better_scale = sumqx / sumq2;
      scale = select(better, better_scale, scale);
      best = select(better, better_scale * sumqx, best);
      for (int k = 0; k < groups; ++k) {
        code[k] = select(better, found[k], code[k]);
        on_grid[k] = (better & hit[k]) | (!better & on_grid[k]);
      }
    }
  }

  // Choose the grid entries of `lanes` again at the scale found; with `keep_on_grid`, keep those that
  // needed no neighbours. Then choose the scale that fits best.
  void refine(const Grid& grid, M lanes, bool keep_on_grid) {
    if (!any(lanes)) return;
    I found[groups];
    M hit[groups];
    snap(grid, 1.0f / scale, scale, lanes, found, hit);
    for (int k = 0; k < groups; ++k) {
      const M change = keep_on_grid ? lanes & !on_grid[k] : lanes;
      code[k] = select(change, found[k], code[k]);
    }
    F sumqx, sumq2;
    sums(code, sumqx, sumq2);
    const F fitted = sumqx / sumq2;
    scale = select(lanes & (sumq2 > 0.0f) & (fitted == fitted), fitted, scale);
  }

  // The whole search, in all types but IQ2_XXS.
  void search_and_refine(const Grid& grid, float step, int steps, bool keep_on_grid) {
    scale = max / top;
    // Only IQ3_S refines lanes in which no candidate was any good.
    for (M& hit : on_grid) hit = keep_on_grid ? !no_lane() : no_lane();
    search(grid, max, step, steps);
    M all = on_grid[0];
    for (int k = 1; k < groups; ++k) all = all & on_grid[k];
    refine(grid, active & !all & (scale > 0.0f), keep_on_grid);
  }

  // Make scales positive by changing all signs; a zero block has scale, signs and levels of 0.
  void finish() {
    const M minus = scale < 0.0f;
    scale = select(active, select(minus, -scale, scale), 0.0f);
    for (I& s : signs) s = select(active, s ^ select(minus, I(0xff), I(0)), 0);
    for (I& c : code) c = select(active, c, 0);
  }

  // The grid index of a group; of a zero block, 0.
  WC_OUT_OF_LINE I index(const Grid& grid, int k) const {
    I key = code[k];
    if constexpr (bits == 2) {
      key = 0;
      for (int i = n - 1; i >= 0; --i) key = key + key + key + ((code[k] >> bits * i) & 3);
    }
    int32_t keys[kLanes], indices[kLanes];
    std::memcpy(keys, &key, sizeof key);
    for (int c = 0; c < kLanes; ++c) indices[c] = ~grid.point(keys[c]);
    I result;
    std::memcpy(&result, indices, sizeof indices);
    return select(active, result, 0);
  }

 private:
  static constexpr const float (&odd_values())[1 << bits] {
    if constexpr (bits == 2) {
      return kOddValues2;
    } else {
      return kOddValues3;
    }
  }
};

// Scales of a few bits, x = d * (2 * s + 1) * value, and the lanes in which all scales are 0.
template <int blocks>
struct SmallScales {
  F d;
  M empty;
  I s[blocks];

  SmallScales(const F (&scales)[blocks], int max_level) {
    F largest = 0.0f;
    for (const F& scale : scales) largest = select(largest > scale, largest, scale);
    empty = largest == 0.0f;
    d = largest / static_cast<float>(2 * max_level + 1);
    const F inverse = 1.0f / d;
    for (int ib = 0; ib < blocks; ++ib) {
      s[ib] = select(empty, 0, odd_level(scales[ib], inverse, max_level));
    }
  }
};

}  // namespace
}  // namespace weightcast
