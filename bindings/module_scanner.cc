// SPDX-License-Identifier: Apache-2.0
#include "bindings/module_scanner.h"

#include <chrono>

namespace distorch::bindings {
namespace {

namespace py = pybind11;

constexpr std::uint64_t kDeepRounds = 8;

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

void ModuleScanner::Parts::Clear() {
  children.clear();
  tensors.clear();
}

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

ModuleId ModuleScanner::Register(PyObject* module, double seen) {
  const auto known = by_address_.find(module);
  if (known != by_address_.end()) {
    if (Referent(entry(known->second).reference).ptr() == module) {
      return known->second;
    }
    // Another object lived here; RemoveDead() has not come past yet.
    registry_.Remove(known->second);
    entry(known->second) = Entry();
    by_address_.erase(known);
  }
  py::object reference = WeakReference(module);
  if (!reference) throw py::error_already_set();
  const ModuleId id = registry_.Add();
  if (static_cast<std::size_t>(id) >= entries_.size()) {
    entries_.resize(static_cast<std::size_t>(id) + 1);
  }
  entry(id) = Entry{.reference = std::move(reference),
                    .address = module,
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

std::size_t ModuleScanner::Walk(const py::list& objects, std::size_t start,
                                std::size_t stop) {
  absl::flat_hash_map<PyTypeObject*, bool> types;
  const std::size_t before = registry_.size();
  const double now = Now();
  for (std::size_t i = start; i < stop && i < objects.size(); ++i) {
    PyObject* object =
        PyList_GET_ITEM(objects.ptr(), static_cast<Py_ssize_t>(i));
    const auto [known, fresh] = types.try_emplace(Py_TYPE(object), false);
    if (fresh) known->second = IsModule(object);
    if (known->second && !by_address_.contains(object)) Register(object, now);
  }
  return registry_.size() - before;
}

std::size_t ModuleScanner::RemoveDead() {
  std::size_t dead = 0;
  for (std::size_t i = 0; i < entries_.size(); ++i) {
    Entry& one = entries_[i];
    if (!one.reference || Referent(one.reference)) continue;
    const auto id = static_cast<ModuleId>(i);
    for (ModuleId parent : registry_.parents(id)) entry(parent).touched = true;
    registry_.Remove(id);
    const auto at = by_address_.find(one.address);
    if (at != by_address_.end() && at->second == id) by_address_.erase(at);
    one = Entry();
    ++dead;
  }
  return dead;
}

std::size_t ModuleScanner::Verify(bool deep) {
  std::size_t changes = RemoveDead();
  TakeNoted();
  ++round_;
  // The list grows while it is read: children found on the way join its end or
  // take the place of a dead module, which may lie before this point.
  for (std::size_t i = 0; i < entries_.size(); ++i) {
    if (!entries_[i].reference) continue;
    const auto id = static_cast<ModuleId>(i);
    if (VerifyOne(id, deep || (i + round_) % kDeepRounds == 0)) ++changes;
  }
  bool again = true;
  while (again) {
    again = false;
    for (std::size_t i = 0; i < entries_.size(); ++i) {
      if (!entries_[i].reference || !entries_[i].signature.empty()) continue;
      again |= VerifyOne(static_cast<ModuleId>(i), true);
    }
  }
  return changes;
}

bool ModuleScanner::VerifyOne(ModuleId id, bool deep) {
  const py::object module = Referent(entry(id).reference);
  if (!module) return false;
  parts_.Clear();
  Collect(module.ptr(), &parts_);
  Sign(parts_);
  const bool same = !entry(id).touched && entry(id).signature == signature_;
  if (same && (!deep || DeepSignature(parts_) == entry(id).deep)) return false;
  // `describe` may run anything, so nothing below relies on parts_ or entry().
  Parts parts;
  std::swap(parts, parts_);
  std::vector<std::uint64_t> signature = signature_;
  std::vector<std::uint64_t> deep_signature = DeepSignature(parts);
  ModuleRecord record;
  for (const py::object& child : parts.children) {
    record.children.push_back(Register(child.ptr(), entry(id).seen));
  }
  for (const auto& [tensor, parameter] : parts.tensors) {
    Describe(tensor.ptr(), parameter, &record.tensors);
  }
  entry(id).signature = std::move(signature);
  entry(id).deep = std::move(deep_signature);
  entry(id).touched = false;
  return registry_.Update(id, std::move(record));
}

py::object ModuleScanner::Module(ModuleId id) const {
  if (!registry_.Contains(id)) return py::none();
  py::object module = Referent(entry(id).reference);
  if (!module) return py::none();
  return module;
}

}  // namespace distorch::bindings
