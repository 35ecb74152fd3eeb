# SPDX-License-Identifier: Apache-2.0
"""torch.compile'd models: what ComfyUI's "TorchCompileModel" does to its own models it does to placed ones.

The node offers backends that need a compiler for the device; its own helper is called here with backend "eager", which
traces the model and runs the traced graph as it is.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from comfy_harness import ComfyServer, Workflow, reset_counters, state

pytestmark = pytest.mark.comfy

COMPILE = """
import inspect
import torch._dynamo
from comfy_api.torch_helpers import set_torch_compile_wrapper
torch._dynamo.reset()
torch.distorch_test_graphs = []
def _backend(graph, inputs):
    torch.distorch_test_graphs.append(len(graph.graph.nodes))
    return graph.forward
more = {"disable_dynamic": True} if "disable_dynamic" in inspect.signature(value.clone).parameters else {}
value = value.clone(**more)
set_torch_compile_wrapper(model=value, backend=_backend)
"""


def workflow(loader: str, *, compiled: bool, lora: float = 0.0, **inputs: object) -> Workflow:
    w = Workflow()
    model = w.add(loader, unet_name="wan.safetensors", weight_dtype="default", **inputs)
    if lora:
        model = w.add(
            "LoraLoaderModelOnly", model=model, lora_name="wan.safetensors", strength_model=lora
        )
    if compiled:
        model = w.add("DistorchTestRun", value=model, code=COMPILE)
    return w.save(w.sample(model, w.conditioning(8, 4096), w.latent(1, 16, 1, 8, 8)), "wan")


@pytest.fixture(autouse=True)
def _nothing_traced_stays(comfy: ComfyServer) -> Iterator[None]:
    """torch.compile keeps what it traced, and with it the model, which the next tests would see."""
    yield
    comfy.evaluate("import torch._dynamo\ntorch._dynamo.reset()\ntorch.distorch_test_graphs = []")
    comfy.free()


PLACED = {"compute_device": "sim:0", "expert_mode_allocations": "sim:1,6mb;cpu,3mb;sim:0,*"}


@pytest.mark.parametrize("lora", [0.0, 0.8])
def test_a_compiled_model_is_placed_and_gives_the_same(comfy: ComfyServer, lora: float) -> None:
    core = comfy.run(workflow("UNETLoader", compiled=True, lora=lora)).values["wan"]
    core_graphs = comfy.evaluate("result = len(torch.distorch_test_graphs)")
    comfy.free()
    loader = "UNETLoaderDisTorch2MultiGPU"
    ours = comfy.run(workflow(loader, compiled=True, lora=lora, **PLACED)).values["wan"]
    graphs = comfy.evaluate("result = len(torch.distorch_test_graphs)")
    now = state(comfy)
    assert graphs > 0
    assert core_graphs > 0
    assert now.placed("WAN21")["bytes"]["sim:1"] > 4 * 2**20
    assert now.allocated["sim:1"] > 4 * 2**20
    assert (ours - core).abs().max() <= (1e-5 if lora else 1e-6)
    comfy.free()
    plain = comfy.run(workflow(loader, compiled=False, lora=lora, **PLACED)).values["wan"]
    assert (ours - plain).abs().max() <= (1e-5 if lora else 1e-6)


def test_a_second_run_of_a_compiled_model_places_nothing_again(comfy: ComfyServer) -> None:
    w = workflow("UNETLoaderDisTorch2MultiGPU", compiled=True, **PLACED)
    first = comfy.run(w).values["wan"]
    before = state(comfy)
    sampler = next(row for row in w.values() if row["class_type"] == "KSampler")
    sampler["inputs"]["seed"] += 1
    reset_counters(comfy)
    second = comfy.run(w).values["wan"]
    after = state(comfy)
    assert not torch.equal(first, second)
    assert after.allocated == before.allocated
    assert after.placed("WAN21")["blocks"] == before.placed("WAN21")["blocks"]
    assert after.copied["cpu>sim:1"] == after.copied["sim:1>cpu"] == 0
    comfy.free()
    assert set(state(comfy).allocated.values()) == {0}
