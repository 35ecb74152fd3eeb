# SPDX-License-Identifier: Apache-2.0
"""A placed model through its life: load, patch, spill, come back, release."""

from __future__ import annotations

import sys
import zlib
from typing import Any

import comfy_standin
import distorch_sim
import pytest
import torch

from distorch.allocation import PlanError, parse
from distorch.guards import PlacementError
from distorch.memory import placements

SIZE = 128
UP, DOWN = SIZE * 2 * SIZE * 4 + 2 * SIZE * 4, SIZE * 2 * SIZE * 4 + SIZE * 4
STRING = "sim:1,300kb;cpu,300kb;sim:0,*"


@pytest.fixture
def make(pack, comfy):
    """Adopts a model with an allocation string."""
    adopt, request = pack.load("patches.placing.adopt"), pack.load("patches.placing.request")

    def make(text: str = STRING, **settings: object):
        patcher = comfy.model(size=SIZE)
        return adopt.adopt(
            patcher, request.Request("sim:0", parse(f"{text}#sim:0", kinds=["sim"]), **settings)
        )

    return make


def run(patcher, device: str = "sim:0") -> torch.Tensor:
    value = torch.linspace(-1, 1, 4 * SIZE).reshape(4, SIZE).to(device)
    with torch.no_grad():
        return patcher.model(value).cpu()


@pytest.fixture
def expected(comfy) -> torch.Tensor:
    return run(comfy.model(size=SIZE), "cpu")


def test_two_blocks_of_one_name_are_told(make, pack, monkeypatch: pytest.MonkeyPatch) -> None:
    found = pack.load("patches.placing.model_placement")
    blocks = found.find_blocks
    monkeypatch.setattr(found, "find_blocks", lambda model: [*blocks(model)] * 2)
    with pytest.raises(PlacementError, match=r"^two blocks are called '"):
        make()


def test_blocks_lie_where_the_plan_wants_them(make, comfy, expected) -> None:
    patcher = make()
    comfy.load_models_gpu([patcher])
    placed = patcher.distorch_placed()
    sizes = placed.bytes_per_device()
    assert 300 * 1024 - UP < sizes["sim:1"] <= 300 * 1024
    assert sum(sizes.values()) == sum(t.nbytes for t in patcher.model.state_dict().values())
    assert torch.sim.memory_allocated(1) == sizes["sim:1"]
    assert torch.equal(run(patcher), expected)
    # A slot for each of the two streamed groups, which takes the larger one.
    assert patcher.model_size() == sizes["sim:0"] + 2 * (UP + DOWN)
    assert patcher.loaded_size() == patcher.model_size() == torch.sim.memory_allocated(0)


