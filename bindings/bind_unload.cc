// SPDX-License-Identifier: Apache-2.0
// distorch/unload for Python: plain data in, plain data out.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <map>
#include <string>
#include <tuple>
#include <vector>

#include "bindings/bindings.h"
#include "distorch/unload/eject_policy.h"

namespace distorch::bindings {
namespace {

namespace py = pybind11;
using ByteMap = std::map<std::string, std::int64_t>;
// (id, name, eject, bytes by device)
using State = std::tuple<std::int64_t, std::string, bool, ByteMap>;

DeviceBytes ToBytes(const ByteMap& map) {
  DeviceBytes bytes;
  for (const auto& [device, count] : map) bytes.emplace(device, Bytes(count));
  return bytes;
}

std::vector<ManagedState> ToStates(const std::vector<State>& states) {
  std::vector<ManagedState> models;
  for (const auto& [id, name, eject, bytes] : states) {
    models.push_back({id, name, eject, ToBytes(bytes)});
  }
  return models;
}

py::dict ReportShim(const std::vector<State>& states,
                    const std::vector<std::int64_t>& ejected,
                    const ByteMap& before, const ByteMap& after) {
  const EjectReport report = MakeEjectReport(ToStates(states), ejected,
                                             ToBytes(before), ToBytes(after));
  py::list devices;
  for (const DeviceReport& device : report.devices) {
    py::dict row;
    row["device"] = device.device;
    row["before"] = device.before.value();
    row["after"] = device.after.value();
    row["freed"] = device.freed.value();
    row["holders"] = device.holders;
    devices.append(row);
  }
  py::dict result;
  result["ejected"] = report.ejected;
  result["kept"] = report.kept;
  result["devices"] = devices;
  return result;
}

}  // namespace

void BindUnload(py::module_& module) {
  module.def(
      "choose_ejected",
      [](const std::vector<State>& states) {
        return ChooseEjected(ToStates(states));
      },
      py::arg("states"));
  module.def("eject_report", &ReportShim, py::arg("states"), py::arg("ejected"),
             py::arg("before"), py::arg("after"));
}

}  // namespace distorch::bindings
