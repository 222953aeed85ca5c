// Errors of a row: sums over its weights x and their quantized values y, in doubles and a fixed order.
//
// A row is cut into chunks of kErrorChunk weights, and these into runs of kErrorRun. Squares of a run
// are summed in order and counted in a histogram; runs are added in order, and so are chunks. The sums
// have the same bits with every instruction set, however rows are divided among threads, and on a
// device, where a thread sums one chunk. Lanes are rows, as everywhere: D holds kDoubles of them.
#pragma once

#include "simd/doubles.h"
#include "weightcast.h"

namespace weightcast {
namespace {

constexpr int kErrorChunk = 2048;
constexpr int kErrorRun = 32;
constexpr int kErrorBins = WEIGHTCAST_ERROR_BINS;

#ifdef WC_VECTOR

constexpr int kErrorRows = kVector;  // rows that are summed side by side, in two halves
typedef int64_t DI __attribute__((vector_size(8 * kDoubles), may_alias));
using DM = DI;  // all ones or all zeros
using X = VF;
using XI = VI;
using XM = VM;

WC_INLINE D load_doubles(const float* p) { return vec_doubles(p); }
WC_INLINE D lesser(D a, D b) { return vec_lesser(a, b); }
WC_INLINE D greater(D a, D b) { return vec_greater(a, b); }
WC_INLINE D select(DM m, D a, D b) { return m ? a : b; }
WC_INLINE bool all_lanes(DM m) { return !vec_any((VD)!m); }
WC_INLINE X load_values(const float* p) { return vec_load(p); }
WC_INLINE X size_of(X a) { return (X)((XI)a & 0x7fffffff); }
WC_INLINE X larger(X a, X b) { return vec_greater(a, b); }
WC_INLINE XM less(X a, X b) { return vec_lt(a, b); }
WC_INLINE XM equal(X a, X b) { return vec_eq(a, b); }
WC_INLINE XM both(XM a, XM b) { return vec_and(a, b); }
WC_INLINE X values(float x) { return vec_splat(x); }
WC_INLINE void count(XI& counts, XM m) { counts += vec_select(m, vec_splat(1), vec_splat(0)); }
template <class V>
WC_INLINE auto lane(const V& v, int c) {
  return v[c];
}

#else

constexpr int kErrorRows = 1;
using DM = bool;
using X = float;
using XI = int32_t;
using XM = bool;

WC_INLINE D load_doubles(const float* p) { return static_cast<double>(*p); }
WC_INLINE D lesser(D a, D b) { return a < b ? a : b; }
WC_INLINE D greater(D a, D b) { return a > b ? a : b; }
WC_INLINE D select(DM m, D a, D b) { return m ? a : b; }
WC_INLINE bool all_lanes(DM m) { return m; }
WC_INLINE X load_values(const float* p) { return *p; }
WC_INLINE X size_of(X a) { return magnitude(a); }
WC_INLINE X larger(X a, X b) { return a > b ? a : b; }
WC_INLINE XM less(X a, X b) { return a < b; }
WC_INLINE XM equal(X a, X b) { return a == b; }
WC_INLINE XM both(XM a, XM b) { return a & b; }
WC_INLINE X values(float x) { return x; }
WC_INLINE void count(XI& counts, XM m) { counts += m ? 1 : 0; }
template <class V>
WC_INLINE V lane(V v, int) {
  return v;
}

#endif

constexpr int kHalves = kErrorRows / kDoubles;

WC_INLINE double infinite_error() {
  const uint64_t bits = 0x7ff0000000000000u;
  double x;
  std::memcpy(&x, &bits, 8);
  return x;
}

// The bin of a run: 31 if there is no error, 0 if it is as large as the weights or not finite; between
// them k, for a ratio r of the squares of error and source with 2^-k <= r < 2^(1 - k), at most 30.
WC_INLINE int bin_of(double error_squares, double ratio) {
  if (error_squares == 0) return kErrorBins - 1;
  if (!(ratio < 1.0)) return 0;
  uint64_t bits;
  std::memcpy(&bits, &ratio, 8);
  const int k = 1023 - static_cast<int>(bits >> 52);
  return k < kErrorBins - 2 ? k : kErrorBins - 2;
}

WC_INLINE int error_bin(double error_squares, double source_squares) {
  return bin_of(error_squares, error_squares / source_squares);
}

// Sums of products, counts and largest values in one run of some rows. All products are added in the
// same order, so that their sums cancel exactly where y is 0.
struct RunSums {
  D error_squares[kHalves]{}, source_squares[kHalves]{}, cross[kHalves]{}, errors[kHalves]{};
  D weighted_error_squares[kHalves]{}, weighted_source_squares[kHalves]{}, largest[kHalves]{};
  X largest_source{}, largest_output{};
  XI exact{};

