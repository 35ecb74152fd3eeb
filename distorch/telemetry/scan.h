// SPDX-License-Identifier: Apache-2.0
// Who holds how much: the totals of each model in a ModuleRegistry.
//
// A model is a root of the graph. Its bytes are those of the storages below it,
// each storage once however many tensors view it. A storage that several models
// use counts for the oldest of them; the others say with whom they share.
//
//   MemoryScan scan(&registry);
//   for (const ModelTotals& model : scan.Models()) ...
//
// Only models that changed since the last call are walked again. Threads: as
// ModuleRegistry.
#ifndef DISTORCH_TELEMETRY_SCAN_H_
#define DISTORCH_TELEMETRY_SCAN_H_

#include <cstdint>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "distorch/telemetry/registry.h"

namespace distorch {

struct ModelTotals {
  ModuleId root = 0;
  std::int64_t layers = 0;      // modules that own a tensor themselves
  std::int64_t modules = 0;     // all modules, the root included
  std::int64_t parameters = 0;  // elements of parameters; tied ones count once
  std::int32_t dtype = -1;      // the one with the most elements; -1: none
  // (device, bytes) by device, without storages that an older model owns.
  std::vector<std::pair<std::int32_t, std::int64_t>> bytes;
  // (device, bytes) in use here that count for an older model.
  std::vector<std::pair<std::int32_t, std::int64_t>> shared_bytes;
  std::vector<ModuleId> shares_with;  // models with a storage in common
};

class MemoryScan {
 public:
  // `registry` must outlive this object and have no other MemoryScan.
  explicit MemoryScan(ModuleRegistry* registry) : registry_(registry) {}

  // All models, oldest first. Valid until the next call of this or of a
  // changing method of the registry.
  const std::vector<ModelTotals>& Models();

  // How often Models() found a difference; equal numbers mean equal answers.
  std::int64_t generation() const { return generation_; }

 private:
  using StorageKey = std::pair<std::int32_t, std::uint64_t>;
  struct Storage {
    std::int64_t bytes = 0;
    std::vector<ModuleId> users;  // models, oldest first
  };
  struct Summary {
    ModelTotals totals;  // as if nothing were shared between models
    std::vector<StorageKey> storages;
  };

  Summary Summarise(ModuleId root);
  void Forget(ModuleId root);
  void Remember(ModuleId root, Summary summary,
                const absl::flat_hash_map<StorageKey, std::int64_t>& storages);
  void ShareOut();

  ModuleRegistry* registry_;
  absl::flat_hash_map<ModuleId, Summary> summaries_;
  absl::flat_hash_map<StorageKey, Storage> storages_;
  absl::flat_hash_set<StorageKey> shared_;  // storages with several users
  absl::flat_hash_map<StorageKey, std::int64_t> found_;  // of one Summarise
  std::vector<ModelTotals> models_;
  std::vector<ModuleId> known_roots_;
  std::int64_t generation_ = 0;
};

}  // namespace distorch

#endif  // DISTORCH_TELEMETRY_SCAN_H_
