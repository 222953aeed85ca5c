// Exports of the library: cuGetProcAddress, through which the driver's other functions are found, and
// the switches of the tests.
#include <dlfcn.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include "entry.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace stand_in {
namespace {

const std::map<int, const char*> kTexts{
    {kSuccess, "no error"},
    {kInvalidValue, "invalid argument"},
    {kOutOfMemory, "out of memory"},
    {kNotInitialized, "initialization error"},
    {kNoDevice, "no CUDA-capable device is detected"},
    {kInvalidDevice, "invalid device ordinal"},
    {kInvalidImage, "device kernel image is invalid"},
    {kInvalidContext, "invalid device context"},
    {kNoBinary, "no kernel image is available for execution on the device"},
    {kInvalidHandle, "invalid resource handle"},
    {kNotFound, "named symbol not found"},
    {kNotReady, "device not ready"},
    {kIllegalAddress, "an illegal memory access was encountered"},
    {kOutOfResources, "too many resources requested for launch"},
    {kAlreadyRegistered, "part or all of the requested memory range is already mapped"},
    {kNotRegistered, "pointer does not correspond to a registered memory region"},
    {kLaunchFailed, "unspecified launch failure"},
    {kNotSupported, "operation not supported"},
};

// STAND_IN_WITHOUT: a function that this driver shall not have, as an older one.
bool is_left_out(const std::string& symbol) {
  const char* left_out = std::getenv("STAND_IN_WITHOUT");
  return left_out && symbol == left_out;
}

}  // namespace

DRIVER(cuGetErrorString, int status, const char** text) {
  const auto found = kTexts.find(status);
  *text = found == kTexts.end() ? nullptr : found->second;
  return *text ? kSuccess : kInvalidValue;
}

}  // namespace stand_in

using namespace stand_in;

EXPORT int cuGetProcAddress_v2(const char* symbol, void** function, int, uint64_t, int* result) {
  const auto found = functions().find(symbol);
  const bool missing = found == functions().end() || is_left_out(symbol);
  *function = missing ? nullptr : found->second;
  if (result) *result = *function ? 0 : 1;
  return *function ? kSuccess : kNotFound;
}

EXPORT int cuGetProcAddress(const char* symbol, void** function, int version, uint64_t flags) {
  return cuGetProcAddress_v2(symbol, function, version, flags, nullptr);
}

// Kernels' host forms: those of the library named last are looked at first. 0, or 1 on failure.
EXPORT int stand_in_use_kernels(const char* path) {
  const std::lock_guard<std::recursive_mutex> lock(state().lock);
  void* library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (!library) {
    std::fprintf(stderr, "%s\n", dlerror());
    return 1;
  }
  auto& libraries = state().host_libraries;
  libraries.erase(std::remove(libraries.begin(), libraries.end(), library), libraries.end());
  libraries.push_back(library);
  return 0;
}

// Lets a call of a driver's function fail, or with "kernel" a kernel while it runs, after `after`
// that do not.
EXPORT void stand_in_fail(const char* function, int after, int status) {
  const std::lock_guard<std::recursive_mutex> lock(state().lock);
  state().faults[function] = {after, Status(status)};
}

EXPORT int64_t stand_in_counter(const char* name) {
  const std::lock_guard<std::recursive_mutex> lock(state().lock);
  const auto found = state().counters.find(name);
  return found == state().counters.end() ? 0 : found->second;
}

// Forgets failures, queued work and what was counted, but not what is allocated.
EXPORT void stand_in_reset() {
  const std::lock_guard<std::recursive_mutex> lock(state().lock);
  state().faults.clear();
  for (const auto& device : state().devices) {
    device->broken = kSuccess;
    for (const auto& stream : device->streams) stream->queue.clear();
  }
  auto& counters = state().counters;
  for (auto& [name, count] : counters)
    if (name.compare(0, 5, "live_") != 0 && name != "pinned_bytes") count = 0;
  counters["peak_bytes"] = counters["live_bytes"];
}
