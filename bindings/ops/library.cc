// SPDX-License-Identifier: Apache-2.0
// Declares the operator library `distorch`; each file beside this one adds its
// operators as a fragment.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(distorch, library) { library.def("abi_version() -> int"); }

namespace {
// Raised whenever an operator's schema or meaning changes; the Python package
// refuses an operator library that differs.
int64_t AbiVersion() { return 2; }
}  // namespace

STABLE_TORCH_LIBRARY_IMPL(distorch, CompositeExplicitAutograd, library) {
  library.impl("abi_version", TORCH_BOX(&AbiVersion));
}
