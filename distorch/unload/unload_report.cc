// SPDX-License-Identifier: Apache-2.0
#include "distorch/unload/unload_report.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace distorch {
namespace {

// The distinct names of models that stay and are, or are not, loaded.
std::string Names(const std::vector<StayingModel>& models, bool loaded) {
  std::vector<std::string> names;
  for (const StayingModel& model : models) {
    bool known = false;
    for (const std::string& name : names) known = known || name == model.name;
    if (model.loaded == loaded && !known) names.push_back(model.name);
  }
  return absl::StrJoin(names, ", ");
}

}  // namespace

DeviceBytes FreedBytes(const DeviceBytes& before, const DeviceBytes& after) {
  DeviceBytes freed;
  for (const auto& [device, was] : before) {
    const auto found = after.find(device);
    const Bytes is = found == after.end() ? Bytes(0) : found->second;
    if (was > is) freed.emplace(device, was - is);
  }
  return freed;
}

std::string FormatReport(const UnloadReport& report) {
  std::vector<std::string> lines;
  for (const UnloadedModel& model : report.unloaded) {
    lines.push_back(absl::StrCat("unloaded ", model.name, " from ",
                                 absl::StrJoin(model.devices, ", ")));
  }
  if (lines.empty() && report.failures.empty()) {
    lines.push_back(report.flagged_only
                        ? "no model is flagged, nothing is unloaded"
                        : "nothing to unload: no such model is loaded");
  }
  for (const DeviceReport& device : report.devices) {
    lines.push_back(
        absl::StrCat(device.device, ": ", device.freed.value(),
                     " bytes given back (", FormatMB(device.freed), " MB)",
                     device.holders.empty() ? "" : ", still there: ",
                     absl::StrJoin(device.holders, ", ")));
  }
  const std::string loaded = Names(report.stay, true);
  const std::string kept = Names(report.stay, false);
  if (!loaded.empty()) lines.push_back("still loaded: " + loaded);
  if (!kept.empty()) lines.push_back("kept in system memory: " + kept);
  for (const std::string& failure : report.failures) {
    lines.push_back("failed: " + failure);
  }
  return absl::StrJoin(lines, "\n");
}

}  // namespace distorch
