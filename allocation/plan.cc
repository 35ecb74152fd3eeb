// SPDX-License-Identifier: Apache-2.0
#include "allocation/plan.h"

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace distorch {
namespace {

absl::Status Broken(absl::string_view what) {
  return absl::InternalError(absl::StrCat("broken plan: ", what));
}

absl::Status CheckPlaces(const Plan& plan, absl::Span<const Block> blocks) {
  if (plan.placement.size() != blocks.size() ||
      plan.reasons.size() != blocks.size()) {
    return Broken(absl::StrCat(plan.placement.size(), " places and ",
                               plan.reasons.size(), " reasons for ",
                               blocks.size(), " blocks"));
  }
  for (size_t i = 0; i < blocks.size(); ++i) {
    if (plan.placement[i] >= plan.devices.size()) {
      return Broken(absl::StrCat("block ", blocks[i].name, " has no place"));
    }
    if (!blocks[i].pinned.empty() && plan.DeviceOf(i) != plan.compute) {
      return Broken(absl::StrCat("block ", blocks[i].name, " must stay on ",
                                 plan.compute.ToString(), " but is on ",
                                 plan.DeviceOf(i).ToString()));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckSums(const Plan& plan, absl::Span<const Block> blocks) {
  std::vector<Bytes> used(plan.devices.size());
  std::vector<uint32_t> count(plan.devices.size());
  for (size_t i = 0; i < blocks.size(); ++i) {
    used[plan.placement[i]] += blocks[i].bytes;
    ++count[plan.placement[i]];
  }
  Bytes sum;
  for (size_t d = 0; d < used.size(); ++d) {
    const DeviceShare& share = plan.devices[d];
    const std::string name = share.device.ToString();
    if (used[d] != share.used || count[d] != share.blocks) {
      return Broken(absl::StrCat("the sums of ", name, " do not agree"));
    }
    const Bytes held =
        plan.slots_exceed_cap ? used[d] : SaturatingAdd(used[d], share.slots);
    if (held > share.cap) {
      return Broken(absl::StrCat(name, " holds ", held.value(),
                                 " bytes, its cap is ", share.cap.value()));
    }
    sum += used[d];
  }
  if (sum != plan.model_bytes) return Broken("the sum is not the model's size");
  return absl::OkStatus();
}

absl::Status CheckTied(const Plan& plan, absl::Span<const Block> blocks) {
  absl::flat_hash_map<std::string, size_t> first;
  for (size_t i = 0; i < blocks.size(); ++i) {
    if (!blocks[i].tied.empty()) first.emplace(blocks[i].tied, i);
  }
  if (first.empty()) return absl::OkStatus();
  for (size_t i = 0; i < blocks.size(); ++i) {
    for (const std::string* key : {&blocks[i].tied, &blocks[i].name}) {
      const auto found = first.find(*key);
      if (found == first.end() ||
          plan.placement[found->second] == plan.placement[i]) {
        continue;
      }
      return Broken(absl::StrCat("blocks ", blocks[found->second].name, " and ",
                                 blocks[i].name, " are tied but apart"));
    }
  }
  return absl::OkStatus();
}

}  // namespace

const Device* FindDevice(absl::Span<const Device> table,
                         const DeviceId& device) {
  for (const Device& row : table) {
    if (row.id == device) return &row;
  }
  return nullptr;
}

absl::Status CheckInvariants(const Plan& plan, absl::Span<const Block> blocks) {
  if (absl::Status places = CheckPlaces(plan, blocks); !places.ok()) {
    return places;
  }
  if (absl::Status sums = CheckSums(plan, blocks); !sums.ok()) return sums;
  return CheckTied(plan, blocks);
}

std::string ReasonText(const Plan& plan, absl::Span<const Block> blocks,
                       size_t block) {
  const DeviceShare& share = plan.devices[plan.placement[block]];
  const std::string device = share.device.ToString();
  const std::string cap = FormatBytes(share.cap);
  switch (plan.reasons[block]) {
    case Reason::kPinned:
      return absl::StrCat("stays on ", device, ": ", blocks[block].pinned);
    case Reason::kTiedPinned:
      return absl::StrCat("stays on ", device,
                          ": tied to a block that must stay there");
    case Reason::kLoose:
      return absl::StrCat("first on ", device,
                          ": in no layer group, so it cannot be copied ahead");
    case Reason::kPart:
      return absl::StrCat("in the contiguous part of ", device, ", within ",
                          cap);
    case Reason::kSpread:
      return absl::StrCat("in the evenly spread share of ", device, ", within ",
                          cap);
    case Reason::kBoundary:
      return absl::StrCat("on ", device,
                          " with a part of its group: a cap ends inside it");
    case Reason::kRest:
      return absl::StrCat(device, " takes the rest");
    case Reason::kRepacked:
      break;
  }
  return absl::StrCat("on ", device, ", placed singly to keep every cap");
}

std::string PlanFailure::Message() const {
  std::string text = problem;
  for (const Candidate& candidate : candidates) {
    absl::StrAppend(&text, "\n  ", candidate.device.ToString(), ": asked ",
                    FormatBytes(candidate.asked), ", cap ",
                    FormatBytes(candidate.cap), ", free ",
                    candidate.free == Bytes::Max()
                        ? std::string("unknown")
                        : FormatBytes(candidate.free));
  }
  if (!remedy.empty()) absl::StrAppend(&text, "\nRemedy: ", remedy);
  return text;
}

}  // namespace distorch
