// SPDX-License-Identifier: Apache-2.0
#include <pybind11/stl.h>

#include <cstdint>

#include "tests/support/sim/sim_backend.h"
#include "tests/support/sim/sim_memory.h"

PYBIND11_MODULE(_sim, m) {
  namespace sim = distorch_sim;
  sim::RegisterDevice();
  m.attr("HOST") = sim::kHost;
  m.attr("MAX_DEVICES") = sim::kMaxDevices;
  m.def("configure", &sim::Configure);
  m.def("abandon", &sim::Abandon);
  m.def("device_count", &sim::DeviceCount);
  m.def("current_device", &sim::CurrentDevice);
  m.def("set_device", &sim::SetCurrentDevice);
  m.def("copied", &sim::Copied);
  m.def("copy_count", &sim::CopyCount);
  m.def("reset_counters", &sim::ResetCounters);
  m.def("reset_peak", &sim::ResetPeak);
  m.def("fail_allocation", &sim::FailAllocation);
  m.def("fail_copy", &sim::FailCopy);
  m.def("faults_fired", &sim::FaultsFired);
  m.def("log_frees", &sim::LogFrees);
  m.def("take_freed", &sim::TakeFreed);
  m.attr("READ_FIGURES") = reinterpret_cast<std::uintptr_t>(&sim::ReadFigures);
  m.def("counters", [](int device) {
    const sim::DeviceCounters c = sim::Counters(device);
    return pybind11::make_tuple(c.capacity, c.allocated, c.peak, c.allocations);
  });
}
