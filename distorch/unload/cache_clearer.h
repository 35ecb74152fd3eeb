// SPDX-License-Identifier: Apache-2.0
// Gives back what torch's allocators cache but nobody uses, on every device in
// use. Decides which devices that is; what torch's stable ABI lacks (the
// allocators' figures, and emptying them) is asked from `AllocatorCaches`.
//
//   CacheClearer clearer(&caches);
//   clearer.Clear(CacheClearer::Which::kChanged);  // often, after each node
//   clearer.Clear(CacheClearer::Which::kAll);      // when a user asks for it
//
// Clearing waits for the device, and an allocator can rarely give back all:
// what it keeps is in pieces of memory that are in use. So a device is worth
// it only if it caches something and has changed since it was cleared last;
// an idle one costs one question.
#ifndef DISTORCH_UNLOAD_CACHE_CLEARER_H_
#define DISTORCH_UNLOAD_CACHE_CLEARER_H_

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "distorch/device/mutex.h"
#include "distorch/unload/unload_report.h"

namespace distorch {

// One device's allocator. The difference is cached.
struct AllocatorState {
  Bytes reserved;   // taken from the device
  Bytes allocated;  // of that, in tensors

  friend bool operator==(const AllocatorState&,
                         const AllocatorState&) = default;
};

class AllocatorCaches {
 public:
  virtual ~AllocatorCaches() = default;
  // Canonical names of accelerators that this process has used. Initialises
  // none.
  virtual std::vector<std::string> InUse() = 0;
  // nullopt where the allocator does not tell: such a device is always cleared.
  virtual std::optional<AllocatorState> Look(const std::string& device) = 0;
  // Empties the caches of these devices, all of one kind; the current device
  // stays current. May empty others of that kind as well.
  virtual absl::Status Empty(const std::vector<std::string>& devices) = 0;
};

struct CacheReport {
  DeviceBytes before;                 // reserved, of the devices cleared
  DeviceBytes after;                  // reserved
  std::vector<std::string> failures;  // "cuda: what went wrong"
};

class CacheClearer {
 public:
  enum class Which { kAll, kChanged };

  // `caches` must outlive the object.
  explicit CacheClearer(AllocatorCaches* caches) : caches_(caches) {}

  // Clears the devices in use, of those in `devices` where that is given;
  // names of others are passed over. May be called from several threads:
  // `caches` is called without a lock.
  CacheReport Clear(
      Which which,
      const std::optional<std::vector<std::string>>& devices = std::nullopt);

 private:
  bool HasChanged(const std::string& device,
                  const std::optional<AllocatorState>& state);

  AllocatorCaches* caches_;
  Mutex mutex_;
  std::map<std::string, AllocatorState> left_
      ABSL_GUARDED_BY(mutex_);  // by the last clearing
};

}  // namespace distorch

#endif  // DISTORCH_UNLOAD_CACHE_CLEARER_H_
