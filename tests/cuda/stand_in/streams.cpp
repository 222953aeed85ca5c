// Deferred work: queues, their order among each other, and kernels with their faults caught.
#include <setjmp.h>
#include <signal.h>

#include <cstring>

#include "stand_in.h"

namespace stand_in {
namespace {

thread_local sigjmp_buf kernel_start;
thread_local volatile bool in_kernel = false;
struct sigaction previous_action;

// A kernel that touches a closed page of device memory, or goes by a null pointer, is a failed
// launch, no crash.
void on_fault(int number, siginfo_t* info, void* context) {
  const auto address = reinterpret_cast<uintptr_t>(info->si_addr);
  if (in_kernel && (is_device_address(address) || address < (1 << 20)))
    siglongjmp(kernel_start, 1);
  if (previous_action.sa_flags & SA_SIGINFO) {
    previous_action.sa_sigaction(number, info, context);
  } else if (previous_action.sa_handler != SIG_DFL && previous_action.sa_handler != SIG_IGN) {
    previous_action.sa_handler(number);
  } else {
    signal(number, SIG_DFL);  // the access is tried again, and ends the process
  }
}

void catch_faults() {
  struct sigaction current;
  sigaction(SIGSEGV, nullptr, &current);
  if ((current.sa_flags & SA_SIGINFO) && current.sa_sigaction == on_fault) return;
  struct sigaction own;
  std::memset(&own, 0, sizeof own);
  own.sa_sigaction = on_fault;
  own.sa_flags = SA_SIGINFO | SA_NODEFER;
  previous_action = current;
  sigaction(SIGSEGV, &own, nullptr);
}

bool call_host(HostKernel host, const uint32_t* grid, const uint32_t* block, uint32_t shared_bytes,
               void** params) {
  catch_faults();
  if (sigsetjmp(kernel_start, 1) != 0) {
    in_kernel = false;
    return false;
  }
  in_kernel = true;
  host(grid, block, shared_bytes, params);
  in_kernel = false;
  return true;
}

}  // namespace

Status take_fault(const std::string& function) {
  auto& faults = state().faults;
  const auto found = faults.find(function);
  if (found == faults.end() || found->second.after-- > 0) return kSuccess;
  const Status status = found->second.status;
  faults.erase(found);
  return status;
}

void enqueue(const StreamPointer& stream, std::function<Status()> run, std::vector<Point> after) {
  Device& device = *stream->device;
  // The legacy default stream and the streams that are not "non-blocking" wait for each other.
  if (stream == device.legacy) {
    for (const auto& other : device.streams)
      if (!other->nonblocking && other != stream) after.emplace_back(other, other->last);
  } else if (!stream->nonblocking) {
    after.emplace_back(device.legacy, device.legacy->last);
  }
  stream->queue.push_back({++stream->last, std::move(after), std::move(run)});
  state().counters["queued"] += 1;
}

Status run_until(const StreamPointer& stream, uint64_t number) {
  while (!stream->queue.empty() && stream->queue.front().number <= number) {
    const Operation next = std::move(stream->queue.front());
    stream->queue.pop_front();
    state().counters["queued"] -= 1;
    for (const auto& [other, point] : next.after) run_until(other, point);
    if (stream->device->broken) continue;
    const Status status = next.run();
    if (status != kSuccess) stream->device->broken = status;
  }
  return stream->device->broken;
}

Status run_all(Device& device) {
  for (size_t i = 0; i < device.streams.size(); ++i)
    run_until(device.streams[i], device.streams[i]->last);
  auto& kept = device.streams;
  for (size_t i = kept.size(); i-- > 0;)
    if (!state().streams.count(kept[i].get()) && kept[i] != device.legacy)
      kept.erase(kept.begin() + long(i));
  return device.broken;
}

Status run_kernel(Device& device, const Kernel& kernel, const Dimensions& grid,
                  const Dimensions& block, uint32_t shared_bytes, std::vector<uint64_t>& values,
                  const std::vector<size_t>& places) {
  const Status fault = take_fault("kernel");
  if (fault != kSuccess) return fault;
  if (kernel.enter_module) kernel.enter_module(kernel.library);
  std::vector<void*> params;
  for (const size_t place : places) params.push_back(values.data() + place);
  if (!call_host(kernel.host, grid, block, shared_bytes, params.data())) return kIllegalAddress;
  state().counters["kernels_run"] += 1;
  return canaries_intact(device) ? kSuccess : kIllegalAddress;
}

}  // namespace stand_in
