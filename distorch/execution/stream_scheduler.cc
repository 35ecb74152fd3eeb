// SPDX-License-Identifier: Apache-2.0
#include "distorch/execution/stream_scheduler.h"

#include <algorithm>
#include <cstddef>
#include <limits>

#include "absl/strings/str_cat.h"

namespace distorch {

StreamScheduler::StreamScheduler(StreamBackend* backend, int groups, int slots)
    : backend_(backend),
      slots_(static_cast<std::size_t>(slots)),
      places_(static_cast<std::size_t>(groups)) {}

void StreamScheduler::BeginStep() {
  if (recorded_.empty()) return;
  order_.swap(recorded_);
  recorded_.clear();
  for (std::vector<int>& places : places_) places.clear();
  for (std::size_t i = 0; i < order_.size(); ++i) {
    places_[static_cast<std::size_t>(order_[i])].push_back(static_cast<int>(i));
  }
  cursor_ = 0;
}

int StreamScheduler::Find(int group) const {
  for (std::size_t s = 0; s < slots_.size(); ++s) {
    if (slots_[s].group == group) return static_cast<int>(s);
  }
  return -1;
}

// How many groups come before this one comes next; the largest number for one
// that is not expected at all.
int StreamScheduler::Distance(int group) const {
  const std::vector<int>& places = places_[static_cast<std::size_t>(group)];
  if (places.empty()) return std::numeric_limits<int>::max();
  const auto cursor = static_cast<int>(cursor_);
  const auto next = std::lower_bound(places.begin(), places.end(), cursor);
  if (next != places.end()) return *next - cursor;
  return places.front() + static_cast<int>(order_.size()) - cursor;
}

// The slot to overwrite: an empty one, else that of the group needed last.
int StreamScheduler::ChooseSlot() const {
  int best = -1;
  std::int64_t best_distance = -1;
  for (std::size_t s = 0; s < slots_.size(); ++s) {
    const Slot& slot = slots_[s];
    if (slot.held) continue;
    const std::int64_t distance = slot.group < 0
                                      ? std::numeric_limits<std::int64_t>::max()
                                      : Distance(slot.group);
    if (distance > best_distance) {
      best = static_cast<int>(s);
      best_distance = distance;
    }
  }
  return best;
}

absl::Status StreamScheduler::Copy(int group, int slot) {
  Slot& target = slots_[static_cast<std::size_t>(slot)];
  if (target.group >= 0 && !target.read) ++counters_.wasted;
  target = Slot{};
  if (absl::Status status = backend_->StartCopy(group, slot); !status.ok()) {
    return status;
  }
  ++counters_.copies;
  target.group = group;
  return absl::OkStatus();
}

// Moves the expectation behind the next use of `group`.
void StreamScheduler::Advance(int group) {
  if (places_[static_cast<std::size_t>(group)].empty()) return;
  const std::size_t place = cursor_ + static_cast<std::size_t>(Distance(group));
  cursor_ = (place + 1) % order_.size();
}

absl::StatusOr<int> StreamScheduler::Acquire(int group) {
  if (group < 0 || static_cast<std::size_t>(group) >= places_.size()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "there is no group ", group, ", only 0 to ", places_.size() - 1));
  }
  int slot = Find(group);
  if (slot >= 0 && slots_[static_cast<std::size_t>(slot)].held) {
    return absl::FailedPreconditionError(
        absl::StrCat("group ", group, " is held already"));
  }
  if (slot < 0) {
    slot = ChooseSlot();
    if (slot < 0) {
      return absl::ResourceExhaustedError(
          absl::StrCat("all ", slots_.size(),
                       " slots are held, none is left for group ", group));
    }
    if (absl::Status status = Copy(group, slot); !status.ok()) return status;
    ++counters_.on_demand;
  }
  Slot& entry = slots_[static_cast<std::size_t>(slot)];
  if (absl::Status status = backend_->Await(slot); !status.ok()) {
    entry = Slot{};
    return status;
  }
  entry.held = true;
  entry.read = true;
  recorded_.push_back(group);
  Advance(group);
  CopyAhead();
  return slot;
}

absl::Status StreamScheduler::Release(int group) {
  const int slot = Find(group);
  if (slot < 0 || !slots_[static_cast<std::size_t>(slot)].held) {
    return absl::FailedPreconditionError(
        absl::StrCat("group ", group, " is not held"));
  }
  slots_[static_cast<std::size_t>(slot)].held = false;
  if (absl::Status status = backend_->MarkUsed(slot); !status.ok()) {
    return status;
  }
  CopyAhead();
  return absl::OkStatus();
}

// Fills every slot that nothing expected sooner occupies.
void StreamScheduler::CopyAhead() {
  for (std::size_t ahead = 0; ahead < order_.size() && ahead < slots_.size();
       ++ahead) {
    const int group = order_[(cursor_ + ahead) % order_.size()];
    if (Find(group) >= 0) continue;
    const int slot = ChooseSlot();
    if (slot < 0) return;
    const int present = slots_[static_cast<std::size_t>(slot)].group;
    if (present >= 0 && Distance(present) <= static_cast<int>(ahead)) return;
    if (!Copy(group, slot).ok()) return;
    ++counters_.ahead;
  }
}

std::vector<int> StreamScheduler::in_slots() const {
  std::vector<int> groups;
  for (const Slot& slot : slots_) {
    if (slot.group >= 0) groups.push_back(slot.group);
  }
  return groups;
}

void StreamScheduler::Reset() {
  backend_->Drain();
  for (Slot& slot : slots_) slot = Slot{};
  recorded_.clear();
  cursor_ = 0;
}

}  // namespace distorch
