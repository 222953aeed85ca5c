// Rules make blocks: ggml's here, the search for the least error in least_error.h. A rule is called with the
// in-rows of a block, their importance or null, ggml's sigma2, its scratch memory and the block to fill.
#pragma once

#include "source/strip.h"

namespace weightcast {
namespace {

// The memory of rules that need no more than the stack.
struct NoScratch {};

template <class Type>
struct GgmlRule {
  using Scratch = NoScratch;

  void operator()(Strip x, const float* importance, F sigma2, Scratch&, Bytes out) const {
    Type::quantize(x, importance, sigma2, out);
  }
};

}  // namespace
}  // namespace weightcast
