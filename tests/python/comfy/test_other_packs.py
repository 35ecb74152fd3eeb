# SPDX-License-Identifier: Apache-2.0
"""The 31 nodes for other packs, with stand-ins for these packs: where they compute, and that nothing stays changed.

Both ways are tried in which WanVideoWrapper has found its devices: kept since it was imported, and asked for in each call.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterator
from typing import Any

import pytest
import stand_ins
import torch
from comfy_harness import ComfyError, ComfyServer, Workflow, help_pages, versions
from safetensors.torch import save_file
from stand_ins import signatures
from stand_ins.transformer import Transformer

pytestmark = pytest.mark.comfy

MB = 2**20
FOLDERS = ("text_encoders", "clip_vision", "vae", "vae_approx", "controlnet", "wav2vec2", "LLM")
FOLDERS += ("mmaudio", "pulid", "xlabs_controlnets", "checkpoints")
NODES = {f"{name}MultiGPU": name for pack in signatures.PACKS for name in signatures.nodes_of(pack)}
#: Those that need a model that is one.
REAL = {"WanVideoModelLoaderMultiGPU", "WanVideoSamplerMultiGPU"}
DEVICES = ("device", "compute_device", "swap_device")


@pytest.fixture(
    scope="module",
    params=[(v, r) for v in versions() or [None] for r in stand_ins.RELEASES],
    ids=lambda p: f"{p[0].name}-{p[1]}" if p[0] else "none",
)
def comfy(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ComfyServer]:
    """A server with every stand-in, a file for each loader, and weights for the transformer."""
    version, release = request.param
    if version is None:
        pytest.skip("COMFYUI_PATH is not set")
    base = tmp_path_factory.mktemp("packs")
    for folder in FOLDERS:
        (base / "models" / folder).mkdir(parents=True)
        (base / "models" / folder / "a.safetensors").touch()
    write_weights(base / "models" / "diffusion_models" / "wan.safetensors")
    packs = stand_ins.write(base / "written", release)
    server = ComfyServer(version, base, packs=packs)
    yield server
    server.stop()


def write_weights(path: pathlib.Path) -> None:
    torch.manual_seed(0)
    cpu = torch.device("cpu")
    path.parent.mkdir(parents=True)
    save_file(Transformer(cpu, cpu).state_dict(), path)


LOOK = """
import sys, comfy.model_management as mm
def _modules(name):
    return [m for n, m in list(sys.modules.items()) if m is not None and n.endswith(name)]
_noting = _modules(".noting")
_kept = {(n, str(vars(m)[n])) for m in _noting + _modules("Wrapper.wanvideo")
         for n in ("device", "offload_device") if n in vars(m)}
result = {"seen": [row for m in _noting for row in m.SEEN], "kept": sorted(_kept),
          "asked": [str(mm.get_torch_device()), str(mm.unet_offload_device())],
          "current": torch.sim.current_device(),
          "bytes": [torch.sim.memory_allocated(i) for i in range(3)]}
"""
CLEAR = """
import sys
for _name, _module in list(sys.modules.items()):
    if _module is not None and _name.endswith(".noting"):
        _module.SEEN.clear()
        _module.FAIL.clear()
        _module.FAIL.update({fail!r})
    if _module is not None and _name.endswith("Wrapper.sampling"):
        _module.STEPS.clear()
