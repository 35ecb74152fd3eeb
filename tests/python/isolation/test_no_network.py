# SPDX-License-Identifier: Apache-2.0
"""Loading, placing, running, scanning and unloading open no connection: in a network without a route, where one can be made."""

from __future__ import annotations

import subprocess
import sys

from no_network import alone

PROGRAM = """
import sys, socket
asked = []
sys.addaudithook(lambda event, args: asked.append((event, args)) if event.startswith("socket.") else None)
import distorch_sim, torch
from torch import nn
distorch_sim.install([1 << 24] * 2)
import distorch
from distorch import memory, caches, device_table
from distorch.memory.sampler import Sampler
model = nn.Sequential(*[nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16)) for _ in range(4)]).eval()
with torch.inference_mode():
    expected = model(torch.ones(1, 16))
    placed = distorch.place(model, "sim:0,40%;sim:1,30%;cpu,30%", compute="sim:0")
    assert torch.equal(model(torch.ones(1, 16)).cpu(), expected)
assert memory.rows(deep=True)
sampler = Sampler(); sampler.take_sample()
distorch.registry().manage(placed, "model", eject=True)
print(distorch.registry().eject_flagged())
caches.clear_caches(); distorch.list_devices()
# A socket that is made is not yet connected; torch asks for this machine's own name on Windows.
no_way = ("socket.__new__", "socket.gethostname") if sys.platform == "win32" else ("socket.__new__",)
opened = [each for each in asked if each[0] not in no_way]
assert not opened, opened
if "--alone" in sys.argv:
    try:
        socket.create_connection(("192.0.2.1", 80), timeout=2)
    except OSError:
        print("there is no way out")
"""


def test_no_connection_is_opened() -> None:
    words = alone()
    ended = subprocess.run(
        [*words, sys.executable, "-W", "ignore", "-c", PROGRAM, *(["--alone"] if words else [])],
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert ended.returncode == 0, ended.stderr
    assert "unloaded model" in ended.stdout
    assert ("there is no way out" in ended.stdout) == bool(words)
