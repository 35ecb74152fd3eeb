// SPDX-License-Identifier: Apache-2.0
#include "bindings/bindings.h"

namespace distorch::bindings {

void BindAllocation(pybind11::module_& /*module*/) {}

}  // namespace distorch::bindings
