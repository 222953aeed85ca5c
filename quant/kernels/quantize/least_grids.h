// The search for the least error in IQ2 and IQ3.
//
// ggml's search works with values that are equally spaced and with the grid entries near a point. Here the
// best entry of a group is found among all of them, signs included, with the values that a reader sees: its
// error is the sum of two halves, each of which takes few values, so that an entry costs one addition. The
// small scales are chosen by these errors, and d by least squares for the entries found.
#pragma once

#include "quantize/least_error.h"

namespace weightcast {
namespace {

// What a type of this kind is made of. A group of n weights has one of `entries` entries of the grid, with
// levels of `bits` bits; sub-blocks of `size` weights have a scale of four bits.
template <class Type>
struct GridTraits;

// The signs of eight weights are free, or the eighth makes the number of minus signs even, so that one of
// them may be wrong. Or values have signs of their own, and are shifted up or down.
enum class Signs { FREE, EVEN, SHIFTED };

template <const auto& grid, int group, int level_bits, int level_count, int sub_block, Signs sign_rule>
struct GridTypeTraits {
  static constexpr int n = group, bits = level_bits, levels = level_count, size = sub_block;
  static constexpr Signs signs = sign_rule;
  static constexpr int entries = sizeof grid / sizeof grid[0];
  static constexpr int blocks = kSuper / size, groups = size / n;
  static constexpr float top = sign_rule == Signs::SHIFTED ? 7.0f : 15.0f;  // of small scales
  static constexpr int power(int exponent) { return exponent == 0 ? 1 : levels * power(exponent - 1); }
  static constexpr int halves = power(n / 2);  // values of half a group's levels

  static constexpr int code_of(int entry) { return grid[entry]; }

  // Number the levels of half a group, the first of them lowest.
  static constexpr int half_of(int code, int half) {
    int number = 0;
    for (int i = n / 2 - 1; i >= 0; --i) {
      number = number * levels + (code >> bits * (half * n / 2 + i) & ((1 << bits) - 1));
    }
    return number;
  }
};

// The values of levels, one or one in each lane, and the scales of sub-blocks, d * unit(s), as readers have
// them.
struct IQ2Values {
  WC_INLINE static int value(int level) { return value_iq2(level); }
  WC_INLINE static F in_lanes(I level) { return floats(level * 17 + 8 + (level >> 1)); }
  WC_INLINE static F unit(F s) { return (0.5f + s) * 0.25f; }
  WC_INLINE static F scale(F d, F s) { return d * (0.5f + s) * 0.25f; }
};
struct IQ3XXSValues {
  WC_INLINE static int value(int level) { return value_iq3_xxs(level); }
  WC_INLINE static F in_lanes(I level) { return floats(level * 8 + 4 + ((level + 1) >> 3) * 2); }
  WC_INLINE static F unit(F s) { return (0.5f + s) * 0.5f; }
  WC_INLINE static F scale(F d, F s) { return d * (0.5f + s) * 0.5f; }
};
struct OddScales {
  WC_INLINE static F unit(F s) { return 1.0f + 2.0f * s; }
  WC_INLINE static F scale(F d, F s) { return d * (1.0f + 2.0f * s); }
};
struct IQ3SValues : OddScales {
  WC_INLINE static int value(int level) { return value_iq3_s(level); }
  WC_INLINE static F in_lanes(I level) { return floats(level + level + 1); }
};
struct IQ1Values : OddScales {
  WC_INLINE static int value(int level) { return value_iq1(level); }
  WC_INLINE static F in_lanes(I level) { return floats(level - 1); }
};

template <>
struct GridTraits<IQ2XXS> : GridTypeTraits<kGridIQ2XXS, 8, 2, 3, 32, Signs::EVEN>, IQ2Values {};
template <>
struct GridTraits<IQ2XS> : GridTypeTraits<kGridIQ2XS, 8, 2, 3, 16, Signs::EVEN>, IQ2Values {};
template <>
struct GridTraits<IQ2S> : GridTypeTraits<kGridIQ2S, 8, 2, 3, 16, Signs::FREE>, IQ2Values {};
template <>
struct GridTraits<IQ3XXS> : GridTypeTraits<kGridIQ3XXS, 4, 3, 8, 32, Signs::EVEN>, IQ3XXSValues {};
template <>
struct GridTraits<IQ3S> : GridTypeTraits<kGridIQ3S, 4, 3, 8, 32, Signs::FREE>, IQ3SValues {};
template <>
struct GridTraits<IQ1S> : GridTypeTraits<kGridIQ1, 8, 2, 3, 32, Signs::SHIFTED>, IQ1Values {};
template <>
struct GridTraits<IQ1M> : GridTypeTraits<kGridIQ1, 8, 2, 3, 16, Signs::SHIFTED>, IQ1Values {};

// The halves of all entries of a grid.
template <class Traits>
struct EntryHalves {
  uint8_t half[2][Traits::entries];

