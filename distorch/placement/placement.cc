// SPDX-License-Identifier: Apache-2.0
#include "distorch/placement/placement.h"

#include <algorithm>
#include <exception>
#include <map>
#include <numeric>
#include <utility>

#include "absl/strings/str_cat.h"
#include "distorch/placement/staging.h"

namespace distorch {
namespace {

// What holds for one name of a tensor holds for all.
std::vector<bool> ForAllNames(std::vector<bool> flags,
                              const std::vector<TensorInfo>& tensors) {
  flags.resize(tensors.size());
  for (uint32_t i = 0; i < tensors.size(); ++i) {
    if (flags[i]) flags[tensors[i].same] = true;
  }
  for (uint32_t i = 0; i < tensors.size(); ++i) {
    flags[i] = flags[tensors[i].same];
  }
  return flags;
}

}  // namespace

absl::Status Placement::Bring(TensorTable& table, const BringOptions& options) {
  if (assigned_.empty() && !blocks_.empty()) {
    return absl::FailedPreconditionError("no block has been assigned a place");
  }
  const std::vector<bool> patched = ForAllNames(options.patched, tensors_);
  const std::vector<bool> changed = ForAllNames(options.changed, tensors_);
  if (absl::Status status = CheckHost(patched, options.host_free);
      !status.ok()) {
    return status;
  }
  Staging staging(*this, table);
  for (uint32_t i = 0; i < tensors_.size(); ++i) {
    staging.Want(i, Target(tensors_[i].block), patched[i], changed[i]);
  }
  staging.PlanSlabs();
  if (options.give_way) staging.GiveWay();
  const std::vector<uint32_t> order = LoadOrder(patched);
  const Bytes all = std::accumulate(block_bytes_.begin(), block_bytes_.end(),
                                    Bytes(), std::plus<>());
  Bytes done;
  for (uint32_t n = 0; n < order.size(); ++n) {
    staging.MakeBlock(order[n]);
    done += block_bytes_[order[n]];
    table.Progress(n + 1, static_cast<uint32_t>(order.size()), done, all);
  }
  staging.Commit();
  return absl::OkStatus();
}

std::vector<uint32_t> Placement::LoadOrder(
    const std::vector<bool>& patched) const {
  std::vector<int> rank(blocks_.size(), 2);
  for (uint32_t i = 0; i < tensors_.size(); ++i) {
    if (!patched[i]) continue;
    const uint32_t block = tensors_[i].block;
    rank[block] = Target(block) == compute_ ? 1 : 0;
  }
  std::vector<uint32_t> order(blocks_.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](uint32_t a, uint32_t b) { return rank[a] < rank[b]; });
  return order;
}

absl::Status Placement::CheckHost(const std::vector<bool>& patched,
                                  Bytes host_free) const {
  Bytes need;
  for (uint32_t i = 0; i < tensors_.size(); ++i) {
    const bool is_new = !states_[i].patched || states_[i].device != host_;
    if (patched[i] && is_new && tensors_[i].same == i &&
        Target(tensors_[i].block) == host_) {
      need += tensors_[i].bytes();
    }
  }
  if (need <= host_free) return absl::OkStatus();
  return absl::ResourceExhaustedError(absl::StrCat(
      devices_[host_].ToString(), ": ", need.value(),
      " bytes asked for patched blocks, ", host_free.value(),
      " free. Give an accelerator a larger share, or apply fewer patches"));
}

Bytes Placement::Spill(TensorTable& table, uint32_t device, Bytes wanted) {
  Bytes freed;
  if (device == host_) return freed;
  // The blocks that share a tensor, by its first name, or a slab.
  std::map<uint32_t, std::vector<uint32_t>> tied;
  std::map<SlabId, std::vector<uint32_t>> in_slab;
  for (uint32_t i = 0; i < tensors_.size(); ++i) {
    tied[tensors_[i].same].push_back(tensors_[i].block);
    in_slab[states_[i].slab].push_back(tensors_[i].block);
  }
  in_slab.erase(kNoSlab);
  std::vector<uint32_t> leaving;
  std::vector<bool> leaves(blocks_.size());
  const auto leave = [&](uint32_t block) {
    if (leaves[block] || blocks_[block].stays || Target(block) != device) {
      return;
    }
    leaves[block] = true;
    leaving.push_back(block);
    freed += block_bytes_[block];
  };
  size_t next = 0;
  for (uint32_t n = static_cast<uint32_t>(blocks_.size());
       n-- > 0 && freed < wanted;) {
    leave(n);
    for (; next < leaving.size(); ++next) {
      for (const uint32_t mine : of_block_[leaving[next]]) {
        // Taken out: all of them have left by then.
        for (uint32_t mate : std::exchange(tied[tensors_[mine].same], {})) {
          leave(mate);
        }
        for (uint32_t mate : std::exchange(in_slab[states_[mine].slab], {})) {
          leave(mate);
        }
      }
    }
  }
  Staging staging(*this, table);
  for (const uint32_t block : leaving) {
    for (const uint32_t i : of_block_[block]) staging.WantOnHost(i);
  }
  staging.PlanSlabs();
  for (const uint32_t block : leaving) staging.MakeBlock(block);
  staging.Commit();
  for (const uint32_t block : leaving) spilled_[block] = true;
  return freed;
}

void Placement::Release(TensorTable& table) {
  std::exception_ptr first;
  const auto anyway = [&](auto step) {
    try {
      step();
    } catch (...) {
      if (!first) first = std::current_exception();
    }
  };
  for (uint32_t i = 0; i < tensors_.size(); ++i) {
    if (states_[i].id == kFound || tensors_[i].same != i) continue;
    anyway([&] {
      if (table.Written(i)) table.KeepWritten(i);
    });
  }
  std::vector<MadeId> made;
  for (uint32_t i = 0; i < tensors_.size(); ++i) {
    if (states_[i].id == kFound) continue;
    const auto hang = [&] { table.Hang(i, kFound); };
    const bool failed_before = first != nullptr;
    anyway(hang);
    if (first && !failed_before) anyway(hang);  // an interrupt comes once
    made.push_back(states_[i].id);
    states_[i] = {.device = tensors_[i].device};
  }
  std::sort(made.begin(), made.end());
  made.erase(std::unique(made.begin(), made.end()), made.end());
  for (const MadeId id : made) table.Drop(id);
  std::fill(spilled_.begin(), spilled_.end(), false);
  if (first) std::rethrow_exception(first);
}

}  // namespace distorch
