// The block quantizers and layouts by the names of their types.
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

using Quantizer_F32 = FloatRows<EmitF32>;
using Quantizer_F16 = FloatRows<EmitF16>;
using Quantizer_BF16 = FloatRows<EmitBF16>;
using Quantizer_Q4_0 = Q40;
using Quantizer_Q4_1 = Q41;
using Quantizer_Q5_0 = Q50;
using Quantizer_Q5_1 = Q51;
using Quantizer_Q8_0 = Q80;
using Quantizer_Q1_0 = Q10;
using Quantizer_Q2_0 = Q20;
using Quantizer_TQ1_0 = TQ10;
using Quantizer_TQ2_0 = TQ20;
using Quantizer_MXFP4 = MXFP4;
using Quantizer_NVFP4 = NVFP4;
using Quantizer_Q2_K = Q2K;
using Quantizer_Q3_K = Q3K;
using Quantizer_Q4_K = Q4K;
using Quantizer_Q5_K = Q5K;
using Quantizer_Q6_K = Q6K;
using Quantizer_IQ4_NL = IQ4NL;
using Quantizer_IQ4_XS = IQ4XS;
using Quantizer_IQ3_S = IQ3S;
using Quantizer_IQ3_XXS = IQ3XXS;
using Quantizer_IQ2_S = IQ2S;
using Quantizer_IQ2_XS = IQ2XS;
using Quantizer_IQ2_XXS = IQ2XXS;
using Quantizer_IQ1_M = IQ1M;
using Quantizer_IQ1_S = IQ1S;

}  // namespace
}  // namespace weightcast
