// SPDX-License-Identifier: Apache-2.0
// distorch/unload for Python: models and allocators are Python objects that
// answer by the methods of the C++ interfaces in lower case. All calls are made
// with the interpreter's lock held, by the thread that called.
#include <pybind11/functional.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <pybind11/typing.h>

#include <cstdint>
#include <exception>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "bindings/bindings.h"
#include "distorch/unload/cache_clearer.h"
#include "distorch/unload/managed_models.h"

namespace distorch::bindings {
namespace {

namespace py = pybind11;
using ByteMap = std::map<std::string, std::int64_t>;
using Names = std::vector<std::string>;

DeviceBytes ToBytes(const ByteMap& map) {
  DeviceBytes bytes;
  for (const auto& [device, count] : map) bytes.emplace(device, Bytes(count));
  return bytes;
}

ByteMap FromBytes(const DeviceBytes& bytes) {
  ByteMap map;
  for (const auto& [device, count] : bytes) map.emplace(device, count.value());
  return map;
}

// An interrupt (no `Exception`) has to wait until models are whole: the last
// one is raised when C++ has done the rest.
class Interrupts {
 public:
  template <typename Function>
  absl::Status Call(Function function) {
    try {
      function();
      return absl::OkStatus();
    } catch (py::error_already_set& error) {
      if (!error.matches(PyExc_Exception)) held_ = std::current_exception();
      return absl::InternalError(py::str(error.value()).cast<std::string>());
    }
  }
  void Rethrow() {
    if (auto error = std::exchange(held_, nullptr)) {
      std::rethrow_exception(error);
    }
  }

 private:
  std::exception_ptr held_;
};

// What an answer that raises is worth: `otherwise`, and a warning in the log.
// An exception would leave C++ in the middle of an unload.
template <typename Answer, typename Function>
Answer Ask(Function function, Answer otherwise) {
  try {
    return function().template cast<Answer>();
  } catch (py::error_already_set& error) {
    py::module_::import("distorch.printable")
        .attr("logger")("distorch")
        .attr("warning")("a model or device could not be asked: %s",
                         error.value(), py::arg("exc_info") = error.value());
    return otherwise;
  }
}

class PythonModel : public ManagedModel {
 public:
  PythonModel(py::object model, std::shared_ptr<Interrupts> interrupts)
      : model_(std::move(model)), interrupts_(std::move(interrupts)) {}

  std::string Name() const override {
    return Ask<std::string>([&] { return model_.attr("name")(); }, "a model");
  }
  bool Loaded() const override {
    return Ask<bool>([&] { return model_.attr("loaded")(); }, false);
  }
  bool Flagged() const override {
    return Ask<bool>([&] { return model_.attr("flagged")(); }, false);
  }
  bool Kept() const override {
    return Ask<bool>([&] { return model_.attr("kept")(); }, false);
  }
  DeviceBytes Holds() const override {
    return ToBytes(
        Ask<ByteMap>([&] { return model_.attr("holds")(); }, ByteMap()));
  }
  absl::Status Unload(const std::string& device) override {
    return interrupts_->Call([&] { model_.attr("unload")(device); });
  }
  void LetGo() override {
    (void)interrupts_->Call([&] { model_.attr("let_go")(); });
  }

 private:
  py::object model_;
  std::shared_ptr<Interrupts> interrupts_;
};

class PythonMemory : public DeviceMemory {
 public:
  PythonMemory(py::function in_use, py::function clear, Interrupts& interrupts)
      : in_use_(std::move(in_use)),
        clear_(std::move(clear)),
        interrupts_(interrupts) {}

  DeviceBytes InUse(const Names& devices) override {
    return ToBytes(Ask<ByteMap>([&] { return in_use_(devices); }, ByteMap()));
  }
  absl::Status Clear(const Names& devices) override {
    return interrupts_.Call([&] { clear_(devices); });
  }

 private:
  py::function in_use_;
  py::function clear_;
  Interrupts& interrupts_;
};

class PythonManagedModels {
 public:
  PythonManagedModels(py::function in_use, py::function clear)
      : memory_(std::move(in_use), std::move(clear), *interrupts_),
        models_(&memory_) {}

  ModelHandle Add(py::object model) {
    return models_.Add(
        std::make_shared<PythonModel>(std::move(model), interrupts_));
  }
  bool Remove(ModelHandle handle) { return models_.Remove(handle); }
  std::vector<ModelHandle> Handles() const { return models_.handles(); }
  UnloadReport Unload(const std::string& of, std::vector<ModelHandle> handles,
                      const std::string& device, bool let_go) {
    Selection selection = {.of = Selection::Of::kFlagged,
                           .handles = std::move(handles),
                           .device = device,
                           .let_go = let_go};
    if (of == "these") {
      selection.of = Selection::Of::kThese;
    } else if (of == "all but") {
      selection.of = Selection::Of::kAllBut;
    } else if (of != "flagged") {
      throw py::value_error("of is \"flagged\", \"these\" or \"all but\"");
    }
    UnloadReport report = models_.Unload(selection);
    interrupts_->Rethrow();
    return report;
  }