  constexpr EntryHalves() : half() {
    for (int e = 0; e < Traits::entries; ++e) {
      for (int h = 0; h < 2; ++h) half[h][e] = static_cast<uint8_t>(Traits::half_of(Traits::code_of(e), h));
    }
  }
};

// The errors of all halves of a group at one scale, and what a wrong sign adds to them at least.
template <class Traits>
struct GridScratch {
  F error[2][Traits::halves];
  F flip[2][Traits::halves];
};

// The best entry of a group.
struct GridChoice {
  F error;
  I index;

  WC_INLINE void consider(F other, int entry) {
    index = select(other < error, entry, index);
    error = lesser(other, error);
  }
};

template <class Traits>
struct GridGroup {
  static constexpr int n = Traits::n, levels = Traits::levels;
  Strip x;
  const float* w;
  GridScratch<Traits>& scratch;

  // Fill the tables for one scale. Signs are wrong in `odd` lanes; values are shifted by `shift`.
  WC_INLINE void prepare(F scale, M odd, float shift = 0.0f) const {
    for (int half = 0; half < 2; ++half) {
      F* error = scratch.error[half];
      F* flip = scratch.flip[half];
      error[0] = 0.0f;
      flip[0] = select(odd, infinity(), 0.0f);
      int count = 1;
      for (int i = half * n / 2; i < (half + 1) * n / 2; ++i, count *= levels) {
        const F size = Traits::signs == Signs::SHIFTED ? x[i] : magnitude(x[i]);
        for (int level = levels - 1; level >= 0; --level) {
          const F y = scale * (static_cast<float>(Traits::value(level)) + shift);
          const F diff = y - size;
          const F term = w[i] * (diff * diff);
          const F wrong = (4.0f * w[i]) * (y * size);
          for (int j = 0; j < count; ++j) {
            error[level * count + j] = error[j] + term;
            if constexpr (Traits::signs == Signs::EVEN) flip[level * count + j] = lesser(wrong, flip[j]);
          }
        }
      }
    }
  }

  // Find the best entry as it is, in `right`, or with a wrong sign in odd lanes, in `wrong`.
  template <bool is_right, bool is_wrong>
  WC_INLINE void best(GridChoice& right, GridChoice& wrong) const {
    static constexpr EntryHalves<Traits> kHalves;
    right = wrong = {infinity(), 0};
    for (int e = 0; e < Traits::entries; ++e) {
      const int a = kHalves.half[0][e], b = kHalves.half[1][e];
      const F error = scratch.error[0][a] + scratch.error[1][b];
      if constexpr (is_right) right.consider(error, e);
      if constexpr (is_wrong) wrong.consider(error + lesser(scratch.flip[0][a], scratch.flip[1][b]), e);
    }
  }
};

// Look up the levels of an entry in each lane.
template <class Traits>
WC_INLINE I code_at(I index) {
  int32_t indices[kLanes];
  std::memcpy(indices, &index, sizeof index);
  for (int32_t& i : indices) i = Traits::code_of(i);
  I code;
  std::memcpy(&code, indices, sizeof code);
  return code;
}

WC_INLINE I minus_of(F x) { return (bits(x) >> 31) & 1; }

// The lanes in which an odd number of eight weights is negative.
WC_INLINE M odd_signs(Strip x) {
  I sum = 0;
  for (int i = 0; i < 8; ++i) sum = sum ^ minus_of(x[i]);
  return sum == 1;
}

// How many scales of each sub-block are tried at first, around ggml's, how often d is fitted, and how far
// from the rounded ones small scales are tried. The grid of IQ1 is the largest.
struct GridEffort {
  int tries, rounds, reach;
};
constexpr GridEffort kGridEfforts[kEfforts] = {{3, 1, 1}, {5, 2, 1}, {17, 3, 2}};
constexpr GridEffort kIQ1Efforts[kEfforts] = {{0, 1, 0}, {0, 1, 1}, {5, 2, 1}};
constexpr float kLeastFactor = 0.8f, kMostFactor = 1.25f;
// Where importance differs, twice as many are tried: large weights may be best cut off.
constexpr float kLeastFactorWeighed = 0.4f;

template <class Type>
struct GridSuper {
  using Traits = GridTraits<Type>;
  static constexpr int n = Traits::n, size = Traits::size, blocks = Traits::blocks, groups = Traits::groups;
  Strip x;
  const float* w;
  GridScratch<Traits>& scratch;
  F d;
  F s[blocks];