  // Add the next weights, of importance w. If `bounded`, an error that is NaN or infinite counts as
  // infinite; otherwise there must be none.
  template <bool weighed, bool bounded>
  WC_INLINE void add(const float* x, const float* y, D w) {
    const X x_values = load_values(x), y_values = load_values(y);
    count(exact, equal(x_values, y_values));
    largest_source = larger(size_of(x_values), largest_source);
    largest_output = larger(size_of(y_values), largest_output);
    for (int h = 0; h < kHalves; ++h) {
      const D source = load_doubles(x + h * kDoubles);
      const D error = load_doubles(y + h * kDoubles) - source;
      D error_square = error * error;
      if constexpr (bounded) error_square = lesser(error_square, D{} + infinite_error());
      const D source_square = source * source;
      error_squares[h] += error_square;
      source_squares[h] += source_square;
      cross[h] += source * error;
      errors[h] += error;
      largest[h] = greater(error_square, largest[h]);
      if constexpr (weighed) {
        weighted_error_squares[h] += w * error_square;
        weighted_source_squares[h] += w * source_square;
      }
    }
  }

  // Add the next weights of a run in which every value equals its source: all other sums stay 0.
  template <bool weighed>
  WC_INLINE void add_exact(const float* x, D w) {
    const X size = size_of(load_values(x));
    largest_source = larger(size, largest_source);
    largest_output = largest_source;
    for (int h = 0; h < kHalves; ++h) {
      const D source = load_doubles(x + h * kDoubles);
      const D source_square = source * source;
      source_squares[h] += source_square;
      if constexpr (weighed) weighted_source_squares[h] += w * source_square;
    }
  }

  // True if no square of a source was NaN or infinite.
  WC_INLINE bool has_finite_sources() const {
    bool finite = true;
    for (int h = 0; h < kHalves; ++h) finite &= all_lanes(source_squares[h] < D{} + infinite_error());
    return finite;
  }

  // True if no error was NaN or infinite.
  WC_INLINE bool is_finite() const {
    bool finite = true;
    for (int h = 0; h < kHalves; ++h) finite &= all_lanes(error_squares[h] < D{} + infinite_error());
    return finite;
  }
};

// Sums of one chunk of some rows. `largest` is the largest square of all chunks so far, `largest_run`
// the place where its run begins.
struct Sums {
  D error_squares[kHalves]{}, source_squares[kHalves]{}, cross[kHalves]{}, errors[kHalves]{};
  D weighted_error_squares[kHalves]{}, weighted_source_squares[kHalves]{};
  D largest[kHalves]{}, largest_run[kHalves]{};
  XI exact{}, zeroed{}, clipped{};
  int64_t largest_in[kErrorRows]{};

  // Add a whole run, which begins at `in`.
  template <bool weighed>
  WC_INLINE void add(const RunSums& run, int64_t in) {
    exact += run.exact;
    const X none = values(0.0f);
    const XM is_zero = equal(run.largest_output, none);
    count(zeroed, both(is_zero, less(none, run.largest_source)));
    const XM is_less = less(run.largest_output, run.largest_source * 0.875f);
    count(clipped, both(is_less, less(none, run.largest_output)));
    for (int h = 0; h < kHalves; ++h) {
      error_squares[h] += run.error_squares[h];
      source_squares[h] += run.source_squares[h];
      cross[h] += run.cross[h];
      errors[h] += run.errors[h];
      if constexpr (weighed) {
        weighted_error_squares[h] += run.weighted_error_squares[h];
        weighted_source_squares[h] += run.weighted_source_squares[h];
      }
      const DM is_largest = run.largest[h] > largest[h];
      largest[h] = select(is_largest, run.largest[h], largest[h]);
      largest_run[h] = select(is_largest, D{} + static_cast<double>(in), largest_run[h]);
    }
  }

  // Begin the next chunk.
  void restart() {
    Sums next;
    for (int h = 0; h < kHalves; ++h) next.largest[h] = largest[h];
    for (int c = 0; c < kErrorRows; ++c) next.largest_in[c] = largest_in[c];
    *this = next;
  }

  WC_INLINE weightcast_moments of(int c) const {
    const int h = c / kDoubles, n = c % kDoubles;
    weightcast_moments row{};
    row.error_squares = lane(error_squares[h], n);
    row.source_squares = lane(source_squares[h], n);
    row.cross = lane(cross[h], n);
    row.errors = lane(errors[h], n);
    row.weighted_error_squares = lane(weighted_error_squares[h], n);
    row.weighted_source_squares = lane(weighted_source_squares[h], n);
    row.largest_square = lane(largest[h], n);
    row.largest_in = largest_in[c];
    row.exact = lane(exact, c);
    row.zeroed_runs = lane(zeroed, c);
    row.clipped_runs = lane(clipped, c);
    return row;
  }
};

// Add the next chunk of a row, without its histogram.
inline void add_chunk(weightcast_moments& row, const weightcast_moments& chunk) {
  row.error_squares += chunk.error_squares;
  row.source_squares += chunk.source_squares;
  row.cross += chunk.cross;
  row.errors += chunk.errors;
  row.weighted_error_squares += chunk.weighted_error_squares;
  row.weighted_source_squares += chunk.weighted_source_squares;
  if (chunk.largest_square > row.largest_square) {
    row.largest_square = chunk.largest_square;
    row.largest_in = chunk.largest_in;
  }
  row.exact += chunk.exact;
  row.zeroed_runs += chunk.zeroed_runs;
  row.clipped_runs += chunk.clipped_runs;
}

}  // namespace
}  // namespace weightcast
