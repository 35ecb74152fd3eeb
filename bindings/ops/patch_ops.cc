// SPDX-License-Identifier: Apache-2.0
// torch.ops.distorch.patch_weight and right_factor:
// distorch/placement/patch_math.h for Python.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <vector>

#include "bindings/ops/boxed.h"
#include "distorch/placement/patch_math.h"

namespace {

using distorch::ops::Boxed;
using torch::stable::Tensor;

void PatchWeight(Tensor weight, Tensor scratch, Tensor up, Tensor right,
                 std::vector<Tensor> diffs) {
  distorch::PatchWeight(weight, scratch, up, right, diffs);
}

void RightFactor(Tensor down, Tensor mid, Tensor out) {
  distorch::RightFactor(down, mid, out);
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(distorch, library) {
  library.def(
      "patch_weight(Tensor(a!) weight, Tensor(b!) scratch, Tensor up, "
      "Tensor right, Tensor[] diffs) -> str");
  library.def("right_factor(Tensor down, Tensor mid, Tensor(a!) out) -> str");
}

STABLE_TORCH_LIBRARY_IMPL(distorch, CompositeExplicitAutograd, library) {
  library.impl("patch_weight", &Boxed<&PatchWeight>::Call);
  library.impl("right_factor", &Boxed<&RightFactor>::Call);
}
