// SPDX-License-Identifier: Apache-2.0
// What a step teaches, and the choice between streaming and migrating.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <pybind11/typing.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "allocation/mode_choice.h"
#include "bindings/bindings.h"
#include "bindings/names.h"
#include "bindings/status.h"
#include "distorch/execution/mode_decision.h"
#include "distorch/execution/step_profile.h"
#include "distorch/transfer/router.h"

namespace distorch::bindings {
namespace {

namespace py = pybind11;

// name, donor, bytes of its weights there
using GroupRow = std::tuple<std::string, std::string, std::int64_t>;
// device, GB/s, what the vendor calls it, wanted mode
using DonorRow = std::tuple<std::string, double, std::string, std::string>;

ExecutionMode ModeOf(const std::string& name) {
  if (name == "auto") return ExecutionMode::kAuto;
  if (name == "stream") return ExecutionMode::kStream;
  if (name == "migrate") return ExecutionMode::kMigrate;
  throw py::value_error("mode must be auto, stream or migrate, not '" + name +
                        "'");
}

// A profile with the entry points that must outlive it. The lock is released
// while CUDA is called.
class PythonProfile {
 public:
  // None: nothing is timed by CUDA's events.
  explicit PythonProfile(std::optional<std::shared_ptr<Router>> router)
      : router_(std::move(router).value_or(nullptr)),
        profile_(router_ == nullptr ? nullptr : &router_->cuda()) {}

  bool BeginStep() {
    Check([&] {
      const py::gil_scoped_release release;
      return profile_.BeginStep();
    }());
    return profile_.active();
  }
  void Enter(const std::string& name, std::int64_t input_bytes, int device,
             std::uintptr_t stream, bool elsewhere) {
    const StepProfile::Call call{
        input_bytes, {device, Pointer(stream)}, elsewhere};
    Check([&] {
      const py::gil_scoped_release release;
      return profile_.Enter(name, call);
    }());
  }
  void Leave(const std::string& name, std::int64_t output_bytes) {
    Check([&] {
      const py::gil_scoped_release release;
      return profile_.Leave(name, output_bytes);
    }());
  }
  void Forget() { profile_.Forget(); }

  const StepProfile& profile() const { return profile_; }
  bool complete() const { return profile_.complete(); }
  double StepSeconds() const { return profile_.step_seconds(); }
  std::vector<std::string> Often() const { return profile_.Often(); }
  py::typing::Dict<py::str, double> GroupSeconds() const {
    py::typing::Dict<py::str, double> seconds;
    for (const auto& [name, each] : profile_.GroupSeconds()) {
      seconds[py::str(name)] = each;
    }
    return seconds;
  }
  std::vector<GroupProfile> Groups() const {
    return {profile_.groups().begin(), profile_.groups().end()};
  }

 private:
  std::shared_ptr<Router> router_;
  StepProfile profile_;
};

ModeChoice DecideShim(const PythonProfile& profile,
                      const std::vector<GroupRow>& groups,
                      const std::vector<DonorRow>& donors,
                      const std::string& compute, const std::string& model,
                      int slots) {
  std::vector<StoredGroup> stored;
  for (const auto& [name, donor, bytes] : groups) {
    stored.push_back({name, DeviceFrom(donor), bytes});
  }
  std::vector<DonorFacts> facts;
  for (const auto& [device, gbps, called, wanted] : donors) {
    facts.push_back({DeviceFrom(device), gbps, called, ModeOf(wanted)});
  }
  return DecideModes(profile.profile(), stored, facts,
                     {DeviceFrom(compute), slots, model});
}

py::typing::Dict<py::str, py::str> Modes(const ModeChoice& choice) {
  py::typing::Dict<py::str, py::str> modes;
  for (const DonorChoice& donor : choice.donors) {
    modes[py::str(donor.device.ToString())] = std::string(ModeName(donor.mode));
  }
  return modes;
}

py::typing::Tuple<py::str, py::ellipsis> Lines(const ModeChoice& choice) {
  py::list lines;
  for (const DonorChoice& donor : choice.donors) lines.append(donor.reason);
  return py::tuple(lines);
}

}  // namespace

void BindModes(py::module_& module) {
  py::class_<ModeChoice>(module, "ModeChoice",
                         "How each donor is used, and what a step then takes.")
      .def_property_readonly("modes", &Modes, "'stream' or 'migrate' by donor.")
      .def_property_readonly("lines", &Lines, "A reason for each donor.")
      .def_readonly("step_seconds", &ModeChoice::step_seconds,
                    "Predicted; 0.0 where a donor's link is not known.")
      .def_readonly("compute_seconds", &ModeChoice::compute_seconds,
                    "Of a step, what computing takes alone.");
  py::class_<GroupProfile>(module, "GroupProfile")
      .def_readonly("name", &GroupProfile::name)
      .def_readonly("seconds", &GroupProfile::seconds)
      .def_readonly("input_bytes", &GroupProfile::input_bytes)
      .def_readonly("output_bytes", &GroupProfile::output_bytes)
      .def_readonly("calls", &GroupProfile::calls)
      .def_readonly("visits", &GroupProfile::visits)
      .def_readonly("elsewhere", &GroupProfile::elsewhere);
  py::class_<PythonProfile>(module, "StepProfile",
                            "What the first steps teach of layer groups.")
      .def(py::init<std::optional<std::shared_ptr<Router>>>(),
           py::arg("router") = py::none())
      .def("begin_step", &PythonProfile::BeginStep,
           "A step begins; returns whether it is measured.")
      .def("forget", &PythonProfile::Forget)
      .def("enter", &PythonProfile::Enter, py::arg("name"),
           py::arg("input_bytes"), py::arg("device") = kHost,
           py::arg("stream") = 0, py::arg("elsewhere") = false)
      .def("leave", &PythonProfile::Leave, py::arg("name"),
           py::arg("output_bytes"))
      .def_property_readonly("complete", &PythonProfile::complete)
      .def_property_readonly("groups", &PythonProfile::Groups)
      .def_property_readonly("step_seconds", &PythonProfile::StepSeconds)
      .def_property_readonly("group_seconds", &PythonProfile::GroupSeconds)
      .def_property_readonly("often", &PythonProfile::Often);
  module.def("decide_modes", &DecideShim, py::arg("profile"), py::arg("groups"),
             py::arg("donors"), py::arg("compute"), py::arg("model"),
             py::arg("slots"),
             "Groups are (name, donor, bytes), donors (device, GB/s, what the "
             "vendor calls it, wanted mode).");
}

}  // namespace distorch::bindings
