// The search for the least error: what all types share.
//
// ggml's rules minimize other sums than the error that a reader sees: weights of errors grow with the
// weights of the model, scales are chosen before they are rounded, and few candidates are tried. Here the
// objective is the sum of w * (y - x)^2 over the block as it is read back, where w is the importance, or 1.
//
// LeastError<Type> makes a block of a type by its own search:
//   struct Scratch;  // memory that it needs beyond the stack, if any
//   static void quantize(Strip x, const float* w, Effort effort, Scratch&, Bytes start, Bytes out);
// `w` [elements] has a mean of 1; `start` is the block that ggml's rule makes. keep_better compares the two,
// so that no block is ever worse than ggml's. Sums run in order within a lane and products are not
// contracted, so that all forms of F make the same bytes.
#pragma once

#include <type_traits>

#include "quantize/readers.h"
#include "quantize/rules.h"

namespace weightcast {
namespace {

// How much is tried: a level from 0 on, and whether importance differs within the block. Then the largest
// weight may be the least important, and best be cut off far.
constexpr int kEfforts = 3;
struct Effort {
  int level;
  bool is_weighed;
};

WC_INLINE F infinity() { return of_bits(I(0x7f800000)); }

// Copy the importance of n in-rows, normalized to a mean of 1. Without an importance, and where all of it
// is 0, all are 1: a block that does not count is made as well as others. Returns whether they differ.
template <int n>
WC_INLINE bool normalize_importance(const float* importance, float (&w)[n]) {
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
  bool differ = false;
  for (float& v : w) {
    v = v / mean;
    differ |= v != w[0];
  }
  return differ;
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

// Float32 sums of 256 squares are off by less than 2^-16 of themselves. A block replaces another if its sum
// is smaller by more, so that it has less error in exact arithmetic, too.
constexpr float kSurelyLess = 1.0f - 0x1p-15f;

// Copy `made` over `out` in the columns in which it has less error. A block of infinite error stays: its
// scale is infinite, which the driver reports.
template <class Type>
WC_OUT_OF_LINE void keep_better(Strip x, const float* w, Bytes made, Bytes out) {
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

// Makes blocks for the least error. The steps are out of line: so they use the same part of the stack.
template <class Type>
struct LeastErrorRule {
  using OwnScratch = typename ScratchOf<LeastError<Type>>::type;
  struct Scratch {
    alignas(64) uint8_t made[Type::bytes * kLanes];
    float w[Type::elements];
    OwnScratch own;
  };
  int effort;

  void operator()(Strip x, const float* importance, F sigma2, Scratch& scratch, Bytes out) const {
    by_ggml(x, importance, sigma2, out);
    const bool is_weighed = normalize_importance(importance, scratch.w);
    search(x, {effort - 1, is_weighed}, scratch, out);
    keep_better<Type>(x, scratch.w, Bytes{scratch.made}, out);
  }

 private:
  WC_OUT_OF_LINE static void by_ggml(Strip x, const float* importance, F sigma2, Bytes out) {
    Type::quantize(x, importance, sigma2, out);
  }

  WC_OUT_OF_LINE static void search(Strip x, Effort effort, Scratch& scratch, Bytes start) {
    const Bytes out{scratch.made};
    if constexpr (std::is_same_v<OwnScratch, NoScratch>) {
      LeastError<Type>::quantize(x, scratch.w, effort, start, out);
    } else {
      LeastError<Type>::quantize(x, scratch.w, effort, scratch.own, start, out);
    }
  }
};

}  // namespace
}  // namespace weightcast
