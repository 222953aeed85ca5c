// The quantizers of all block types, for the CPU's table of functions and for devices.
#pragma once

#include "quantize/fp4.h"
#include "quantize/iq.h"
#include "quantize/iq1.h"
#include "quantize/iq4.h"
#include "quantize/k_affine.h"
#include "quantize/k_symmetric.h"
#include "quantize/q8_0.h"
#include "quantize/simple.h"
#include "quantize/ternary.h"
