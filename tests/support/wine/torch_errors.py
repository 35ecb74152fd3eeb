# SPDX-License-Identifier: Apache-2.0
"""Many errors of torch, and nothing of DisTorch: with wine 8's own msvcp140.dll this process ends in an access violation."""

from __future__ import annotations

import sys

import torch

sparse = torch.eye(3).to_sparse()
for _ in range(20_000):
    try:
        sparse.data_ptr()
    except (RuntimeError, NotImplementedError):
        continue
    sys.exit("a sparse tensor has an address")
print("20000 errors, and still here")
