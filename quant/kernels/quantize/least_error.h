// The search for the least error: what all types share.
//
// ggml's rules minimize other sums than the error that a reader sees: weights of errors grow with the
// weights of the model, scales are chosen before they are rounded, and few candidates are tried. Here the
// objective is the sum of w * (y - x)^2 over the block as it is read back, where w is the importance, or 1.
//
// LeastError<Type> makes a block of a type by its own search:
//   struct Scratch;  // memory that it needs beyond the stack, if any
//   static void quantize(Strip x, const float* w, int effort, Scratch&, Bytes start, Bytes out);
// `w` [elements] has a mean of 1; `start` is the block that ggml's rule makes. keep_better compares the two,
// so that no block is ever worse than ggml's. Sums run in order within a lane and products are not
// contracted, so that all forms of F make the same bytes.
#pragma once

#include <type_traits>

#include "quantize/readers.h"
#include "quantize/rules.h"

namespace weightcast {
namespace {

constexpr int kEfforts = 3;

WC_INLINE F infinity() { return of_bits(I(0x7f800000)); }

// Copy the importance of n in-rows, normalized to a mean of 1. Without an importance, and where all of it
// is 0, all are 1.
template <int n>
WC_INLINE void normalize_importance(const float* importance, float (&w)[n]) {
  float largest = 0.0f;
  if (importance != nullptr) {
    for (int i = 0; i < n; ++i) largest = largest > importance[i] ? largest : importance[i];
  }
  float sum = 0.0f;
  for (int i = 0; i < n; ++i) {
    w[i] = largest > 0.0f ? importance[i] / largest : 1.0f;
    sum += w[i];
  }
  const float mean = sum / static_cast<float>(n);
  for (float& v : w) v = v / mean;
}

// Compute the sum of w * (y - x)^2 over a block, a column at a time.
template <class Block>
inline F error_by_columns(Strip x, const float* w, Bytes block) {
  float errors[kLanes];
  for (int c = 0; c < kLanes; ++c) {
    uint8_t bytes[sizeof(Block)];
    for (int b = 0; b < static_cast<int>(sizeof bytes); ++b) bytes[b] = block[b][c];
    Block own;
    std::memcpy(&own, bytes, sizeof own);
    float y[Block::elements];
    dequantize_block(own, y);
    float error = 0.0f;
    for (int i = 0; i < Block::elements; ++i) {
      float lanes[kLanes];
      const F row = x[i];
      std::memcpy(lanes, &row, sizeof row);
      const float diff = y[i] - lanes[c];
      error += w[i] * (diff * diff);
    }
    errors[c] = error;
  }
  F error;
  std::memcpy(&error, errors, sizeof error);
  return error;
}

template <class Type, class = void>
struct ErrorOf {
  WC_INLINE static F block(Strip x, const float* w, Bytes block) {
    F error = 0.0f;
    Reader<Type>::read(block, [&](int i, F y) {
      const F diff = y - x[i];
      error += w[i] * (diff * diff);
    });
    return error;
  }
};
// Types with grids are not unpacked in lanes.
template <class Type>
struct ErrorOf<Type, std::void_t<typename Type::Layout>> {
  static F block(Strip x, const float* w, Bytes block) {
    return error_by_columns<typename Type::Layout>(x, w, block);
  }
};

// Float32 sums of 256 squares are off by less than 2^-16 of themselves. A block replaces another if its sum is
// smaller by more, so that it has less error in exact arithmetic, too.
constexpr float kSurelyLess = 1.0f - 0x1p-15f;

// Copy `made` over `out` in the columns in which it has less error. A block of infinite error stays: its
// scale is infinite, which the driver reports.
template <class Type>
WC_INLINE void keep_better(Strip x, const float* w, Bytes made, Bytes out) {
  const F known = ErrorOf<Type>::block(x, w, out), found = ErrorOf<Type>::block(x, w, made);
  const M better = (known < infinity()) & (found < known * kSurelyLess);
  if (!any(better)) return;
  for (int b = 0; b < Type::bytes; ++b) {
    store_bytes(out[b], select(better, load_bytes(made[b]), load_bytes(out[b])));
  }
}

template <class Type>
struct LeastError;

template <class Search, class = void>
struct ScratchOf {
  using type = NoScratch;
};
template <class Search>
struct ScratchOf<Search, std::void_t<typename Search::Scratch>> {
  using type = typename Search::Scratch;
};

// Makes blocks for the least error.
template <class Type>
struct LeastErrorRule {
  using Scratch = typename ScratchOf<LeastError<Type>>::type;
  int effort;

  void operator()(Strip x, const float* importance, F sigma2, Scratch& scratch, Bytes out) const {
    Type::quantize(x, importance, sigma2, out);
    float w[Type::elements];
    normalize_importance(importance, w);
    alignas(64) uint8_t memory[Type::bytes * kLanes];
    const Bytes made{memory};
    if constexpr (std::is_same_v<Scratch, NoScratch>) {
      LeastError<Type>::quantize(x, w, effort, out, made);
    } else {
      LeastError<Type>::quantize(x, w, effort, scratch, out, made);
    }
    keep_better<Type>(x, w, made, out);
  }
};

}  // namespace
}  // namespace weightcast
