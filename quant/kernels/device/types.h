// The block quantizers by the names of their types.
#pragma once

#include "device/tile.h"
#include "quantize/all.h"

namespace weightcast {
namespace {

#define WC_TYPE(name, number, elements, bytes, quantizer, importance, rows) \
  using Quantizer_##name = quantizer;
#include "types.inc"

template <>
constexpr int kResidentBlocks<Q4K> = 4;
template <>
constexpr int kResidentBlocks<Q5K> = 4;

}  // namespace
}  // namespace weightcast
