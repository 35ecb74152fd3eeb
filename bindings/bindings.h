// SPDX-License-Identifier: Apache-2.0
// One function a C++ folder; each adds its classes and functions to the module
// `distorch._C`.
#ifndef DISTORCH_BINDINGS_BINDINGS_H_
#define DISTORCH_BINDINGS_BINDINGS_H_

#include <pybind11/pybind11.h>

namespace distorch::bindings {

void BindAllocation(pybind11::module_& module);
void BindDevice(pybind11::module_& module);
void BindExecution(pybind11::module_& module);
void BindModes(pybind11::module_& module);
void BindPlacement(pybind11::module_& module);
void BindPlan(pybind11::module_& module);
void BindSampler(pybind11::module_& module);
void BindScan(pybind11::module_& module);
void BindStreaming(pybind11::module_& module);
void BindTelemetry(pybind11::module_& module);
void BindTransfer(pybind11::module_& module);
void BindUnload(pybind11::module_& module);

}  // namespace distorch::bindings

#endif  // DISTORCH_BINDINGS_BINDINGS_H_
