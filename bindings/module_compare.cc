// SPDX-License-Identifier: Apache-2.0
// Whether a module is as ModuleScanner has seen it last, at little cost.
#include "bindings/module_scanner.h"

namespace distorch::bindings {
namespace {

namespace py = pybind11;

// PEP 509: a number that no other dictionary and no other contents have. Python
// 3.13 no longer counts what `object.name = value` writes, and later ones count
// nothing; without the interpreter's lock nothing may be read here at all.
#if defined(Py_GIL_DISABLED) || PY_VERSION_HEX >= 0x030E0000
constexpr bool kMembersCounted = false;
std::uint64_t VersionOf(PyObject*) { return 0; }
#else
constexpr bool kMembersCounted = true;
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wdeprecated-declarations"
std::uint64_t VersionOf(PyObject* dictionary) {
  return reinterpret_cast<PyDictObject*>(dictionary)->ma_version_tag;
}
#pragma GCC diagnostic pop
#endif
constexpr bool kAttributesCounted =
    kMembersCounted && PY_VERSION_HEX < 0x030D0000;

}  // namespace

ModuleScanner::Watched ModuleScanner::Look(PyObject* module,
                                           const Watched& known) {
  const auto attributes = py::reinterpret_steal<py::object>(
      PyObject_GenericGetDict(module, nullptr));
  if (!attributes) throw py::error_already_set();
  Watched found;
  found.attributes = attributes.ptr();
  found.attributes_version = VersionOf(attributes.ptr());
  const bool same = kAttributesCounted &&
                    known.attributes == found.attributes &&
                    known.attributes_version == found.attributes_version;
  if (same) {
    found.members = known.members;
  } else {
    found.members = {DictionaryOf(attributes.ptr(), &modules_key_),
                     DictionaryOf(attributes.ptr(), &parameters_key_),
                     DictionaryOf(attributes.ptr(), &buffers_key_)};
  }
  for (std::size_t i = 0; i < found.members.size(); ++i) {
    PyObject* member = found.members[i];
    if (member != nullptr) found.versions[i] = VersionOf(member);
  }
  return found;
}

PyObject* ModuleScanner::DictionaryOf(PyObject* attributes, Member* member) {
  PyObject* key = nullptr;
  PyObject* found = nullptr;
  Py_ssize_t at = member->hint;
  if (PyDict_Next(attributes, &at, &key, &found) == 0 ||
      key != member->name.ptr()) {
    found = PyDict_GetItemWithError(attributes, member->name.ptr());
    if (found == nullptr && PyErr_Occurred() != nullptr) {
      throw py::error_already_set();
    }
    if (found != nullptr && !member->hinted) FindHint(attributes, member);
  }
  return found != nullptr && PyDict_Check(found) ? found : nullptr;
}

void ModuleScanner::FindHint(PyObject* attributes, Member* member) {
  PyObject* key = nullptr;
  Py_ssize_t before = 0;
  for (Py_ssize_t at = 0; PyDict_Next(attributes, &at, &key, nullptr) != 0;) {
    if (key == member->name.ptr()) member->hint = before;
    before = at;
  }
  member->hinted = true;
}

void ModuleScanner::Entry::Prefetch(std::size_t stride) const {
  __builtin_prefetch(reference.ptr());
  __builtin_prefetch(address);
  __builtin_prefetch(watched.attributes);
  for (const PyObject* member : watched.members) __builtin_prefetch(member);
  for (std::size_t at = 0; at < memory.size(); at += stride) {
    __builtin_prefetch(reinterpret_cast<const void*>(memory[at]));
  }
}

bool ModuleScanner::Unchanged(PyObject* module, Entry* one, bool deep) {
  const Watched found = Look(module, one->watched);
  if (one->watched.attributes != nullptr &&
      found.members == one->watched.members &&
      found.versions == one->watched.versions) {
    one->watched = found;
    return SameMemory(one->memory) &&
           (!deep || UnchangedDeep(module, found, *one));
  }
  if (!UnchangedParts(module, found, *one, deep)) return false;
  if (one->watched.attributes != nullptr) one->watched = found;
  return true;
}

bool ModuleScanner::UnchangedParts(PyObject* module, const Watched& found,
                                   const Entry& one, bool deep) {
  const auto [modules, parameters, buffers] = found.members;
  if (modules == nullptr || parameters == nullptr || buffers == nullptr) {
    Parts parts;
    Collect(module, &parts);
    return Signature(parts) == one.signature &&
           (!deep || DeepSignature(parts) == one.deep);
  }
  // Without taking references: nothing here runs Python code.
  Expected expected{one.signature};
  if (!SameChildren(modules, &expected) || !expected.Is(kChildrenEnd) ||
      !SameTensors(parameters, true, &expected) ||
      !SameTensors(buffers, false, &expected) || !expected.AtEnd()) {
    return false;
  }
  return !deep || UnchangedDeep(module, found, one);
}

bool ModuleScanner::UnchangedDeep(PyObject* module, const Watched& found,
                                  const Entry& one) {
  Expected expected{one.deep};
  for (PyObject* dictionary : {found.members[1], found.members[2]}) {
    PyObject* key = nullptr;
    PyObject* value = nullptr;
    for (Py_ssize_t at = 0; PyDict_Next(dictionary, &at, &key, &value) != 0;) {
      if (value == Py_None) continue;
      if (!IsPlain(value)) {  // describing it runs Python code
        Parts parts;
        Collect(module, &parts);
        return DeepSignature(parts) == one.deep;
      }
      if (!SameCalls(value, deep_, &expected)) return false;
    }
  }
  return expected.AtEnd();
}

bool ModuleScanner::SameChildren(PyObject* modules, Expected* expected) const {
  PyObject* key = nullptr;
  PyObject* value = nullptr;
  for (Py_ssize_t at = 0; PyDict_Next(modules, &at, &key, &value) != 0;) {
    // A known address is a known module: had that one died, its weak reference
    // would say so.
    if (expected->Is(AddressOf(value))) continue;
    if (value != Py_None && IsModule(value)) return false;
  }
  return true;
}

bool ModuleScanner::SameTensors(PyObject* dictionary, bool parameters,
                                Expected* expected) {
  PyObject* key = nullptr;
  PyObject* value = nullptr;
  for (Py_ssize_t at = 0; PyDict_Next(dictionary, &at, &key, &value) != 0;) {
    if (value == Py_None) continue;
    if (!expected->Is(AddressOf(value) * 2 + (parameters ? 1 : 0))) {
      return false;
    }
    if (!SameCalls(value, identity_, expected)) return false;
  }
  return true;
}

bool ModuleScanner::SameCalls(PyObject* tensor, const py::tuple& methods,
                              Expected* expected) {
  called_.clear();
  Call(tensor, methods, &called_);
  for (const std::uint64_t value : called_) {
    if (!expected->Is(value)) return false;
  }
  return true;
}

bool ModuleScanner::Remember(const Watched& watched, const Parts& parts,
                             std::vector<std::uint64_t>* memory) {
  if (!kMembersCounted) return false;
  for (const PyObject* member : watched.members) {
    if (member == nullptr) return false;
  }
  for (const auto& [tensor, parameter] : parts.tensors) {
    memory->push_back(AddressOf(tensor.ptr()));
    if (!IsPlain(tensor.ptr()) || !Call(tensor.ptr(), identity_, memory)) {
      memory->clear();
      return false;
    }
  }
  memory->shrink_to_fit();
  return true;
}

bool ModuleScanner::SameMemory(const std::vector<std::uint64_t>& memory) {
  for (std::size_t at = 0; at < memory.size();) {
    auto* tensor = reinterpret_cast<PyObject*>(memory[at++]);
    called_.clear();
    if (!Call(tensor, identity_, &called_)) return false;
    for (const std::uint64_t value : called_) {
      if (memory[at++] != value) return false;
    }
  }
  return true;
}

}  // namespace distorch::bindings
