// Streams, events, loaded images and launches.
#include <dlfcn.h>

#include <algorithm>
#include <chrono>
#include <cstring>

#include "entry.h"

namespace stand_in {
namespace {

constexpr unsigned kNonBlocking = 1;    // CU_STREAM_NON_BLOCKING
constexpr unsigned kDisableTiming = 2;  // CU_EVENT_DISABLE_TIMING
constexpr uint32_t kPlainShared = 48 << 10;

double now_ms() {
  const auto now = std::chrono::steady_clock::now().time_since_epoch();
  return std::chrono::duration<double, std::milli>(now).count();
}

std::shared_ptr<Event> event_of(void* handle) {
  const auto found = state().events.find(static_cast<Event*>(handle));
  return found == state().events.end() ? nullptr : found->second;
}

Kernel* kernel_of(void* handle) {
  auto* kernel = static_cast<Kernel*>(handle);
  return state().kernels.count(kernel) ? kernel : nullptr;
}

// A cubin runs on devices of its major version whose minor one is not lower.
bool runs_on(const Cubin& cubin, const Device& device) {
  return cubin.architecture / 10 == device.major && cubin.architecture % 10 <= device.minor;
}

uint32_t dynamic_limit(const Kernel& kernel, int ordinal) {
  const auto found = kernel.dynamic_shared_bytes.find(ordinal);
  if (found != kernel.dynamic_shared_bytes.end()) return found->second;
  return kPlainShared - std::min(kPlainShared, kernel.info.static_shared_bytes);
}

Status check_launch(const Kernel& kernel, const Device& device, const Dimensions& grid,
                    const Dimensions& block, uint32_t shared_bytes) {
  constexpr uint64_t kGrid[3] = {(uint64_t{1} << 31) - 1, 65535, 65535};
  constexpr uint64_t kBlock[3] = {1024, 1024, 64};
  for (int i = 0; i < 3; ++i)
    if (!grid[i] || grid[i] > kGrid[i] || !block[i] || block[i] > kBlock[i]) return kInvalidValue;
  const uint64_t threads = uint64_t{block[0]} * block[1] * block[2];
  if (threads > 1024 || threads > kernel.info.max_threads) return kInvalidValue;
  if (shared_bytes > dynamic_limit(kernel, device.index)) return kInvalidValue;
  const uint64_t registers = (kernel.info.registers + 7) / 8 * 8 * ((threads + 31) / 32 * 32);
  return registers > 65536 ? kOutOfResources : kSuccess;
}

Status launch(Device& current, void* function, const Dimensions& grid, const Dimensions& block,
              uint32_t shared_bytes, void* handle, void** params) {
  const Kernel* kernel = kernel_of(function);
  const StreamPointer stream = stream_of(handle, &current);
  if (!kernel || !stream || stream->device != &current) return kInvalidHandle;
  if (const Status status = check_launch(*kernel, current, grid, block, shared_bytes)) return status;
  if (!params && !kernel->info.param_bytes.empty()) return kInvalidValue;
  std::vector<uint64_t> values;  // each parameter from a multiple of 16 bytes on
  std::vector<size_t> places;
  for (size_t i = 0; i < kernel->info.param_bytes.size(); ++i) {
    const uint32_t nbytes = kernel->info.param_bytes[i];
    places.push_back(values.size());
    values.resize(values.size() + (nbytes + 15) / 16 * 2);
    std::memcpy(values.data() + places.back(), params[i], nbytes);
  }
  const std::vector<uint32_t> g(grid, grid + 3), b(block, block + 3);
  Device* device = &current;
  enqueue(stream, [=]() mutable {
    const Dimensions grid_then = {g[0], g[1], g[2]}, block_then = {b[0], b[1], b[2]};
    return run_kernel(*device, *kernel, grid_then, block_then, shared_bytes, values, places);
  });
  state().counters["launches"] += 1;
  return kSuccess;
}

}  // namespace

StreamPointer stream_of(const void* handle, Device* current) {
  const auto value = reinterpret_cast<uintptr_t>(handle);
  if (value <= 1) return current ? current->legacy : nullptr;
  const auto found = state().streams.find(static_cast<Stream*>(const_cast<void*>(handle)));
  return found == state().streams.end() ? nullptr : found->second;
}

DRIVER(cuStreamCreate, void** handle, unsigned flags) {
  ENTER();
  if (flags > kNonBlocking) return kInvalidValue;
  auto stream = std::make_shared<Stream>();
  stream->device = call.device;
  stream->nonblocking = flags == kNonBlocking;
  *handle = stream.get();
  call.device->streams.push_back(stream);
  state().streams[stream.get()] = stream;
  state().counters["live_streams"] += 1;
  return kSuccess;
}

// What is queued still runs, as on a device.
DRIVER(cuStreamDestroy, void* handle) {
  ENTER(Needs::kStart);
  if (!state().streams.erase(static_cast<Stream*>(handle))) return kInvalidHandle;
  state().counters["live_streams"] -= 1;
  return kSuccess;
}

DRIVER(cuStreamSynchronize, void* handle) {
  ENTER();
  const StreamPointer stream = stream_of(handle, call.device);
  if (!stream) return kInvalidHandle;
  // The legacy default stream's last point includes what the others that wait for it have queued.
  if (stream == stream->device->legacy) enqueue(stream, [] { return kSuccess; });
  return run_until(stream, stream->last);
}

DRIVER(cuStreamQuery, void* handle) {
  ENTER();
  const StreamPointer stream = stream_of(handle, call.device);
  return stream ? run_until(stream, stream->last) : kInvalidHandle;
}

DRIVER(cuStreamWaitEvent, void* handle, void* event_handle, unsigned flags) {
  ENTER();
  const StreamPointer stream = stream_of(handle, call.device);
  const auto event = event_of(event_handle);
  if (!stream || !event) return kInvalidHandle;
  if (flags) return kInvalidValue;
  if (event->recorded.first) enqueue(stream, [] { return kSuccess; }, {event->recorded});
  return kSuccess;
}

DRIVER(cuEventCreate, void** handle, unsigned flags) {
  ENTER();
  auto event = std::make_shared<Event>();
  event->device = call.device;
  event->timing = !(flags & kDisableTiming);
  *handle = event.get();
  state().events[event.get()] = event;
  state().counters["live_events"] += 1;
  return kSuccess;
}

DRIVER(cuEventDestroy, void* handle) {
  ENTER(Needs::kStart);
  if (!state().events.erase(static_cast<Event*>(handle))) return kInvalidHandle;
  state().counters["live_events"] -= 1;
  return kSuccess;
}

DRIVER(cuEventRecord, void* handle, void* stream_handle) {
  ENTER();
  const StreamPointer stream = stream_of(stream_handle, call.device);
  const auto event = event_of(handle);
  if (!stream || !event || event->device != stream->device) return kInvalidHandle;
  event->done_ms = -1;
  enqueue(stream, [event]() -> Status {
    event->done_ms = now_ms();
    return kSuccess;
  });
  event->recorded = {stream, stream->last};
  return kSuccess;
}

DRIVER(cuEventSynchronize, void* handle) {
  ENTER();
  const auto event = event_of(handle);
  if (!event) return kInvalidHandle;
  return event->recorded.first ? run_until(event->recorded.first, event->recorded.second)
                               : kSuccess;
}

DRIVER(cuEventElapsedTime, float* ms, void* start_handle, void* end_handle) {
  ENTER();
  const auto start = event_of(start_handle), end = event_of(end_handle);
  if (!start || !end || !start->timing || !end->timing) return kInvalidHandle;
  if (!start->recorded.first || !end->recorded.first) return kInvalidHandle;
  if (start->done_ms < 0 || end->done_ms < 0) return kNotReady;
  *ms = float(end->done_ms - start->done_ms);
  return kSuccess;
}

DRIVER(cuLibraryLoadData, void** handle, const void* image, void*, void**, unsigned, void*, void**,
       unsigned) {
  ENTER(Needs::kStart);
  auto library = std::make_unique<Library>();
  if (!image || !read_cubin(image, library->cubin)) return kInvalidImage;
  auto& stack = current_contexts();
  if (!stack.empty() && !runs_on(library->cubin, *stack.back())) return kNoBinary;
  *handle = library.get();
  state().counters["live_libraries"] += 1;
  state().libraries[library.get()] = std::move(library);
  return kSuccess;
}

DRIVER(cuLibraryUnload, void* handle) {
  ENTER(Needs::kStart);
  const auto found = state().libraries.find(static_cast<Library*>(handle));
  if (found == state().libraries.end()) return kInvalidHandle;
  for (const auto& device : state().devices) run_all(*device);
  for (const auto& [name, kernel] : found->second->kernels) state().kernels.erase(kernel.get());
  state().libraries.erase(found);
  state().counters["live_libraries"] -= 1;
  return kSuccess;
}

DRIVER(cuLibraryGetKernel, void** handle, void* library_handle, const char* name) {
  ENTER(Needs::kStart);
  const auto found = state().libraries.find(static_cast<Library*>(library_handle));
  if (found == state().libraries.end()) return kInvalidHandle;
  Library& library = *found->second;
  const auto info = library.cubin.kernels.find(name);
  if (info == library.cubin.kernels.end()) return kNotFound;
  auto& kernel = library.kernels[name];
  if (!kernel) {
    void *host = nullptr, *enter = nullptr;
    for (auto it = state().host_libraries.rbegin(); !host && it != state().host_libraries.rend(); ++it) {
      host = dlsym(*it, name);
      enter = dlsym(*it, "enter_module");
    }
    if (!host) {
      library.kernels.erase(name);
      return kNotFound;
    }
    kernel = std::make_unique<Kernel>();
    kernel->name = name;
    kernel->info = info->second;
    kernel->host = reinterpret_cast<HostKernel>(host);
    kernel->enter_module = reinterpret_cast<EnterModule>(enter);
    kernel->library = &library;
    state().kernels.insert(kernel.get());
  }
  *handle = kernel.get();
  return kSuccess;
}

constexpr int kAttributeMaxThreads = 0, kAttributeStaticShared = 1, kAttributeRegisters = 4,
              kAttributeDynamicShared = 8;

DRIVER(cuKernelGetAttribute, int* value, int attribute, void* handle, int ordinal) {
  ENTER(Needs::kStart);
  const Kernel* kernel = kernel_of(handle);
  if (!kernel) return kInvalidHandle;
  if (!device_of(ordinal)) return kInvalidDevice;
  if (attribute == kAttributeMaxThreads) *value = int(kernel->info.max_threads);
  else if (attribute == kAttributeStaticShared) *value = int(kernel->info.static_shared_bytes);
  else if (attribute == kAttributeRegisters) *value = int(kernel->info.registers);
  else if (attribute == kAttributeDynamicShared) *value = int(dynamic_limit(*kernel, ordinal));
  else return kInvalidValue;
  return kSuccess;
}

DRIVER(cuKernelSetAttribute, int attribute, int value, void* handle, int ordinal) {
  ENTER(Needs::kStart);
  Kernel* kernel = kernel_of(handle);
  const Device* device = device_of(ordinal);
  if (!kernel) return kInvalidHandle;
  if (!device) return kInvalidDevice;
  if (attribute != kAttributeDynamicShared || value < 0) return kInvalidValue;
  if (uint32_t(value) + kernel->info.static_shared_bytes > device->largest_shared_bytes())
    return kInvalidValue;
  kernel->dynamic_shared_bytes[ordinal] = uint32_t(value);
  return kSuccess;
}

DRIVER(cuLaunchKernel, void* function, unsigned grid_x, unsigned grid_y, unsigned grid_z,
       unsigned block_x, unsigned block_y, unsigned block_z, unsigned shared_bytes, void* stream,
       void** params, void** extra) {
  ENTER();
  if (extra) return kNotSupported;
  return launch(*call.device, function, {grid_x, grid_y, grid_z}, {block_x, block_y, block_z},
                shared_bytes, stream, params);
}

struct LaunchConfig {  // CUlaunchConfig
  unsigned grid[3], block[3], shared_bytes;
  void* stream;
  void* attributes;
  unsigned attribute_count;
};

DRIVER(cuLaunchKernelEx, const LaunchConfig* config, void* function, void** params, void** extra) {
  ENTER();
  if (extra || config->attribute_count) return kNotSupported;
  return launch(*call.device, function, config->grid, config->block, config->shared_bytes,
                config->stream, params);
}

}  // namespace stand_in
