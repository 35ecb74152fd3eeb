// SPDX-License-Identifier: Apache-2.0
// How ModuleScanner reads one module: what it consists of (Collect), whether it
// is as it was (Sign), and what its tensors hold (Describe).
#include "bindings/module_scanner.h"

namespace distorch::bindings {
namespace {

namespace py = pybind11;

// Stands between the parts of a signature; no address has this value.
constexpr std::uint64_t kChildrenEnd = ~std::uint64_t{0};

constexpr std::size_t kLine = 64;  // bytes that the processor reads at once

std::uint64_t AddressOf(const PyObject* object) {
  return reinterpret_cast<std::uintptr_t>(object);
}

// Where a dictionary keeps what a walk over it reads.
void AddPlaces(PyObject* dictionary, std::vector<const void*>* places) {
  if (dictionary == nullptr) return;
  places->push_back(dictionary);
  if (PyDict_Size(dictionary) == 0) return;
  const auto* inside = reinterpret_cast<const PyDictObject*>(dictionary);
  for (const void* table : {static_cast<const void*>(inside->ma_keys),
                            static_cast<const void*>(inside->ma_values)}) {
    if (table == nullptr) continue;
    places->push_back(table);
    places->push_back(static_cast<const char*>(table) + kLine);
  }
}

// A field of what `describe` gave.
template <typename T>
T Field(const py::tuple& fields, std::size_t index) {
  return fields[index].cast<T>();
}

}  // namespace

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

void ModuleScanner::Collect(PyObject* module, Parts* parts) {
  const auto attributes = py::reinterpret_steal<py::object>(
      PyObject_GenericGetDict(module, nullptr));
  if (!attributes) throw py::error_already_set();
  PyObject* modules = DictionaryOf(attributes.ptr(), &modules_key_);
  PyObject* parameters = DictionaryOf(attributes.ptr(), &parameters_key_);
  PyObject* buffers = DictionaryOf(attributes.ptr(), &buffers_key_);
  if (modules == nullptr || parameters == nullptr || buffers == nullptr) {
    Expand(module, parts);
    return;
  }
  PyObject* key = nullptr;
  PyObject* value = nullptr;
  for (Py_ssize_t at = 0; PyDict_Next(modules, &at, &key, &value) != 0;) {
    if (value == Py_None || !IsModule(value)) continue;
    parts->children.push_back(py::reinterpret_borrow<py::object>(value));
  }
  CollectTensors(parameters, true, parts);
  CollectTensors(buffers, false, parts);
}

void ModuleScanner::CollectTensors(PyObject* dictionary, bool parameters,
                                   Parts* parts) {
  PyObject* key = nullptr;
  PyObject* value = nullptr;
  for (Py_ssize_t at = 0; PyDict_Next(dictionary, &at, &key, &value) != 0;) {
    if (value == Py_None) continue;
    parts->tensors.emplace_back(py::reinterpret_borrow<py::object>(value),
                                parameters);
  }
}

void ModuleScanner::Expand(PyObject* module, Parts* parts) {
  const auto found =
      expand_(py::reinterpret_borrow<py::object>(module)).cast<py::tuple>();
  for (const py::handle child : found[0]) {
    parts->children.push_back(py::reinterpret_borrow<py::object>(child));
  }
  for (const py::handle tensor : found[1]) {
    parts->tensors.emplace_back(py::reinterpret_borrow<py::object>(tensor),
                                true);
  }
  for (const py::handle tensor : found[2]) {
    parts->tensors.emplace_back(py::reinterpret_borrow<py::object>(tensor),
                                false);
  }
}

bool ModuleScanner::IsPlain(PyObject* tensor) const {
  for (const py::handle type : plain_types_) {
    if (type.ptr() == reinterpret_cast<PyObject*>(Py_TYPE(tensor))) return true;
  }
  return false;
}

bool ModuleScanner::Call(PyObject* tensor, const py::tuple& methods,
                         std::vector<std::uint64_t>* signature) {
  const std::size_t before = signature->size();
  for (const py::handle method : methods) {
    const auto value = py::reinterpret_steal<py::object>(
        PyObject_CallOneArg(method.ptr(), tensor));
    if (value && PyLong_Check(value.ptr())) {
      signature->push_back(PyLong_AsUnsignedLongLongMask(value.ptr()));
    }
    if (!value || PyErr_Occurred() != nullptr) {
      PyErr_Clear();
      signature->resize(before);
      return false;
    }
  }
  return true;
}

bool ModuleScanner::Unchanged(PyObject* module, const Entry& one, bool deep) {
  const auto attributes = py::reinterpret_steal<py::object>(
      PyObject_GenericGetDict(module, nullptr));
  if (!attributes) throw py::error_already_set();
  PyObject* modules = DictionaryOf(attributes.ptr(), &modules_key_);
  PyObject* parameters = DictionaryOf(attributes.ptr(), &parameters_key_);
  PyObject* buffers = DictionaryOf(attributes.ptr(), &buffers_key_);
  if (modules == nullptr || parameters == nullptr || buffers == nullptr) {
    Parts parts;
    Collect(module, &parts);
    return Signature(parts) == one.signature &&
           (!deep || DeepSignature(parts) == one.deep);
  }
  // The common case, without taking references: nothing here runs Python code.
  Expected expected{one.signature};
  if (!SameChildren(modules, &expected) || !expected.Is(kChildrenEnd) ||
      !SameTensors(parameters, true, &expected) ||
      !SameTensors(buffers, false, &expected) || !expected.AtEnd()) {
    return false;
  }
  return !deep || UnchangedDeep(module, parameters, buffers, one);
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

bool ModuleScanner::UnchangedDeep(PyObject* module, PyObject* parameters,
                                  PyObject* buffers, const Entry& one) {
  Expected expected{one.deep};
  for (PyObject* dictionary : {parameters, buffers}) {
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

std::vector<const void*> ModuleScanner::Places(PyObject* module,
                                               const Parts& parts) {
  const auto attributes = py::reinterpret_steal<py::object>(
      PyObject_GenericGetDict(module, nullptr));
  if (!attributes) throw py::error_already_set();
  std::vector<const void*> places;
  AddPlaces(attributes.ptr(), &places);
  for (Member* key : {&modules_key_, &parameters_key_, &buffers_key_}) {
    AddPlaces(DictionaryOf(attributes.ptr(), key), &places);
  }
  for (const auto& [tensor, parameter] : parts.tensors) {
    places.push_back(tensor.ptr());
  }
  places.shrink_to_fit();
  return places;
}

std::vector<std::uint64_t> ModuleScanner::Signature(const Parts& parts) {
  std::vector<std::uint64_t> signature;
  for (const py::object& child : parts.children) {
    signature.push_back(AddressOf(child.ptr()));
  }
  signature.push_back(kChildrenEnd);
  for (const auto& [tensor, parameter] : parts.tensors) {
    signature.push_back(AddressOf(tensor.ptr()) * 2 + (parameter ? 1 : 0));
    Call(tensor.ptr(), identity_, &signature);
  }
  return signature;
}

std::vector<std::uint64_t> ModuleScanner::DeepSignature(const Parts& parts) {
  std::vector<std::uint64_t> signature;
  for (const auto& [tensor, parameter] : parts.tensors) {
    Call(tensor.ptr(), deep_, &signature);
    if (IsPlain(tensor.ptr())) continue;
    // A wrapper has its memory in tensors that its own methods do not name.
    std::vector<TensorRecord> records;
    Describe(tensor.ptr(), parameter, &records);
    for (const TensorRecord& record : records) {
      signature.push_back(record.data);
      signature.push_back(static_cast<std::uint64_t>(record.bytes));
    }
  }
  return signature;
}

void ModuleScanner::Describe(PyObject* tensor, bool parameter,
                             std::vector<TensorRecord>* records) {
  const py::object found =
      describe_(py::reinterpret_borrow<py::object>(tensor));
  for (const py::handle one : found) {
    const auto fields = py::reinterpret_borrow<py::tuple>(one);
    records->push_back({.device = Intern(fields[0]),
                        .dtype = Intern(fields[1]),
                        .storage = Field<std::uint64_t>(fields, 2),
                        .data = Field<std::uint64_t>(fields, 3),
                        .bytes = Field<std::int64_t>(fields, 4),
                        .numel = Field<std::int64_t>(fields, 5),
                        .parameter = parameter});
  }
}

std::int32_t ModuleScanner::Intern(py::handle text) {
  const auto [at, fresh] = name_index_.try_emplace(
      text.cast<std::string>(), static_cast<std::int32_t>(names_.size()));
  if (fresh) names_.push_back(at->first);
  return at->second;
}

}  // namespace distorch::bindings