def test_weights_that_are_no_parameters_take_their_bytes_on_the_donor_once(
    make, comfy, expected, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under DynamicVRAM the core hangs plain tensors into a model's tables."""
    made = comfy.model

    def plain(**settings: Any) -> Any:
        patcher = made(**settings)
        for module in list(patcher.model.modules())[1::3]:  # some of each group
            module._parameters.update(
                {n: p.data for n, p in module._parameters.items() if p is not None}
            )
        return patcher

    monkeypatch.setattr(comfy, "model", plain)
    patcher = make()
    comfy.load_models_gpu([patcher])
    assert torch.equal(run(patcher), expected)
    sizes = patcher.distorch_placed().bytes_per_device()
    assert torch.sim.memory_allocated(1) == sizes["sim:1"] <= 300 * 1024


def test_a_second_load_on_a_full_device_asks_for_nothing_and_moves_nothing(make, comfy) -> None:
    patcher = make()
    hog = torch.empty(torch.sim.mem_get_info(0)[0] - 1000 * 1024, dtype=torch.uint8, device="sim:0")
    comfy.load_models_gpu([patcher], torch.sim.mem_get_info(0)[0])
    spilled = set(patcher.distorch_placed().spilled)
    assert 0 < torch.sim.mem_get_info(0)[0] < UP
    assert patcher.loaded_size() == torch.sim.memory_allocated(0) - hog.nbytes
    distorch_sim.reset_counters()
    # As the core does it: what is free now, and no byte of what the model has already.
    comfy.load_models_gpu([patcher], torch.sim.mem_get_info(0)[0])
    assert patcher.distorch_placed().spilled == spilled
    assert distorch_sim.copied("cpu", "sim:0") == distorch_sim.copied("sim:0", "cpu") == 0
    assert patcher.loaded_size() == torch.sim.memory_allocated(0) - hog.nbytes


def test_a_model_without_donors_streams_what_does_not_fit(make, comfy, expected) -> None:
    patcher = make("sim:0,*")
    assert patcher.model_size() > 1000 * 1024
    comfy.load_models_gpu([patcher], 1000 * 1024)
    assert patcher.distorch_placed().spilled
    assert torch.equal(run(patcher), expected)
    assert 0 < torch.sim.memory_allocated(0) <= 1000 * 1024
    comfy.load_models_gpu([patcher], 4000 * 1024)
    assert not patcher.distorch_placed().spilled, "it all fits now"


def test_a_donor_that_gives_memory_back_is_accounted_for(make, comfy) -> None:
    patcher = make()
    comfy.load_models_gpu([patcher])
    (entry,) = [e for e in comfy.mm.current_loaded_models if e.device == torch.device("sim", 1)]
    assert entry.model_unload()
    assert patcher.loaded_size() == torch.sim.memory_allocated(0), "the slots are gone as well"
    shown = placements.find(patcher.distorch_placed().key)
    assert "sim:1" not in shown.bytes_per_device
    assert shown.spilled > 0


def test_core_class_is_kept_below_ours_and_by_clones(make, comfy, pack) -> None:
    patcher = make()
    assert isinstance(patcher, comfy.patcher.ModelPatcher)
    assert type(patcher).__name__ == "DisTorchModelPatcher"
    assert type(patcher.clone()) is type(patcher)
    assert pack.load("patches.placing.patcher").class_for(comfy.patcher.ModelPatcher) is type(
        patcher
    )


def test_loading_again_copies_nothing(make, comfy) -> None:
    patcher = make()
    comfy.load_models_gpu([patcher])
    distorch_sim.reset_counters()
    comfy.load_models_gpu([patcher])
    comfy.load_models_gpu([patcher.clone()])
    assert distorch_sim.copied("cpu", "sim:0") == distorch_sim.copied("cpu", "sim:1") == 0


def test_unloading_puts_the_host_copies_back(make, comfy) -> None:
    patcher = make()
    values = {n: p.clone() for n, p in patcher.model.named_parameters()}
    comfy.load_models_gpu([patcher])
    # What the plan leaves on the host has moved into slabs by now, the only copy there.
    host = {n: p.data_ptr() for n, p in patcher.model.named_parameters() if p.device.type == "cpu"}
    assert len(host) == 4
    distorch_sim.reset_counters()
    patcher.detach()
    after = dict(patcher.model.named_parameters())
    assert all(after[n].data_ptr() == pointer for n, pointer in host.items())
    assert all(torch.equal(after[n], value) for n, value in values.items())
    assert distorch_sim.copied("sim:0", "cpu") == distorch_sim.copied("sim:1", "cpu") == 0
    assert [torch.sim.memory_allocated(i) for i in range(3)] == [0, 0, 0]
    assert patcher.model.model_loaded_weight_memory == 0
    assert not any(getattr(m, "comfy_cast_weights", False) for m in patcher.model.modules())


def test_a_changed_patch_touches_its_block_only(make, comfy) -> None:
    patcher = make()
    key = "blocks.2.up.weight"
    difference = torch.full((2 * SIZE, SIZE), 0.01)
    first = patcher.clone()
    first.add_patches({key: difference}, 1.0)
    comfy.load_models_gpu([first])
    before = dict(patcher.model.named_parameters())
    second = patcher.clone()
    second.add_patches({key: difference}, 0.5)
    comfy.load_models_gpu([second])
    after = dict(patcher.model.named_parameters())
    assert {n for n in after if after[n] is not before[n]} == {key}
    del before, after
    original = patcher.distorch_placed().by_name["blocks.2.up"].tensors[0].original
    patched = dict(patcher.model.named_parameters())[key]
    assert torch.equal(patched.cpu(), original + 0.5 * difference)
    layers = [m for m in patcher.model.modules() if type(m) is comfy_standin.CastLinear]
    assert all(m.comfy_patched_weights for m in layers), "who saves it must not patch again"
    comfy.load_models_gpu([patcher])
    assert torch.equal(dict(patcher.model.named_parameters())[key].cpu(), original)
    assert key not in patcher.backup
    patcher.detach()
    assert not any(hasattr(m, "comfy_patched_weights") for m in layers)


def test_memory_on_the_compute_device_can_be_taken_and_comes_back(make, comfy, expected) -> None:
    patcher = make()
    comfy.load_models_gpu([patcher])
    full, slots = patcher.loaded_size(), patcher.distorch_placed().held_bytes()
    assert patcher.partially_unload(torch.device("cpu"), 1) == slots, "they go first"
    assert patcher.distorch_placed().spilled == set()
    comfy.load_models_gpu([patcher])
    freed = patcher.partially_unload(torch.device("cpu"), slots + UP + 1)
    assert freed >= slots + UP + 1
    assert patcher.loaded_size() == full - freed == torch.sim.memory_allocated(0)
    assert torch.equal(run(patcher), expected)
    comfy.load_models_gpu([patcher])
    assert patcher.loaded_size() == full
    assert patcher.distorch_placed().spilled == set()
    patcher.partially_unload(torch.device("cpu"), slots + UP + 1)
    patcher.load(torch.device("sim:0"), full_load=True)  # as the core does where there is much room
    assert patcher.loaded_size() == full
    assert patcher.distorch_placed().spilled == set()


def test_patched_blocks_survive_being_moved(make, comfy) -> None:
    patcher = make("sim:0,*")
    patcher.add_patches(
        {f"blocks.{i}.up.weight": torch.full((2 * SIZE, SIZE), 0.01) for i in range(4)}
    )
    comfy.load_models_gpu([patcher])
    expected = run(patcher)
    patcher.partially_unload(torch.device("cpu"), 1e12)
    assert {p.device.type for n, p in patcher.model.named_parameters() if ".up." in n} == {"cpu"}
    assert torch.equal(run(patcher), expected)
    comfy.load_models_gpu([patcher])
    assert {p.device.type for n, p in patcher.model.named_parameters() if ".up." in n} == {"sim"}
    assert torch.equal(run(patcher), expected)


def test_groups_that_a_step_comes_back_to_are_planned_first(make, comfy) -> None:
    patcher = make()
    comfy.load_models_gpu([patcher])
    placed = patcher.distorch_placed()
    before = placed.placement()
    group = next(
        n.removesuffix(".up") for n, d in before.items() if n.endswith(".up") and d == "cpu"
    )
    patcher.detach()
    placed.often = [group]
    comfy.load_models_gpu([patcher])
    after = placed.placement()
    assert {after[f"{group}.up"], after[f"{group}.down"]} == {"sim:0"}
    assert set(after.values()) == {"sim:0", "sim:1", "cpu"}


FP8 = torch.float8_e5m2


@pytest.mark.parametrize("high", [False, True])
def test_low_precision_keeps_what_was_fp8_in_fp8(pack, comfy, monkeypatch, high) -> None:
    adopt, request = pack.load("patches.placing.adopt"), pack.load("patches.placing.request")
    patcher = comfy.model(size=SIZE)
    for i in range(3):
        for layer, low in (
            (patcher.model.blocks[i].up, True),
            (patcher.model.blocks[i].down, False),
        ):
            layer.weight_comfy_model_dtype = torch.float32
            if low:
                layer.weight = torch.nn.Parameter(layer.weight.to(FP8), requires_grad=False)
    spec = parse("sim:0,40kb;cpu,*#sim:0", kinds=["sim"])
    adopt.adopt(patcher, request.Request("sim:0", spec, high_precision_loras=high))
    keys = [f"blocks.{i}.{name}.weight" for i in (0, 1) for name in ("up", "down")]
    shapes = {key: patcher.model.get_parameter(key).shape for key in keys}
    patcher.add_patches({key: torch.full(shapes[key], 0.01) for key in keys})
    rounded: list[tuple[torch.dtype, int]] = []

    def rounding(value: torch.Tensor, dtype: torch.dtype, seed: int) -> torch.Tensor:
        assert value.dtype == torch.float32
        rounded.append((dtype, seed))
        return value.to(dtype)

    monkeypatch.setattr(sys.modules["comfy"].float, "stochastic_rounding", rounding)
    comfy.load_models_gpu([patcher])
    held = {n: p.dtype for n, p in patcher.model.named_parameters() if p.device.type == "cpu"}
    assert set(keys) <= set(held)
    assert {n for n, dtype in held.items() if dtype == FP8 and n in keys} == (
        set() if high else {"blocks.0.up.weight", "blocks.1.up.weight"}
    )
    assert held["blocks.1.down.weight"] == torch.float32
    seeds = {zlib.crc32(b"blocks.0.up.weight"), zlib.crc32(b"blocks.1.up.weight")}
    assert set(rounded) == (set() if high else {(FP8, seed) for seed in seeds})
    sizes = patcher.distorch_placed().bytes_per_device()
    assert sizes["cpu"] == sum(
        p.nbytes for p in patcher.model.parameters() if p.device.type == "cpu"
    )


def test_a_donor_is_an_entry_that_the_core_can_unload(make, comfy, expected) -> None:
    patcher = make()
    comfy.load_models_gpu([patcher])
    (entry,) = [e for e in comfy.mm.current_loaded_models if e.device == torch.device("sim", 1)]
    assert entry.model.loaded_size() == torch.sim.memory_allocated(1) == entry.model.model_size()
    assert entry.model_unload()
    assert torch.sim.memory_allocated(1) == 0
    assert torch.equal(run(patcher), expected)
    comfy.load_models_gpu([patcher])
    assert torch.sim.memory_allocated(1) == entry.model.model_size()


@pytest.mark.parametrize("patched", [False, True])
def test_hook_loras_stay_in_what_a_donor_gives_back(make, comfy, expected, patched) -> None:
    patcher = make()
    keys = [f"blocks.{i}.{name}.weight" for i in range(4) for name in ("up", "down")]
    shapes = {key: patcher.model.get_parameter(key).shape for key in keys}
    if patched:
        patcher.add_patches({keys[0]: torch.full(shapes[keys[0]], 0.02)})
    comfy.load_models_gpu([patcher])
    without = run(patcher)
    patcher.patch_hooks({key: torch.full(shapes[key], 0.01) for key in keys})
    hooked = run(patcher)
    assert not torch.allclose(hooked, without)
    (entry,) = [e for e in comfy.mm.current_loaded_models if e.device == torch.device("sim", 1)]
    assert entry.model_unload()
    assert torch.sim.memory_allocated(1) == 0, "what was saved of the weights left it, too"
    assert torch.equal(run(patcher), hooked), "for the rest of that sampling"
    distorch_sim.reset_counters()
    patcher.unpatch_hooks()
    assert torch.equal(run(patcher), without)
    assert distorch_sim.copied("cpu", "sim:1") == 0
    held = dict(patcher.model.named_parameters())
    placed = patcher.distorch_placed()
    spilled = [c for b in placed.blocks if b.name in placed.spilled for c in b.tensors]
    assert spilled
    assert all(held[c.key].data_ptr() == c.original.data_ptr() for c in spilled if c.key != keys[0])
    comfy.load_models_gpu([patcher])
    assert torch.sim.memory_allocated(1) == entry.model.model_size()
    assert torch.equal(run(patcher), without)
    patcher.detach()
    assert torch.equal(run(patcher, "cpu"), expected)


def test_hook_loras_are_gone_from_a_model_that_is_unloaded_under_them(
    make, comfy, expected
) -> None:
    patcher = make()
    comfy.load_models_gpu([patcher])
    key = "blocks.1.up.weight"
    patcher.patch_hooks({key: torch.full((2 * SIZE, SIZE), 0.01)})
    entries = list(comfy.mm.current_loaded_models)
    for entry in sorted(entries, key=lambda e: e.device != torch.device("sim", 1)):
        entry.model_unload()
    assert torch.equal(run(patcher, "cpu"), expected)


def test_a_donor_that_is_full_is_an_error_that_lists_it(make, comfy) -> None:
    patcher = make("sim:1,*")
    hog = torch.empty(torch.sim.mem_get_info(1)[0] - 100_000, dtype=torch.uint8, device="sim:1")
    with pytest.raises(PlanError, match="sim:1"):
        comfy.load_models_gpu([patcher])
    del hog
    assert torch.sim.memory_allocated(0) == 0
    comfy.load_models_gpu([patcher])
    assert torch.sim.memory_allocated(1) > 0


def test_a_copy_that_fails_leaves_the_model_on_the_host(make, comfy, expected) -> None:
    patcher = make()
    found = {n: p.data_ptr() for n, p in patcher.model.named_parameters()}
    distorch_sim.reset_counters()
    distorch_sim.fail_allocation(12)
    try:
        with pytest.raises(torch.OutOfMemoryError):
            comfy.load_models_gpu([patcher])
    finally:
        distorch_sim.clear_faults()
    assert [torch.sim.memory_allocated(i) for i in range(3)] == [0, 0, 0]
    assert distorch_sim.copied("cpu", "sim:1") > 0
    assert distorch_sim.copied("sim:0", "cpu") == distorch_sim.copied("sim:1", "cpu") == 0
    assert {n: p.data_ptr() for n, p in patcher.model.named_parameters()} == found
    assert torch.equal(run(patcher, "cpu"), expected)
    comfy.load_models_gpu([patcher])
    assert torch.equal(run(patcher), expected)


def test_a_block_that_is_not_where_it_belongs_is_named(make, comfy) -> None:
    patcher = make()
    comfy.load_models_gpu([patcher])
    patcher.model.blocks[3].to("sim:2")
    with pytest.raises(RuntimeError, match=r"block blocks\.3.* is on sim:2, the plan says "):
        patcher.distorch_placed().verify()


def test_the_registry_knows_the_model_while_it_lives(make, comfy) -> None:
    patcher = make(file="a.safetensors")
    key = patcher.distorch_placed().key
    assert placements.find(key).state == "waiting"
    comfy.load_models_gpu([patcher])
    shown = placements.find(key)
    assert (shown.state, shown.file) == ("placed", "a.safetensors")
    assert shown.blocks["blocks.0.up"] == patcher.distorch_placed().plan.placement["blocks.0.up"]
    assert shown.total == sum(t.nbytes for t in patcher.model.state_dict().values())
    patcher.detach()
    assert placements.find(key).state == "released"
    comfy.mm.current_loaded_models.clear()
    del patcher
    assert placements.find(key) is None


def test_a_plain_patcher_on_a_placed_model_is_reported(make, comfy, pack, caplog) -> None:
    patcher = make()
    plain = comfy.patcher.ModelPatcher(patcher.model, patcher.load_device, patcher.offload_device)
    pack.load("patches.placing.patcher").check_class(plain)
    assert "its allocation string has no effect" in caplog.text


def test_flag_follows_keep_loaded(make) -> None:
    assert make(keep_loaded=True).model._mgpu_unload_distorch_model is False
    assert make(keep_loaded=False).model._mgpu_unload_distorch_model is True


def test_a_model_that_another_node_moves_is_kept_whole_there(make, comfy, expected, caplog) -> None:
    patcher = make()
    comfy.load_models_gpu([patcher])
    moved = patcher.clone()
    moved.load_device = torch.device("sim", 2)
    comfy.load_models_gpu([moved])
    assert "was moved to sim:2 by another node: its allocation string is dropped" in caplog.text
    whole = sum(t.nbytes for t in patcher.model.state_dict().values())
    assert [torch.sim.memory_allocated(i) for i in range(3)] == [0, 0, whole]
    assert torch.equal(run(moved, "sim:2"), expected)


def test_sampling_makes_the_device_current_and_gives_it_back(make, pack) -> None:
    patcher = make()
    patcher.load_device = torch.device("sim", 2)
    (wrapper,) = patcher.get_wrappers("outer_sample", "distorch_current_device")
    seen: list[int] = []

    class Executor:
        class_obj = type("Guider", (), {"model_patcher": patcher})

        def __call__(self, fail: bool) -> None:
            seen.append(torch.sim.current_device())
            if fail:
                raise InterruptedError

    wrapper(Executor(), False)
    with pytest.raises(InterruptedError):
        wrapper(Executor(), True)
    assert seen == [2, 2]
    assert torch.sim.current_device() == 0


def test_a_key_that_the_file_lacks_is_read_as_zeros(make, comfy, pack) -> None:
    adopt, request = pack.load("patches.placing.adopt"), pack.load("patches.placing.request")
    patcher = comfy.model(size=SIZE)
    layer = patcher.model.blocks[1].up
    layer.weight = torch.nn.Parameter(torch.empty(2 * SIZE, SIZE, device="meta"), False)
    adopt.adopt(patcher, request.Request("sim:0", parse(f"{STRING}#sim:0", kinds=["sim"])))
    patcher.add_patches({"blocks.1.up.weight": torch.full((2 * SIZE, SIZE), 0.25)})
    comfy.load_models_gpu([patcher])
    assert torch.equal(layer.weight.cpu(), torch.full((2 * SIZE, SIZE), 0.25))
    patcher.detach()
    assert torch.equal(layer.weight, torch.zeros(2 * SIZE, SIZE))


def test_a_change_of_patches_that_was_broken_off_is_not_taken_for_none(make, comfy) -> None:
    """Back to the patches of before: what had been patched meanwhile is patched again."""
    patcher = make()
    keys = [f"blocks.{i}.up.weight" for i in range(4)]
    first, second = patcher.clone(), patcher.clone()
    first.add_patches({key: torch.full((2 * SIZE, SIZE), 0.01) for key in keys}, 1.0)
    second.add_patches({key: torch.full((2 * SIZE, SIZE), 0.01) for key in keys}, 0.5)
    comfy.load_models_gpu([first])
    expected = run(first)
    placed = patcher.distorch_placed()
    patch, calls = second.patch_weight_to_device, []

    def fails(key: str, **kwargs: object) -> None:
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(key)
        patch(key, **kwargs)

    second.patch_weight_to_device = fails
    with pytest.raises(KeyboardInterrupt):
        placed.load(second)
    assert len(calls) == 2
    del second.patch_weight_to_device
    placed.load(first)
    assert torch.equal(run(first), expected)
    patcher.detach()
    assert [torch.sim.memory_allocated(i) for i in range(3)] == [0, 0, 0]


def test_patches_of_parameters_beside_submodules_are_applied(comfy, pack) -> None:
    """ComfyUI's own list of what to patch leaves such parameters out."""
    adopt, request = pack.load("patches.placing.adopt"), pack.load("patches.placing.request")
    value = torch.linspace(-1, 1, 4 * 128).reshape(4, 128)
    expected = comfy.model(size=128)
    with torch.no_grad():
        for block in expected.model.blocks:
            block.scale += 0.5
    spec = parse("sim:1,40%;sim:0,*#sim:0", kinds=["sim"])
    patcher = adopt.adopt(comfy.model(size=128), request.Request("sim:0", spec))
    keys = [name for name, _ in patcher.model.named_parameters() if name.endswith(".scale")]
    assert len(keys) == 4
    clone = patcher.clone()
    clone.add_patches({key: torch.full_like(expected.model.blocks[0].scale, 0.5) for key in keys})
    comfy.load_models_gpu([clone])
    with torch.inference_mode():
        assert torch.equal(clone.model(value.to("sim:0")).cpu(), expected.model(value))
