// Quantizer of groups: integers with a scale, and perhaps a zero point, for each group of a row,
// x = scale * (q - zero_point).
//
// The best scale and zero point are found by trial. A candidate is a scale as it is stored, rounded. It
// gets codes, their error, and the scale that least squares gives for these codes, rounded again. The
// first candidates clip the extremes more or less; the next are neighbours of the best so far. How many
// there are is the effort. The plain choice, from the extremes alone, is compared last, so that no result
// is worse than it at any effort.
//
// A group may be a whole row, longer than a tile, so it is visited in passes, kGroupChunk rows at a time:
//   GroupFit fit;  fit.begin();
//   for (int pass = 0; pass < rule.passes; ++pass) {
//     for (each chunk) fit.visit<weighed>(rule, pass, x, importance);
//     fit.finish(rule, pass);
//   }
//   for (each chunk) fit.store_codes(rule, x, out);
//
// Sums are taken over a chunk first, then over chunks, so that float32 suffices for rows of tens of
// thousands. They add residuals x - scale * level and their products with levels. Squares of values
// would save an operation, but drown the error of eight bits.
//
// Sources: the alternation of codes and least squares is make_qx_quants's in ggml-quants.c; that of
// scale and zero point is in Badri and Shaji, "Half-Quadratic Quantization of Large Machine Learning
// Models" (2023). The plain choice is calculate_qparams's of compressed-tensors.
#pragma once

#include "source/strip.h"
#include "weightcast.h"

