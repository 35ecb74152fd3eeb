// SPDX-License-Identifier: Apache-2.0
#include "allocation/spec.h"

#include <algorithm>
#include <utility>

namespace distorch {
namespace {

bool Has(absl::Span<const DeviceId> devices, const DeviceId& device) {
  return std::find(devices.begin(), devices.end(), device) != devices.end();
}

void AddOnce(const DeviceId& device, std::vector<DeviceId>* devices) {
  if (!device.empty() && !Has(*devices, device)) devices->push_back(device);
}

bool IsRest(const Entry& entry) {
  return std::holds_alternative<Rest>(entry.amount);
}

bool IsRatio(const std::vector<Entry>& entries) {
  return std::all_of(entries.begin(), entries.end(), [](const Entry& entry) {
    return std::holds_alternative<ModelShare>(entry.amount);
  });
}

bool AsksForAny(const std::vector<Entry>& entries) {
  return std::any_of(entries.begin(), entries.end(), [](const Entry& entry) {
    const auto* share = std::get_if<ModelShare>(&entry.amount);
    return share != nullptr && share->nano_percent > 0;
  });
}

// Lets one entry take what the others leave.
void AddRest(const DeviceId& compute, std::vector<Entry>* entries) {
  const auto of = [entries](const DeviceId& device) {
    return std::find_if(
        entries->begin(), entries->end(),
        [&device](const Entry& entry) { return entry.device == device; });
  };
  DeviceId rest("cpu");
  if (!compute.empty() && of(compute) == entries->end()) rest = compute;
  const auto limited = of(rest);
  if (limited != entries->end()) entries->erase(limited);
  entries->push_back({std::move(rest), Rest{}});
}

EntryList Without(const EntryList& list, absl::Span<const DeviceId> gone,
                  const DeviceId& compute) {
  EntryList kept;
  for (const Entry& entry : list.entries) {
    if (!Has(gone, entry.device)) kept.entries.push_back(entry);
  }
  if (kept.entries.size() == list.entries.size()) return kept;
  const bool has_rest =
      std::any_of(kept.entries.begin(), kept.entries.end(), IsRest);
  if (has_rest || (IsRatio(list.entries) && AsksForAny(kept.entries))) {
    return kept;
  }
  AddRest(compute, &kept.entries);
  return kept;
}

VirtualVram Without(const VirtualVram& form, absl::Span<const DeviceId> gone,
                    const DeviceId& compute) {
  VirtualVram kept{form.amount, {}};
  for (const DeviceId& donor : form.donors) {
    const DeviceId there = Has(gone, donor) ? DeviceId("cpu") : donor;
    if (there != compute) AddOnce(there, &kept.donors);
  }
  return kept;
}

}  // namespace

Spec Spec::Whole(const DeviceId& compute) {
  return {EntryList{{{compute, Rest{}}}}, compute};
}

std::vector<DeviceId> Spec::Devices() const {
  std::vector<DeviceId> devices;
  if (const auto* list = std::get_if<EntryList>(&form)) {
    for (const Entry& entry : list->entries) AddOnce(entry.device, &devices);
  }
  if (const auto* vram = std::get_if<VirtualVram>(&form)) {
    for (const DeviceId& donor : vram->donors) AddOnce(donor, &devices);
  }
  AddOnce(compute, &devices);
  return devices;
}

Spec Spec::On(const DeviceId& device) const {
  Spec spec = *this;
  spec.compute = device;
  return spec;
}

Spec Spec::Without(absl::Span<const DeviceId> lost) const {
  Spec spec = *this;
  for (const DeviceId& device : Devices()) {
    if (Has(lost, device)) AddOnce(device, &spec.gone);
  }
  if (const auto* list = std::get_if<EntryList>(&form)) {
    spec.form = distorch::Without(*list, lost, compute);
  }
  if (const auto* vram = std::get_if<VirtualVram>(&form)) {
    VirtualVram kept = distorch::Without(*vram, lost, compute);
    if (kept.donors.empty()) {
      spec.form = Whole(compute).form;
    } else {
      spec.form = std::move(kept);
    }
  }
  return spec;
}

}  // namespace distorch
