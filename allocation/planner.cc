// SPDX-License-Identifier: Apache-2.0
#include "allocation/planner.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "allocation/failures.h"
#include "allocation/layout.h"
#include "allocation/shares.h"
#include "allocation/units.h"

namespace distorch {
namespace {

using planner_internal::DeviceNames;
using planner_internal::HostIndex;
using planner_internal::Layout;
using planner_internal::LayoutContiguous;
using planner_internal::LayoutSpread;
using planner_internal::LooseFirst;
using planner_internal::PinnedDoNotFit;
using planner_internal::Repack;
using planner_internal::ResolveShares;
using planner_internal::RestDoesNotFit;
using planner_internal::Shares;
using planner_internal::Units;

class Planner {
 public:
  Planner(const Spec& spec, absl::Span<const Block> blocks,
          absl::Span<const Device> table, const PlanOptions& options,
          PlanFailure* failure)
      : spec_(spec),
        blocks_(blocks),
        table_(table),
        options_(options),
        failure_(*failure) {}

  absl::StatusOr<Plan> Run(const DeviceId& compute);

 private:
  absl::Status ChooseCompute(const DeviceId& compute);
  absl::Status CheckTable() const;
  absl::Status PlacePinned();
  void LayOut();
  Layout Ordered(Layout contiguous) const;
  Layout SpreadSharedWithHost(Layout contiguous) const;
  absl::Status FitRest();
  Bytes RoundedOff() const;
  bool AreMeantToHoldAll() const;
  absl::Status NothingFits() {
    return Fail(
        RestDoesNotFit(units_, table_, layout_.room[shares_.rest], &shares_));
  }
  absl::Status Fail(PlanFailure failure);
  Plan Collect();
  void AddNotes(Plan* plan) const;

  const Spec& spec_;
  const absl::Span<const Block> blocks_;
  const absl::Span<const Device> table_;
  const PlanOptions& options_;
  PlanFailure& failure_;