"""
STEPS = """
import sys
_sampling = next(m for n, m in list(sys.modules.items()) if n.endswith("Wrapper.sampling"))
result = _sampling.STEPS
"""


def look(comfy: ComfyServer) -> dict[str, Any]:
    return comfy.evaluate(LOOK)


def clear(comfy: ComfyServer, *fail: str) -> None:
    comfy.evaluate(CLEAR.format(fail=list(fail)))


def nothing_stays(comfy: ComfyServer) -> None:
    """What was changed for a call is as before it."""
    after = look(comfy)
    assert after["asked"] == ["sim:0", "cpu"]
    assert after["current"] == 0
    assert after["kept"] == [["device", "sim:0"], ["offload_device", "cpu"]]
    assert after["bytes"] == [0, 0, 0]


def add(w: Workflow, known: dict[str, Any], name: str, device: str) -> Any:
    """A node with every input that it must have, and every device."""
    inputs: dict[str, Any] = {}
    for part in ("required", "optional"):
        for key, (kind, *rest) in known[name]["input"].get(part, {}).items():
            options = rest[0] if rest else {}
            widget = isinstance(kind, list) or kind in ("INT", "FLOAT", "STRING", "BOOLEAN")
            if kind == "MULTIGPUDEVICE":
                inputs[key] = w.add("DistorchTestRun", value=["1", 0], code=f"value = {device!r}")
            elif key in DEVICES or (key == "load_device" and "cpu" in kind):
                inputs[key] = device
            elif part == "required" and not widget:
                inputs[key] = w.add("DistorchTestRun", value=["1", 0], code="value = ('a model',)")
            elif part == "required":
                inputs[key] = options.get("default", kind[0])
    return w.add(name, **inputs)


def run(comfy: ComfyServer, names: list[str], device: str) -> None:
    known, w = comfy.get("/object_info"), Workflow()
    w.latent(1, 1)
    for name in names:
        link = add(w, known, name, device)
        for i in range(len(known[name]["output"])):
            value = w.add("DistorchTestRun", value=w.output(link, i), code="value = torch.zeros(1)")
            w.save(value, f"{name}{i}")
    comfy.run(w)


def test_a_packs_nodes_are_there_because_the_pack_is(comfy: ComfyServer) -> None:
    known = comfy.get("/object_info")
    assert len(NODES) == 31
    assert {name for name in NODES if name not in known} == set()
    assert not [name for name in known if name.endswith("MultiGPU") and "GGUF" in name]


@pytest.mark.parametrize(
    ("asked", "used"), [("sim:1", "sim:1"), ("cpu", "cpu"), ("cuda:7", "sim:0")]
)
def test_every_node_computes_on_its_device(comfy: ComfyServer, asked: str, used: str) -> None:
    clear(comfy)
    names = [name for name in NODES if name not in REAL]
    mark = len(comfy.log())
    run(comfy, names, asked)
    seen = {row["node"]: row for row in look(comfy)["seen"]}
    assert set(seen) == {NODES[name] for name in names}
    seen.pop("WanVideoBlockSwap")  # it holds settings and computes nothing
    for name, row in seen.items():
        assert (row["asked"], row["kept"]) == (used, used), name
        assert row["current"] == (1 if used == "sim:1" else 0), name
        assert (row["asked_offload"], row["kept_offload"]) == ("cpu", "cpu"), name
        assert "('a model',)" not in row["inputs"].values(), f"{name} got a model in a tuple"
    assert seen["LoadWanVideoT5TextEncoder"]["inputs"]["load_device"] == repr(
        "offload_device" if used == "cpu" else "main_device"
    )
    for name in ("WanVideoTextEncode", "WanVideoTextEncodeSingle", "WanVideoTextEncodeCached"):
        assert seen[name]["inputs"]["device"] == repr("cpu" if used == "cpu" else "gpu")
    said = comfy.log()[mark:].count("asks for device cuda:7, which is not here: sim:0 is used")
    assert (said > 20) is (asked == "cuda:7")
    nothing_stays(comfy)


@pytest.mark.parametrize("name", sorted(set(NODES) - {"WanVideoSamplerMultiGPU"}))
def test_a_failure_leaves_nothing_changed(comfy: ComfyServer, name: str) -> None:
    clear(comfy, NODES[name])
    with pytest.raises(ComfyError, match=f"{NODES[name]} was told to fail"):
        run(comfy, [name], "sim:2")
    assert look(comfy)["seen"][-1]["asked"] == ("sim:0" if "Swap" in name else "sim:2")
    nothing_stays(comfy)


def wan(
    loader: dict[str, Any] | None = None,
    swap: dict[str, Any] | None = None,
    *,
    ours: bool = True,
    device: str = "sim:0",
) -> Workflow:
    """The transformer, sampled two steps; by the pack's own nodes, or by ours on a device."""
    w, end = Workflow(), "MultiGPU" if ours else ""
    inputs = {"base_precision": "fp32", "quantization": "disabled", "load_device": "offload_device"}
    if ours:
        inputs["compute_device"] = device
    if swap is not None:
        settings = {"blocks_to_swap": 3, "offload_img_emb": False, "offload_txt_emb": False}
        inputs["block_swap_args"] = w.add(f"WanVideoBlockSwap{end}", **settings, **swap)
    model = w.add(f"WanVideoModelLoader{end}", model="wan.safetensors", **inputs, **(loader or {}))
    text = w.latent(1, 1)
    more = {"compute_device": w.output(model, 1)} if ours else {}
    latent = w.add(
        f"WanVideoSampler{end}",
        model=model,
        image_embeds=w.add("DistorchTestRun", value=text, code="value = {}"),
        **{"steps": 2, "cfg": 1.0, "shift": 5.0, "seed": 3, "force_offload": True},
        scheduler="unipc",
        riflex_freq_index=0,
        **more,
    )
    return w.save(latent, "wan")


