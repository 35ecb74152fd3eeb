// SPDX-License-Identifier: Apache-2.0
// distorch/device for Python. The lock is released around calls that read
// files or ask the driver.
#ifdef _WIN32
#include <windows.h>
#endif
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <pybind11/typing.h>

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "bindings/bindings.h"
#include "distorch/device/host_memory.h"
#include "distorch/device/nvml.h"

namespace distorch::bindings {
namespace {

namespace py = pybind11;

std::pair<std::int64_t, std::int64_t> HostMemoryShim() {
  HostMemory memory;
  {
    const py::gil_scoped_release release;
    memory = ReadHostMemory();
  }
  return {memory.total, memory.available};
}

// (devices, driver version, reason why there are none)
std::tuple<std::vector<NvmlDevice>, std::string, std::string> NvmlShim() {
  std::vector<NvmlDevice> devices;
  std::string driver;
  std::string reason;
  {
    const py::gil_scoped_release release;
    const auto nvml = Nvml::Shared();
    if (nvml.ok()) {
      driver = (*nvml)->DriverVersion();
      auto found = (*nvml)->Devices();
      if (found.ok()) {
        devices = *std::move(found);
      } else {
        reason = std::string(found.status().message());
      }
    } else {
      reason = std::string(nvml.status().message());
    }
  }
  return {std::move(devices), driver, reason};
}

// {name: value or None} of a card or slice; empty where NVML knows none.
py::typing::Dict<py::str, py::object> ActivityShim(int index, int slice) {
  absl::StatusOr<NvmlActivity> activity;
  {
    const py::gil_scoped_release release;
    const auto nvml = Nvml::Shared();
    if (nvml.ok()) activity = (*nvml)->ActivityOf(index, slice);
  }
  py::typing::Dict<py::str, py::object> found;
  if (!activity.ok()) return found;
  found["load"] = activity->load;
  found["temperature"] = activity->temperature;
  found["power"] = activity->power;
  found["power_limit"] = activity->power_limit;
  found["pcie_received"] = activity->pcie_received;
  found["pcie_sent"] = activity->pcie_sent;
  found["processes"] = py::none();
  if (!activity->processes) return found;
  py::list processes;
  for (const NvmlProcess& process : *activity->processes) {
    processes.append(py::dict(py::arg("pid") = process.pid,
                              py::arg("name") = process.name,
                              py::arg("bytes") = process.bytes));
  }
  found["processes"] = std::move(processes);
  return found;
}

std::vector<NvlinkPair> NvlinkPairsShim() {
  const py::gil_scoped_release release;
  const auto nvml = Nvml::Shared();
  return nvml.ok() ? (*nvml)->NvlinkPairs() : std::vector<NvlinkPair>{};
}

#ifdef _WIN32
// Each C runtime has a copy of the environment, and Python changes that of its
// own; Windows' is the one that CUDA reads.
const char* Environment(const char* name) {
  thread_local char value[32768];
  SetLastError(ERROR_SUCCESS);
  const DWORD length = GetEnvironmentVariableA(name, value, sizeof value);
  const bool unset = length == 0 && GetLastError() == ERROR_ENVVAR_NOT_FOUND;
  return unset || length >= sizeof value ? nullptr : value;
}
#else
const char* Environment(const char* name) { return std::getenv(name); }
#endif

std::vector<std::size_t> VisibleShim(const std::vector<NvmlDevice>& devices) {
  const char* value = Environment("CUDA_VISIBLE_DEVICES");
  return VisibleNvml(value == nullptr ? "" : value, value == nullptr, devices);
}

}  // namespace

void BindDevice(py::module_& module) {
  py::class_<NvmlDevice>(module, "NvmlDevice")
      .def(py::init<>())
      .def_readwrite("index", &NvmlDevice::index)
      .def_readwrite("slice", &NvmlDevice::slice)
      .def_readwrite("cut", &NvmlDevice::cut)
      .def_readwrite("uuid", &NvmlDevice::uuid)
      .def_readwrite("name", &NvmlDevice::name)
      .def_readwrite("problem", &NvmlDevice::problem)
      .def_readwrite("total", &NvmlDevice::total)
      .def_readwrite("used", &NvmlDevice::used)
      .def_readwrite("free", &NvmlDevice::free)
      .def_readwrite("pcie_generation", &NvmlDevice::pcie_generation)
      .def_readwrite("pcie_width", &NvmlDevice::pcie_width)
      .def_readwrite("pcie_current_generation",
                     &NvmlDevice::pcie_current_generation)
      .def_readwrite("pcie_current_width", &NvmlDevice::pcie_current_width)
      .def_readwrite("nvlinks", &NvmlDevice::nvlinks);
#ifdef __clang__
  module.attr("compiler") = "clang " __clang_version__;
#else
  module.attr("compiler") = "gcc " __VERSION__;
#endif
  module.def("host_memory", &HostMemoryShim);
  module.def("nvml_devices", &NvmlShim);
  module.def("nvml_activity", &ActivityShim, py::arg("index"),
             py::arg("slice") = -1);
  module.def("nvml_nvlink_pairs", &NvlinkPairsShim);
  module.def("visible_nvml", &VisibleShim, py::arg("devices"));
}

}  // namespace distorch::bindings
