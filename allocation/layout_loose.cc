// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <utility>

#include "allocation/layout.h"

namespace distorch::planner_internal {
namespace {

Bytes LargestGroup(const Units& units) {
  Bytes largest;
  size_t p = 0;
  auto loose = units.loose.begin();
  for (const uint32_t end : units.group_end) {
    if (loose != units.loose.end() && *loose == p) {
      ++loose;
      p = end;
      continue;
    }
    Bytes bytes;
    for (; p < end; ++p) bytes += units.BytesAt(p);
    largest = std::max(largest, bytes);
  }
  return largest;
}

// Positions, rising.
std::vector<uint32_t> TakeLoose(const Units& units, Bytes* room) {
  const Bytes largest = LargestGroup(units);
  std::vector<uint32_t> order = units.loose;
  std::stable_sort(order.begin(), order.end(), [&](uint32_t a, uint32_t b) {
    return units.BytesAt(a) < units.BytesAt(b);
  });
  std::vector<uint32_t> taken;
  for (const uint32_t position : order) {
    const Bytes bytes = units.BytesAt(position);
    if (bytes > largest || bytes > *room) break;
    *room -= bytes;
    taken.push_back(position);
  }
  std::sort(taken.begin(), taken.end());
  return taken;
}

// Takes these positions, each a group of its own, out of the sequence.
void Remove(absl::Span<const uint32_t> positions, Units* units) {
  std::vector<uint32_t> sequence;
  std::vector<uint32_t> group_end;
  auto next = positions.begin();
  uint32_t p = 0;
  for (const uint32_t end : units->group_end) {
    if (next != positions.end() && *next == p) {
      ++next;
    } else {
      sequence.insert(sequence.end(), units->sequence.begin() + p,
                      units->sequence.begin() + end);
      group_end.push_back(static_cast<uint32_t>(sequence.size()));
    }
    p = end;
  }
  units->sequence = std::move(sequence);
  units->group_end = std::move(group_end);
}

}  // namespace

LooseFirst::LooseFirst(Units* units, size_t compute, std::vector<Bytes>* room)
    : units_(*units), compute_(static_cast<uint32_t>(compute)) {
  taken_ = TakeLoose(units_, &(*room)[compute]);
  if (taken_.empty()) return;
  sequence_ = units_.sequence;
  group_end_ = units_.group_end;
  Remove(taken_, &units_);
}

LooseFirst::~LooseFirst() {
  if (taken_.empty()) return;
  units_.sequence = std::move(sequence_);
  units_.group_end = std::move(group_end_);
}

Layout LooseFirst::Join(Layout layout) const {
  if (taken_.empty()) return layout;
  Layout joined;
  joined.room = std::move(layout.room);
  joined.where.reserve(sequence_.size());
  joined.reasons.reserve(sequence_.size());
  auto next = taken_.begin();
  for (size_t p = 0, other = 0; p < sequence_.size(); ++p) {
    const bool is_taken = next != taken_.end() && *next == p;
    if (is_taken) ++next;
    joined.where.push_back(is_taken ? compute_ : layout.where[other]);
    joined.reasons.push_back(is_taken ? Reason::kLoose : layout.reasons[other]);
    if (!is_taken) ++other;
  }
  return joined;
}

}  // namespace distorch::planner_internal
