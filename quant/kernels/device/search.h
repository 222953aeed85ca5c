// The search for the least error on a device.
#pragma once

#include "device/tile.h"
#include "quantize/least_all.h"

namespace weightcast {
namespace {

// Makes a block of the least error, with an importance or without.
template <class Type>
struct BySearch {
  static WC_INLINE void quantize(const QuantizeArguments& a, Strip x, int64_t out, int64_t in0, Bytes made) {
    const LeastErrorRule<Type> rule{a.effort};
    typename LeastErrorRule<Type>::Scratch scratch;
    const float* importance = a.importance == nullptr ? nullptr : a.importance + in0;
    rule(x, importance, a.means == nullptr ? 0.0f : a.means[out], scratch, made);
  }
};

}  // namespace
}  // namespace weightcast