namespace weightcast {
namespace {

constexpr int kGroupChunk = 32;  // in-rows that are visited at once; groups are whole chunks
constexpr int kGroupWays = 4;    // candidates of a pass

// How much is tried at an effort, in passes of kGroupWays candidates, after the extremes.
struct GroupEffort {
  int main;         // symmetrically clipped; with each, `quarters` of a step go through the tables below
  int sides;        // of each other kind: the opposite sign, or one side clipped
  int refinements;  // neighbours of the best
  int quarters;
  int first;        // quarter of the tables
};
constexpr GroupEffort kGroupEfforts[] = {{0, 0, 0, 0, 0}, {2, 0, 1, 8, 4}, {4, 1, 3, 4, 0}, {16, 4, 6, 1, 0}};
static_assert(sizeof kGroupEfforts / sizeof *kGroupEfforts == WEIGHTCAST_GROUP_EFFORTS, "one each");

// Parameters that all groups of a matrix share.
struct GroupRule {
  int32_t bits, scale_type;
  bool symmetric;
  GroupEffort effort;
  int grid_passes;  // of candidates that do not depend on better ones
  int passes;       // 1: no search
  float levels;     // 2^bits - 1
  float middle;     // 2^(bits - 1)
};

constexpr int kGroupSteps = 3;

// The first candidates. The finer the levels, the less clipping pays.
struct GroupGrid {
  float factors[4 * kGroupWays];  // by which the extremes are divided
  float opposite[kGroupWays];     // the same, where the largest magnitude gets the highest level: symmetric
  float one_sided[kGroupWays];    // by which one extreme is multiplied: with a zero point
  float steps[kGroupSteps];       // relative, of the neighbours of the best scale
};
constexpr GroupGrid kGrid4 = {{0.80f, 0.85f, 0.90f, 0.95f, 1.00f, 1.05f, 1.10f, 1.15f, 1.20f, 1.25f, 1.30f,
                               1.40f, 1.55f, 1.75f, 2.05f, 2.60f},
                              {0.95f, 1.10f, 1.30f, 1.60f},
                              {0.85f, 0.70f, 0.55f, 0.40f},
                              {0.03f, 0.015f, 0.007f}};
constexpr GroupGrid kGrid8 = {{0.952f, 0.960f, 0.968f, 0.976f, 0.984f, 0.992f, 1.000f, 1.008f, 1.016f, 1.024f,
                               1.032f, 1.040f, 1.050f, 1.065f, 1.085f, 1.12f},
                              {0.992f, 1.012f, 1.036f, 1.08f},
                              {0.985f, 0.97f, 0.94f, 0.90f},
                              {0.006f, 0.004f, 0.002f}};

// The value `quarters` of a step into a table; past its end with the last step.
template <int n>
WC_INLINE float table_value(const float (&table)[n], int quarters) {
  const int i = quarters / 4, from = i + 1 < n ? i : n - 2;
  return table[i] + (table[from + 1] - table[from]) * (0.25f * static_cast<float>(quarters % 4));
}

// `effort` is below WEIGHTCAST_GROUP_EFFORTS.
inline GroupRule group_rule(int32_t bits, bool symmetric, int32_t scale_type, int32_t effort) {
  GroupRule rule{};
  rule.bits = bits;
  rule.scale_type = scale_type;
  rule.symmetric = symmetric;
  rule.levels = static_cast<float>((1 << bits) - 1);
  rule.middle = static_cast<float>(1 << (bits - 1));
  rule.effort = kGroupEfforts[effort];
  rule.grid_passes = rule.effort.main + rule.effort.sides * (symmetric ? 1 : 2);
  // Extremes, candidates, the comparison with the plain choice.
  rule.passes = effort > 0 ? 1 + rule.grid_passes + rule.effort.refinements + 1 : 1;
  return rule;
}

// Round a scale as it will be stored. Overflow gives infinity.
WC_INLINE F stored_scale(const GroupRule& rule, F scale) {
  switch (rule.scale_type) {
    case WEIGHTCAST_F16: return from_f16(to_f16(scale));
    case WEIGHTCAST_BF16: {
      const I b = bits(scale);
      return of_bits((b + 0x7fff + ((b >> 16) & 1)) & static_cast<int32_t>(0xffff0000));
    }
    default: return scale;
  }
}

// Store one scale at its place among those of a matrix.
inline void store_scale(int32_t scale_type, float scale, void* scales, int64_t at) {
  switch (scale_type) {
    case WEIGHTCAST_F32: static_cast<float*>(scales)[at] = scale; break;
    case WEIGHTCAST_F16: static_cast<uint16_t*>(scales)[at] = f32_to_f16(scale); break;
    default: static_cast<uint16_t*>(scales)[at] = f32_to_bf16(scale); break;
  }
}

WC_INLINE F level_of(F quotient, F low, F high) {
  return nearest_small(lesser(greater(quotient, low), high));
}

// One way to store a group: levels from `low`, which is -zero_point, to `high`.
struct GroupCode {
  F scale, low;
};

// The search in one group of each of kLanes columns.
struct GroupFit {
  F max, amax;                 // the value of the largest magnitude that counts; any magnitude
  F lowest, highest;           // of the values that count, and 0
  F all_lowest, all_highest;   // of all values, and 0
  GroupCode plain, best;
  F plain_error, best_error;
  GroupCode tried[kGroupWays];
  F inverse[kGroupWays];
  F errors[kGroupWays], products[kGroupWays], squares[kGroupWays];  // sums of w r r, w r l and w l l

  WC_INLINE void begin() {
    max = amax = lowest = highest = all_lowest = all_highest = 0.0f;
    plain_error = best_error = 0.0f;
  }

  // `importance` [kGroupChunk] if weighed.
  template <bool weighed>
  WC_INLINE void visit(const GroupRule& rule, int pass, Strip x, const float* importance) {
    if (pass == 0) return add_extremes<weighed>(x, importance);
    if (pass + 1 == rule.passes) return add_comparison<weighed>(rule, x, importance);
    add_candidates<weighed>(rule, x, importance);
  }

  WC_INLINE void finish(const GroupRule& rule, int pass) {
    if (pass == 0) {
      choose_plain(rule);
      best = plain;
      best_error = of_bits(I(0x7f800000));
    } else if (pass + 1 < rule.passes) {
      take_better(rule);
    } else {
      const M better = best_error < plain_error;
      best.scale = select(better, best.scale, plain.scale);
      best.low = select(better, best.low, plain.low);
    }
    if (pass + 1 == rule.passes) return;
    if (pass + 2 == rule.passes) {
      plain_error = best_error = 0.0f;
    } else if (pass < rule.grid_passes) {
      propose_clipped(rule, pass);
    } else {
      propose_neighbours(rule, pass - rule.grid_passes);
    }
  }

