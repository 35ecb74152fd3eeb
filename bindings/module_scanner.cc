// SPDX-License-Identifier: Apache-2.0
#include "bindings/module_scanner.h"

#include <chrono>

namespace distorch::bindings {
namespace {

namespace py = pybind11;

constexpr std::uint64_t kDeepRounds = 64;
// How far ahead of use the memory of a module is asked for: the scan waits for
// memory more than it computes.
constexpr std::size_t kAhead = 4;

double Now() {
  return std::chrono::duration<double>(
             std::chrono::system_clock::now().time_since_epoch())
      .count();
}

// The referent with a reference of its own, or a null object when it died.
py::object Referent(const py::object& reference) {
#if PY_VERSION_HEX >= 0x030D0000
  PyObject* object = nullptr;
  if (PyWeakref_GetRef(reference.ptr(), &object) < 0) {
    throw py::error_already_set();
  }
  return py::reinterpret_steal<py::object>(object);
#else
  PyObject* object = PyWeakref_GetObject(reference.ptr());
  if (object == Py_None) return {};
  return py::reinterpret_borrow<py::object>(object);
#endif
}

py::object WeakReference(PyObject* module) {
  return py::reinterpret_steal<py::object>(PyWeakref_NewRef(module, nullptr));
}

}  // namespace

ModuleScanner::ModuleScanner(py::object module_type, py::tuple plain_types,
                             py::tuple identity, py::tuple deep,
                             py::object describe, py::object expand)
    : module_type_(std::move(module_type)),
      plain_types_(std::move(plain_types)),
      identity_(std::move(identity)),
      deep_(std::move(deep)),
      describe_(std::move(describe)),
      expand_(std::move(expand)) {}

bool ModuleScanner::IsModule(PyObject* object) const {
  return PyType_IsSubtype(Py_TYPE(object), reinterpret_cast<PyTypeObject*>(
                                               module_type_.ptr())) != 0;
}

void ModuleScanner::Note(PyObject* module) {
  const auto known = by_address_.find(module);
  if (known != by_address_.end()) {
    Entry& found = entry(known->second);
    const py::object alive = Referent(found.reference);
    if (alive.ptr() == module) {
      found.touched = true;
      return;
    }
  }
  py::object reference = WeakReference(module);
  if (!reference) {
    PyErr_Clear();  // a class that forbids weak references cannot be watched
    return;
  }
  // A module in construction registers its members one after the other.
  if (!noted_.empty() && noted_.back().reference.is(reference)) return;
  noted_.push_back({std::move(reference), Now()});
}

bool ModuleScanner::Add(PyObject* module) {
  const std::size_t before = registry_.size();
  Register(module, Now());
  return registry_.size() != before;
}

bool ModuleScanner::Knows(PyObject* module) const {
  const auto known = by_address_.find(module);
  return known != by_address_.end() &&
         Referent(entry(known->second).reference).ptr() == module;
}

ModuleId ModuleScanner::Register(PyObject* module, double seen) {
  const auto known = by_address_.find(module);
  if (known != by_address_.end()) {
    if (Referent(entry(known->second).reference).ptr() == module) {
      return known->second;
    }
    // Another object lived here, which Verify() has not seen die. To its
    // parents the new one looks the same: they may have it as a child.
    std::vector<ModuleId> parents;
    RemoveDead({known->second}, &parents);
    for (ModuleId parent : parents) entry(parent).touched = true;
  }
  py::object reference = WeakReference(module);
  if (!reference) throw py::error_already_set();
  const ModuleId id = registry_.Add();
  registered_ = true;
  if (static_cast<std::size_t>(id) >= entries_.size()) {
    entries_.resize(static_cast<std::size_t>(id) + 1);
  }
  entry(id) = Entry{.reference = std::move(reference),
                    .address = module,
                    .watched = {},
                    .memory = {},
                    .signature = {},
                    .deep = {},
                    .seen = seen,
                    .touched = true};
  by_address_[module] = id;
  return id;
}

void ModuleScanner::TakeNoted() {
  std::vector<Noted> noted;
  noted.swap(noted_);
  for (const Noted& one : noted) {
    const py::object module = Referent(one.reference);
    if (module) Register(module.ptr(), one.seen);
  }
}

std::size_t ModuleScanner::Walk(const py::list& objects) {
  absl::flat_hash_map<PyTypeObject*, bool> types;
  std::size_t added = 0;
  const double now = Now();
  for (Py_ssize_t i = 0; i < PyList_GET_SIZE(objects.ptr()); ++i) {
    PyObject* object = PyList_GET_ITEM(objects.ptr(), i);
    const auto [known, fresh] = types.try_emplace(Py_TYPE(object), false);
    if (fresh) known->second = IsModule(object);
    if (!known->second || Knows(object)) continue;
    Register(object, now);
    ++added;
  }
  return added;
}

void ModuleScanner::RemoveDead(const std::vector<ModuleId>& dead,
                               std::vector<ModuleId>* changed) {
  for (ModuleId id : dead) {
    for (ModuleId parent : registry_.parents(id)) changed->push_back(parent);
    const auto at = by_address_.find(entry(id).address);
    if (at != by_address_.end() && at->second == id) by_address_.erase(at);
    registry_.Remove(id);
    entry(id) = Entry();
  }
}

std::size_t ModuleScanner::Verify(bool deep) {
  ++round_;
  const std::size_t stride = 1 + identity_.size();
  std::vector<ModuleId> dead;
  std::vector<ModuleId> changed;
  for (std::size_t i = 0; i < entries_.size(); ++i) {
    Entry& one = entries_[i];
    if (i + 2 * kAhead < entries_.size()) {
      entries_[i + 2 * kAhead].PrefetchMemory();
    }
    if (i + kAhead < entries_.size()) entries_[i + kAhead].Prefetch(stride);
    if (!one.reference) continue;
    const py::object module = Referent(one.reference);
    const bool deeply = deep || (i + round_) % kDeepRounds == 0;
    if (!module) {
      dead.push_back(static_cast<ModuleId>(i));
    } else if (one.touched || !Unchanged(module.ptr(), &one, deeply)) {
      changed.push_back(static_cast<ModuleId>(i));
    }
  }
  RemoveDead(dead, &changed);
  TakeNoted();
  std::size_t changes = dead.size();
  for (ModuleId id : changed) {
    if (Refresh(id)) ++changes;
  }
  // Children found on the way come after the others or in a dead one's place.
  while (registered_) {
    registered_ = false;
    for (std::size_t i = 0; i < entries_.size(); ++i) {
      if (!entries_[i].reference || !entries_[i].signature.empty()) continue;
      if (Refresh(static_cast<ModuleId>(i))) ++changes;
    }
  }
  return changes;
}

bool ModuleScanner::Refresh(ModuleId id) {
  if (!registry_.Contains(id)) return false;
  const py::object module = Referent(entry(id).reference);
  // One that died since is taken out next time; until then it is no news.
  if (!module) {
    entry(id).signature.assign(1, 0);
    return false;
  }
  Parts parts;
  Watched watched = Look(module.ptr(), {});  // before anything can change
  Collect(module.ptr(), &parts);
  std::vector<std::uint64_t> memory;
  if (!Remember(watched, parts, &memory)) watched = {};
  std::vector<std::uint64_t> signature = Signature(parts);
  std::vector<std::uint64_t> deep = DeepSignature(parts);
  ModuleRecord record;
  for (const py::object& child : parts.children) {
    record.children.push_back(Register(child.ptr(), entry(id).seen));
  }
  for (const auto& [tensor, parameter] : parts.tensors) {
    Describe(tensor.ptr(), parameter, &record.tensors);
  }
  entry(id).watched = watched;
  entry(id).memory = std::move(memory);
  entry(id).signature = std::move(signature);
  entry(id).deep = std::move(deep);
  entry(id).touched = false;
  return registry_.Update(id, std::move(record));
}

py::object ModuleScanner::Module(ModuleId id) const {
  if (!registry_.Contains(id)) return py::none();
  py::object module = Referent(entry(id).reference);
  if (!module) return py::none();
  return module;
}

ModuleId ModuleScanner::RootOfSerial(std::int64_t serial) {
  for (const ModelTotals& model : scan_.Models()) {
    if (registry_.serial(model.root) == serial) return model.root;
  }
  return -1;
}

double ModuleScanner::SeenOf(PyObject* module) const {
  for (const Noted& one : noted_) {
    if (Referent(one.reference).ptr() == module) return one.seen;
  }
  const auto known = by_address_.find(module);
  if (known == by_address_.end()) return 0;
  const Entry& found = entry(known->second);
  return Referent(found.reference).ptr() == module ? found.seen : 0;
}

}  // namespace distorch::bindings
