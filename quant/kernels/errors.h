// Errors of a row: sums over its weights and what was made of them, in doubles and a fixed order.
//
// A row is cut into chunks of kChunk weights. Each is summed in order, and chunks are added in
// order; so the sums are the same bits for every instruction set, however rows are shared out, and
// on a device, where a thread sums one chunk. Lanes are rows, as everywhere: D holds kDoubles of them.
#pragma once

#include "lanes.h"
#include "weightcast.h"

namespace weightcast {
namespace {

constexpr int kChunk = 2048;

#ifdef WC_VECTOR

constexpr int kDoubles = kVector / 2;
using D = VD;
typedef int64_t DI __attribute__((vector_size(8 * kDoubles), may_alias));
using DM = DI;  // all ones or all zeros

WC_INLINE D load_doubles(const float* p) { return vec_doubles(p); }
WC_INLINE D magnitude(D a) { return (D)((DI)a & INT64_MAX); }
WC_INLINE D lesser(D a, D b) { return vec_lesser(a, b); }
WC_INLINE D greater(D a, D b) { return vec_greater(a, b); }
WC_INLINE D select(DM m, D a, D b) { return m ? a : b; }
WC_INLINE void count_lanes(DI& counts, DM m) { counts -= m; }
template <class V>
WC_INLINE auto lane(const V& v, int c) {
  return v[c];
}

#else

constexpr int kDoubles = 1;
using D = double;
using DI = int64_t;
using DM = bool;

#ifndef WC_DEVICE
WC_INLINE D load_doubles(const float* p) { return static_cast<double>(*p); }
#endif
WC_INLINE D magnitude(D a) { return a < 0 ? -a : a; }
WC_INLINE D lesser(D a, D b) { return a < b ? a : b; }
WC_INLINE D greater(D a, D b) { return a > b ? a : b; }
WC_INLINE D select(DM m, D a, D b) { return m ? a : b; }
WC_INLINE void count_lanes(DI& counts, DM m) { counts += m ? 1 : 0; }
template <class V>
WC_INLINE V lane(V v, int) {
  return v;
}

#endif

WC_INLINE double infinity() {
  const uint64_t bits = 0x7ff0000000000000u;
  double x;
  std::memcpy(&x, &bits, 8);
  return x;
}

// Some weights of a row, x, against what was made of them, y. An error that is NaN or infinite
// counts as infinite.
struct Sums {
  D error_squares{}, source_squares{}, output_squares{}, products{}, errors{};
  D largest{}, largest_in{};
  DI exact{}, zeroed{};

  // The next weight, at place `in` of its row. `zeroed` is counted if each is a block of its own.
  template <bool blocks_of_one>
  WC_INLINE void add(D x, D y, D in) {
    const D error = y - x;
    const D size = lesser(magnitude(error), D{} + infinity());  // NaN becomes infinite
    error_squares += size * size;
    source_squares += x * x;
    output_squares += y * y;
    products += x * y;
    errors += error;
    largest_in = select(size > largest, in, largest_in);
    largest = greater(size, largest);
    count_lanes(exact, error == D{});
    if constexpr (blocks_of_one) count_lanes(zeroed, (y == D{}) & (x != D{}));
  }

  WC_INLINE weightcast_moments of(int c) const {
    weightcast_moments row{};
    row.error_squares = lane(error_squares, c);
    row.source_squares = lane(source_squares, c);
    row.output_squares = lane(output_squares, c);
    row.products = lane(products, c);
    row.errors = lane(errors, c);
    row.largest = lane(largest, c);
    row.largest_in = static_cast<int64_t>(lane(largest_in, c));
    row.exact = lane(exact, c);
    row.zeroed_blocks = lane(zeroed, c);
    return row;
  }
};

// Add the next chunk of a row.
inline void add_chunk(weightcast_moments& row, const weightcast_moments& chunk) {
  row.error_squares += chunk.error_squares;
  row.source_squares += chunk.source_squares;
  row.output_squares += chunk.output_squares;
  row.products += chunk.products;
  row.errors += chunk.errors;
  if (chunk.largest > row.largest) {
    row.largest = chunk.largest;
    row.largest_in = chunk.largest_in;
  }
  row.exact += chunk.exact;
  row.zeroed_blocks += chunk.zeroed_blocks;
}

}  // namespace
}  // namespace weightcast