  WC_INLINE F zero_point() const { return 0.0f - best.low; }

  // Store the codes of one chunk, a byte each.
  WC_INLINE void store_codes(const GroupRule& rule, Strip x, Bytes out) const {
    const F high = best.low + rule.levels;
WC_UNROLL
    for (int i = 0; i < kGroupChunk; ++i) {
      store_bytes(out[i], truncated(level_of(x[i] / best.scale, best.low, high) - best.low));
    }
  }

 private:
  template <bool weighed>
  WC_INLINE void add_extremes(Strip strip, const float* importance) {
    F size = magnitude(max);
WC_UNROLL
    for (int i = 0; i < kGroupChunk; ++i) {
      const F x = strip[i];
      amax = greater(amax, magnitude(x));
      all_lowest = lesser(x, all_lowest);
      all_highest = greater(x, all_highest);
      if constexpr (weighed) {
        if (!(importance[i] > 0.0f)) continue;
        lowest = lesser(x, lowest);
        highest = greater(x, highest);
      }
      const M larger = magnitude(x) > size;
      size = select(larger, magnitude(x), size);
      max = select(larger, x, max);
    }
    if constexpr (!weighed) {
      lowest = all_lowest;
      highest = all_highest;
    }
  }

  // Choose by the extremes alone. A scale that would be stored as zero becomes 1, and all codes become
  // the zero point: they stand for zeros, and nothing divides by zero.
  WC_INLINE void choose_plain(const GroupRule& rule) {
    const F middle = 0.0f - F(rule.middle);
    if (rule.symmetric) {
      plain.scale = stored_scale(rule, amax / (rule.middle - 0.5f));
      plain.low = middle;
    } else {
      plain = spanning(rule, all_lowest, all_highest);
    }
    const M none = plain.scale == 0.0f;
    plain.scale = select(none, 1.0f, plain.scale);
    plain.low = select(none, middle, plain.low);
  }

  // Levels that span `from` <= 0 to `to` >= 0. Both are divided first: their difference may be infinite.
  WC_INLINE GroupCode spanning(const GroupRule& rule, F from, F to) const {
    const F scale = stored_scale(rule, to / rule.levels - from / rule.levels);
    return {scale, level_of(from / scale, 0.0f - F(rule.levels), 0.0f)};
  }

  WC_INLINE void try_code(int way, GroupCode code) {
    tried[way] = code;
    inverse[way] = 1.0f / code.scale;
    errors[way] = products[way] = squares[way] = 0.0f;
  }

  WC_INLINE const GroupGrid& grid_of(const GroupRule& rule) const {
    return rule.bits == 4 ? kGrid4 : kGrid8;
  }

  // Main candidates, then those of the other kinds.
  WC_INLINE void propose_clipped(const GroupRule& rule, int pass) {
    const GroupGrid& grid = grid_of(rule);
    const int side = pass - rule.effort.main;
WC_UNROLL
    for (int way = 0; way < kGroupWays; ++way) {
      const int candidate = kGroupWays * (side < 0 ? pass : side % rule.effort.sides) + way;
      const int at = rule.effort.first + rule.effort.quarters * candidate;
      if (rule.symmetric) {
        // The largest magnitude gets the level that has no opposite, whatever its sign.
        const float factor = side < 0 ? 0.0f - table_value(grid.factors, at) : table_value(grid.opposite, at);
        try_code(way, {stored_scale(rule, max / (rule.middle * factor)), 0.0f - F(rule.middle)});
      } else if (side < 0) {
        const float factor = table_value(grid.factors, at);
        try_code(way, spanning(rule, lowest / factor, highest / factor));
      } else if (side < rule.effort.sides) {
        try_code(way, spanning(rule, lowest, highest * table_value(grid.one_sided, at)));
      } else {
        try_code(way, spanning(rule, lowest * table_value(grid.one_sided, at), highest));
      }
    }
  }

