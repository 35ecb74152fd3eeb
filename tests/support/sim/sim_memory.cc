// SPDX-License-Identifier: Apache-2.0
#include "tests/support/sim/sim_memory.h"

#include <algorithm>
#include <array>
#include <map>
#include <mutex>
#include <new>
#include <sstream>
#include <utility>

namespace distorch_sim {
namespace {

// Counts down to the call that fails.
struct Fault {
  std::int64_t left = 0;  // 0: off
  bool sticky = false;
  bool tripped = false;
  std::int64_t fired = 0;

  bool Fires() {
    if (!tripped && (left == 0 || --left > 0)) return false;
    tripped = sticky;
    ++fired;
    return true;
  }
};

constexpr int kAbandoned = -2;
thread_local int current_device = 0;

struct Range {
  std::size_t bytes = 0;
  int device = 0;  // or kHost: pinned host memory, or kAbandoned
};

struct State {
  std::mutex mutex;
  int count = 1;
  std::array<DeviceCounters, kMaxDevices> devices;
  std::array<std::array<std::int64_t, kMaxDevices + 1>, kMaxDevices + 1> copied;
  std::int64_t copies = 0;
  std::map<const char*, Range> ranges;  // by first byte
  Fault allocation_fault;
  Fault copy_fault;
  bool log_frees = false;
  std::vector<std::pair<std::uintptr_t, std::int64_t>> freed;

  State() : copied{} { devices[0].capacity = std::int64_t{1} << 30; }

