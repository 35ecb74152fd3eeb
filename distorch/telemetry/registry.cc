// SPDX-License-Identifier: Apache-2.0
#include "distorch/telemetry/registry.h"

#include <algorithm>
#include <utility>

namespace distorch {

ModuleId ModuleRegistry::Add() {
  ModuleId id = 0;
  if (free_.empty()) {
    id = static_cast<ModuleId>(nodes_.size());
    nodes_.emplace_back();
  } else {
    id = free_.back();
    free_.pop_back();
    node(id) = Node();
  }
  node(id).alive = true;
  node(id).serial = next_serial_++;
  ++alive_;
  roots_known_ = false;
  MarkDirty(id);
  return id;
}

bool ModuleRegistry::Contains(ModuleId id) const {
  return id >= 0 && static_cast<std::size_t>(id) < nodes_.size() &&
         node(id).alive;
}

bool ModuleRegistry::Update(ModuleId id, ModuleRecord record) {
  Node& module = node(id);
  if (module.record == record) return false;
  if (module.record.children != record.children) {
    roots_known_ = false;
    for (ModuleId child : module.record.children) Unlink(id, child);
    for (ModuleId child : record.children) node(child).parents.push_back(id);
  }
  module.record = std::move(record);
  MarkDirty(id);
  return true;
}

void ModuleRegistry::Unlink(ModuleId parent, ModuleId child) {
  std::vector<ModuleId>& parents = node(child).parents;
  auto found = std::find(parents.begin(), parents.end(), parent);
  if (found != parents.end()) parents.erase(found);
  if (parents.empty()) MarkDirty(child);  // it may be a model by itself now
}

void ModuleRegistry::Remove(ModuleId id) {
  MarkDirty(id);
  Node& module = node(id);
  for (ModuleId child : module.record.children) Unlink(id, child);
  for (ModuleId parent : module.parents) {
    std::vector<ModuleId>& children = node(parent).record.children;
    children.erase(std::remove(children.begin(), children.end(), id),
                   children.end());
  }
  module = Node();
  free_.push_back(id);
  --alive_;
  roots_known_ = false;
}

void ModuleRegistry::MarkDirty(ModuleId id) {
  any_dirty_ = true;
  if (node(id).dirty) return;
  node(id).dirty = true;
  stack_.assign(1, id);
  while (!stack_.empty()) {
    ModuleId current = stack_.back();
    stack_.pop_back();
    for (ModuleId parent : node(current).parents) {
      if (node(parent).dirty) continue;
      node(parent).dirty = true;
      stack_.push_back(parent);
    }
  }
}

void ModuleRegistry::ClearDirty() {
  if (!any_dirty_) return;
  for (Node& module : nodes_) module.dirty = false;
  any_dirty_ = false;
}

void ModuleRegistry::Visit(ModuleId root,
                           const std::function<void(ModuleId)>& visit) {
  Walk(root, ++visit_number_, visit);
}

void ModuleRegistry::Walk(ModuleId root, std::uint64_t visit_number,
                          const std::function<void(ModuleId)>& visit) {
  stack_.assign(1, root);
  while (!stack_.empty()) {
    ModuleId current = stack_.back();
    stack_.pop_back();
    Node& module = node(current);
    if (module.visited == visit_number) continue;
    module.visited = visit_number;
    visit(current);
    const std::vector<ModuleId>& children = module.record.children;
    stack_.insert(stack_.end(), children.rbegin(), children.rend());
  }
}

const std::vector<ModuleId>& ModuleRegistry::Roots() {
  if (!roots_known_) FindRoots();
  return roots_;
}

void ModuleRegistry::FindRoots() {
  roots_.clear();
  std::vector<ModuleId> ids;
  for (std::size_t i = 0; i < nodes_.size(); ++i) {
    if (nodes_[i].alive) ids.push_back(static_cast<ModuleId>(i));
  }
  std::sort(ids.begin(), ids.end(), [this](ModuleId a, ModuleId b) {
    return node(a).serial < node(b).serial;
  });
  // One number for all walks, so that together they touch each module once.
  const std::uint64_t number = ++visit_number_;
  const auto ignore = [](ModuleId) {};
  for (ModuleId id : ids) {
    if (!node(id).parents.empty()) continue;
    roots_.push_back(id);
    Walk(id, number, ignore);
  }
  bool ring = false;
  for (ModuleId id : ids) {
    if (node(id).visited == number) continue;
    ring = true;
    roots_.push_back(id);
    MarkDirty(id);  // it was not a root before, so nothing is known of it
    Walk(id, number, ignore);
  }
  if (ring) {
    std::sort(roots_.begin(), roots_.end(), [this](ModuleId a, ModuleId b) {
      return node(a).serial < node(b).serial;
    });
  }
  roots_known_ = true;
}

}  // namespace distorch
