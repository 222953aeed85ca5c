// Device memory: never given out twice, closed by pages that nobody may touch, and checked.
#include <sys/mman.h>

#include <algorithm>
#include <cstring>

#include "stand_in.h"

namespace stand_in {
namespace {

constexpr uintptr_t kPage = 4096;
constexpr uintptr_t kAlignment = 256;
constexpr size_t kArenaBytes = size_t{1} << 40;  // of addresses, not of memory
constexpr int kPoison = 0xA5;
constexpr uint8_t kCanary = 0xC9;

uintptr_t round_up(uintptr_t value, uintptr_t unit) { return (value + unit - 1) / unit * unit; }

bool all_canary(uintptr_t begin, uintptr_t end) {
  const auto* bytes = reinterpret_cast<const uint8_t*>(begin);
  return std::all_of(bytes, bytes + (end - begin), [](uint8_t byte) { return byte == kCanary; });
}

void set_canaries(const Allocation& a) {
  std::memset(reinterpret_cast<void*>(a.first_byte), kCanary, a.begin - a.first_byte);
  std::memset(reinterpret_cast<void*>(a.end), kCanary, a.guard_page - a.end);
}

// Counts an overrun, and restores the canaries so that it counts once.
bool intact(const Allocation& a) {
  if (all_canary(a.first_byte, a.begin) && all_canary(a.end, a.guard_page)) return true;
  state().counters["overruns"] += 1;
  set_canaries(a);
  return false;
}

}  // namespace

void reserve_arena(Device& device) {
  void* place = mmap(nullptr, kArenaBytes, PROT_NONE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  device.arena = place == MAP_FAILED ? 0 : reinterpret_cast<uintptr_t>(place);
  device.next = device.arena + kPage;
  device.arena_end = device.arena ? device.arena + kArenaBytes : 0;
}

Status allocate(Device& device, size_t nbytes, uintptr_t& address) {
  if (nbytes == 0) return kInvalidValue;
  const uintptr_t aligned = round_up(nbytes, kAlignment), pages = round_up(nbytes, kPage);
  if (nbytes > size_t(device.total_bytes - device.used_bytes)) return kOutOfMemory;
  if (device.next + pages + kPage > device.arena_end) return kOutOfMemory;
  const uintptr_t first = device.next, guard = first + pages;
  if (mprotect(reinterpret_cast<void*>(first), pages, PROT_READ | PROT_WRITE) != 0)
    return kOutOfMemory;
  address = guard - aligned;
  const Allocation made{address, address + nbytes, first, guard};
  std::memset(reinterpret_cast<void*>(address), kPoison, nbytes);
  set_canaries(made);
  device.live[address] = made;
  device.next = guard + kPage;
  device.used_bytes += int64_t(nbytes);
  auto& counters = state().counters;
  counters["allocations"] += 1;
  counters["live_allocations"] += 1;
  counters["live_bytes"] += int64_t(nbytes);
  counters["peak_bytes"] = std::max(counters["peak_bytes"], counters["live_bytes"]);
  return kSuccess;
}

Status release(Device& device, uintptr_t address) {
  const auto found = device.live.find(address);
  if (found == device.live.end()) return kInvalidValue;
  const Allocation a = found->second;
  const Status status = intact(a) ? kSuccess : kIllegalAddress;
  auto& counters = state().counters;
  void* first = reinterpret_cast<void*>(a.first_byte);
  madvise(first, a.guard_page - a.first_byte, MADV_DONTNEED);
  mprotect(first, a.guard_page - a.first_byte, PROT_NONE);
  device.live.erase(found);
  device.used_bytes -= int64_t(a.end - a.begin);
  counters["live_allocations"] -= 1;
  counters["live_bytes"] -= int64_t(a.end - a.begin);
  return status;
}

bool in_one_allocation(uintptr_t address, size_t nbytes) {
  for (const auto& device : state().devices) {
    auto next = device->live.upper_bound(address);
    if (next == device->live.begin()) continue;
    const Allocation& a = std::prev(next)->second;
    if (address >= a.begin && address <= a.end && nbytes <= a.end - address) return true;
  }
  return false;
}

bool is_device_address(uintptr_t address) {
  for (const auto& device : state().devices)
    if (address >= device->arena && address < device->arena_end) return true;
  return false;
}

bool canaries_intact(const Device& device) {
  return std::all_of(device.live.begin(), device.live.end(),
                     [](const auto& entry) { return intact(entry.second); });
}

bool is_pinned(uintptr_t address, size_t nbytes, const Device& device) {
  const auto& registered = state().registered;
  auto next = registered.upper_bound(address);
  if (next == registered.begin()) return false;
  const auto& [begin, range] = *std::prev(next);
  return address + nbytes <= begin + range.nbytes && (!range.only || range.only == &device);
}

}  // namespace stand_in
