// SPDX-License-Identifier: Apache-2.0
#include "allocation/notes.h"

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace distorch::planner_internal {

void AddNotes(const Shares& shares, Plan* plan) {
  plan->notes.insert(plan->notes.end(), shares.notes.begin(),
                     shares.notes.end());
  if (!plan->spec.gone.empty()) {
    std::vector<std::string> names;
    for (const DeviceId& device : plan->spec.gone) {
      names.push_back(device.ToString());
    }
    plan->notes.push_back(
        absl::StrCat("not on this machine: ", absl::StrJoin(names, ", "),
                     "; the others take what was meant for it"));
  }
  for (const DeviceShare& share : plan->devices) {
    const std::string device = share.device.ToString();
    if (share.available == Bytes::Max() && share.used > Bytes(0) &&
        !share.device.IsHost()) {
      plan->notes.push_back(absl::StrCat(
          "nobody tells how much memory ", device, " has free: whether its ",
          FormatBytes(share.used), " fit was not checked"));
    }
    if (!share.in_string && share.device == plan->compute && !share.is_rest) {
      plan->notes.push_back(
          absl::StrCat("the compute device ", device,
                       " is not in the string: it gets only what must stay "
                       "there (",
                       FormatBytes(share.used), ")"));
    }
    if (plan->slots_exceed_cap && share.slots > Bytes(0)) {
      plan->notes.push_back(
          absl::StrCat("streaming takes ", FormatBytes(share.slots), " on ",
                       device, ", beyond its cap of ", FormatBytes(share.cap)));
    }
    if (share.device.IsHost() && share.is_rest && !share.in_string &&
        share.used > Bytes(0)) {
      plan->notes.push_back(absl::StrCat("the entries leave ",
                                         FormatBytes(share.used),
                                         " of the model: it goes to ", device));
    }
    if (share.device.IsHost() && shares.host_share &&
        share.used > *shares.host_share) {
      plan->notes.push_back(
          absl::StrCat("the entries leave ", FormatBytes(share.used),
                       " of the model: ", device, ", asked for ",
                       FormatBytes(*shares.host_share), ", takes all of it"));
    }
  }
}

}  // namespace distorch::planner_internal