  DeviceId compute_;
  Units units_;
  Shares shares_;
  std::vector<Bytes> room_;  // by device, for movable atoms
  Layout layout_;
  std::vector<std::string> notes_;
};

absl::Status Planner::CheckTable() const {
  absl::flat_hash_set<DeviceId> seen;
  for (const Device& device : table_) {
    const std::string name = device.id.ToString();
    if (!seen.insert(device.id).second) {
      return absl::InvalidArgumentError(
          absl::StrCat("the table of devices has ", name, " twice"));
    }
    if (std::min({device.total.value_or(Bytes(0)),
                  device.free.value_or(Bytes(0)), device.reserve}) < Bytes(0)) {
      return absl::InvalidArgumentError(
          absl::StrCat("the table of devices has a negative size for ", name));
    }
    if (!std::isfinite(device.link_gbps) || device.link_gbps < 0) {
      return absl::InvalidArgumentError(absl::StrCat(
          "the table of devices has no bandwidth for the link of ", name,
          " but ", device.link_gbps, "; expected GB/s, 0 if not known"));
    }
  }
  if (compute_.IsHost() || seen.contains(compute_)) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("there is no compute device ", compute_.ToString(),
                   "; expected one of ", DeviceNames(table_)));
}

absl::Status Planner::ChooseCompute(const DeviceId& compute) {
  compute_ = compute.empty() ? spec_.compute : compute;
  if (compute_.empty()) {
    return absl::InvalidArgumentError("no compute device is given");
  }
  if (!spec_.compute.empty() && spec_.compute != compute_) {
    notes_.push_back(absl::StrCat(
        "the string names the compute device ", spec_.compute.ToString(), ": ",
        compute_.ToString(), " was given and is used"));
  }
  return CheckTable();
}

// Pass 3. Percentages alone are ratios, not caps: there pinned blocks may take
// more than the compute device's share; and what rounding cut off a share of
// memory is theirs too.
absl::Status Planner::PlacePinned() {
  room_.clear();
  for (const DeviceShare& share : shares_.devices) room_.push_back(share.cap);
  DeviceShare& share = shares_.devices[shares_.compute];
  Bytes& room = room_[shares_.compute];
  if (units_.pinned_bytes > room) {
    const bool yields = shares_.overflow_to_host ||
                        units_.pinned_bytes <= share.cap + RoundedOff();
    if (!yields || units_.pinned_bytes > share.available) {
      return Fail(PinnedDoNotFit(units_, blocks_, &shares_));
    }
    shares_.notes.push_back(
        absl::StrCat("what must stay on ", share.device.ToString(), " (",
                     FormatBytes(units_.pinned_bytes),
                     ") is more than its share of ", FormatBytes(share.cap)));
    room = share.cap = units_.pinned_bytes;
  }
  room -= units_.pinned_bytes;
  return absl::OkStatus();
}

// Passes 4 and 5. What is in no layer group comes first where that leaves every
// device its cap.
void Planner::LayOut() {
  const bool in_string = shares_.devices[shares_.compute].in_string;
  if (options_.order == Order::kAuto && in_string) {
    std::vector<Bytes> room = room_;
    const LooseFirst loose(&units_, shares_.compute, &room);
    layout_ = loose.Join(Ordered(LayoutContiguous(units_, room, shares_.rest)));
    if (loose.empty() || layout_.room[shares_.rest] >= Bytes(0)) return;
  }
  layout_ = Ordered(LayoutContiguous(units_, room_, shares_.rest));
}

Layout Planner::Ordered(Layout contiguous) const {
  if (options_.order == Order::kContiguous) return contiguous;
  if (options_.order == Order::kAuto) {
    return SpreadSharedWithHost(std::move(contiguous));
  }
  std::vector<size_t> all(shares_.devices.size());
  for (size_t i = 0; i < all.size(); ++i) all[i] = i;
  return LayoutSpread(units_, contiguous, all, shares_.rest, shares_.compute);
}

// Of the groups that the compute device and the host share, the host's are
// spread evenly: streaming them reaches the limit with two slots, streaming a
// contiguous tail does not.
Layout Planner::SpreadSharedWithHost(Layout contiguous) const {
  size_t host = shares_.devices.size();
  for (size_t i = 0; i < shares_.devices.size(); ++i) {
    if (shares_.devices[i].device.IsHost()) host = i;
  }
  const size_t compute = shares_.compute;
  if (host == shares_.devices.size() || host == compute) return contiguous;
  const size_t rest = shares_.rest == compute ? compute : host;
  const std::array<size_t, 2> among = {compute, host};
  Layout spread = LayoutSpread(units_, contiguous, among, rest, compute);
  const Bytes least = std::min(Bytes(0), contiguous.room[rest]);
  if (spread.room[rest] < least) return contiguous;
  if (rest == shares_.rest) return spread;
  for (size_t p = 0; p < spread.where.size(); ++p) {
    if (spread.where[p] == rest && spread.reasons[p] == Reason::kRest) {
      spread.reasons[p] = Reason::kSpread;
    }
  }
  return spread;
}

// Pass 6.
absl::Status Planner::FitRest() {
  const size_t rest = shares_.rest;
  if (layout_.room[rest] >= Bytes(0)) return absl::OkStatus();
  const bool can_overflow =
      shares_.overflow_to_host && !shares_.devices[rest].device.IsHost();
  if (can_overflow) {
    const DeviceShare& share = shares_.devices[rest];
    shares_.notes.push_back(absl::StrCat(
        share.device.ToString(), " has ", FormatBytes(share.available),
        " free, its share is ", FormatBytes(share.asked),
        ": what does not fit there goes to cpu"));
    if (options_.strict) return NothingFits();
    shares_.devices[rest].is_rest = false;
    shares_.rest = HostIndex(table_, &shares_);
    shares_.devices[shares_.rest].is_rest = true;
    shares_.devices[shares_.rest].cap = shares_.devices[shares_.rest].available;
    if (absl::Status pinned = PlacePinned(); !pinned.ok()) return pinned;
    LayOut();
    return FitRest();
  }
  if (options_.order != Order::kContiguous) {
    layout_ = LayoutContiguous(units_, room_, rest);
    if (layout_.room[rest] >= Bytes(0)) return absl::OkStatus();
  }
  if (!Repack(units_, rest, &layout_)) {
    if (!AreMeantToHoldAll()) return NothingFits();
    DeviceShare& host = shares_.devices[rest];
    shares_.host_share = host.cap;
    host.is_rest = true;
    host.cap = host.available;
    shares_.rounded_off.clear();
    if (absl::Status pinned = PlacePinned(); !pinned.ok()) return pinned;
    LayOut();
    return FitRest();
  }
  shares_.notes.emplace_back(
      "the caps leave little room: some blocks were placed singly to keep "
      "every one");
  return absl::OkStatus();
}

// What rounding cut off the compute device's cap.
Bytes Planner::RoundedOff() const {
  return shares_.rounded_off.empty() ? Bytes(0)
                                     : shares_.rounded_off[shares_.compute];
}

// Whether the string has nothing but shares of memory, which together hold the
// model but for what four decimals cut off them. What they leave then is what
// rounding, to those and to whole blocks, leaves.
bool Planner::AreMeantToHoldAll() const {
  if (shares_.rounded_off.empty()) return false;
  Bytes sum;
  for (size_t i = 0; i < shares_.devices.size(); ++i) {
    const DeviceShare& share = shares_.devices[i];
    const Bytes meant = SaturatingAdd(share.cap, shares_.rounded_off[i]);
    sum = SaturatingAdd(sum, std::min(meant, share.available));
  }
  return sum >= units_.model_bytes;
}

absl::Status Planner::Fail(PlanFailure failure) {
  failure_ = std::move(failure);
  return absl::ResourceExhaustedError(failure_.Message());
}

// Pass 7.
Plan Planner::Collect() {
  Plan plan;
  plan.spec = spec_;
  plan.compute = compute_;
  plan.order = options_.order;
  plan.model_bytes = units_.model_bytes;
  plan.devices = shares_.devices;
  const size_t atoms = units_.atom_bytes.size();
  std::vector<uint32_t> where(atoms, static_cast<uint32_t>(shares_.compute));
  std::vector<Reason> reasons(atoms, Reason::kTiedPinned);
  for (size_t p = 0; p < units_.sequence.size(); ++p) {
    where[units_.sequence[p]] = layout_.where[p];
    reasons[units_.sequence[p]] = layout_.reasons[p];
  }
  plan.placement.resize(blocks_.size());
  plan.reasons.resize(blocks_.size());
  for (size_t i = 0; i < blocks_.size(); ++i) {
    const uint32_t atom = units_.atom_of_block[i];
    plan.placement[i] = where[atom];
    plan.reasons[i] =
        blocks_[i].pinned.empty() ? reasons[atom] : Reason::kPinned;
    plan.devices[where[atom]].used += blocks_[i].bytes;
    ++plan.devices[where[atom]].blocks;
  }
  AddNotes(&plan);
  return plan;
}

void Planner::AddNotes(Plan* plan) const {
  plan->notes = notes_;
  plan->notes.insert(plan->notes.end(), shares_.notes.begin(),
                     shares_.notes.end());
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
    if (share.device.IsHost() && share.is_rest && !share.in_string &&
        share.used > Bytes(0)) {
      plan->notes.push_back(absl::StrCat("the entries leave ",
                                         FormatBytes(share.used),
                                         " of the model: it goes to ", device));
    }
    if (share.device.IsHost() && shares_.host_share &&
        share.used > *shares_.host_share) {
      plan->notes.push_back(
          absl::StrCat("the entries leave ", FormatBytes(share.used),
                       " of the model: ", device, ", asked for ",
                       FormatBytes(*shares_.host_share), ", takes all of it"));
    }
  }
}

absl::StatusOr<Plan> Planner::Run(const DeviceId& compute) {
  if (absl::Status chosen = ChooseCompute(compute); !chosen.ok()) {
    return chosen;
  }
  absl::StatusOr<Units> units = planner_internal::MakeUnits(blocks_);
  if (!units.ok()) return units.status();
  units_ = *std::move(units);
  if (absl::Status resolved =
          ResolveShares(spec_, table_, compute_, units_.model_bytes,
                        units_.pinned_bytes, options_, &shares_, &failure_);
      !resolved.ok()) {
    return resolved;
  }
  if (absl::Status pinned = PlacePinned(); !pinned.ok()) return pinned;
  LayOut();
  if (absl::Status fits = FitRest(); !fits.ok()) return fits;
  return Collect();
}

}  // namespace

absl::StatusOr<Plan> MakePlan(const Spec& spec, absl::Span<const Block> blocks,
                              absl::Span<const Device> devices,
                              const DeviceId& compute,
                              const PlanOptions& options,
                              PlanFailure* failure) {
  PlanFailure ignored;
  return Planner(spec, blocks, devices, options,
                 failure == nullptr ? &ignored : failure)
      .Run(compute);
}

}  // namespace distorch
