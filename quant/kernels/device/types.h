// The block quantizers by the names of their types.
#pragma once

#include "device/tile.h"
#include "quantize/fp4.h"
#include "quantize/iq.h"
#include "quantize/iq1.h"
#include "quantize/iq4.h"
#include "quantize/k_affine.h"
#include "quantize/k_symmetric.h"
#include "quantize/simple.h"
#include "quantize/ternary.h"

namespace weightcast {
namespace {

#define WC_TYPE(name, number, elements, bytes, quantizer, importance, rows) \
  using Quantizer_##name = quantizer;
#include "types.inc"

}  // namespace
}  // namespace weightcast