@pytest.fixture
def expected(comfy: ComfyServer) -> torch.Tensor:
    """What the pack's own nodes make of it."""
    clear(comfy)
    return comfy.run(wan(ours=False)).values["wan"]


def test_wan_samples_on_the_chosen_device(comfy: ComfyServer, expected: torch.Tensor) -> None:
    clear(comfy)
    assert torch.equal(comfy.run(wan(device="sim:1")).values["wan"], expected)
    steps = comfy.evaluate(STEPS)
    assert [list(step["bytes"]) for step in steps] == [["sim:1"], ["sim:1"]]
    assert steps[0]["main_device"] == "sim:1"
    assert [row["current"] for row in look(comfy)["seen"]] == [1, 1]
    nothing_stays(comfy)


def test_swapped_blocks_wait_on_the_swap_device(comfy: ComfyServer, expected: torch.Tensor) -> None:
    clear(comfy)
    w = wan(swap={"swap_device": "sim:2"}, device="sim:1")
    assert torch.equal(comfy.run(w).values["wan"], expected)
    step = comfy.evaluate(STEPS)[1]
    assert set(step["bytes"]) == {"sim:1", "sim:2"}
    assert step["bytes"]["sim:2"] > 3 * MB
    assert (step["offload_device"], step["cache_device"]) == ("sim:2", "sim:2")


STRING = "sim:1,5mb;sim:2,4mb;cpu,*"


def test_the_string_places_the_blocks(comfy: ComfyServer, expected: torch.Tensor) -> None:
    clear(comfy)
    w = wan({"expert_mode_allocations": STRING}, device="sim:1")
    for _ in range(2):
        clear(comfy)
        mark = len(comfy.log())
        assert torch.equal(comfy.run(w).values["wan"], expected)
        step = comfy.evaluate(STEPS)[1]["bytes"]
        assert set(step) == {"sim:1", "sim:2", "cpu"}
        assert 2 * MB < step["sim:1"] <= 5 * MB
        assert 2 * MB < step["sim:2"] <= 4 * MB
        log = comfy.log()[mark:]
        assert "WanVideoWrapper, wan.safetensors: Transformer on sim:1:" in log
        assert "groups are streamed" in log
        nothing_stays(comfy)
        w["1"]["inputs"]["model"] = "wan.safetensors"
        w[next(n for n, row in w.items() if "seed" in row["inputs"])]["inputs"]["cfg"] = 2.0


