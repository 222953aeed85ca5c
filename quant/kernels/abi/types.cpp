// The table of types in the C ABI: names and sizes of blocks.
#include "weightcast.h"

namespace {

struct Type {
  int32_t id;
  const char* name;
  int64_t block_elements, block_bytes;
};

constexpr Type kTypes[] = {
    {WEIGHTCAST_F32, "F32", 1, 4},
    {WEIGHTCAST_F16, "F16", 1, 2},
    {WEIGHTCAST_BF16, "BF16", 1, 2},
    {WEIGHTCAST_I8, "I8", 1, 1},
    {WEIGHTCAST_Q4_0, "Q4_0", 32, 18},
    {WEIGHTCAST_Q4_1, "Q4_1", 32, 20},
    {WEIGHTCAST_Q5_0, "Q5_0", 32, 22},
    {WEIGHTCAST_Q5_1, "Q5_1", 32, 24},
    {WEIGHTCAST_Q8_0, "Q8_0", 32, 34},
    {WEIGHTCAST_Q1_0, "Q1_0", 128, 18},
    {WEIGHTCAST_Q2_0, "Q2_0", 64, 18},
    {WEIGHTCAST_TQ1_0, "TQ1_0", 256, 54},
    {WEIGHTCAST_TQ2_0, "TQ2_0", 256, 66},
    {WEIGHTCAST_MXFP4, "MXFP4", 32, 17},
    {WEIGHTCAST_NVFP4, "NVFP4", 64, 36},
    {WEIGHTCAST_Q2_K, "Q2_K", 256, 84},
    {WEIGHTCAST_Q3_K, "Q3_K", 256, 110},
    {WEIGHTCAST_Q4_K, "Q4_K", 256, 144},
    {WEIGHTCAST_Q5_K, "Q5_K", 256, 176},
    {WEIGHTCAST_Q6_K, "Q6_K", 256, 210},
    {WEIGHTCAST_IQ4_NL, "IQ4_NL", 32, 18},
    {WEIGHTCAST_IQ4_XS, "IQ4_XS", 256, 136},
    {WEIGHTCAST_IQ3_S, "IQ3_S", 256, 110},
    {WEIGHTCAST_IQ3_XXS, "IQ3_XXS", 256, 98},
    {WEIGHTCAST_IQ2_S, "IQ2_S", 256, 82},
    {WEIGHTCAST_IQ2_XS, "IQ2_XS", 256, 74},
    {WEIGHTCAST_IQ2_XXS, "IQ2_XXS", 256, 66},
    {WEIGHTCAST_IQ1_M, "IQ1_M", 256, 56},
    {WEIGHTCAST_IQ1_S, "IQ1_S", 256, 50},
};

const Type* find(int32_t id) {
  for (const Type& type : kTypes) {
    if (type.id == id) return &type;
  }
  return nullptr;
}

}  // namespace

extern "C" {

const char* weightcast_type_name(int32_t type) {
  const Type* found = find(type);
  return found != nullptr ? found->name : nullptr;
}

int64_t weightcast_block_elements(int32_t type) {
  const Type* found = find(type);
  return found != nullptr ? found->block_elements : 0;
}

int64_t weightcast_block_bytes(int32_t type) {
  const Type* found = find(type);
  return found != nullptr ? found->block_bytes : 0;
}

int64_t weightcast_row_bytes(int32_t type, int64_t n_in) {
  const Type* found = find(type);
  if (found == nullptr || n_in < 0 || n_in % found->block_elements != 0) return 0;
  return n_in / found->block_elements * found->block_bytes;
}

}  // extern "C"
