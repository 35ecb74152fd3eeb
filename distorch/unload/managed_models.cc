// SPDX-License-Identifier: Apache-2.0
#include "distorch/unload/managed_models.h"

#include <algorithm>
#include <set>

#include "absl/strings/str_cat.h"

namespace distorch {
namespace {

constexpr char kHost[] = "cpu";

Bytes At(const DeviceBytes& bytes, const std::string& device) {
  const auto found = bytes.find(device);
  return found == bytes.end() ? Bytes(0) : found->second;
}

Bytes Total(const DeviceBytes& bytes) {
  Bytes total(0);
  for (const auto& [device, count] : bytes) total += count;
  return total;
}

// The devices that a model leaves: the host only where it was nowhere else.
std::vector<std::string> Left(const DeviceBytes& holds,
                              const std::string& device) {
  if (!device.empty()) return {device};
  std::vector<std::string> devices;
  for (const auto& [name, bytes] : holds) {
    if (name != kHost) devices.push_back(name);
  }
  if (devices.empty() && holds.count(kHost) != 0) devices.emplace_back(kHost);
  return devices;
}

// Who holds something on `device`, as "name (1.50 GB)", largest first.
std::vector<std::string> Holders(
    const std::vector<std::pair<std::string, DeviceBytes>>& models,
    const std::string& device) {
  std::vector<std::pair<Bytes, std::string>> there;
  for (const auto& [name, holds] : models) {
    const Bytes bytes = At(holds, device);
    if (bytes > Bytes(0)) there.emplace_back(bytes, name);
  }
  std::stable_sort(
      there.begin(), there.end(),
      [](const auto& a, const auto& b) { return a.first > b.first; });
  std::vector<std::string> names;
  names.reserve(there.size());
  for (const auto& [bytes, name] : there) {
    names.push_back(absl::StrCat(name, " (", FormatBytes(bytes), ")"));
  }
  return names;
}

bool Named(const Selection& selection, ModelHandle handle) {
  return std::find(selection.handles.begin(), selection.handles.end(),
                   handle) != selection.handles.end();
}

}  // namespace

ModelHandle ManagedModels::Add(std::shared_ptr<ManagedModel> model) {
  const MutexLock lock(mutex_);
  entries_[next_].model = std::move(model);
  return next_++;
}

bool ManagedModels::Remove(ModelHandle handle) {
  Entry gone;  // dropped after the lock: its end may run code of its owner
  const MutexLock lock(mutex_);
  const auto found = entries_.find(handle);
  if (found == entries_.end()) return false;
  gone = std::move(found->second);
  entries_.erase(found);
  return true;
}

std::vector<ModelHandle> ManagedModels::handles() const {
  const MutexLock lock(mutex_);
  std::vector<ModelHandle> handles;
  handles.reserve(entries_.size());
  for (const auto& [handle, entry] : entries_) handles.push_back(handle);
  return handles;
}

ManagedModels::Entries ManagedModels::Look() const {
  const MutexLock lock(mutex_);
  return {entries_.begin(), entries_.end()};
}

// False when another thread unloads it, has unloaded it since it was looked at,
// or has removed it.
bool ManagedModels::Claim(ModelHandle handle, int unloads) {
  const MutexLock lock(mutex_);
  const auto found = entries_.find(handle);
  if (found == entries_.end()) return false;
  Entry& entry = found->second;
  if (entry.busy || entry.unloads != unloads) return false;
  entry.busy = true;
  return true;
}

void ManagedModels::Unclaim(ModelHandle handle) {
  const MutexLock lock(mutex_);
  const auto found = entries_.find(handle);
  if (found == entries_.end()) return;
  found->second.busy = false;
  ++found->second.unloads;
}

std::vector<ManagedModels::Chosen> ManagedModels::Choose(
    const Entries& entries, const Selection& selection) {
  std::vector<Chosen> chosen;
  for (const auto& [handle, entry] : entries) {
    const ManagedModel& model = *entry.model;
    const bool named = Named(selection, handle);
    const bool concerned = selection.of == Selection::Of::kFlagged
                               ? model.Flagged()
                           : selection.of == Selection::Of::kThese ? named
                                                                   : !named;
    const bool loaded = concerned && model.Loaded();
    const bool in_host_memory = concerned && !loaded && selection.let_go &&
                                selection.of == Selection::Of::kThese &&
                                model.Kept();
    if (!loaded && !in_host_memory) continue;
    DeviceBytes holds = loaded ? model.Holds() : DeviceBytes();
    if (!selection.device.empty() && holds.count(selection.device) == 0) {
      continue;
    }
    if (Claim(handle, entry.unloads)) {
      chosen.push_back({handle, entry.model, std::move(holds)});
    }
  }
  std::stable_sort(chosen.begin(), chosen.end(),
                   [](const Chosen& a, const Chosen& b) {
                     return Total(a.holds) > Total(b.holds);
                   });
  return chosen;
}

void ManagedModels::CarryOut(const std::vector<Chosen>& chosen,
                             const Selection& selection, UnloadReport& report) {
  std::set<std::string> left;
  for (const Chosen& one : chosen) {
    for (std::string& device : Left(one.holds, selection.device)) {
      left.insert(std::move(device));
    }
  }
  const std::vector<std::string> devices(left.begin(), left.end());
  const DeviceBytes before = memory_->InUse(devices);
  for (const Chosen& one : chosen) {
    std::vector<std::string> from = Left(one.holds, selection.device);
    absl::Status status;
    if (one.model->Loaded()) status = one.model->Unload(selection.device);
    const std::string name = one.model->Name();
    // Let go of last: whom nobody else holds is gone with this.
    if (selection.let_go) one.model->LetGo();
    Unclaim(one.handle);
    if (!status.ok()) {
      report.failures.push_back(absl::StrCat(name, ": ", status.message()));
    } else {
      if (from.empty()) from.emplace_back(kHost);
      report.unloaded.push_back({name, std::move(from)});
    }
  }
  if (const absl::Status status = memory_->Clear(devices); !status.ok()) {
    report.failures.push_back(
        absl::StrCat("clearing caches: ", status.message()));
  }
  const DeviceBytes after = memory_->InUse(devices);
  const DeviceBytes freed = FreedBytes(before, after);
  for (const std::string& device : devices) {
    if (before.count(device) == 0 && after.count(device) == 0) continue;
    report.devices.push_back(
        {device, At(before, device), At(after, device), At(freed, device), {}});
  }
}

UnloadReport ManagedModels::Unload(const Selection& selection) {
  UnloadReport report;
  report.flagged_only = selection.of == Selection::Of::kFlagged;
  const std::vector<Chosen> chosen = Choose(Look(), selection);
  if (!chosen.empty()) CarryOut(chosen, selection, report);
  std::vector<std::pair<std::string, DeviceBytes>> there;
  for (const auto& [handle, entry] : Look()) {
    const StayingModel model = {entry.model->Name(), entry.model->Loaded(),
                                entry.model->Kept()};
    if (!model.loaded && !model.kept) continue;
    if (!report.devices.empty() && model.loaded) {
      there.emplace_back(model.name, entry.model->Holds());
    }
    report.stay.push_back(model);
  }
  for (DeviceReport& device : report.devices) {
    device.holders = Holders(there, device.device);
  }
  return report;
}

}  // namespace distorch
