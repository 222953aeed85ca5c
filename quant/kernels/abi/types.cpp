// The tables of the C ABI: types with their names and block sizes, statuses in words.
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

char lower(char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c; }

bool same_name(const char* a, const char* b) {
  while (*a != '\0' && lower(*a) == lower(*b)) ++a, ++b;
  return *a == *b;
}

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

int32_t weightcast_type_from_name(const char* name) {
  if (name == nullptr) return -1;
  for (const Type& type : kTypes) {
    if (same_name(type.name, name)) return type.id;
  }
  return -1;
}

const char* weightcast_strerror(int32_t status) {
  switch (status) {
    case WEIGHTCAST_OK: return "done";
    case WEIGHTCAST_BAD_TYPE: return "the type or the size of items is unknown or not possible here";
    case WEIGHTCAST_BAD_SHAPE:
      return "a size is negative or too large, or rows overlap or are not whole blocks or groups";
    case WEIGHTCAST_NOT_FINITE: return "a value is NaN or infinite, or a scale is too large";
    case WEIGHTCAST_OVERFLOW: return "a value or the scale of a block is too large for its type";
    case WEIGHTCAST_NEEDS_IMPORTANCE: return "the type needs an importance matrix";
    case WEIGHTCAST_BAD_IMPORTANCE: return "an importance is negative, infinite or NaN";
    case WEIGHTCAST_MISCOMPILED: return "this build of the library makes wrong bytes";
    case WEIGHTCAST_INEXACT_SCALE: return "the type cannot hold a scale exactly";
    case WEIGHTCAST_NOT_CARRIED: return "a code or scale differs from the source's";
    case WEIGHTCAST_NULL_ARGUMENT: return "a pointer is NULL";
    case WEIGHTCAST_NO_MEMORY: return "out of memory";
    case WEIGHTCAST_BAD_ARGUMENT: return "the baseline or the effort is unknown, or a reserved field is not 0";
    case WEIGHTCAST_NOT_DEFINITE: return "the second moments of inputs are not positive definite";
    default: return "unknown status";
  }
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
  const int64_t blocks = n_in / found->block_elements;
  return blocks <= INT64_MAX / found->block_bytes ? blocks * found->block_bytes : 0;
}

}  // extern "C"
