// The searches for the least error, of all types.
#pragma once

#include "quantize/least_fp4.h"
#include "quantize/least_grids.h"
#include "quantize/least_k_affine.h"
#include "quantize/least_scales.h"
