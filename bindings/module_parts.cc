// SPDX-License-Identifier: Apache-2.0
// How ModuleScanner reads one module: what it consists of (Collect), what tells
// it from what it was (Signature), and what its tensors hold (Describe).
#include "bindings/module_scanner.h"

namespace distorch::bindings {
namespace {

namespace py = pybind11;

// A field of what `describe` gave.
template <typename T>
T Field(const py::tuple& fields, std::size_t index) {
  return fields[index].cast<T>();
}

}  // namespace

void ModuleScanner::Collect(PyObject* module, Parts* parts) {
  const auto [modules, parameters, buffers] = Look(module, {}).members;
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
