// SPDX-License-Identifier: Apache-2.0
// The memory of the simulated accelerators: host memory that is accounted for
// as if it stood on up to kMaxDevices devices with a capacity each.
//
// Needs no torch. All functions may be called from any thread. Byte counts are
// those asked for; there is no rounding, no cache and no fragmentation, so that
// tests can compare them exactly.
#ifndef DISTORCH_TESTS_SUPPORT_SIM_SIM_MEMORY_H_
#define DISTORCH_TESTS_SUPPORT_SIM_SIM_MEMORY_H_

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace distorch_sim {

inline constexpr int kMaxDevices = 8;
inline constexpr int kHost = -1;  // the place of "cpu" in a pair

// A device has no room for what was asked for, or a fault says so.
class OutOfMemory : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// What one device has seen since the process began or the last reset.
struct DeviceCounters {
  std::int64_t capacity = 0;
  std::int64_t allocated = 0;
  std::int64_t peak = 0;         // of `allocated`, since ResetPeak
  std::int64_t allocations = 0;  // successful ones, since ResetCounters
  std::int64_t unread_peak = 0;  // of `allocated`, since ReadFigures
};

// Sets the number of devices and their capacities in bytes; the first is this
// thread's current one then. Throws std::runtime_error when `capacities` is
// empty or longer than kMaxDevices, or while anything is allocated on a device.
void Configure(const std::vector<std::int64_t>& capacities);
int DeviceCount();

// The device of this thread, 0 at first. Throws std::runtime_error for one that
// does not exist.
int CurrentDevice();
void SetCurrentDevice(int device);

// Takes everything that is allocated on the devices off their accounts: the
// memory stays valid and is freed with its tensors, but counts nowhere, so that
// Configure may follow. Copies from and to it are counted as before.
void Abandon();
// Likewise for what was allocated at `data` alone; nothing for what was not.
void AbandonAt(const void* data);

// Returns `bytes` of memory on `device`, aligned to 64 bytes; nullptr for 0.
// Throws OutOfMemory when it does not fit or a fault says so.
void* Allocate(int device, std::size_t bytes);
void Free(void* data);

// Host memory that reports itself as pinned.
void* AllocatePinned(std::size_t bytes);
void FreePinned(void* data);
bool IsPinned(const void* data);

// With `on`, what is freed on devices from now on is remembered until it is
// asked for; without, nothing is.
void LogFrees(bool on);
// First byte and size of each, in their order, since the last call.
std::vector<std::pair<std::uintptr_t, std::int64_t>> TakeFreed();

// Accounts for a copy of `bytes` between two places (kHost or a device).
// Throws std::runtime_error when a fault says so; nothing is counted then.
void CountCopy(int source, int target, std::int64_t bytes);

DeviceCounters Counters(int device);
std::int64_t Copied(int source, int target);
std::int64_t CopyCount();
void ResetPeak(int device);
// {total, used, allocated, reserved, largest reserved since the last call} and
// 0, or 1 for a device that is not there. Never throws; takes no interpreter's
// lock: distorch's sampler calls it from its thread.
int ReadFigures(int device, std::int64_t figures[5]);
void ResetCounters();  // copies and allocation counts; peaks stay

// The `nth` allocation (copy) from now on fails, 1 being the next; with
// `sticky` every later one fails too. 0 switches the fault off.
void FailAllocation(std::int64_t nth, bool sticky);
void FailCopy(std::int64_t nth, bool sticky);
// Allocations and copies that failed so since these two were last called.
std::int64_t FaultsFired();

}  // namespace distorch_sim

#endif  // DISTORCH_TESTS_SUPPORT_SIM_SIM_MEMORY_H_
