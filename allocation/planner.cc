// SPDX-License-Identifier: Apache-2.0
#include "allocation/planner.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "allocation/notes.h"
#include "allocation/planner_impl.h"

namespace distorch {
namespace planner_internal {

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

absl::Status Planner::Fail(PlanFailure failure) {
  failure_ = std::move(failure);
  return absl::ResourceExhaustedError(failure_.Message());
}

// Pass 8.
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
  DeviceShare& compute = plan.devices[shares_.compute];
  plan.slots = slots_.count;
  plan.slot_bytes = slots_.bytes;
  plan.slots_exceed_cap = slots_exceed_cap_;
  compute.slots = slots_.Total();
  if (!slots_exceed_cap_) {  // beside a share that is no cap
    compute.cap = std::max(compute.cap, compute.used + compute.slots);
  }
  plan.notes = notes_;
  AddNotes(shares_, &plan);
  return plan;
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
  if (absl::Status placed = PlaceWithSlots(); !placed.ok()) return placed;
  failure_ = {};  // of attempts with more slots
  return Collect();
}

}  // namespace planner_internal

absl::StatusOr<Plan> MakePlan(const Spec& spec, absl::Span<const Block> blocks,
                              absl::Span<const Device> devices,
                              const DeviceId& compute,
                              const PlanOptions& options,
                              PlanFailure* failure) {
  PlanFailure ignored;
  return planner_internal::Planner(spec, blocks, devices, options,
                                   failure == nullptr ? &ignored : failure)
      .Run(compute);
}

}  // namespace distorch
