// SPDX-License-Identifier: Apache-2.0
// The graph of the modules that are alive: what each one owns itself, and which
// modules are its children. Pure data: no Python, no torch; the bindings feed
// it from weak references.
//
//   ModuleRegistry registry;
//   ModuleId layer = registry.Add(), model = registry.Add();
//   registry.Update(layer, {.tensors = {weight}});
//   registry.Update(model, {.children = {layer}});
//   registry.Roots();            // {model}
//
// Threads: none of its own; the owner must serialise all calls (the bindings do
// it with the interpreter's lock).
#ifndef DISTORCH_TELEMETRY_REGISTRY_H_
#define DISTORCH_TELEMETRY_REGISTRY_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

namespace distorch {

// Names a module as long as it is registered; an id is given again only after
// Remove().
using ModuleId = std::int32_t;

// One parameter or buffer that a module owns itself.
struct TensorRecord {
  std::int32_t device = 0;    // index in the caller's table of devices
  std::int32_t dtype = 0;     // index in the caller's table of data types
  std::uint64_t storage = 0;  // names the storage on its device; 0: no memory
  std::uint64_t data = 0;     // names the tensor: two views of one storage that
                              // start at different places differ here
  std::int64_t bytes = 0;     // of the whole storage, not of this view
  std::int64_t numel = 0;     // elements of this tensor
  bool parameter = true;      // false: a buffer

  friend bool operator==(const TensorRecord&, const TensorRecord&) = default;
};

struct ModuleRecord {
  std::vector<ModuleId> children;  // in the model's order, repeats allowed
  std::vector<TensorRecord> tensors;

  friend bool operator==(const ModuleRecord&, const ModuleRecord&) = default;
};

class ModuleRegistry {
 public:
  // A module without children and tensors. Its serial is higher than that of
  // every module before it: the order of age decides who owns what is shared.
  ModuleId Add();

  // Replaces what is known of `id`. Children must be registered. False when
  // nothing differs; then nothing becomes dirty.
  // REQUIRES: Contains(id) and Contains(child) for each child.
  bool Update(ModuleId id, ModuleRecord record);

  // Takes `id` out, also out of its parents' lists of children. O(its edges).
  void Remove(ModuleId id);

  bool Contains(ModuleId id) const;
  const ModuleRecord& record(ModuleId id) const { return node(id).record; }
  const std::vector<ModuleId>& parents(ModuleId id) const {
    return node(id).parents;
  }
  std::int64_t serial(ModuleId id) const { return node(id).serial; }
  std::size_t size() const { return alive_; }

  // Modules that are no one's child, oldest first; where modules form a ring
  // that no root reaches, the oldest of the ring stands for it.
  const std::vector<ModuleId>& Roots();

  // Whether `id`, or a module below it, changed since ClearDirty().
  bool dirty(ModuleId id) const { return node(id).dirty; }
  bool any_dirty() const { return any_dirty_; }
  void ClearDirty();

  // Calls `visit` once for `root` and each module below it, parents before
  // children, in the model's order. Iterative: depth costs heap, never stack.
  void Visit(ModuleId root, const std::function<void(ModuleId)>& visit);

 private:
  struct Node {
    ModuleRecord record;
    std::vector<ModuleId> parents;  // one entry an edge, so repeats occur
    std::int64_t serial = 0;
    std::uint64_t visited = 0;  // the number of the last visit that came here
    bool alive = false;
    bool dirty = false;
  };

  Node& node(ModuleId id) { return nodes_[static_cast<std::size_t>(id)]; }
  const Node& node(ModuleId id) const {
    return nodes_[static_cast<std::size_t>(id)];
  }
  // Marks `id` and all above it. A dirty module's ancestors are dirty already,
  // which makes a row of updates in one deep model cost its size, not its
  // square.
  void MarkDirty(ModuleId id);
  void Unlink(ModuleId parent, ModuleId child);
  void Walk(ModuleId root, std::uint64_t visit_number,
            const std::function<void(ModuleId)>& visit);
  void FindRoots();

  std::vector<Node> nodes_;
  std::vector<ModuleId> free_;
  std::vector<ModuleId> roots_;
  std::vector<ModuleId> stack_;
  std::size_t alive_ = 0;
  std::int64_t next_serial_ = 1;
  std::uint64_t visit_number_ = 0;
  bool roots_known_ = true;
  bool any_dirty_ = false;
};

}  // namespace distorch

#endif  // DISTORCH_TELEMETRY_REGISTRY_H_
