// Tells whose memory an address is in.
#include "entry.h"

namespace stand_in {
namespace {

constexpr int kMemoryType = 2, kDevicePointer = 3, kHostPointer = 4, kIsManaged = 8, kOrdinal = 9;
constexpr unsigned kHost = 1, kOnDevice = 2;  // CUmemorytype

const Device* owner_of(uintptr_t address) {
  for (const auto& device : state().devices) {
    const auto next = device->live.upper_bound(address);
    if (next != device->live.begin() && address < std::prev(next)->second.end) return device.get();
  }
  return nullptr;
}

// False for memory that the driver does not know; what is asked for is 0 then.
bool tell(int attribute, uintptr_t address, void* value, Status& status) {
  const Device* owner = owner_of(address);
  const bool pinned = !owner && is_pinned(address, 1, *state().devices.front());
  status = kSuccess;
  switch (attribute) {
    case kMemoryType: *static_cast<unsigned*>(value) = owner ? kOnDevice : pinned ? kHost : 0; break;
    case kDevicePointer: *static_cast<uintptr_t*>(value) = owner ? address : 0; break;
    case kHostPointer: *static_cast<uintptr_t*>(value) = pinned ? address : 0; break;
    case kIsManaged: *static_cast<unsigned*>(value) = 0; break;
    case kOrdinal: *static_cast<int*>(value) = owner ? owner->index : pinned ? 0 : -2; break;
    default: status = kInvalidValue;
  }
  return owner || pinned;
}

}  // namespace

DRIVER(cuPointerGetAttribute, void* value, int attribute, unsigned long long address) {
  ENTER();
  Status status;
  return tell(attribute, address, value, status) ? status : kInvalidValue;
}

DRIVER(cuPointerGetAttributes, unsigned count, const int* attributes, void** values,
       unsigned long long address) {
  ENTER();
  for (unsigned i = 0; i < count; ++i) {
    Status status;
    tell(attributes[i], address, values[i], status);
    if (status != kSuccess) return status;
  }
  return kSuccess;
}

}  // namespace stand_in