  WC_INLINE void propose_neighbours(const GroupRule& rule, int round) {
    // Beyond the table, its steps again, halved.
    const float halves = round < kGroupSteps ? 1.0f : 0.5f;
    const float step = grid_of(rule).steps[round % kGroupSteps] * halves;
    try_code(0, best);
    try_code(1, {stored_scale(rule, best.scale * (1.0f - step)), best.low});
    try_code(2, {stored_scale(rule, best.scale * (1.0f + step)), best.low});
    if (rule.symmetric) {
      try_code(3, {0.0f - best.scale, best.low});
    } else {
      const F low = best.low + (round % 2 == 0 ? 1.0f : -1.0f);
      try_code(3, {best.scale, lesser(greater(low, 0.0f - rule.levels), 0.0f)});
    }
  }

  template <bool weighed>
  WC_INLINE void add_candidates(const GroupRule& rule, Strip strip, const float* importance) {
    F error[kGroupWays], product[kGroupWays], square[kGroupWays], high[kGroupWays];
    for (int way = 0; way < kGroupWays; ++way) {
      error[way] = product[way] = square[way] = 0.0f;
      high[way] = tried[way].low + rule.levels;
    }
WC_UNROLL
    for (int i = 0; i < kGroupChunk; ++i) {
      const F x = strip[i];
      for (int way = 0; way < kGroupWays; ++way) {
        const F level = level_of(x * inverse[way], tried[way].low, high[way]);
        const F residual = x - tried[way].scale * level;
        if constexpr (weighed) {
          const F wr = residual * importance[i], wl = level * importance[i];
          error[way] += wr * residual;
          product[way] += wr * level;
          square[way] += wl * level;
        } else {
          error[way] += residual * residual;
          product[way] += residual * level;
          square[way] += level * level;
        }
      }
    }
    for (int way = 0; way < kGroupWays; ++way) {
      errors[way] += error[way];
      products[way] += product[way];
      squares[way] += square[way];
    }
  }

  // Comparisons with NaN are false, so sums that overflow never win. (Rounded to bfloat16, a NaN scale
  // stays NaN on the CPU and becomes -0 on a device, whose NaN has other bits: neither is used.)
  WC_INLINE void take_better(const GroupRule& rule) {
    for (int way = 0; way < kGroupWays; ++way) {
      const F scale = tried[way].scale;
      const F fitted = stored_scale(rule, scale + products[way] / squares[way]);
      const F step = fitted - scale;
      const F gain = step * (products[way] + products[way] - step * squares[way]);
      const M use = (gain > 0.0f) & not_equal(fitted, 0.0f);
      const F error = select(use, errors[way] - gain, errors[way]);
      const M better = (error < best_error) & not_equal(scale, 0.0f);
      best_error = select(better, error, best_error);
      best.scale = select(better, select(use, fitted, scale), best.scale);
      best.low = select(better, tried[way].low, best.low);
    }
  }

  template <bool weighed>
  WC_INLINE F error_of(const GroupRule& rule, const GroupCode& code, Strip strip,
                       const float* importance) const {
    const F high = code.low + rule.levels;
    F error = 0.0f;
WC_UNROLL
    for (int i = 0; i < kGroupChunk; ++i) {
      const F x = strip[i];
      const F residual = x - code.scale * level_of(x / code.scale, code.low, high);
      if constexpr (weighed) {
        error += residual * importance[i] * residual;
      } else {
        error += residual * residual;
      }
    }
    return error;
  }

  template <bool weighed>
  WC_INLINE void add_comparison(const GroupRule& rule, Strip x, const float* importance) {
    best_error += error_of<weighed>(rule, best, x, importance);
    plain_error += error_of<weighed>(rule, plain, x, importance);
  }
};

}  // namespace
}  // namespace weightcast
