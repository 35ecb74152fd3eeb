# SPDX-License-Identifier: Apache-2.0
"""Copies to the memory of torch's allocator, and between devices in both directions; one JSON object on standard output.

peers.py KIND. The allocator is the one that PYTORCH_ALLOC_CONF names.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch

from distorch import transfer


def main() -> int:
    """Run the copies; returns the exit status."""
    kind = sys.argv[1]
    if kind == "sim":
        import distorch_sim

        distorch_sim.install([2**28] * 2)
    module = getattr(torch, kind)
    count = module.device_count()
    found: dict[str, Any] = {"devices": count}
    if kind == "cuda":
        found["allocator"] = torch.cuda.get_allocator_backend()
    host = torch.randint(0, 255, (64 << 20,), dtype=torch.uint8)
    on = [torch.zeros_like(host, device=f"{kind}:{index}") for index in range(count)]
    found["from the host"] = transfer.copy(on[0], host)
    module.synchronize(0)
    found["from the host, right bytes"] = bool(torch.equal(on[0].cpu(), host))
    for source, target in ((0, 1), (1, 0)) if count > 1 else ():
        name = f"{source} to {target}"
        found[f"{name}, access"] = bool(module.can_device_access_peer(target, source))
        fresh = torch.zeros_like(on[target])
        try:
            found[name] = transfer.copy(fresh, on[source])
            module.synchronize(target)
            found[f"{name}, right bytes"] = bool(torch.equal(fresh.cpu(), host))
        except (RuntimeError, MemoryError) as error:
            found[name] = str(error)
        on[target] = fresh
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
