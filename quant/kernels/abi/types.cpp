// The table of types in the C ABI: numbers, names and block sizes.
#include "blocks/iq_layouts.h"
#include "blocks/layouts.h"
#include "weightcast.h"

namespace {

struct Type {
  int32_t id;
  const char* name;
  int64_t block_elements, block_bytes;
};

constexpr Type kTypes[] = {
#define WC_TYPE(name, number, elements, bytes, quantizer, importance, rows) \
  {WEIGHTCAST_##name, #name, elements, bytes},
#define WC_SOURCE_TYPE(name, number, elements, bytes) {WEIGHTCAST_##name, #name, elements, bytes},
#include "types.inc"
};

// The list agrees with the public header and with the block structs.
#define WC_TYPE(name, number, weights, size, quantizer, importance, rows)                       \
  static_assert(WEIGHTCAST_##name == number, "weightcast.h gives " #name " another number");    \
  static_assert(weightcast::Block##name::elements == weights, #name " has " #weights " weights"); \
  static_assert(sizeof(weightcast::Block##name) == size, #name " has " #size " bytes");
#define WC_SOURCE_TYPE(name, number, elements, bytes) \
  static_assert(WEIGHTCAST_##name == number, "weightcast.h gives " #name " another number");
#include "types.inc"

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
