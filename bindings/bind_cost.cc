// SPDX-License-Identifier: Apache-2.0
// Step times and the choice between streaming and migrating.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "allocation/cost_model.h"
#include "allocation/mode_choice.h"
#include "bindings/bindings.h"

namespace distorch::bindings {
namespace {

namespace py = pybind11;

// device, bytes, groups, bytes a second, crossing bytes, can migrate, wanted
using Row =
    std::tuple<std::string, double, int, double, double, bool, std::string>;

ExecutionMode ModeOf(const std::string& name) {
  if (name == "auto") return ExecutionMode::kAuto;
  if (name == "stream") return ExecutionMode::kStream;
  if (name == "migrate") return ExecutionMode::kMigrate;
  throw py::value_error("mode must be auto, stream or migrate, not '" + name +
                        "'");
}

DonorLoad LoadOf(const Row& row) {
  const auto& [device, bytes, groups, rate, crossing, can, wanted] = row;
  if (groups < 1) throw py::value_error(device + " stores no layer group");
  const std::optional<DeviceId> id = DeviceId::FromString(device);
  if (!id) throw py::value_error("'" + device + "' is not a device");
  DonorLoad load;
  load.device = *id;
  load.bytes = bytes;
  load.groups = groups;
  load.bytes_per_second = rate;
  load.crossing_bytes = crossing;
  load.can_migrate = can;
  load.wanted = ModeOf(wanted);
  return load;
}

py::tuple ChooseShim(double compute_seconds, int groups, int slots,
                     const std::vector<Row>& rows) {
  std::vector<DonorLoad> donors;
  for (const Row& row : rows) donors.push_back(LoadOf(row));
  const ModeChoice choice = ChooseModes(
      {.compute_seconds = compute_seconds, .groups = groups, .slots = slots},
      donors);
  py::list chosen;
  for (const DonorChoice& donor : choice.donors) {
    chosen.append(py::make_tuple(std::string(ModeName(donor.mode)),
                                 donor.stream_seconds, donor.migrate_seconds,
                                 donor.reason));
  }
  return py::make_tuple(choice.step_seconds, chosen);
}

double PredictShim(double compute_seconds, int groups, int slots, bool strided,
                   const std::vector<std::tuple<double, double, int>>& rows) {
  std::vector<StreamSource> sources;
  for (const auto& [bytes, rate, count] : rows) {
    if (rate <= 0 || count < 1) {
      throw py::value_error("a source needs a link and a layer group");
    }
    sources.push_back(
        {.bytes = bytes, .bytes_per_second = rate, .groups = count});
  }
  return PredictStep(
      {.compute_seconds = compute_seconds,
       .groups = groups,
       .slots = slots,
       .pattern = strided ? StreamPattern::kStrided : StreamPattern::kTail},
      sources);
}

}  // namespace

void BindCost(py::module_& module) {
  module.def("choose_modes", &ChooseShim, py::arg("compute_seconds"),
             py::arg("groups"), py::arg("slots"), py::arg("donors"),
             "(seconds of a step, [(mode, seconds streamed, seconds migrated, "
             "reason)]); donors are (device, bytes, groups, bytes a second, "
             "crossing bytes, can migrate, wanted).");
  module.def("predict_step", &PredictShim, py::arg("compute_seconds"),
             py::arg("groups"), py::arg("slots"), py::arg("strided"),
             py::arg("sources"),
             "Seconds of a step; sources are (bytes, bytes a second, groups).");
}

}  // namespace distorch::bindings
