// SPDX-License-Identifier: Apache-2.0
#include "distorch/unload/cache_clearer.h"

#include <algorithm>

#include "absl/strings/str_cat.h"

namespace distorch {
namespace {

std::string KindOf(const std::string& device) {
  return device.substr(0, device.find(':'));
}

}  // namespace

bool CacheClearer::HasChanged(const std::string& device,
                              const std::optional<AllocatorState>& state) {
  if (!state.has_value()) return true;
  if (state->reserved == state->allocated) return false;
  const MutexLock lock(mutex_);
  const auto found = left_.find(device);
  return found == left_.end() || found->second != *state;
}

CacheReport CacheClearer::Clear(
    Which which, const std::optional<std::vector<std::string>>& devices) {
  CacheReport report;
  std::vector<std::string> kinds;  // in the order of their first device
  std::map<std::string, std::vector<std::string>> chosen;
  for (const std::string& device : caches_->InUse()) {
    if (devices.has_value() &&
        std::find(devices->begin(), devices->end(), device) == devices->end()) {
      continue;
    }
    const std::optional<AllocatorState> state = caches_->Look(device);
    if (which == Which::kChanged && !HasChanged(device, state)) continue;
    report.before[device] = state.has_value() ? state->reserved : Bytes(0);
    const std::string kind = KindOf(device);
    if (chosen[kind].empty()) kinds.push_back(kind);
    chosen[kind].push_back(device);
  }
  for (const std::string& kind : kinds) {
    if (const absl::Status status = caches_->Empty(chosen[kind]);
        !status.ok()) {
      report.failures.push_back(absl::StrCat(kind, ": ", status.message()));
    }
    for (const std::string& device : chosen[kind]) {
      const std::optional<AllocatorState> state = caches_->Look(device);
      report.after[device] = state.has_value() ? state->reserved : Bytes(0);
      if (!state.has_value()) continue;
      const MutexLock lock(mutex_);
      left_[device] = *state;
    }
  }
  return report;
}

}  // namespace distorch
