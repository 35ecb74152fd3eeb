// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <array>
#include <utility>

#include "absl/strings/str_cat.h"
#include "allocation/planner_impl.h"

namespace distorch::planner_internal {

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
  const Bytes within = reserved_ - std::min(reserved_, BeyondCap());
  if (within > room) return absl::ResourceExhaustedError("no room for slots");
  room -= within;
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

}  // namespace distorch::planner_internal