def test_the_string_counts_and_not_the_block_swap(
    comfy: ComfyServer, expected: torch.Tensor
) -> None:
    clear(comfy)
    mark = len(comfy.log())
    w = wan({"expert_mode_allocations": STRING}, {"swap_device": "sim:0"}, device="sim:1")
    assert torch.equal(comfy.run(w).values["wan"], expected)
    assert set(comfy.evaluate(STEPS)[0]["bytes"]) == {"sim:1", "sim:2", "cpu"}
    assert "block_swap_args has no effect: expert_mode_allocations places" in comfy.log()[mark:]
    nothing_stays(comfy)


def test_a_wrong_string_is_refused_before_a_file_is_read(comfy: ComfyServer) -> None:
    clear(comfy)
    with pytest.raises(ComfyError, match="unknown unit 'xb' at offset 7"):
        comfy.run(wan({"expert_mode_allocations": "sim:1,2xb;cpu,*"}))
    assert look(comfy)["seen"] == []


@pytest.mark.parametrize("where", ["WanVideoSampler", "WanVideoSampler in its loop"])
@pytest.mark.parametrize("string", ["", STRING])
def test_a_sampling_that_fails_gives_everything_back(
    comfy: ComfyServer, expected: torch.Tensor, where: str, string: str
) -> None:
    clear(comfy, where)
    w = wan({"expert_mode_allocations": string}, device="sim:1")
    w["1"]["inputs"]["attention_mode"] = "flash_attn_2"  # so that the loader runs again
    with pytest.raises(ComfyError, match="was told to fail"):
        comfy.run(w)
    comfy.free()
    if string:
        nothing_stays(comfy)
    clear(comfy)
    assert torch.equal(comfy.run(w).values["wan"], expected)


def test_what_fits_nowhere_is_said_and_nothing_stays(comfy: ComfyServer) -> None:
    clear(comfy)
    with pytest.raises(ComfyError, match=r"(?s)does not fit.*sim:2"):
        comfy.run(wan({"expert_mode_allocations": "sim:1,1mb;sim:2,1mb;cpu,1mb"}, device="sim:1"))
    nothing_stays(comfy)


def test_a_sampler_that_is_not_ours_is_named(comfy: ComfyServer, expected: torch.Tensor) -> None:
    clear(comfy)
    mark = len(comfy.log())
    w = wan({"expert_mode_allocations": STRING})
    (sampler,) = [row for row in w.values() if row["class_type"] == "WanVideoSamplerMultiGPU"]
    sampler["class_type"] = "WanVideoSampler"
    del sampler["inputs"]["compute_device"]
    assert torch.equal(comfy.run(w).values["wan"], expected)
    said = "wan.safetensors is not sampled by WanVideoSamplerMultiGPU: its allocation string has no"
    assert comfy.log()[mark:].count(said) == 1


def test_the_help_pages_name_what_is_ours(comfy: ComfyServer) -> None:
    known = comfy.get("/object_info")
    for name in NODES:
        page = help_pages.fetch(comfy, f"/extensions/DisTorch/docs/{name}.md")
        info = known[name]
        inputs = {n for part in ("required", "optional") for n in info["input"].get(part, {})}
        theirs = known[NODES[name]]["input"]
        added = inputs - {n for part in ("required", "optional") for n in theirs.get(part, {})}
        assert set(help_pages.described(page, "Inputs")) == added, name
        assert help_pages.described(page, "Outputs") == info["output_name"], name


def test_the_other_name_of_extra_model_is_passed_on(comfy: ComfyServer) -> None:
    clear(comfy)
    w = wan()
    value = w.add("DistorchTestRun", value=w.latent(1, 1), code="value = [{'path': 'vace'}]")
    loader = next(r for r in w.values() if r["class_type"] == "WanVideoModelLoaderMultiGPU")
    loader["inputs"]["vace_model"] = value
    comfy.run(w)
    seen = {row["node"]: row for row in look(comfy)["seen"]}
    assert seen["WanVideoModelLoader"]["inputs"]["extra_model"] == repr([{"path": "vace"}])
    assert json.dumps(seen)  # plain texts all of it