  WC_INLINE GridSuper(Strip from, const float* weights, GridScratch<Traits>& memory)
      : x(from), w(weights), scratch(memory) {}

  // The choices of one sub-block: entries, and groups with a wrong sign, or shifted down.
  I index[groups];
  M wrong[groups];

  // Compute the error of a sub-block at one scale, with the best entries.
  WC_OUT_OF_LINE F choose(int b, F scale) {
    if constexpr (Traits::signs == Signs::SHIFTED) return choose_shifted(b, scale);
    F sum = 0.0f;
    for (int k = 0; k < groups; ++k) {
      const GridGroup<Traits> group{x + (size * b + n * k), w + (size * b + n * k), scratch};
      GridChoice right, other;
      if constexpr (Traits::signs == Signs::FREE) {
        group.prepare(scale, no_lane());
        group.template best<true, false>(right, other);
        index[k] = right.index;
        wrong[k] = no_lane();
        sum += right.error;
      } else if constexpr (n == 8) {
        wrong[k] = odd_signs(group.x);
        group.prepare(scale, wrong[k]);
        group.template best<false, true>(right, other);
        index[k] = other.index;
        sum += other.error;
      } else {
        group.prepare(scale, !no_lane());
        group.template best<true, true>(right, other);
        if (k % 2 == 0) {
          first_right = right;
          first_wrong = other;
        } else {
          sum += choose_pair(k, odd_signs(group.x + -4), first_right, first_wrong, right, other);
        }
      }
    }
    return sum;
  }

  // The same where a group, or all of them together (IQ1_S), may be shifted up or down.
  WC_INLINE F choose_shifted(int b, F scale) {
    GridChoice up[groups], down[groups], none;
    for (int k = 0; k < groups; ++k) {
      const GridGroup<Traits> group{x + (size * b + n * k), w + (size * b + n * k), scratch};
      group.prepare(scale, no_lane(), kIQ1Delta);
      group.template best<true, false>(up[k], none);
      group.prepare(scale, no_lane(), -kIQ1Delta);
      group.template best<true, false>(down[k], none);
    }
    F up_sum = 0.0f, down_sum = 0.0f, sum = 0.0f;
    for (int k = 0; k < groups; ++k) {
      up_sum += up[k].error;
      down_sum += down[k].error;
    }
    for (int k = 0; k < groups; ++k) {
      wrong[k] = Traits::size == 32 ? down_sum < up_sum : down[k].error < up[k].error;
      index[k] = select(wrong[k], down[k].index, up[k].index);
      sum += select(wrong[k], down[k].error, up[k].error);
    }
    return sum;
  }

  // Eight signs go with two groups of four, k - 1 and k: the wrong one is in either. Returns the error of
  // both.
  GridChoice first_right, first_wrong;
  WC_INLINE F choose_pair(int k, M odd, const GridChoice& right0, const GridChoice& wrong0,
                          const GridChoice& right1, const GridChoice& wrong1) {
    const F in_first = wrong0.error + right1.error, in_second = right0.error + wrong1.error;
    wrong[k - 1] = odd & (in_first < in_second);
    wrong[k] = odd & !(in_first < in_second);
    index[k - 1] = select(wrong[k - 1], wrong0.index, right0.index);
    index[k] = select(wrong[k], wrong1.index, right1.index);
    return select(odd, lesser(in_first, in_second), right0.error + right1.error);
  }

  WC_INLINE static F small(F value) { return nearest_small(lesser(greater(value, 0.0f), Traits::top)); }

