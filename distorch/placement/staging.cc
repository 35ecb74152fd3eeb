// SPDX-License-Identifier: Apache-2.0
#include "distorch/placement/staging.h"

#include <set>
#include <unordered_map>

#include "absl/types/span.h"
#include "distorch/placement/slab_layout.h"

namespace distorch {
namespace {

// Hangs on the way back: nothing may stop it, and an interrupt comes once.
void HangAnyway(TensorTable& table, uint32_t tensor, MadeId id) noexcept {
  for (int attempt = 0; attempt < 2; ++attempt) {
    try {
      table.Hang(tensor, id);
      return;
    } catch (...) {
    }
  }
}

}  // namespace

Staging::Staging(Placement& placement, TensorTable& table)
    : placement_(placement),
      table_(table),
      item_of_(placement.tensors_.size(), -1),
      of_block_(placement.blocks_.size()) {}

Staging::~Staging() {
  for (const MadeId id : made_) table_.Drop(id);
  for (const Slab& slab : slabs_) {
    if (slab.id != kNoSlab) table_.SealSlab(slab.id);
  }
}

void Staging::Add(Item item) {
  const uint32_t i = item.tensor;
  item_of_[i] = static_cast<int64_t>(items_.size());
  of_block_[placement_.tensors_[i].block].push_back(items_.size());
  items_.push_back(std::move(item));
}

void Staging::Want(uint32_t i, uint32_t device, bool patched, bool changed) {
  const TensorInfo& info = placement_.tensors_[i];
  const Placement::State& state = placement_.states_[i];
  const bool found_will_do = !patched && info.as_found && info.device == device;
  if (found_will_do) {
    if (state.id != kFound) Add({.tensor = i, .device = device});
    return;
  }
  const bool is_there = state.id != kFound && state.device == device &&
                        state.patched == patched && !changed;
  if (is_there) return;
  Add({.tensor = i, .device = device, .patched = patched, .make = true});
}

void Staging::WantOnHost(uint32_t i) {
  const TensorInfo& info = placement_.tensors_[i];
  const Placement::State& state = placement_.states_[i];
  const uint32_t host = placement_.host_;
  if (state.device == host) return;
  const bool as_it_is = state.patched || table_.Written(i);
  const bool found_will_do = !as_it_is && info.as_found && info.device == host;
  Add({.tensor = i,
       .device = host,
       .patched = state.patched,
       .make = !found_will_do,
       .from = as_it_is ? TensorTable::From::kCurrent
                        : TensorTable::From::kOriginal});
}

void Staging::PlanSlabs() {
  made_.reserve(items_.size());  // so that what is made is never lost
  // By layer group and device, in the order in which they come.
  std::map<std::pair<std::string, uint32_t>, std::vector<size_t>> together;
  for (size_t k = 0; k < items_.size(); ++k) {
    const Item& item = items_[k];
    const TensorInfo& info = placement_.tensors_[item.tensor];
    if (item.make && info.from_bytes && info.same == item.tensor &&
        placement_.UsesSlab(info.block, item.device)) {
      together[{placement_.blocks_[info.block].group, item.device}].push_back(
          k);
    }
  }
  for (const auto& [key, members] : together) {
    std::vector<std::vector<Bytes>> parts;
    parts.reserve(members.size());
    for (const size_t k : members) {
      parts.push_back(placement_.tensors_[items_[k].tensor].parts);
    }
    SlabLayout layout = LayOut(parts);
    for (size_t m = 0; m < members.size(); ++m) {
      Item& item = items_[members[m]];
      item.offsets = std::move(layout.offsets[m]);
      item.slab_index = static_cast<int64_t>(slabs_.size());
    }
    slabs_.push_back({.device = key.second, .bytes = layout.bytes});
  }
}

void Staging::GiveWay() {
  std::unordered_map<MadeId, size_t> users;
  for (const Placement::State& state : placement_.states_) ++users[state.id];
  for (const Item& item : items_) {
    Placement::State& state = placement_.states_[item.tensor];
    if (state.id == kFound) continue;
    try {
      table_.Hang(item.tensor, kFound);
    } catch (...) {
      HangAnyway(table_, item.tensor, state.id);
      throw;
    }
    const MadeId old = state.id;
    state = {.device = placement_.tensors_[item.tensor].device};
    if (--users[old] == 0) table_.Drop(old);
  }
}

void Staging::MakeBlock(uint32_t block) {
  for (const size_t k : of_block_[block]) Make(items_[k]);
}

void Staging::Make(Item& item) {
  if (!item.make || item.id != kFound) return;
  const uint32_t same = placement_.tensors_[item.tensor].same;
  if (same != item.tensor && item_of_[same] >= 0) {
    Item& first = items_[static_cast<size_t>(item_of_[same])];
    Make(first);
    item.id = first.id;
    return;
  }
  SlabPlace place;
  if (item.slab_index >= 0) {
    Slab& slab = slabs_[static_cast<size_t>(item.slab_index)];
    if (slab.id == kNoSlab) slab.id = table_.MakeSlab(slab.device, slab.bytes);
    place = {slab.id, item.offsets};
    item.slab = slab.id;
  }
  const Made made = table_.Make(item.tensor, item.device, item.from, place);
  made_.push_back(made.id);
  item.id = made.id;
  Count(item, made.factor_bytes);
}

void Staging::Count(const Item& item, Bytes factor_bytes) {
  const TensorInfo& info = placement_.tensors_[item.tensor];
  const auto leg = [&](uint32_t from, uint32_t to) {
    if (from != to) transfers_[{from, to}] += info.bytes();
  };
  if (item.from == TensorTable::From::kCurrent) {
    leg(placement_.states_[item.tensor].device, item.device);
  } else if (item.patched) {
    leg(info.device, placement_.compute_);
    leg(placement_.compute_, item.device);
  } else {
    leg(info.device, item.device);
  }
  factor_bytes_ += factor_bytes;
}

void Staging::Commit() {
  size_t reached = 0;
  try {
    while (reached < items_.size()) {
      const Item& item = items_[reached];
      ++reached;
      table_.Hang(item.tensor, item.id);
    }
  } catch (...) {
    while (reached > 0) {
      const uint32_t tensor = items_[--reached].tensor;
      HangAnyway(table_, tensor, placement_.states_[tensor].id);
    }
    throw;
  }
  std::set<MadeId> old;
  for (const Item& item : items_) {
    Placement::State& state = placement_.states_[item.tensor];
    if (state.id != kFound) old.insert(state.id);
    state = {item.id, item.device, item.slab, item.patched};
  }
  for (const Placement::State& state : placement_.states_) old.erase(state.id);
  for (const MadeId id : old) table_.Drop(id);
  made_.clear();
  for (const auto& [leg, bytes] : transfers_) {
    placement_.transfers_[leg] += bytes;
  }
  placement_.factor_bytes_ += factor_bytes_;
}

}  // namespace distorch
