// SPDX-License-Identifier: Apache-2.0
#include "distorch/telemetry/scan.h"

#include <algorithm>
#include <cstddef>
#include <map>

namespace distorch {
namespace {

void AddTo(std::vector<std::pair<std::int32_t, std::int64_t>>* totals,
           std::int32_t device, std::int64_t bytes) {
  auto at = std::lower_bound(
      totals->begin(), totals->end(), device,
      [](const auto& entry, std::int32_t key) { return entry.first < key; });
  if (at == totals->end() || at->first != device) {
    at = totals->insert(at, {device, 0});
  }
  at->second += bytes;
}

void AddUnique(std::vector<ModuleId>* ids, ModuleId id) {
  if (std::find(ids->begin(), ids->end(), id) == ids->end()) ids->push_back(id);
}

}  // namespace

const std::vector<ModelTotals>& MemoryScan::Models() {
  const std::vector<ModuleId>& roots = registry_->Roots();
  if (!registry_->any_dirty() && roots == known_roots_) return models_;
  ++generation_;
  const absl::flat_hash_set<ModuleId> now(roots.begin(), roots.end());
  for (ModuleId root : known_roots_) {
    if (!now.contains(root)) Forget(root);
  }
  for (ModuleId root : roots) {
    if (summaries_.contains(root) && !registry_->dirty(root)) continue;
    Forget(root);
    Remember(root, Summarise(root), found_);
  }
  known_roots_ = roots;
  registry_->ClearDirty();
  ShareOut();
  return models_;
}

MemoryScan::Summary MemoryScan::Summarise(ModuleId root) {
  Summary summary;
  ModelTotals& totals = summary.totals;
  totals.root = root;
  found_.clear();
  absl::flat_hash_set<StorageKey> parameters;
  std::map<std::int32_t, std::int64_t> elements;  // dtype -> elements
  registry_->Visit(root, [&](ModuleId id) {
    const ModuleRecord& record = registry_->record(id);
    ++totals.modules;
    if (!record.tensors.empty()) ++totals.layers;
    for (const TensorRecord& tensor : record.tensors) {
      if (tensor.parameter &&
          (tensor.data == 0 ||
           parameters.insert({tensor.device, tensor.data}).second)) {
        totals.parameters += tensor.numel;
      }
      elements[tensor.dtype] += tensor.numel;
      if (tensor.storage == 0) continue;
      if (found_.insert({{tensor.device, tensor.storage}, tensor.bytes})
              .second) {
        AddTo(&totals.bytes, tensor.device, tensor.bytes);
        summary.storages.emplace_back(tensor.device, tensor.storage);
      }
    }
  });
  const auto most = std::max_element(
      elements.begin(), elements.end(),
      [](const auto& a, const auto& b) { return a.second < b.second; });
  if (most != elements.end()) totals.dtype = most->first;
  return summary;
}

void MemoryScan::Forget(ModuleId root) {
  const auto known = summaries_.find(root);
  if (known == summaries_.end()) return;
  for (const StorageKey& key : known->second.storages) {
    const auto storage = storages_.find(key);
    if (storage == storages_.end()) continue;
    std::vector<ModuleId>& users = storage->second.users;
    users.erase(std::remove(users.begin(), users.end(), root), users.end());
    if (users.size() < 2) shared_.erase(key);
    if (users.empty()) storages_.erase(storage);
  }
  summaries_.erase(known);
}

void MemoryScan::Remember(
    ModuleId root, Summary summary,
    const absl::flat_hash_map<StorageKey, std::int64_t>& storages) {
  for (const auto& [key, bytes] : storages) {
    Storage& storage = storages_[key];
    storage.bytes = bytes;
    storage.users.push_back(root);
    if (storage.users.size() > 1) shared_.insert(key);
  }
  summaries_[root] = std::move(summary);
}

void MemoryScan::ShareOut() {
  models_.clear();
  absl::flat_hash_map<ModuleId, std::size_t> position;
  for (ModuleId root : known_roots_) {
    position[root] = models_.size();
    models_.push_back(summaries_[root].totals);
  }
  for (const StorageKey& key : shared_) {
    Storage& storage = storages_[key];
    std::sort(
        storage.users.begin(), storage.users.end(),
        [&](ModuleId a, ModuleId b) { return position[a] < position[b]; });
    ModelTotals& owner = models_[position[storage.users.front()]];
    for (std::size_t i = 1; i < storage.users.size(); ++i) {
      ModelTotals& sharer = models_[position[storage.users[i]]];
      AddTo(&sharer.bytes, key.first, -storage.bytes);
      AddTo(&sharer.shared_bytes, key.first, storage.bytes);
      AddUnique(&sharer.shares_with, owner.root);
      AddUnique(&owner.shares_with, sharer.root);
    }
  }
  for (ModelTotals& model : models_) {
    std::sort(
        model.shares_with.begin(), model.shares_with.end(),
        [&](ModuleId a, ModuleId b) { return position[a] < position[b]; });
  }
}

}  // namespace distorch
