// SPDX-License-Identifier: Apache-2.0
#include "allocation/shares.h"

#include <algorithm>
#include <utility>
#include <variant>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "allocation/printer.h"

namespace distorch::planner_internal {
namespace {

const Device* Find(absl::Span<const Device> table, const DeviceId& device) {
  for (const Device& row : table) {
    if (row.id == device) return &row;
  }
  return nullptr;
}

// Turns one form of spec into shares. The passes after it are the same for all.
class Resolver {
 public:
  Resolver(absl::Span<const Device> table, const DeviceId& compute,
           Bytes model_bytes, Bytes pinned_bytes, Shares* shares)
      : table_(table),
        compute_(compute),
        model_(model_bytes),
        movable_(model_bytes - pinned_bytes),
        shares_(*shares) {}

  void operator()(const EntryList& list);
  void operator()(const ComputeShare& form);
  void operator()(const AutoAllocation& form);
  void operator()(const VirtualVram& form);

 private:
  DeviceShare& Add(const DeviceId& device, Bytes asked);
  Bytes Total(const DeviceId& device) const;
  Bytes Asked(const Entry& entry, int64_t percent_sum) const;
  int64_t PercentSum(const EntryList& list);
  void ChooseRest(const EntryList& list, bool all_percent);
  void AddAutoDevice(const Device& row, const AutoAllocation& form);
  void RestOn(size_t index) {
    shares_.rest = index;
    shares_.devices[index].is_rest = true;
  }

