// Factors second moments H of a matrix's inputs as M T M', M unit lower triangular, T diagonal: what it costs to
// round one input column depends, by M, on the errors of those rounded before it.
//
// Right-looking, in blocks: sums have one order whatever the vectors are, so a factor has the same bits
// everywhere.
#pragma once

#include "feedback/doubles.h"
#include "source/buffers.h"

namespace weightcast {
namespace {

constexpr int kFactorBlock = 64;  // columns that are eliminated together
constexpr int kFactorRows = 4;    // rows and vectors of a tile that stays in registers
constexpr int kFactorVectors = 2;
constexpr int kFactorWidth = kFactorVectors * kDoubles;

struct FactorWorkspace {
  alignas(64) double turned[kFactorBlock * kFactorBlock];  // M T of a block on the diagonal, transposed
  // M of the columns that a tile updates, transposed: [kFactorBlock][kFactorWidth].
  alignas(64) double across[kFactorBlock * kFactorWidth];
  double scaled[kFactorRows * kFactorBlock];  // M T of the rows of a tile
};

// Finish columns [k0, k0 + depth) of row i; `turned` holds them for the rows of the block above i.
inline void factor_row(double* row, int depth, const double* turned, const double* pivots) {
  for (int k = 0; k < depth; ++k) {
    const double share = row[k] / pivots[k];
    const double* above = turned + k * kFactorBlock;
    for (int j = k + 1; j < depth; ++j) row[j] -= share * above[j];
    row[k] = share;
  }
}

// Factor the block [k0, k1) on the diagonal. False if a pivot is not positive.
inline bool factor_block(double* a, int64_t n, int64_t k0, int64_t k1, double* pivots, FactorWorkspace& work) {
  for (int64_t i = k0; i < k1; ++i) {
    double* row = a + i * n + k0;
    const int depth = static_cast<int>(i - k0);
    double pivot = row[depth];
    for (int k = 0; k < depth; ++k) {
      const double share = row[k] / pivots[k];
      const double* above = work.turned + k * kFactorBlock;
      for (int j = k + 1; j < depth; ++j) row[j] -= share * above[j];
      pivot -= share * row[k];
      row[k] = share;
    }
    if (!(pivot > 0.0) || pivot - pivot != 0.0) return false;
    row[depth] = pivots[depth] = pivot;
    for (int k = 0; k < depth; ++k) work.turned[k * kFactorBlock + depth] = row[k] * pivots[k];
  }
  return true;
}

// Finish the columns [k0, k1). False if a pivot is not positive.
inline bool factor_columns(double* a, int64_t n, int64_t k0, int64_t k1, FactorWorkspace& work) {
  double pivots[kFactorBlock];
  if (!factor_block(a, n, k0, k1, pivots, work)) return false;
  const int depth = static_cast<int>(k1 - k0);
  for (int64_t i = k1; i < n; ++i) factor_row(a + i * n + k0, depth, work.turned, pivots);
  return true;
}

// Subtract what the columns [k0, k1) explain from a tile: rows [i0, i1), kFactorWidth columns from j0 on.
inline void update_tile(double* a, int64_t n, int64_t i0, int64_t i1, int64_t j0, int depth,
                        const FactorWorkspace& work) {
  D sums[kFactorRows][kFactorVectors] = {};
  for (int k = 0; k < depth; ++k) {
    D across[kFactorVectors];
    for (int v = 0; v < kFactorVectors; ++v) {
      across[v] = load_doubles(work.across + k * kFactorWidth + v * kDoubles);
    }
    for (int r = 0; r < kFactorRows; ++r) {
      const double scaled = work.scaled[r * kFactorBlock + k];
      for (int v = 0; v < kFactorVectors; ++v) sums[r][v] += across[v] * scaled;
    }
  }
  for (int64_t i = i0; i < i1; ++i) {
    double found[kFactorWidth];
    std::memcpy(found, sums[i - i0], sizeof found);
    const int64_t end = i + 1 - j0 < kFactorWidth ? i + 1 - j0 : kFactorWidth;
    for (int64_t j = 0; j < end; ++j) a[i * n + j0 + j] -= found[j];
  }
}

// Subtract what the columns [k0, k1) explain from all entries on and below the diagonal after them.
inline void update_rest(double* a, int64_t n, int64_t k0, int64_t k1, FactorWorkspace& work) {
  const int depth = static_cast<int>(k1 - k0);
  for (int64_t j0 = k1; j0 < n; j0 += kFactorWidth) {
    for (int64_t j = 0; j < kFactorWidth; ++j) {
      for (int k = 0; k < depth; ++k) {
        work.across[k * kFactorWidth + j] = j0 + j < n ? a[(j0 + j) * n + k0 + k] : 0.0;
      }
    }
    for (int64_t i0 = j0; i0 < n; i0 += kFactorRows) {
      const int64_t i1 = i0 + kFactorRows < n ? i0 + kFactorRows : n;
      for (int64_t i = i0; i < i1; ++i) {
        double* scaled = work.scaled + (i - i0) * kFactorBlock;
        for (int k = 0; k < depth; ++k) scaled[k] = a[i * n + k0 + k] * a[(k0 + k) * n + k0 + k];
      }
      update_tile(a, n, i0, i1, j0, depth, work);
    }
  }
}

inline int32_t factor(double* a, int64_t n) {
  const OnHeap<FactorWorkspace> buffers;
  if (!buffers) return WEIGHTCAST_NO_MEMORY;
  *buffers = FactorWorkspace{};
  for (int64_t k0 = 0; k0 < n; k0 += kFactorBlock) {
    const int64_t k1 = k0 + kFactorBlock < n ? k0 + kFactorBlock : n;
    if (!factor_columns(a, n, k0, k1, *buffers)) return WEIGHTCAST_NOT_DEFINITE;
    update_rest(a, n, k0, k1, *buffers);
  }
  return WEIGHTCAST_OK;
}

}  // namespace
}  // namespace weightcast
