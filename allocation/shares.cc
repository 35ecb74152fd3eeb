// SPDX-License-Identifier: Apache-2.0
#include "allocation/shares.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "allocation/printer.h"
#include "allocation/share_forms.h"

namespace distorch::planner_internal {
namespace {

absl::Status CheckTable(const Shares& shares, absl::Span<const Device> table) {
  for (const DeviceShare& share : shares.devices) {
    if (share.device.IsHost()) continue;
    if (FindDevice(table, share.device) != nullptr) continue;
    return absl::InvalidArgumentError(
        absl::StrCat("there is no device ", share.device.ToString(),
                     "; expected one of ", DeviceNames(table)));
  }
  return absl::OkStatus();
}

// A share of an unknown amount is no amount.
absl::Status CheckMemoryShares(const Spec& spec, absl::Span<const Device> table,
                               const DeviceId& compute) {
  std::vector<DeviceId> of;
  if (std::holds_alternative<ComputeShare>(spec.form)) of.push_back(compute);
  if (const auto* list = std::get_if<EntryList>(&spec.form)) {
    for (const Entry& entry : list->entries) {
      if (std::holds_alternative<MemoryShare>(entry.amount)) {
        of.push_back(entry.device);
      }
    }
  }
  for (const DeviceId& device : of) {
    const Device* row = FindDevice(table, device);
    if (row == nullptr || row->total) continue;
    return absl::InvalidArgumentError(absl::StrCat(
        "nobody tells how much memory ", device.ToString(),
        " has, so there is no share of it; give it a size as in 2.5gb"));
  }
  return absl::OkStatus();
}

// Caps above the free memory come down to it. What a device cannot be asked
// for anyway (more than the whole model) is no reason for a note.
absl::Status ClampToFree(Bytes model_bytes, bool strict, Shares* shares,
                         PlanFailure* failure) {
  for (DeviceShare& share : shares->devices) {
    if (share.is_rest) continue;
    if (share.cap <= share.available) continue;
    const std::string device = share.device.ToString();
    const Bytes asked = share.cap;
    share.cap = share.available;
    if (std::min(asked, model_bytes) <= share.available) continue;
    const std::string what =
        absl::StrCat(device, " has ", FormatBytes(share.available),
                     " free (less its "
                     "reserve), its entry asks for ",
                     FormatBytes(asked));
    if (!strict) {
      shares->notes.push_back(absl::StrCat(what, ": its cap is lowered to ",
                                           FormatBytes(share.available)));
      continue;
    }
    failure->problem = absl::StrCat(what, " (strict)");
    failure->candidates = Candidates(*shares);
    failure->remedy =
        absl::StrCat("ask for ", FormatExactSize(share.available),
                     " or less on ", device, ", or plan without strict");
    return absl::ResourceExhaustedError(failure->Message());
  }
  return absl::OkStatus();
}

}  // namespace

Bytes Available(absl::Span<const Device> table, const DeviceId& device) {
  const Device* row = FindDevice(table, device);
  if (row == nullptr) return Bytes::Max();
  const std::optional<Bytes> most = row->free ? row->free : row->total;
  if (!most) return Bytes::Max();
  return std::max(Bytes(0), *most - row->reserve);
}

size_t HostIndex(absl::Span<const Device> table, Shares* shares) {
  for (size_t i = 0; i < shares->devices.size(); ++i) {
    if (shares->devices[i].device.IsHost()) return i;
  }
  DeviceShare host;
  host.device = DeviceId("cpu");
  host.available = Available(table, host.device);
  host.cap = host.available;
  shares->devices.push_back(std::move(host));
  return shares->devices.size() - 1;
}

std::string DeviceNames(absl::Span<const Device> table) {
  std::vector<std::string> names;
  for (const Device& row : table) names.push_back(row.id.ToString());
  if (FindDevice(table, DeviceId("cpu")) == nullptr) names.emplace_back("cpu");
  return absl::StrJoin(names, ", ");
}

std::vector<Candidate> Candidates(const Shares& shares) {
  std::vector<Candidate> candidates;
  for (const DeviceShare& share : shares.devices) {
    candidates.push_back(
        {share.device, share.asked, share.cap, share.available});
  }
  return candidates;
}

absl::Status ResolveShares(const Spec& spec, absl::Span<const Device> table,
                           const DeviceId& compute, Bytes model_bytes,
                           Bytes pinned_bytes, const PlanOptions& options,
                           Shares* shares, PlanFailure* failure) {
  if (absl::Status shared = CheckMemoryShares(spec, table, compute);
      !shared.ok()) {
    return shared;
  }
  ResolveForm(spec, table, compute, model_bytes, pinned_bytes, shares);
  if (absl::Status known = CheckTable(*shares, table); !known.ok()) {
    return known;
  }
  Bytes capped;
  for (DeviceShare& share : shares->devices) {
    if (!share.is_rest) capped = SaturatingAdd(capped, share.cap);
  }
  for (DeviceShare& share : shares->devices) {
    if (!share.is_rest) continue;
    share.asked =
        std::max(share.asked, model_bytes - std::min(capped, model_bytes));
    share.cap = share.available;
  }
  absl::Status clamped =
      ClampToFree(model_bytes, options.strict, shares, failure);
  if (!clamped.ok()) return clamped;
  const auto is_compute = [&compute](const DeviceShare& share) {
    return share.device == compute;
  };
  const auto found =
      std::find_if(shares->devices.begin(), shares->devices.end(), is_compute);
  shares->compute = static_cast<size_t>(found - shares->devices.begin());
  if (found == shares->devices.end()) {
    DeviceShare share;
    share.device = compute;
    share.asked = pinned_bytes;
    share.available = Available(table, compute);
    share.cap = std::min(pinned_bytes, share.available);
    shares->devices.push_back(std::move(share));
  }
  shares->rounded_off.resize(
      shares->rounded_off.empty() ? 0 : shares->devices.size());
  return absl::OkStatus();
}

}  // namespace distorch::planner_internal