  absl::Span<const Device> table_;
  const DeviceId& compute_;
  const Bytes model_;
  const Bytes movable_;
  Shares& shares_;
};

DeviceShare& Resolver::Add(const DeviceId& device, Bytes asked) {
  DeviceShare share;
  share.device = device;
  share.asked = asked;
  share.cap = asked;
  share.available = Available(table_, device);
  share.in_string = true;
  shares_.devices.push_back(std::move(share));
  return shares_.devices.back();
}

Bytes Resolver::Total(const DeviceId& device) const {
  const Device* row = Find(table_, device);
  return row == nullptr ? Bytes::Max() : row->total;
}

Bytes Resolver::Asked(const Entry& entry, int64_t percent_sum) const {
  if (const auto* size = std::get_if<Bytes>(&entry.amount)) return *size;
  if (const auto* share = std::get_if<ModelShare>(&entry.amount)) {
    return MulDiv(model_, share->nano_percent, percent_sum);
  }
  if (const auto* share = std::get_if<MemoryShare>(&entry.amount)) {
    return MulDiv(Total(entry.device), share->nano, kBillion);
  }
  return Bytes(0);  // of the rest, until it is known
}

// What counts as the whole: 100 %, or the sum of the percentages where they
// are ratios (nothing but percentages) or where they overrun.
int64_t Resolver::PercentSum(const EntryList& list) {
  int64_t sum = 0;
  size_t percentages = 0;
  bool has_rest = false;
  for (const Entry& entry : list.entries) {
    if (const auto* share = std::get_if<ModelShare>(&entry.amount)) {
      sum += share->nano_percent;
      ++percentages;
    }
    has_rest = has_rest || std::holds_alternative<Rest>(entry.amount);
  }
  const bool all = percentages == list.entries.size();
  if (has_rest || sum == ModelShare::kWhole || sum == 0) {
    return ModelShare::kWhole;
  }
  if (!all && sum < ModelShare::kWhole) return ModelShare::kWhole;
  shares_.notes.push_back(absl::StrCat(
      "the percentages add up to ", FormatBillionths(sum),
      "%: taken as ratios, ",
      absl::StrJoin(
          list.entries, ", ", [sum](std::string* out, const Entry& entry) {
            const auto* share = std::get_if<ModelShare>(&entry.amount);
            if (share == nullptr) return;
            // Hundredths of a percent, rounded to nearest.
            const int64_t parts =
                MulDiv(Bytes(share->nano_percent), 20000, sum).value();
            absl::StrAppend(
                out, entry.device.ToString(), " ",
                FormatBillionths((parts + 1) / 2 * (kBillion / 100)), "%");
          })));
  return sum;
}

void Resolver::operator()(const EntryList& list) {
  const int64_t percent_sum = PercentSum(list);
  bool all_percent = true;
  for (const Entry& entry : list.entries) {
    Add(entry.device, Asked(entry, percent_sum)).mode = entry.mode;
    all_percent =
        all_percent && std::holds_alternative<ModelShare>(entry.amount);
  }
  ChooseRest(list, all_percent);
}

// `*`; else, of percentages alone, cpu or the last one (what rounding to whole
// blocks leaves goes there); else the host, beyond its percentage if it has
// one, but within a size or a share of its memory.
void Resolver::ChooseRest(const EntryList& list, bool all_percent) {
  size_t last = 0;
  for (size_t i = 0; i < list.entries.size(); ++i) {
    const Entry& entry = list.entries[i];
    if (std::holds_alternative<Rest>(entry.amount)) return RestOn(i);
    if (shares_.devices[i].asked > Bytes(0)) last = i;
  }
  for (size_t i = 0; all_percent && i < list.entries.size(); ++i) {
    const bool asks = shares_.devices[i].asked > Bytes(0);
    if (list.entries[i].device.IsHost() && asks) last = i;
  }
  if (all_percent) {
    shares_.overflow_to_host = true;
    return RestOn(last);
  }
  for (size_t i = 0; i < list.entries.size(); ++i) {
    if (!list.entries[i].device.IsHost()) continue;
    if (std::holds_alternative<ModelShare>(list.entries[i].amount)) {
      shares_.host_share = shares_.devices[i].asked;
      return RestOn(i);
    }
    shares_.rest = i;  // within its own cap
    return;
  }
  const size_t host = HostIndex(table_, &shares_);
  RestOn(host);
}

void Resolver::operator()(const ComputeShare& form) {
  Add(compute_, MulDiv(Total(compute_), form.share.nano, kBillion));
  if (compute_.IsHost()) return RestOn(0);
  Add(DeviceId("cpu"), Bytes(0));
  RestOn(1);
}

void Resolver::AddAutoDevice(const Device& row, const AutoAllocation& form) {
  Bytes reserve = row.reserve;
  if (form.reserve) {
    reserve = std::max(reserve, *form.reserve);
  } else if (!row.id.IsHost()) {
    reserve = std::max(reserve, MulDiv(row.total, 1, kAutoReserveDivisor));
  }
  const Bytes room = std::max(Bytes(0), row.free - reserve);
  DeviceShare& share = Add(row.id, room);
  share.available = room;
}

void Resolver::operator()(const AutoAllocation& form) {
  std::vector<const Device*> donors;
  for (const Device& row : table_) {
    if (row.id != compute_ && !row.id.IsHost()) donors.push_back(&row);
  }
  std::stable_sort(donors.begin(), donors.end(),
                   [](const Device* a, const Device* b) {
                     return a->link_gbps > b->link_gbps;
                   });
  if (!compute_.IsHost()) {
    AddAutoDevice(*Find(table_, compute_), form);
    for (const Device* donor : donors) AddAutoDevice(*donor, form);
  }
  const Device* host = Find(table_, DeviceId("cpu"));
  if (host == nullptr) {
    Add(DeviceId("cpu"), Bytes(0));
  } else {
    AddAutoDevice(*host, form);
  }
  RestOn(shares_.devices.size() - 1);
}

void Resolver::operator()(const VirtualVram& form) {
  Add(compute_, Bytes(0));
  RestOn(0);
  Bytes left = std::min(form.amount, movable_);
  Bytes moved;
  for (const DeviceId& donor : form.donors) {
    if (donor == compute_) {
      shares_.notes.push_back(
          absl::StrCat("donor ", donor.ToString(),
                       " is the compute device: nothing leaves it for there"));
      continue;
    }
    const Bytes given = std::min(left, Available(table_, donor));
    Add(donor, given);
    left -= given;
    moved += given;
  }
  if (left > Bytes(0)) {
    shares_.notes.push_back(absl::StrCat("of ", FormatBytes(form.amount),
                                         " virtual VRAM, the donors have room "
                                         "for ",
                                         FormatBytes(moved), ": ",
                                         FormatBytes(left), " more stays on ",
                                         compute_.ToString()));
  }
}

absl::Status CheckTable(const Shares& shares, absl::Span<const Device> table) {
  for (const DeviceShare& share : shares.devices) {
    if (share.device.IsHost() || Find(table, share.device) != nullptr) continue;
    return absl::InvalidArgumentError(
        absl::StrCat("there is no device ", share.device.ToString(),
                     "; expected one of ", DeviceNames(table)));
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
  const Device* row = Find(table, device);
  if (row == nullptr) return Bytes::Max();
  return std::max(Bytes(0), row->free - row->reserve);
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
  if (Find(table, DeviceId("cpu")) == nullptr) names.emplace_back("cpu");
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
  std::visit(Resolver(table, compute, model_bytes, pinned_bytes, shares),
             spec.form);
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
  return absl::OkStatus();
}

}  // namespace distorch::planner_internal
