// SPDX-License-Identifier: Apache-2.0
#include "bindings/bindings.h"

namespace distorch::bindings {

void BindDevice(pybind11::module_& /*module*/) {}

}  // namespace distorch::bindings
