// SPDX-License-Identifier: Apache-2.0
// distorch/telemetry/sampler for Python. The interpreter's lock is released
// around everything that may wait for the sampling thread.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <pybind11/typing.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "bindings/bindings.h"
#include "bindings/status.h"
#include "distorch/device/nvml.h"
#include "distorch/telemetry/sampler.h"

namespace distorch::bindings {
namespace {

namespace py = pybind11;
using Release = py::call_guard<py::gil_scoped_release>;

std::unique_ptr<MemorySampler> MakeShim(double interval, std::size_t capacity) {
  return std::make_unique<MemorySampler>(MemorySampler::Options{
      .interval = absl::Seconds(interval), .capacity = capacity});
}

void AddFunctionShim(MemorySampler& sampler, std::string device,
                     std::uintptr_t function, int index) {
  Check(sampler.AddDevice(
      std::move(device),
      FunctionSource(reinterpret_cast<ReadDeviceFunction>(function), index)));
}

bool AddNvmlShim(MemorySampler& sampler, std::string device, int index,
                 int slice) {
  auto nvml = Nvml::Shared();
  if (!nvml.ok()) return false;
  Check(sampler.AddDevice(std::move(device),
                          NvmlSource(*std::move(nvml), index, slice)));
  return true;
}

// {"time": seconds, "devices": {device: {figure: bytes}}} for each sample
py::typing::List<py::typing::Dict<py::str, py::object>> SamplesShim(
    const MemorySampler& sampler, double since) {
  std::vector<MemorySample> samples;
  std::vector<std::string> names;
  {
    const py::gil_scoped_release release;
    samples = sampler.Samples(since);
    names = sampler.devices();
  }
  std::vector<py::str> keys(names.begin(), names.end());
  const py::str used("used"), total("total"), allocated("allocated"),
      reserved("reserved"), peak("peak"), time("time"), devices("devices");
  py::typing::List<py::typing::Dict<py::str, py::object>> result;
  for (const MemorySample& sample : samples) {
    py::dict found;
    for (const DeviceSample& one : sample.devices) {
      py::dict figures;
      figures[used] = one.used;
      figures[total] = one.total;
      figures[allocated] = one.allocated;
      figures[reserved] = one.reserved;
      figures[peak] = one.peak;
      found[keys[one.device]] = std::move(figures);
    }
    py::dict entry;
    entry[time] = sample.time;
    entry[devices] = std::move(found);
    result.append(std::move(entry));
  }
  return result;
}

}  // namespace

void BindSampler(py::module_& module) {
  py::class_<MemorySampler>(module, "MemorySampler",
                            "Samples devices in a thread of its own; see "
                            "distorch/telemetry/sampler.h.")
      .def(py::init(&MakeShim), py::arg("interval"), py::arg("capacity"))
      .def(
          "add_host",
          [](MemorySampler& self, std::string device) {
            Check(self.AddDevice(std::move(device), HostSource()));
          },
          py::arg("device"), Release())
      .def("add_nvml", &AddNvmlShim, py::arg("device"), py::arg("index"),
           py::arg("slice") = -1, Release(), "False without NVML.")
      .def("add_function", &AddFunctionShim, py::arg("device"),
           py::arg("address"), py::arg("index"), Release(),
           "`address` of a ReadDeviceFunction.")
      .def(
          "add_pushed",
          [](MemorySampler& self, std::string device) {
            Check(self.AddDevice(std::move(device), nullptr));
          },
          py::arg("device"), Release())
      .def(
          "push",
          [](MemorySampler& self, const std::string& device, std::int64_t total,
             std::int64_t used, std::int64_t allocated, std::int64_t reserved,
             std::int64_t reserved_peak) {
            Check(self.Push(device,
                            {total, used, allocated, reserved, reserved_peak}));
          },
          py::arg("device"), py::kw_only(), py::arg("total"), py::arg("used"),
          py::arg("allocated"), py::arg("reserved"), py::arg("reserved_peak"),
          Release())
      .def(
          "start", [](MemorySampler& self) { Check(self.Start()); }, Release())
      .def("stop", &MemorySampler::Stop, Release())
      .def("poll", &MemorySampler::Poll, Release())
      .def("take_sample", &MemorySampler::TakeSample, Release())
      .def("used", &MemorySampler::Used, Release())
      .def("samples", &SamplesShim, py::arg("since"))
      .def("open_window", &MemorySampler::OpenWindow, Release())
      .def("close_window", &MemorySampler::CloseWindow, py::arg("window"),
           Release())
      .def("window_peaks", &MemorySampler::WindowPeaks, py::arg("window"),
           Release())
      .def_property_readonly(
          "devices", py::cpp_function(&MemorySampler::devices, Release()))
      .def_property_readonly(
          "running", py::cpp_function(&MemorySampler::running, Release()))
      .def_property_readonly("cpu_seconds", &MemorySampler::CpuSeconds);
}

}  // namespace distorch::bindings