  const Range* Find(const void* data) const {
    const auto* byte = static_cast<const char*>(data);
    auto it = ranges.upper_bound(byte);
    if (it == ranges.begin()) return nullptr;
    --it;
    return byte < it->first + it->second.bytes ? &it->second : nullptr;
  }
};

// Never destroyed: tensors may be freed after the statics of this library.
State& TheState() {
  static auto* state = new State;
  return *state;
}

std::size_t Slot(int place) {
  return static_cast<std::size_t>(place == kHost ? kMaxDevices : place);
}

constexpr std::align_val_t kAlignment{64};

template <typename... Parts>
std::string Text(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  return text.str();
}

template <typename... Parts>
[[noreturn]] void Fail(const Parts&... parts) {
  throw std::runtime_error(Text("sim: ", parts...));
}

void* HostMemory(std::size_t bytes) {
  void* data = ::operator new(bytes, kAlignment, std::nothrow);
  if (data == nullptr) Fail("the host has no memory for ", bytes, " bytes");
  return data;
}

void CheckDevice(int device) {
  if (device < 0 || device >= TheState().count) {
    throw std::runtime_error(Text("sim:", device, " does not exist; there are ",
                                  TheState().count, " devices"));
  }
}

[[noreturn]] void RefuseAllocation(int device, std::size_t bytes,
                                   bool injected) {
  const DeviceCounters& counters =
      TheState().devices[static_cast<std::size_t>(device)];
  throw OutOfMemory(
      Text("sim out of memory", injected ? " (injected fault)" : "",
           ". Tried to allocate ", bytes, " bytes. sim:", device,
           " has a capacity of ", counters.capacity, " bytes of which ",
           counters.capacity - counters.allocated, " are free"));
}

}  // namespace

void Configure(const std::vector<std::int64_t>& capacities) {
  State& state = TheState();
  const std::lock_guard lock(state.mutex);
  if (capacities.empty() || capacities.size() > kMaxDevices) {
    Fail("1 to ", kMaxDevices, " devices, not ", capacities.size());
  }
  for (const DeviceCounters& counters : state.devices) {
    if (counters.allocated != 0) {
      Fail("devices cannot be reconfigured while ", counters.allocated,
           " bytes are allocated on one of them");
    }
  }
  state.count = static_cast<int>(capacities.size());
  current_device = 0;
  for (std::size_t i = 0; i < kMaxDevices; ++i) {
    state.devices[i] = DeviceCounters{};
    if (i < capacities.size()) state.devices[i].capacity = capacities[i];
  }
}

void Abandon() {
  State& state = TheState();
  const std::lock_guard lock(state.mutex);
  for (auto& [data, range] : state.ranges) {
    if (range.device != kHost) range.device = kAbandoned;
  }
  for (DeviceCounters& counters : state.devices) counters.allocated = 0;
}

void AbandonAt(const void* data) {
  State& state = TheState();
  const std::lock_guard lock(state.mutex);
  const auto it = state.ranges.find(static_cast<const char*>(data));
  if (it == state.ranges.end() || it->second.device < 0) return;
  state.devices[static_cast<std::size_t>(it->second.device)].allocated -=
      static_cast<std::int64_t>(it->second.bytes);
  it->second.device = kAbandoned;
}

int DeviceCount() { return TheState().count; }

int CurrentDevice() { return current_device; }
void SetCurrentDevice(int device) {
  CheckDevice(device);
  current_device = device;
}

void* Allocate(int device, std::size_t bytes) {
  if (bytes == 0) return nullptr;
  State& state = TheState();
  const std::lock_guard lock(state.mutex);
  CheckDevice(device);
  DeviceCounters& counters = state.devices[static_cast<std::size_t>(device)];
  const auto wanted = static_cast<std::int64_t>(bytes);
  if (state.allocation_fault.Fires()) RefuseAllocation(device, bytes, true);
  if (wanted > counters.capacity - counters.allocated) {
    RefuseAllocation(device, bytes, false);
  }
  void* data = HostMemory(bytes);
  state.ranges[static_cast<char*>(data)] = Range{bytes, device};
  counters.allocated += wanted;
  counters.peak = std::max(counters.peak, counters.allocated);
  counters.unread_peak = std::max(counters.unread_peak, counters.allocated);
  ++counters.allocations;
  return data;
}

void Free(void* data) {
  if (data == nullptr) return;
  State& state = TheState();
  {
    const std::lock_guard lock(state.mutex);
    const auto it = state.ranges.find(static_cast<char*>(data));
    if (it == state.ranges.end()) return;
    if (it->second.device >= 0) {
      if (state.log_frees) {
        state.freed.emplace_back(reinterpret_cast<std::uintptr_t>(data),
                                 static_cast<std::int64_t>(it->second.bytes));
      }
      state.devices[static_cast<std::size_t>(it->second.device)].allocated -=
          static_cast<std::int64_t>(it->second.bytes);
    }
    state.ranges.erase(it);
  }
  ::operator delete(data, kAlignment);
}

void* AllocatePinned(std::size_t bytes) {
  if (bytes == 0) return nullptr;
  State& state = TheState();
  const std::lock_guard lock(state.mutex);
  void* data = HostMemory(bytes);
  state.ranges[static_cast<char*>(data)] = Range{bytes, kHost};
  return data;
}

void FreePinned(void* data) { Free(data); }

bool IsPinned(const void* data) {
  State& state = TheState();
  const std::lock_guard lock(state.mutex);
  const Range* range = state.Find(data);
  return range != nullptr && range->device == kHost;
}

void LogFrees(bool on) {
  State& state = TheState();
  const std::lock_guard lock(state.mutex);
  state.log_frees = on;
  state.freed.clear();
}

std::vector<std::pair<std::uintptr_t, std::int64_t>> TakeFreed() {
  State& state = TheState();
  const std::lock_guard lock(state.mutex);
  return std::exchange(state.freed, {});
}

void CountCopy(int source, int target, std::int64_t bytes) {
  State& state = TheState();
  const std::lock_guard lock(state.mutex);
  const auto name = [](int place) {
    return place == kHost ? std::string("cpu") : "sim:" + std::to_string(place);
  };
  if (state.copy_fault.Fires()) {
    Fail("copy of ", bytes, " bytes from ", name(source), " to ", name(target),
         " failed (injected fault)");
  }
  state.copied[Slot(source)][Slot(target)] += bytes;
  ++state.copies;
}

DeviceCounters Counters(int device) {
  State& state = TheState();
  const std::lock_guard lock(state.mutex);
  CheckDevice(device);
  return state.devices[static_cast<std::size_t>(device)];
}

std::int64_t Copied(int source, int target) {
  State& state = TheState();
  const std::lock_guard lock(state.mutex);
  return state.copied[Slot(source)][Slot(target)];
}

std::int64_t CopyCount() {
  State& state = TheState();
  const std::lock_guard lock(state.mutex);
  return state.copies;
}

void ResetPeak(int device) {
  State& state = TheState();
  const std::lock_guard lock(state.mutex);
  CheckDevice(device);
  DeviceCounters& counters = state.devices[static_cast<std::size_t>(device)];
  counters.peak = counters.allocated;
}

int ReadFigures(int device, std::int64_t figures[5]) {
  State& state = TheState();
  const std::lock_guard lock(state.mutex);
  if (device < 0 || device >= state.count) return 1;
  DeviceCounters& counters = state.devices[static_cast<std::size_t>(device)];
  figures[0] = counters.capacity;
  for (int i = 1; i < 4; ++i) figures[i] = counters.allocated;
  figures[4] = counters.unread_peak;
  counters.unread_peak = counters.allocated;
  return 0;
}

void ResetCounters() {
  State& state = TheState();
  const std::lock_guard lock(state.mutex);
  for (auto& row : state.copied) row.fill(0);
  for (DeviceCounters& counters : state.devices) counters.allocations = 0;
  state.copies = 0;
}

void FailAllocation(std::int64_t nth, bool sticky) {
  State& state = TheState();
  const std::lock_guard lock(state.mutex);
  state.allocation_fault = Fault{nth, sticky, false};
}

void FailCopy(std::int64_t nth, bool sticky) {
  State& state = TheState();
  const std::lock_guard lock(state.mutex);
  state.copy_fault = Fault{nth, sticky, false};
}

std::int64_t FaultsFired() {
  State& state = TheState();
  const std::lock_guard lock(state.mutex);
  return state.allocation_fault.fired + state.copy_fault.fired;
}

}  // namespace distorch_sim
