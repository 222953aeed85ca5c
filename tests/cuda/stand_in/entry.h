// Frame of the driver's functions: each is registered under its name for cuGetProcAddress, and begins
// with a Call, which takes the lock and tells whether the function can go on.
#pragma once

#include "stand_in.h"

namespace stand_in {

std::map<std::string, void*>& functions();

struct Registered {
  Registered(const char* name, void* function) { functions()[name] = function; }
};

#define DRIVER(name, ...)                                                          \
  static int name(__VA_ARGS__);                                                    \
  static const Registered registered_##name(#name, reinterpret_cast<void*>(name)); \
  static int name(__VA_ARGS__)

enum class Needs { kContext, kStart, kNothing };

class Call {
 public:
  Call(const char* function, Needs needs);
  explicit operator bool() const { return status == kSuccess; }
  Status status;
  Device* device = nullptr;  // of the current context

 private:
  std::unique_lock<std::recursive_mutex> lock_;
};

// Enters the function or returns its failure.
#define ENTER(...)                     \
  Call call(__func__, Needs{__VA_ARGS__}); \
  if (!call) return call.status

std::vector<Device*>& current_contexts();  // of this thread, the last one counts
Device* device_of(int ordinal);            // null if there is none
bool is_context(const void* handle);
StreamPointer stream_of(const void* handle, Device* current);  // null if it is none

}  // namespace stand_in
