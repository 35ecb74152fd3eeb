// SPDX-License-Identifier: Apache-2.0
#include <pybind11/pybind11.h>

#include "bindings/bindings.h"

PYBIND11_MODULE(_C, module) {
  module.doc() =
      "DisTorch's C++ core: everything that needs no tensors. Use it through "
      "the package `distorch`.";
  module.attr("__version__") = DISTORCH_VERSION;
  module.attr("built_with_torch") = DISTORCH_BUILT_WITH_TORCH;
  // What a signature names comes before it.
  distorch::bindings::BindAllocation(module);
  distorch::bindings::BindDevice(module);
  distorch::bindings::BindTransfer(module);
  distorch::bindings::BindModes(module);
  distorch::bindings::BindPlan(module);
  distorch::bindings::BindPlacement(module);
  distorch::bindings::BindExecution(module);
  distorch::bindings::BindStreaming(module);
  distorch::bindings::BindUnload(module);
  distorch::bindings::BindTelemetry(module);
  distorch::bindings::BindSampler(module);
  distorch::bindings::BindScan(module);
}
