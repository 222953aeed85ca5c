// A CUDA driver without a device, for tests: what cuda.bindings calls of libcuda.so.1, run on the
// processor. Work on streams is deferred until something waits for it, so that a missing
// synchronization shows; device memory starts as 0xA5 and ends at a page that nobody may touch;
// what a real driver refuses is refused. Kernels are taken from a library of host functions,
// their parameters' sizes and limits from the cubin. One lock guards everything.
//
// Environment, read when the driver starts: STAND_IN_DEVICES, the devices' compute capabilities
// ("9.0,9.0" unless given; empty for none); STAND_IN_BYTES, the memory of each (4 GiB);
// STAND_IN_VERSION, as 13000; STAND_IN_WITHOUT, a function that is not there; STAND_IN_KERNELS, a
// library of host forms, for programs that cannot call stand_in_use_kernels.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <utility>
#include <vector>

namespace stand_in {

enum Status : int {  // CUresult
  kSuccess = 0,
  kInvalidValue = 1,
  kOutOfMemory = 2,
  kNotInitialized = 3,
  kNoDevice = 100,
  kInvalidDevice = 101,
  kInvalidImage = 200,
  kInvalidContext = 201,
  kNoBinary = 209,
  kInvalidHandle = 400,
  kNotFound = 500,
  kNotReady = 600,
  kIllegalAddress = 700,
  kOutOfResources = 701,
  kAlreadyRegistered = 712,
  kNotRegistered = 713,
  kLaunchFailed = 719,
  kNotSupported = 801,
};

using Dimensions = uint32_t[3];
using HostKernel = void (*)(const uint32_t* grid, const uint32_t* block, uint32_t shared_bytes,
                            void** params);

// What a cubin says about one kernel.
struct KernelInfo {
  std::vector<uint32_t> param_bytes;
  uint32_t static_shared_bytes = 0;
  uint32_t registers = 0;
  uint32_t max_threads = 1024;  // __launch_bounds__
};

struct Cubin {
  int architecture = 0;  // 90 for sm_90
  std::map<std::string, KernelInfo> kernels;
};

// False if the bytes are no cubin. `image` must be as long as its own headers say.
bool read_cubin(const void* image, Cubin& cubin);

struct Allocation {
  uintptr_t begin, end;              // what was asked for
  uintptr_t first_byte, guard_page;  // readable pages around it; the rest holds canaries
};

struct Stream;
using StreamPointer = std::shared_ptr<Stream>;
using Point = std::pair<StreamPointer, uint64_t>;  // a stream's work up to a number

struct Operation {
  uint64_t number;
  std::vector<Point> after;  // what must have run before
  std::function<Status()> run;
};

struct Device;
struct Stream {
  Device* device;
  bool nonblocking;
  uint64_t last = 0;  // number of the latest operation
  std::deque<Operation> queue;
};

struct Event {
  Device* device;
  bool timing;
  Point recorded{nullptr, 0};
  double done_ms = -1;
};

struct Library {
  Cubin cubin;
  std::map<std::string, std::unique_ptr<struct Kernel>> kernels;
};

// A library of host forms may export this: it is told whose variables the next kernel goes by.
using EnterModule = void (*)(const void* library);

struct Kernel {
  std::string name;
  KernelInfo info;
  HostKernel host;
  EnterModule enter_module;  // or null
  const Library* library;
  std::map<int, uint32_t> dynamic_shared_bytes;  // limit by device
};

// A device and, at the same address, its primary context.
struct Device {
  int index;
  int major, minor;
  int64_t total_bytes, used_bytes = 0;
  int retained = 0;
  Status broken = kSuccess;  // a failed kernel spoils a context until the process ends
  uintptr_t arena, next, arena_end;
  std::map<uintptr_t, Allocation> live;
  StreamPointer legacy;
  std::vector<StreamPointer> streams;  // with those destroyed before their work was done

  uint32_t largest_shared_bytes() const;
};

struct Fault {
  int after;
  Status status;
};

struct State {
  std::recursive_mutex lock;
  bool started = false;
  std::vector<std::unique_ptr<Device>> devices;
  std::map<Stream*, StreamPointer> streams;  // live handles
  std::map<Event*, std::shared_ptr<Event>> events;
  std::set<Kernel*> kernels;
  std::map<Library*, std::unique_ptr<Library>> libraries;
  struct Registered {
    size_t nbytes;
    Device* only;  // null: portable
  };
  std::map<uintptr_t, Registered> registered;
  std::vector<void*> host_libraries;
  std::map<std::string, Fault> faults;
  std::map<std::string, int64_t> counters;
};
State& state();

// Memory
Status allocate(Device& device, size_t nbytes, uintptr_t& address);
Status release(Device& device, uintptr_t address);
bool in_one_allocation(uintptr_t address, size_t nbytes);
bool is_device_address(uintptr_t address);
bool canaries_intact(const Device& device);
bool is_pinned(uintptr_t address, size_t nbytes, const Device& device);
void reserve_arena(Device& device);

// Streams
void enqueue(const StreamPointer& stream, std::function<Status()> run,
             std::vector<Point> after = {});
Status run_until(const StreamPointer& stream, uint64_t number);
Status run_all(Device& device);
Status take_fault(const std::string& function);  // kSuccess unless one is due
Status run_kernel(Device& device, const Kernel& kernel, const Dimensions& grid,
                  const Dimensions& block, uint32_t shared_bytes, std::vector<uint64_t>& values,
                  const std::vector<size_t>& places);

}  // namespace stand_in
