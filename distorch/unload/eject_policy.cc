// SPDX-License-Identifier: Apache-2.0
#include "distorch/unload/eject_policy.h"

#include <algorithm>
#include <set>

#include "absl/strings/str_cat.h"

namespace distorch {
namespace {

Bytes Total(const DeviceBytes& bytes) {
  Bytes total(0);
  for (const auto& [device, count] : bytes) total = total + count;
  return total;
}

Bytes At(const DeviceBytes& bytes, const std::string& device) {
  const auto found = bytes.find(device);
  return found == bytes.end() ? Bytes(0) : found->second;
}

std::vector<std::string> Holders(const std::vector<ManagedState>& models,
                                 const std::set<std::int64_t>& gone,
                                 const std::string& device) {
  std::vector<const ManagedState*> there;
  for (const ManagedState& model : models) {
    if (gone.count(model.id) == 0 && At(model.bytes, device) > Bytes(0)) {
      there.push_back(&model);
    }
  }
  std::stable_sort(there.begin(), there.end(),
                   [&](const ManagedState* a, const ManagedState* b) {
                     return At(a->bytes, device) > At(b->bytes, device);
                   });
  std::vector<std::string> names;
  names.reserve(there.size());
  for (const ManagedState* model : there) {
    names.push_back(absl::StrCat(model->name, " (",
                                 FormatBytes(At(model->bytes, device)), ")"));
  }
  return names;
}

}  // namespace

std::vector<std::int64_t> ChooseEjected(
    const std::vector<ManagedState>& models) {
  std::vector<const ManagedState*> flagged;
  for (const ManagedState& model : models) {
    if (model.eject) flagged.push_back(&model);
  }
  std::stable_sort(flagged.begin(), flagged.end(),
                   [](const ManagedState* a, const ManagedState* b) {
                     return Total(a->bytes) > Total(b->bytes);
                   });
  std::vector<std::int64_t> ids;
  ids.reserve(flagged.size());
  for (const ManagedState* model : flagged) ids.push_back(model->id);
  return ids;
}

EjectReport MakeEjectReport(const std::vector<ManagedState>& models,
                            const std::vector<std::int64_t>& ejected,
                            const DeviceBytes& before,
                            const DeviceBytes& after) {
  EjectReport report;
  const std::set<std::int64_t> gone(ejected.begin(), ejected.end());
  std::set<std::string> touched;
  for (const std::int64_t id : ejected) {
    for (const ManagedState& model : models) {
      if (model.id != id) continue;
      report.ejected.push_back(model.name);
      for (const auto& [device, bytes] : model.bytes) {
        if (bytes > Bytes(0)) touched.insert(device);
      }
    }
  }
  for (const ManagedState& model : models) {
    if (gone.count(model.id) == 0) report.kept.push_back(model.name);
  }
  for (const std::string& device : touched) {
    if (before.count(device) == 0 && after.count(device) == 0) continue;
    const Bytes was = At(before, device);
    const Bytes is = At(after, device);
    report.devices.push_back(
        {device, was, is, was - is, Holders(models, gone, device)});
  }
  return report;
}

}  // namespace distorch