 private:
  std::shared_ptr<Interrupts> interrupts_ = std::make_shared<Interrupts>();
  PythonMemory memory_;
  ManagedModels models_;
};

class PythonCaches : public AllocatorCaches {
 public:
  PythonCaches(py::function in_use, py::function look, py::function empty)
      : in_use_(std::move(in_use)),
        look_(std::move(look)),
        empty_(std::move(empty)) {}

  Names InUse() override { return in_use_().cast<Names>(); }
  std::optional<AllocatorState> Look(const std::string& device) override {
    const py::object state = look_(device);
    if (state.is_none()) return std::nullopt;
    const auto [reserved, allocated] =
        state.cast<std::pair<std::int64_t, std::int64_t>>();
    return AllocatorState{Bytes(reserved), Bytes(allocated)};
  }
  absl::Status Empty(const Names& devices) override {
    return interrupts_.Call([&] { empty_(devices); });
  }
  void Rethrow() { interrupts_.Rethrow(); }

 private:
  py::function in_use_;
  py::function look_;
  py::function empty_;
  Interrupts interrupts_;
};

class PythonClearer {
 public:
  PythonClearer(py::function in_use, py::function look, py::function empty)
      : caches_(std::move(in_use), std::move(look), std::move(empty)),
        clearer_(&caches_) {}

  CacheReport Clear(const std::optional<Names>& devices, bool changed) {
    CacheReport report = clearer_.Clear(
        changed ? CacheClearer::Which::kChanged : CacheClearer::Which::kAll,
        devices);
    caches_.Rethrow();
    return report;
  }

 private:
  PythonCaches caches_;
  CacheClearer clearer_;
};

void BindReports(py::module_& module) {
  py::class_<UnloadedModel>(module, "UnloadedModel")
      .def_readonly("name", &UnloadedModel::name)
      .def_readonly("devices", &UnloadedModel::devices);
  py::class_<StayingModel>(module, "StayingModel")
      .def_readonly("name", &StayingModel::name)
      .def_readonly("loaded", &StayingModel::loaded)
      .def_readonly("kept", &StayingModel::kept);
  py::class_<DeviceReport>(module, "DeviceReport")
      .def_readonly("device", &DeviceReport::device)
      .def_property_readonly(
          "before", [](const DeviceReport& d) { return d.before.value(); })
      .def_property_readonly(
          "after", [](const DeviceReport& d) { return d.after.value(); })
      .def_property_readonly(
          "freed", [](const DeviceReport& d) { return d.freed.value(); })
      .def_readonly("holders", &DeviceReport::holders);
  py::class_<UnloadReport>(module, "UnloadReport")
      .def_readonly("unloaded", &UnloadReport::unloaded)
      .def_readonly("stay", &UnloadReport::stay)
      .def_readonly("devices", &UnloadReport::devices)
      .def_readonly("failures", &UnloadReport::failures)
      .def("__str__", &FormatReport);
  py::class_<CacheReport>(module, "CacheReport")
      .def_property_readonly(
          "before", [](const CacheReport& r) { return FromBytes(r.before); })
      .def_property_readonly(
          "after", [](const CacheReport& r) { return FromBytes(r.after); })
      .def_property_readonly("freed",
                             [](const CacheReport& r) {
                               return FromBytes(FreedBytes(r.before, r.after));
                             })
      .def_readonly("failures", &CacheReport::failures);
}

}  // namespace

void BindUnload(py::module_& module) {
  BindReports(module);
  py::class_<PythonManagedModels>(module, "ManagedModels")
      .def(py::init<
               py::typing::Callable<py::typing::Dict<py::str, std::int64_t>(
                   py::typing::List<py::str>)>,
               py::typing::Callable<py::object(py::typing::List<py::str>)>>(),
           py::arg("in_use"), py::arg("clear"))
      .def("add", &PythonManagedModels::Add, py::arg("model"))
      .def("remove", &PythonManagedModels::Remove, py::arg("handle"))
      .def_property_readonly("handles", &PythonManagedModels::Handles)
      .def("unload", &PythonManagedModels::Unload, py::arg("of"),
           py::arg("handles") = py::tuple(), py::arg("device") = "",
           py::arg("let_go") = false);
  py::class_<PythonClearer>(module, "CacheClearer")
      .def(py::init<
               py::typing::Callable<py::typing::List<py::str>()>,
               py::typing::Callable<py::typing::Optional<
                   py::typing::Tuple<std::int64_t, std::int64_t>>(py::str)>,
               py::typing::Callable<py::object(py::typing::List<py::str>)>>(),
           py::arg("in_use"), py::arg("look"), py::arg("empty"))
      .def("clear", &PythonClearer::Clear, py::arg("devices") = py::none(),
           py::arg("changed") = false);
  module.def(
      "freed_bytes",
      [](const ByteMap& before, const ByteMap& after) {
        return FromBytes(FreedBytes(ToBytes(before), ToBytes(after)));
      },
      py::arg("before"), py::arg("after"));
}

}  // namespace distorch::bindings
