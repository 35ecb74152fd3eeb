// SPDX-License-Identifier: Apache-2.0
// `_sim`: the memory of the simulated accelerators; and torch's device over it,
// or, with DISTORCH_SIM_WITHOUT_TORCH, what distorch_sim/_python_device.py
// needs to make that.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>

#include "tests/support/sim/sim_memory.h"
#ifdef DISTORCH_SIM_WITHOUT_TORCH
#include "tests/support/sim/flat_memory.h"
#else
#include "tests/support/sim/sim_backend.h"
#endif

PYBIND11_MODULE(_sim, m) {
  namespace sim = distorch_sim;
  pybind11::register_exception_translator([](std::exception_ptr error) {
    try {
      if (error) std::rethrow_exception(error);
    } catch (const sim::OutOfMemory& out_of_memory) {
      const auto type =
          pybind11::module_::import("torch").attr("OutOfMemoryError");
      PyErr_SetString(type.ptr(), out_of_memory.what());
    }
  });
#ifdef DISTORCH_SIM_WITHOUT_TORCH
  m.def("new_memory", &sim::NewMemory);
  m.def("on_host", &sim::OnHost);
  m.def("count_copy", &sim::CountCopy);
#else
  sim::RegisterDevice();
#endif
  m.attr("HOST") = sim::kHost;
  m.attr("MAX_DEVICES") = sim::kMaxDevices;
  m.def("configure", &sim::Configure);
  m.def("abandon", &sim::Abandon);
  m.def("abandon_at", [](std::uintptr_t data) {
    sim::AbandonAt(reinterpret_cast<const void*>(data));
  });
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
