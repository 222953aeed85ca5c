// Start, devices, contexts, memory and copies.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <sstream>

#include "entry.h"

extern "C" int stand_in_use_kernels(const char* path);  // control.cpp

namespace stand_in {

State& state() {
  static State* one = new State;  // outlives everything that may still call at exit
  return *one;
}

std::map<std::string, void*>& functions() {
  static auto* all = new std::map<std::string, void*>;
  return *all;
}

std::vector<Device*>& current_contexts() {
  thread_local std::vector<Device*> stack;
  return stack;
}

Device* device_of(int ordinal) {
  auto& devices = state().devices;
  return ordinal >= 0 && size_t(ordinal) < devices.size() ? devices[size_t(ordinal)].get()
                                                         : nullptr;
}

bool is_context(const void* handle) {
  for (const auto& device : state().devices)
    if (device.get() == handle) return device->retained > 0;
  return false;
}

Call::Call(const char* function, Needs needs) : status(kSuccess), lock_(state().lock) {
  if (needs != Needs::kNothing && !state().started) {
    status = kNotInitialized;
    return;
  }
  if ((status = take_fault(function)) != kSuccess || needs != Needs::kContext) return;
  auto& stack = current_contexts();
  if (stack.empty() || !is_context(stack.back())) {
    status = kInvalidContext;
    return;
  }
  device = stack.back();
  status = device->broken;
}

uint32_t Device::largest_shared_bytes() const {
  const int architecture = 10 * major + minor;
  uint32_t kib = 227;
  if (architecture < 80) kib = architecture < 75 ? 96 : 64;
  else if (architecture < 90) kib = minor == 0 || minor == 7 ? 163 : 99;
  else if (architecture >= 120) kib = 99;
  return kib << 10;
}

namespace {

std::string setting(const char* name, const char* standard) {
  const char* value = std::getenv(name);
  return value ? value : standard;
}

// STAND_IN_DEVICES: compute capabilities, as "9.0,8.6"; empty for a machine without devices.
Status start() {
  if (state().started) return kSuccess;
  std::istringstream list(setting("STAND_IN_DEVICES", "9.0,9.0"));
  for (std::string capability; std::getline(list, capability, ',');) {
    auto device = std::make_unique<Device>();
    device->index = int(state().devices.size());
    if (std::sscanf(capability.c_str(), "%d.%d", &device->major, &device->minor) != 2) abort();
    device->total_bytes = std::atoll(setting("STAND_IN_BYTES", "4294967296").c_str());
    reserve_arena(*device);
    device->legacy = std::make_shared<Stream>();
    device->legacy->device = device.get();
    device->legacy->nonblocking = false;
    device->streams.push_back(device->legacy);
    state().devices.push_back(std::move(device));
  }
  if (state().devices.empty()) return kNoDevice;
  const std::string kernels = setting("STAND_IN_KERNELS", "");
  if (!kernels.empty() && stand_in_use_kernels(kernels.c_str()) != 0) return kNoDevice;
  state().started = true;
  return kSuccess;
}

struct Side {  // one side of a copy
  uintptr_t address;
  size_t pitch;
  bool on_device;
};

// The range that the rows of a copy take up on one side.
size_t extent(const Side& side, size_t row_bytes, size_t rows) {
  return (rows - 1) * side.pitch + row_bytes;
}

Status check(const Side& side, size_t row_bytes, size_t rows) {
  constexpr size_t kLargestPitch = (size_t{1} << 31) - 1, kLargestRows = size_t{1} << 32;
  if (rows > kLargestRows || side.pitch > kLargestPitch) return kInvalidValue;
  if (rows > 1 && side.pitch < row_bytes) return kInvalidValue;
  const bool good = side.on_device ? in_one_allocation(side.address, extent(side, row_bytes, rows))
                                   : side.address && !is_device_address(side.address);
  return good ? kSuccess : kInvalidValue;
}

// Queues a copy. What is not page-locked is staged by real drivers: here it is copied at once,
// after all that is queued before it.
Status copy(Device& current, void* handle, Side to, Side from, size_t row_bytes, size_t rows) {
  const StreamPointer stream = stream_of(handle, &current);
  if (!stream || stream->device != &current) return kInvalidHandle;
  if (row_bytes == 0 || rows == 0) return kSuccess;
  for (const Side& side : {to, from})
    if (const Status status = check(side, row_bytes, rows)) return status;
  const auto pinned = [=, &current](const Side& side) {
    return side.on_device || is_pinned(side.address, extent(side, row_bytes, rows), current);
  };
  const bool deferred = pinned(to) && pinned(from);
  enqueue(stream, [=]() -> Status {
    for (const Side& side : {to, from}) {
      if (check(side, row_bytes, rows) != kSuccess) return kIllegalAddress;
      if (deferred && !pinned(side)) return kIllegalAddress;
    }
    for (size_t row = 0; row < rows; ++row)
      std::memcpy(reinterpret_cast<void*>(to.address + row * to.pitch),
                  reinterpret_cast<const void*>(from.address + row * from.pitch), row_bytes);
    auto& counters = state().counters;
    if (!from.on_device) counters["bytes_in"] += int64_t(row_bytes * rows);
    if (!to.on_device) counters["bytes_out"] += int64_t(row_bytes * rows);
    return kSuccess;
  });
  state().counters["copies"] += 1;
  if (deferred) return kSuccess;
  state().counters["staged_copies"] += 1;
  return run_until(stream, stream->last);
}

struct Copy2D {  // CUDA_MEMCPY2D
  struct End {
    size_t x_bytes, y;
    unsigned kind;
    const void* host;
    unsigned long long device;
    void* array;
    size_t pitch;
  } from, to;
  size_t row_bytes, rows;
};

bool read_side(const Copy2D::End& end, size_t row_bytes, Side& side) {
  constexpr unsigned kHost = 1, kDevice = 2;
  if (end.kind != kHost && end.kind != kDevice) return false;
  const auto base = end.kind == kHost ? reinterpret_cast<uintptr_t>(end.host) : end.device;
  side = {base + end.y * end.pitch + end.x_bytes, end.pitch, end.kind == kDevice};
  return end.pitch == 0 || end.pitch >= row_bytes + end.x_bytes;
}

}  // namespace

DRIVER(cuInit, unsigned flags) {
  ENTER(Needs::kNothing);
  return flags ? kInvalidValue : start();
}

DRIVER(cuDriverGetVersion, int* version) {
  *version = std::atoi(setting("STAND_IN_VERSION", "13000").c_str());
  return kSuccess;
}

DRIVER(cuDeviceGetCount, int* count) {
  ENTER(Needs::kStart);
  *count = int(state().devices.size());
  return kSuccess;
}

DRIVER(cuDeviceGet, int* device, int ordinal) {
  ENTER(Needs::kStart);
  *device = ordinal;
  return device_of(ordinal) ? kSuccess : kInvalidDevice;
}

DRIVER(cuDeviceGetName, char* name, int length, int ordinal) {
  ENTER(Needs::kStart);
  if (!device_of(ordinal)) return kInvalidDevice;
  std::snprintf(name, size_t(length), "Stand-in %d", ordinal);
  return kSuccess;
}

DRIVER(cuDeviceTotalMem, size_t* nbytes, int ordinal) {
  ENTER(Needs::kStart);
  if (!device_of(ordinal)) return kInvalidDevice;
  *nbytes = size_t(device_of(ordinal)->total_bytes);
  return kSuccess;
}

DRIVER(cuDeviceGetAttribute, int* value, int attribute, int ordinal) {
  ENTER(Needs::kStart);
  const Device* device = device_of(ordinal);
  if (!device) return kInvalidDevice;
  const std::map<int, int> known{
      {1, 1024},         // MAX_THREADS_PER_BLOCK
      {8, 48 << 10},     // MAX_SHARED_MEMORY_PER_BLOCK
      {10, 32},          // WARP_SIZE
      {12, 65536},       // MAX_REGISTERS_PER_BLOCK
      {16, 132},         // MULTIPROCESSOR_COUNT
      {41, 1},           // UNIFIED_ADDRESSING
      {75, device->major},
      {76, device->minor},
      {97, int(device->largest_shared_bytes())},  // MAX_SHARED_MEMORY_PER_BLOCK_OPTIN
  };
  const auto found = known.find(attribute);
  if (found == known.end()) return kInvalidValue;
  *value = found->second;
  return kSuccess;
}

DRIVER(cuDevicePrimaryCtxRetain, void** context, int ordinal) {
  ENTER(Needs::kStart);
  Device* device = device_of(ordinal);
  if (!device) return kInvalidDevice;
  device->retained += 1;
  *context = device;
  return kSuccess;
}

DRIVER(cuDevicePrimaryCtxRelease, int ordinal) {
  ENTER(Needs::kStart);
  Device* device = device_of(ordinal);
  if (!device) return kInvalidDevice;
  if (device->retained == 0) return kInvalidContext;
  device->retained -= 1;
  return kSuccess;
}

DRIVER(cuCtxPushCurrent, void* context) {
  ENTER(Needs::kStart);
  if (!is_context(context)) return kInvalidContext;
  current_contexts().push_back(static_cast<Device*>(context));
  return kSuccess;
}

DRIVER(cuCtxPopCurrent, void** context) {
  ENTER(Needs::kStart);
  auto& stack = current_contexts();
  if (stack.empty()) return kInvalidContext;
  if (context) *context = stack.back();
  stack.pop_back();
  return kSuccess;
}

DRIVER(cuCtxGetCurrent, void** context) {
  ENTER(Needs::kStart);
  *context = current_contexts().empty() ? nullptr : current_contexts().back();
  return kSuccess;
}

DRIVER(cuCtxSetCurrent, void* context) {
  ENTER(Needs::kStart);
  auto& stack = current_contexts();
  if (context && !is_context(context)) return kInvalidContext;
  if (!stack.empty()) stack.pop_back();
  if (context) stack.push_back(static_cast<Device*>(context));
  return kSuccess;
}

DRIVER(cuCtxGetDevice, int* ordinal) {
  ENTER();
  *ordinal = call.device->index;
  return kSuccess;
}

DRIVER(cuCtxSynchronize) {
  ENTER();
  return run_all(*call.device);
}

DRIVER(cuMemGetInfo, size_t* free_bytes, size_t* total_bytes) {
  ENTER();
  *total_bytes = size_t(call.device->total_bytes);
  *free_bytes = size_t(call.device->total_bytes - call.device->used_bytes);
  return kSuccess;
}

DRIVER(cuMemAlloc, unsigned long long* address, size_t nbytes) {
  ENTER();
  uintptr_t place = 0;
  const Status status = allocate(*call.device, nbytes, place);
  *address = place;
  return status;
}

// As on a device, memory is freed when all work there has ended.
DRIVER(cuMemFree, unsigned long long address) {
  ENTER();
  if (address == 0) return kSuccess;
  for (const auto& device : state().devices) {
    if (!device->live.count(address)) continue;
    const Status status = run_all(*device);
    const Status released = release(*device, address);
    return status ? status : released;
  }
  return kInvalidValue;
}

DRIVER(cuMemHostRegister, void* address, size_t nbytes, unsigned flags) {
  constexpr unsigned kPortable = 1;
  ENTER();
  const auto begin = reinterpret_cast<uintptr_t>(address);
  if (begin == 0 || nbytes == 0 || is_device_address(begin) || flags > 15) return kInvalidValue;
  for (const auto& [other, range] : state().registered)
    if (begin < other + range.nbytes && other < begin + nbytes) return kAlreadyRegistered;
  state().registered[begin] = {nbytes, flags & kPortable ? nullptr : call.device};
  state().counters["pinned_bytes"] += int64_t(nbytes);
  return kSuccess;
}

DRIVER(cuMemHostUnregister, void* address) {
  ENTER();
  const auto found = state().registered.find(reinterpret_cast<uintptr_t>(address));
  if (found == state().registered.end()) return kNotRegistered;
  state().counters["pinned_bytes"] -= int64_t(found->second.nbytes);
  state().registered.erase(found);
  return kSuccess;
}

DRIVER(cuMemcpyHtoDAsync, unsigned long long to, const void* from, size_t nbytes, void* stream) {
  ENTER();
  return copy(*call.device, stream, {to, 0, true}, {reinterpret_cast<uintptr_t>(from), 0, false},
              nbytes, 1);
}

DRIVER(cuMemcpyDtoHAsync, void* to, unsigned long long from, size_t nbytes, void* stream) {
  ENTER();
  return copy(*call.device, stream, {reinterpret_cast<uintptr_t>(to), 0, false}, {from, 0, true},
              nbytes, 1);
}

DRIVER(cuMemcpyDtoDAsync, unsigned long long to, unsigned long long from, size_t nbytes,
       void* stream) {
  ENTER();
  return copy(*call.device, stream, {to, 0, true}, {from, 0, true}, nbytes, 1);
}

DRIVER(cuMemcpy2DAsync, const Copy2D* copied, void* stream) {
  ENTER();
  Side to, from;
  if (!read_side(copied->to, copied->row_bytes, to)) return kInvalidValue;
  if (!read_side(copied->from, copied->row_bytes, from)) return kInvalidValue;
  return copy(*call.device, stream, to, from, copied->row_bytes, copied->rows);
}

DRIVER(cuMemsetD8Async, unsigned long long address, unsigned char value, size_t count,
       void* handle) {
  ENTER();
  const StreamPointer stream = stream_of(handle, call.device);
  if (!stream || stream->device != call.device) return kInvalidHandle;
  if (!in_one_allocation(address, count)) return kInvalidValue;
  enqueue(stream, [=]() -> Status {
    if (!in_one_allocation(address, count)) return kIllegalAddress;
    std::memset(reinterpret_cast<void*>(address), value, count);
    return kSuccess;
  });
  return kSuccess;
}

}  // namespace stand_in
