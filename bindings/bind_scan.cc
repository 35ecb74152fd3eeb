// SPDX-License-Identifier: Apache-2.0
#include <pybind11/stl.h>
#include <pybind11/typing.h>

#include <memory>
#include <string>
#include <vector>

#include "bindings/bindings.h"
#include "bindings/module_scanner.h"
#include "distorch/telemetry/grouping.h"

namespace distorch::bindings {
namespace {

namespace py = pybind11;
using ScannerPtr = std::shared_ptr<ModuleScanner>;

// torch calls a registration hook with (module, name, value) for each member a
// module gets; through a plain C function that costs no more than the call.
PyObject* HookShim(PyObject* capsule, PyObject* const* args, Py_ssize_t count) {
  auto* scanner = static_cast<ScannerPtr*>(
      PyCapsule_GetPointer(capsule, "distorch.ModuleScanner"));
  if (scanner != nullptr && count > 0) (*scanner)->Note(args[0]);
  Py_RETURN_NONE;
}

PyMethodDef hook_method = {
    "note_registration",
    // The documented cast: the flag tells Python which signature this has.
    reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(HookShim)),
    METH_FASTCALL, "Remembers the module that registered something."};

// gc.get_objects() also lists tuples that another thread is still filling, and
// resizing one of those fails as long as somebody else refers to it (`tuple(x
// for x in y)` then raises SystemError). So no other thread may run while the
// list lives: no Python code is evaluated here and no collection may start one.
std::size_t WalkEverythingShim(ModuleScanner& scanner) {
  struct WithoutCollection {
    const int enabled = PyGC_Disable();
    ~WithoutCollection() {
      if (enabled != 0) PyGC_Enable();
    }
  } const guard;
  const py::list objects = py::module_::import("gc").attr("get_objects")();
  return scanner.Walk(objects);
}

py::function MakeHookShim(const ScannerPtr& scanner) {
  const py::capsule capsule(
      new ScannerPtr(scanner), "distorch.ModuleScanner", [](PyObject* object) {
        delete static_cast<ScannerPtr*>(
            PyCapsule_GetPointer(object, "distorch.ModuleScanner"));
      });
  return py::reinterpret_steal<py::function>(
      PyCFunction_NewEx(&hook_method, capsule.ptr(), nullptr));
}

using BytesByDevice = py::typing::Dict<py::str, std::int64_t>;
// id, serial, seen, layers, modules, parameters, dtype, bytes, shared bytes,
// ids it shares with
using ModelRow =
    py::typing::Tuple<std::int64_t, std::int64_t, double, int, int,
                      std::int64_t, py::str, BytesByDevice, BytesByDevice,
                      py::typing::List<std::int64_t>>;

BytesByDevice BytesShim(
    const ModuleScanner& scanner,
    const std::vector<std::pair<std::int32_t, std::int64_t>>& bytes) {
  BytesByDevice result;
  for (const auto& [device, amount] : bytes) {
    if (amount != 0) result[py::str(scanner.name(device))] = amount;
  }
  return result;
}

py::typing::List<ModelRow> ModelsShim(ModuleScanner& scanner) {
  py::typing::List<ModelRow> result;
  for (const ModelTotals& model : scanner.scan().Models()) {
    const std::string dtype = model.dtype < 0 ? "" : scanner.name(model.dtype);
    result.append(py::make_tuple(
        model.root, scanner.registry().serial(model.root),
        scanner.Seen(model.root), model.layers, model.modules, model.parameters,
        dtype, BytesShim(scanner, model.bytes),
        BytesShim(scanner, model.shared_bytes), model.shares_with));
  }
  return result;
}

py::object ModuleBySerialShim(ModuleScanner& scanner, std::int64_t serial) {
  return scanner.Module(scanner.RootOfSerial(serial));
}

}  // namespace

void BindScan(py::module_& module) {
  py::class_<ModuleScanner, ScannerPtr>(
      module, "ModuleScanner",
      "Weak registry of the live modules and their memory; not thread-safe "
      "except for hook().")
      .def(py::init<py::object, py::tuple, py::tuple, py::tuple, py::object,
                    py::object>(),
           py::arg("module_type"), py::arg("plain_types"), py::arg("identity"),
           py::arg("deep"), py::arg("describe"), py::arg("expand"))
      .def("hook", &MakeHookShim,
           "A function for torch's global registration hooks.")
      .def(
          "add",
          [](ModuleScanner& self, const py::object& added) {
            return self.Add(added.ptr());
          },
          py::arg("module"), "Whether the module was unknown until now.")
      .def("walk_everything", &WalkEverythingShim,
           "Adds the modules among all objects of the garbage collector.")
      .def("verify", &ModuleScanner::Verify, py::arg("deep") = false,
           "Compares all modules with what is known; returns the differences.")
      .def("models", &ModelsShim,
           "(id, serial, seen, layers, modules, parameters, dtype, bytes, "
           "shared bytes, ids it shares with) for each model, oldest first.")
      .def_property_readonly(
          "generation",
          [](ModuleScanner& self) {
            self.scan().Models();
            return self.scan().generation();
          },
          "Changes whenever models() does.")
      .def(
          "seen",
          [](const ModuleScanner& self, const py::object& seen) {
            return self.SeenOf(seen.ptr());
          },
          py::arg("module"),
          "When the module was first seen, in seconds since 1970; 0: never.")
      .def("module_by_serial", &ModuleBySerialShim, py::arg("serial"),
           "The model with this serial as models() gave it, or None.")
      .def("module", &ModuleScanner::Module, py::arg("id"),
           "The module, or None when it died.")
      .def("__len__",
           [](const ModuleScanner& self) { return self.registry().size(); });
  module.def("classify_model", &ClassifyModel, py::arg("classes"),
             py::arg("file"), "The kind of model (see grouping.h).");
  module.def("display_model", &DisplayModel, py::arg("name"), py::arg("type"),
             py::arg("bytes"), py::arg("layers"),
             "'NAME (TYPE, SIZE, N layers)'.");
}

}  // namespace distorch::bindings