  void search(F start_d, const I (&start)[blocks], const GridEffort& effort, bool is_weighed) {
    F largest = 0.0f;
    const int tries = is_weighed ? effort.tries * 2 : effort.tries;
    const float least = is_weighed ? kLeastFactorWeighed : kLeastFactor;
    F wanted[blocks];
    for (int b = 0; b < blocks; ++b) {
      F first = Traits::scale(start_d, floats(start[b]));
      // ggml's rule loses sub-blocks whose columns all count nothing.
      const float top = static_cast<float>(Traits::value(Traits::levels - 1));
      const F guess = magnitude_maximum<size>(x + size * b) / top;
      first = select(first > 0.0f, first, guess);
      wanted[b] = first;
      F best = infinity();
      for (int k = 0; k < tries; ++k) {
        const float part = static_cast<float>(k) / static_cast<float>(tries - 1);
        const F scale = first * (least + (kMostFactor - least) * part);
        const F error = choose(b, scale);
        const M better = error < best;
        best = select(better, error, best);
        wanted[b] = select(better, scale, wanted[b]);
      }
      largest = greater(wanted[b], largest);
    }
    d = from_f16(to_f16(largest / Traits::unit(Traits::top)));
    const F inverse = inverse_of(d * Traits::unit(0.0f)) * 0.5f;
    for (int b = 0; b < blocks; ++b) s[b] = small(wanted[b] * inverse - 0.5f);
    refine(effort);
  }

  void refine(const GridEffort& effort) {
    F best = infinity(), best_d = d, best_s[blocks];
    for (F& v : best_s) v = 0.0f;
    for (int round = 0;; ++round) {
      F error = 0.0f, xs = 0.0f, ss = 0.0f;
      for (int b = 0; b < blocks; ++b) error += choose_small(b, effort.reach, round < effort.rounds, xs, ss);
      const M better = error < best;
      best = select(better, error, best);
      best_d = select(better, d, best_d);
      for (int b = 0; b < blocks; ++b) best_s[b] = select(better, s[b], best_s[b]);
      if (round == effort.rounds) break;
      d = from_f16(to_f16(select((ss > 0.0f) & (xs > 0.0f), xs / ss, d)));
    }
    d = best_d;
    for (int b = 0; b < blocks; ++b) s[b] = best_s[b];
  }

  // Choose the small scale of a sub-block, and add to the sums that d is fitted by.
  WC_INLINE F choose_small(int b, int reach, bool fit, F& xs, F& ss) {
    F best = infinity(), best_s = s[b];
    I best_index[groups];
    M best_wrong[groups];
    for (int k = 0; k < groups; ++k) {
      best_index[k] = 0;
      best_wrong[k] = no_lane();
    }
    for (int i = -reach; i <= reach; ++i) {
      const F next = small(s[b] + static_cast<float>(i));
      const F error = choose(b, Traits::scale(d, next));
      const M better = error < best;
      best = select(better, error, best);
      best_s = select(better, next, best_s);
      for (int k = 0; k < groups; ++k) {
        best_index[k] = select(better, index[k], best_index[k]);
        best_wrong[k] = (better & wrong[k]) | (!better & best_wrong[k]);
      }
    }
    s[b] = best_s;
    if (!fit) return best;
    F xq = 0.0f, qq = 0.0f;
    for (int k = 0; k < groups; ++k) {
      const I code = code_at<Traits>(best_index[k]);
      const I flipped = flipped_in(b, k, code, best_wrong[k]);
      for (int i = 0; i < n; ++i) {
        const int at = size * b + n * k + i;
        F q = value_at(code, i), from = x[at];
        if constexpr (Traits::signs == Signs::SHIFTED) {
          q = q + select(best_wrong[k], F(-kIQ1Delta), F(kIQ1Delta));
        } else {
          from = select(flipped == i, -magnitude(from), magnitude(from));
        }
        const F wq = w[at] * q;
        xq += wq * from;
        qq += wq * q;
      }
    }
    const F u = Traits::unit(s[b]);
    xs += u * xq;
    ss += u * u * qq;
    return best;
  }

  WC_INLINE static F value_at(I code, int i) {
    return Traits::in_lanes((code >> Traits::bits * i) & ((1 << Traits::bits) - 1));
  }

  // Find the weight whose sign is wrong, -1 if none.
  WC_INLINE I flipped_in(int b, int k, I code, M is_wrong) const {
    I where = -1;
    if constexpr (Traits::signs == Signs::EVEN) {
      F least = infinity();
      for (int i = 0; i < n; ++i) {
        const int at = size * b + n * k + i;
        const F cost = (4.0f * w[at]) * (value_at(code, i) * magnitude(x[at]));
        const M better = is_wrong & (cost < least);
        where = select(better, i, where);
        least = select(better, cost, least);
      }
    }
    return where;
  }

