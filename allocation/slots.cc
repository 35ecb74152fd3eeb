// SPDX-License-Identifier: Apache-2.0
#include "allocation/slots.h"

#include <algorithm>
#include <cstddef>
#include <vector>

namespace distorch::planner_internal {
namespace {

// Tensors begin at multiples of this many bytes in a slot, and a block has two
// of them, as a rule: a weight and a bias.
constexpr int64_t kAlignment = 256;

Bytes InSlot(Bytes bytes) {
  if (bytes == Bytes(0)) return bytes;
  if (bytes > Bytes::Max() - Bytes(2 * kAlignment)) return Bytes::Max();
  const int64_t aligned = (bytes.value() / kAlignment + 1) * kAlignment;
  return Bytes(aligned + kAlignment);
}

// Calls visit(begin, end) for the positions of each layer group.
template <typename Visit>
void ForEachLayerGroup(const Units& units, Visit visit) {
  if (!units.has_layer_groups) return;
  size_t begin = 0;
  auto loose = units.loose.begin();
  for (const uint32_t end : units.group_end) {
    if (loose != units.loose.end() && *loose == begin) {
      ++loose;
    } else {
      visit(begin, size_t{end});
    }
    begin = end;
  }
}

}  // namespace

Slots SlotsOf(const Units& units, const Layout& layout, const Shares& shares,
              uint32_t most) {
  Slots slots;
  std::vector<bool> is_source(shares.devices.size());
  uint32_t groups = 0;
  ForEachLayerGroup(units, [&](size_t begin, size_t end) {
    Bytes streamed;
    const uint32_t first = layout.where[begin];
    bool whole = true;
    for (size_t p = begin; p < end; ++p) {
      whole = whole && layout.where[p] == first;
      if (layout.where[p] == shares.compute) continue;
      streamed = SaturatingAdd(streamed, InSlot(units.BytesAt(p)));
    }
    const bool migrates =
        whole && shares.devices[first].mode == ExecutionMode::kMigrate;
    if (streamed == Bytes(0) || migrates) return;
    ++groups;
    slots.bytes = std::max(slots.bytes, streamed);
    for (size_t p = begin; p < end; ++p) is_source[layout.where[p]] = true;
  });
  is_source[shares.compute] = false;
  const auto sources = static_cast<uint32_t>(
      std::count(is_source.begin(), is_source.end(), true));
  slots.count = std::min({most, sources + 1, groups});
  return slots;
}

Bytes MostBytes(const Units& units, uint32_t count) {
  Bytes largest;
  ForEachLayerGroup(units, [&](size_t begin, size_t end) {
    Bytes bytes;
    for (size_t p = begin; p < end; ++p) {
      bytes = SaturatingAdd(bytes, InSlot(units.BytesAt(p)));
    }
    largest = std::max(largest, bytes);
  });
  return MulDiv(largest, count, 1);
}

}  // namespace distorch::planner_internal
