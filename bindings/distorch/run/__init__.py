# SPDX-License-Identifier: Apache-2.0
"""Runs a placed model group by group: weights come in one copy ahead of their use, or activations go to the donor.

    placed = distorch.place_string(model, "cuda:0,8gb;cuda:1,8gb,mode=migrate;cpu,*", compute="cuda:0")
    executor = StreamedExecutor(placed)
    model(inputs)                            # the first step learns the order; later ones copy ahead and migrate
    executor.detach()                        # or placed.unload()

Each group's tensors that are stored elsewhere lie in one slab on their device, pinned where they are on the host and
the compute device can make use of it. Staging slots on the compute device take turns. Blocks outside of layer
groups, and tensors that are not plain, go on coming module by module; `notes` says which.

For inference, one thread at a time.
"""

from __future__ import annotations

from distorch.allocation import ModeChoice
from distorch.run.executor import StreamedExecutor
from distorch.run.groups import GroupEngine
from distorch.run.pinning import HostPinner, share_budget
from distorch.run.specs import GroupSpec
from distorch.slabs import ALIGNMENT

__all__ = [
    "ALIGNMENT",
    "GroupEngine",
    "GroupSpec",
    "HostPinner",
    "ModeChoice",
    "StreamedExecutor",
    "share_budget",
]