  // Give the entry of a group, and the sign bits of its weights.
  WC_INLINE I signs_of(int b, int k) const {
    const I flipped = flipped_in(b, k, code_at<Traits>(index[k]), wrong[k]);
    I found = 0;
    for (int i = 0; i < n; ++i) {
      found = found | minus_of(x[size * b + n * k + i]) << i;
      found = found ^ select(flipped == i, I(1 << i), I(0));
    }
    return found;
  }
};

template <>
struct LeastError<IQ2XXS> {
  using Scratch = GridScratch<GridTraits<IQ2XXS>>;
  static void quantize(Strip x, const float* w, Effort effort, Scratch& scratch, Bytes start, Bytes out) {
    GridSuper<IQ2XXS> super(x, w, scratch);
    I ls[8];
    for (int b = 0; b < 8; ++b) ls[b] = (load_bytes(start[2 + 8 * b + 7]) >> 4) & 15;
    super.search(read_half(start), ls, kGridEfforts[effort.level], effort.is_weighed);
    store_half(out, to_f16(super.d));
    for (int b = 0; b < 8; ++b) {
      super.choose(b, GridTraits<IQ2XXS>::scale(super.d, super.s[b]));
      I rest = truncated(super.s[b]) << 28;
      for (int k = 0; k < 4; ++k) {
        store_bytes(out[2 + 8 * b + k], super.index[k]);
        rest = rest | (super.signs_of(b, k) & 127) << 7 * k;
      }
      store_word(out + 6 + 8 * b, rest);
    }
  }
};

template <>
struct LeastError<IQ2XS> {
  using Scratch = GridScratch<GridTraits<IQ2XS>>;
  static void quantize(Strip x, const float* w, Effort effort, Scratch& scratch, Bytes start, Bytes out) {
    GridSuper<IQ2XS> super(x, w, scratch);
    I ls[16];
    for (int b = 0; b < 16; ++b) ls[b] = (load_bytes(start[66 + b / 2]) >> 4 * (b % 2)) & 15;
    super.search(read_half(start), ls, kGridEfforts[effort.level], effort.is_weighed);
    store_half(out, to_f16(super.d));
    for (int b = 0; b < 16; ++b) {
      super.choose(b, GridTraits<IQ2XS>::scale(super.d, super.s[b]));
      ls[b] = truncated(super.s[b]);
      for (int k = 0; k < 2; ++k) {
        store_half(out + 2 + 4 * b + 2 * k, super.index[k] | (super.signs_of(b, k) & 127) << 9);
      }
    }
    store_nibbles(ls, out + 66);
  }
};

template <>
struct LeastError<IQ2S> {
  using Scratch = GridScratch<GridTraits<IQ2S>>;
  static void quantize(Strip x, const float* w, Effort effort, Scratch& scratch, Bytes start, Bytes out) {
    GridSuper<IQ2S> super(x, w, scratch);
    I ls[16];
    for (int b = 0; b < 16; ++b) ls[b] = (load_bytes(start[74 + b / 2]) >> 4 * (b % 2)) & 15;
    super.search(read_half(start), ls, kGridEfforts[effort.level], effort.is_weighed);
    store_half(out, to_f16(super.d));
    I high[8];
    for (int b = 0; b < 16; ++b) {
      super.choose(b, GridTraits<IQ2S>::scale(super.d, super.s[b]));
      ls[b] = truncated(super.s[b]);
      if (b % 2 == 0) high[b / 2] = 0;
      for (int k = 0; k < 2; ++k) {
        store_bytes(out[2 + 2 * b + k], super.index[k]);
        store_bytes(out[34 + 2 * b + k], super.signs_of(b, k));
        high[b / 2] = high[b / 2] | (super.index[k] >> 8) << (4 * (b % 2) + 2 * k);
      }
    }
    for (int i = 0; i < 8; ++i) store_bytes(out[66 + i], high[i]);
    store_nibbles(ls, out + 74);
  }
};

template <>
struct LeastError<IQ3XXS> {
  using Scratch = GridScratch<GridTraits<IQ3XXS>>;
  static void quantize(Strip x, const float* w, Effort effort, Scratch& scratch, Bytes start, Bytes out) {
    GridSuper<IQ3XXS> super(x, w, scratch);
    I ls[8];
    for (int b = 0; b < 8; ++b) ls[b] = (load_bytes(start[66 + 4 * b + 3]) >> 4) & 15;
    super.search(read_half(start), ls, kGridEfforts[effort.level], effort.is_weighed);
    store_half(out, to_f16(super.d));
    for (int b = 0; b < 8; ++b) {
      super.choose(b, GridTraits<IQ3XXS>::scale(super.d, super.s[b]));
      I rest = truncated(super.s[b]) << 28;
      for (int k = 0; k < 8; ++k) store_bytes(out[2 + 8 * b + k], super.index[k]);
      for (int k = 0; k < 4; ++k) {
        const I eight = super.signs_of(b, 2 * k) | super.signs_of(b, 2 * k + 1) << 4;
        rest = rest | (eight & 127) << 7 * k;
      }
      store_word(out + 66 + 4 * b, rest);
    }
  }
};

template <>
struct LeastError<IQ3S> {
  using Scratch = GridScratch<GridTraits<IQ3S>>;
  static void quantize(Strip x, const float* w, Effort effort, Scratch& scratch, Bytes start, Bytes out) {
    GridSuper<IQ3S> super(x, w, scratch);
    I ls[8];
    for (int b = 0; b < 8; ++b) ls[b] = (load_bytes(start[106 + b / 2]) >> 4 * (b % 2)) & 15;
    super.search(read_half(start), ls, kGridEfforts[effort.level], effort.is_weighed);
    store_half(out, to_f16(super.d));
    for (int b = 0; b < 8; ++b) {
      super.choose(b, GridTraits<IQ3S>::scale(super.d, super.s[b]));
      ls[b] = truncated(super.s[b]);
      I high = 0;
      for (int k = 0; k < 8; ++k) {
        store_bytes(out[2 + 8 * b + k], super.index[k]);
        high = high | (super.index[k] >> 8) << k;
      }
      store_bytes(out[66 + b], high);
      for (int k = 0; k < 4; ++k) {
        store_bytes(out[74 + 4 * b + k], super.signs_of(b, 2 * k) | super.signs_of(b, 2 * k + 1) << 4);
      }
    }
    store_nibbles(ls, out + 106);
  }
};

template <>
struct LeastError<IQ1S> {
  using Scratch = GridScratch<GridTraits<IQ1S>>;
  static void quantize(Strip x, const float* w, Effort effort, Scratch& scratch, Bytes start, Bytes out) {
    GridSuper<IQ1S> super(x, w, scratch);
    I ls[8];
    for (int b = 0; b < 8; ++b) ls[b] = (load_bytes(start[34 + 2 * b + 1]) >> 4) & 7;
    super.search(read_half(start), ls, kIQ1Efforts[effort.level], effort.is_weighed);
    store_half(out, to_f16(super.d));
    for (int b = 0; b < 8; ++b) {
      super.choose(b, GridTraits<IQ1S>::scale(super.d, super.s[b]));
      I high = truncated(super.s[b]) << 12 | select(super.wrong[0], I(0x8000), I(0));
      for (int k = 0; k < 4; ++k) {
        store_bytes(out[2 + 4 * b + k], super.index[k]);
        high = high | (super.index[k] >> 8) << 3 * k;
      }
      store_half(out + 34 + 2 * b, high);
    }
  }
};

template <>
struct LeastError<IQ1M> {
  using Scratch = GridScratch<GridTraits<IQ1M>>;
  static void quantize(Strip x, const float* w, Effort effort, Scratch& scratch, Bytes start, Bytes out) {
    GridSuper<IQ1M> super(x, w, scratch);
    I ls[16], half = 0;
    for (int b = 0; b < 16; ++b) ls[b] = (load_half(start + 48 + 2 * (b / 4)) >> 3 * (b % 4)) & 7;
    for (int i = 0; i < 4; ++i) half = half | (load_half(start + 48 + 2 * i) >> 12) << 4 * i;
    super.search(from_f16(half), ls, kIQ1Efforts[effort.level], effort.is_weighed);
    for (int b = 0; b < 16; ++b) {
      super.choose(b, GridTraits<IQ1M>::scale(super.d, super.s[b]));
      ls[b] = truncated(super.s[b]);
      I high = 0;
      for (int k = 0; k < 2; ++k) {
        store_bytes(out[2 * b + k], super.index[k]);
        high = high | ((super.index[k] >> 8) | select(super.wrong[k], I(8), I(0))) << 4 * k;
      }
      store_bytes(out[32 + b], high);
    }
    IQ1M::store_scales(ls, to_f16(super.d), out + 48);
  }
};

}  // namespace
}  // namespace weightcast
