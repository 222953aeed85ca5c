// Tables derived from the grids: for every combination of levels its grid index or, where it is not
// in the grid, the neighbours to choose from, in ggml's order. Built at the first use of a type.
// Source of the rule: iq2xs_init_impl and iq3xs_init_impl in ggml-quants.c.
#pragma once

#include <cstring>

#include "iq_grids.h"

namespace weightcast {
namespace {

// Lists are padded to whole runs with their first member, which never wins by being later.
constexpr int kRun = 16;

// A grid of groups of `n` weights with `top` + 1 levels of `bits` bits. The neighbours of a point
// are all entries at the `nearest` smallest distances; all lists together take `runs` runs.
template <int n, int bits, int top, int nearest, int runs>
class Neighbours {
 public:
  static constexpr int elements = n;
  static constexpr int level_bits = bits;
  static constexpr int max_level = top;

  template <int entries>
  explicit Neighbours(const uint16_t (&grid)[entries]) {
    uint8_t distances[kHalves][kHalves];
    half_distances(distances);
    for (int key = 0; key < kPoints; ++key) points_[key] = 0;
    for (int i = 0; i < entries; ++i) points_[key_of(grid[i])] = ~i;
    int run = 0;
    for (int key = 0; key < kPoints; ++key) {
      if (points_[key] < 0) continue;
      const int count = list(grid, distances, code_of(key), lists_[run]);
      points_[key] = run << 9 | count;
      run += (count + kRun - 1) / kRun;
    }
  }

  // A combination of levels as a number in base top + 1, and as levels side by side.
  static int key_of(int code) {
    int key = 0;
    for (int i = n - 1; i >= 0; --i) key = key * (top + 1) + (code >> bits * i & ((1 << bits) - 1));
    return key;
  }
  static int code_of(int key) {
    int code = 0;
    for (int i = 0; i < n; ++i, key /= top + 1) code |= key % (top + 1) << bits * i;
    return code;
  }

  // ~index of a grid entry; else what `first` and `count` take.
  int32_t point(int32_t key) const { return points_[key]; }
  // The codes of a point's neighbours, padded to whole runs, and their number.
  const uint16_t* first(int32_t point) const { return lists_[point >> 9]; }
  static int count(int32_t point) { return point & 511; }

 private:
  static constexpr int kHalves = 1 << n * bits / 2;  // codes of half a group
  static constexpr int power(int exponent) {
    return exponent == 0 ? 1 : (top + 1) * power(exponent - 1);
  }
  static constexpr int kPoints = power(n);

  // Squared distances between halves, in levels.
  static void half_distances(uint8_t (&distances)[kHalves][kHalves]) {
    for (int a = 0; a < kHalves; ++a) {
      for (int b = 0; b < kHalves; ++b) {
        int sum = 0;
        for (int i = 0; i < n / 2; ++i) {
          const int mask = (1 << bits) - 1;
          const int diff = (a >> bits * i & mask) - (b >> bits * i & mask);
          sum += diff * diff;
        }
        distances[a][b] = static_cast<uint8_t>(sum);
      }
    }
  }

  // Append the neighbours of one point, nearest first, those at one distance by grid index.
  template <int entries>
  static int list(const uint16_t (&grid)[entries], const uint8_t (&distances)[kHalves][kHalves],
                  int code, uint16_t* members) {
    const uint8_t* low = distances[code % kHalves];
    const uint8_t* high = distances[code / kHalves];
    uint8_t distance[entries];
    bool present[256] = {};
    for (int i = 0; i < entries; ++i) {
      distance[i] = static_cast<uint8_t>(low[grid[i] % kHalves] + high[grid[i] / kHalves]);
      present[distance[i]] = true;
    }
    int count = 0, d = 0;
    for (int found = 0; found < nearest && d < 256; ++d) {
      if (!present[d]) continue;
      ++found;
      for (int i = 0; i < entries; ++i) {
        if (distance[i] == d) members[count++] = grid[i];
      }
    }
    for (int i = count; i % kRun != 0; ++i) members[i] = members[0];
    return count;
  }

  int32_t points_[kPoints];
  alignas(2 * kRun) uint16_t lists_[runs][kRun];
};

}  // namespace
}  // namespace weightcast
