// Tables derived from the grids. They map every combination of levels to its grid index or, if it is
// not in the grid, to the neighbours to choose from, in ggml's order. Built at the first use of a type.
// Source of the rule: iq2xs_init_impl and iq3xs_init_impl in ggml-quants.c.
//
// Most neighbours can never be chosen if the point is the one that the weights round to. Weight i,
// in units of the levels, is then less than 1/2 from the point's level u. If the levels of a
// neighbour j are all between those of the point and those of a neighbour k, then j's distance to
// every weight is at most k's: equal where the levels are, otherwise shorter by 2 * margin at least
// if the weight is no nearer than `margin` to a bound of rounding. That is far more than the errors
// of floats, and rounding is monotonic, so that every term and the sum of j's errors are at most
// k's; and j is nearer to the point, so it comes first. k cannot win, whatever the weights of the
// errors: `short_list` leaves it out.
#pragma once

#include <cstring>

#include "blocks/iq_grids.h"
#include "simd/inline.h"
#ifndef WC_DEVICE
#include <new>

#include "source/once.h"
#endif

namespace weightcast {
namespace {

// Lists are padded to whole runs with their first member, which never wins by being later.
constexpr int kRun = 16;

// The neighbours to choose from, padded to whole runs, and their number.
struct NeighbourList {
  const uint16_t* first;
  int count;
};

// A grid of groups of `n` weights with `top` + 1 levels of `bits` bits. The neighbours of a point
// are all entries at the `nearest` smallest distances; all lists together take `runs` runs, short
// lists `short_runs` (0: there are none).
template <int n, int bits, int top, int nearest, int runs, int short_runs>
class Neighbours {
 public:
  static constexpr int elements = n;
  static constexpr int level_bits = bits;
  static constexpr int max_level = top;

  template <int entries>
  explicit Neighbours(const uint16_t (&grid)[entries]) {
    uint8_t distances[kHalfKeys][kHalves];
    half_distances(distances);
    for (int key = 0; key < kPoints; ++key) points_[key] = 0;
    for (int i = 0; i < entries; ++i) points_[key_of(grid[i])] = ~i;
    int run = 0, short_run = runs;
    for (int key = 0; key < kPoints; ++key) {
      if (points_[key] < 0) continue;
      const int code = code_of(key);
      const int count = list(grid, distances[key % kHalfKeys], distances[key / kHalfKeys], lists_[run]);
      full_[key] = points_[key] = run << 9 | count;
      if constexpr (short_runs > 0) {
        const int short_count = shorten(code, lists_[run], count, lists_[short_run]);
        points_[key] = short_run << 9 | short_count;
        short_run += runs_of(short_count);
      }
      run += runs_of(count);
    }
  }

  // Convert a combination of levels to a number in base top + 1, and back to levels side by side.
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

  // ~index of a grid entry; negative exactly for these.
  int32_t point(int32_t key) const { return points_[key]; }
  // For a point off the grid, the neighbours that can win if the weights round to the point.
  NeighbourList short_list(int32_t point) const { return list_at(point); }
  // All neighbours.
  NeighbourList full_list(int32_t key) const { return list_at(full_[key]); }

 private:
  static constexpr int kHalves = 1 << n * bits / 2;  // codes of half a group
  static constexpr int power(int exponent) {
    return exponent == 0 ? 1 : (top + 1) * power(exponent - 1);
  }
  static constexpr int kPoints = power(n);
  static constexpr int kHalfKeys = power(n / 2);

  static int runs_of(int count) { return (count + kRun - 1) / kRun; }

  NeighbourList list_at(int32_t place) const { return {lists_[place >> 9], place & 511}; }

  // Squared distances, in levels, between the half group of a key and that of a code.
  static void half_distances(uint8_t (&distances)[kHalfKeys][kHalves]) {
    for (int key = 0; key < kHalfKeys; ++key) {
      const int code = code_of(key);
      for (int other = 0; other < kHalves; ++other) {
        int sum = 0;
        for (int i = 0; i < n / 2; ++i) {
          const int mask = (1 << bits) - 1;
          const int diff = (code >> bits * i & mask) - (other >> bits * i & mask);
          sum += diff * diff;
        }
        distances[key][other] = static_cast<uint8_t>(sum);
      }
    }
  }

  // Append the neighbours of one point, nearest first, those at one distance by grid index. `low` and
  // `high` are the distances of its halves.
  template <int entries>
  static int list(const uint16_t (&grid)[entries], const uint8_t (&low)[kHalves],
                  const uint8_t (&high)[kHalves], uint16_t* members) {
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
    pad(members, count);
    return count;
  }

  static void pad(uint16_t* members, int count) {
    for (int i = count; i % kRun != 0; ++i) members[i] = members[0];
  }

  // Distances of each level above and below the point's: two fields of four bits per weight, at most 7.
  static uint64_t offsets(int point, int member) {
    uint64_t fields = 0;
    for (int i = 0; i < n; ++i) {
      const int mask = (1 << bits) - 1;
      const int diff = (member >> bits * i & mask) - (point >> bits * i & mask);
      const uint64_t field = diff >= 0 ? static_cast<uint64_t>(diff) : static_cast<uint64_t>(-diff) << 4;
      fields |= field << 8 * i;
    }
    return fields;
  }

  // Copy the members that no earlier member rules out.
  static int shorten(int code, const uint16_t* members, int count, uint16_t* kept) {
    constexpr uint64_t guard = 0x8888888888888888u;
    uint64_t kept_offsets[512];
    int kept_count = 0;
    for (int j = 0; j < count; ++j) {
      const uint64_t own = offsets(code, members[j]);
      bool hidden = false;
      for (int k = 0; k < kept_count && !hidden; ++k) {
        hidden = (((own | guard) - kept_offsets[k]) & guard) == guard;  // no field is smaller
      }
      if (hidden) continue;
      kept_offsets[kept_count] = own;
      kept[kept_count++] = members[j];
    }
    pad(kept, kept_count);
    return kept_count;
  }

  int32_t points_[kPoints];  // ~index or the place of the short list: first run, number of members
  int32_t full_[kPoints];    // the place of the full list
  alignas(2 * kRun) uint16_t lists_[runs + short_runs][kRun];
};

// The tables of a grid, made at their first use. A device reads those that the host made.
#ifdef WC_DEVICE
WC_DEVICE const void* device_tables;

template <class Grid, int entries>
const Grid& tables_of(const uint16_t (&)[entries]) {
  return *static_cast<const Grid*>(device_tables);
}
#else
// Out of line: quantizers would hold its part of the stack for good.
template <class Grid, int entries>
__attribute__((noinline)) void make_tables(const uint16_t (&grid)[entries], void* memory) {
  new (memory) Grid(grid);
}

template <class Grid, int entries>
const Grid& tables_of(const uint16_t (&grid)[entries]) {
  alignas(Grid) static unsigned char memory[sizeof(Grid)];
  static Once once;
  once.run([&] { make_tables<Grid>(grid, memory); });
  return *reinterpret_cast<const Grid*>(memory);
}
#endif

}  // namespace
}  // namespace weightcast
