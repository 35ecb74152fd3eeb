// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "allocation/planner_impl.h"

namespace distorch::planner_internal {

// What the compute device may hold of slots beside its share: where that is no
// cap but a ratio, or where the string does not name it.
Bytes Planner::BeyondCap() const {
  const DeviceShare& share = shares_.devices[shares_.compute];
  const bool is_cap = share.in_string && !shares_.overflow_to_host;
  return is_cap ? Bytes(0) : share.available - share.cap;
}

// Passes 3 to 6, `reserved` bytes of the compute device left to slots.
absl::Status Planner::Place(const Shares& resolved, Bytes reserved) {
  shares_ = resolved;
  reserved_ = reserved;
  if (absl::Status pinned = PlacePinned(); !pinned.ok()) return pinned;
  LayOut();
  return FitRest();
}

// Lays out anew until what is reserved holds the slots that the layout needs.
// The third time that is the most that any can need.
bool Planner::PlaceWithin(uint32_t most, const Shares& resolved) {
  Bytes reserved;
  for (int round = 0;; ++round) {
    if (!Place(resolved, reserved).ok()) return false;
    slots_ = SlotsOf(units_, layout_, shares_, most);
    const Bytes left = layout_.room[shares_.compute];
    const Bytes spare = SaturatingAdd(left, std::max(reserved, BeyondCap()));
    if (slots_.Total() <= spare) return true;
    reserved = round < 2 ? slots_.Total() : MostBytes(units_, most);
  }
}

// As many slots as the caps leave room for, rather than none; where there is no
// room for one, two, beyond the cap.
absl::Status Planner::PlaceWithSlots() {
  const Shares resolved = shares_;
  if (absl::Status placed = Place(resolved, Bytes(0)); !placed.ok()) {
    return placed;
  }
  if (options_.slots == 0 || compute_.IsHost()) return absl::OkStatus();
  const auto links = static_cast<uint32_t>(shares_.devices.size());
  for (uint32_t most = std::min(options_.slots, links); most > 0; --most) {
    if (PlaceWithin(most, resolved)) return absl::OkStatus();
  }
  absl::Status placed = Place(resolved, Bytes(0));
  slots_ = SlotsOf(units_, layout_, shares_, std::min(options_.slots, 2u));
  slots_exceed_cap_ = true;
  return placed;
}

}  // namespace distorch::planner_internal
