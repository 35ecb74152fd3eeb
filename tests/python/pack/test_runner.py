# SPDX-License-Identifier: Apache-2.0
"""How a placed model of ComfyUI runs: groups in one copy ahead of their use, or on their donor."""

from __future__ import annotations

import gc
import logging
import weakref

import distorch_sim
import pytest
import torch

from distorch.allocation import parse
from distorch.memory import placements

SIZE = 128


@pytest.fixture
def make(pack, comfy):
    """Adopts and loads a model with an allocation string."""
    adopt, request = pack.load("patches.placing.adopt"), pack.load("patches.placing.request")

    def make(text: str, *, mapped: bool = False, **settings: object):
        model = comfy.model(size=SIZE)
        if mapped:  # each tensor a part of larger memory, as those of a file are
            for parameter in model.model.parameters():
                whole = torch.cat([parameter.detach().flatten()] * 2)
                parameter.data = whole[: parameter.numel()].view_as(parameter)
        patcher = adopt.adopt(
            model,
            request.Request("sim:0", parse(f"{text}#sim:0", kinds=["sim"]), **settings),
        )
        comfy.load_models_gpu([patcher])
        return patcher

    return make


def run(patcher, device: str = "sim:0", **keywords: object) -> torch.Tensor:
    value = torch.linspace(-1, 1, 4 * SIZE).reshape(4, SIZE).to(device)
    with torch.inference_mode():
        return patcher.model(value, **keywords).cpu()


@pytest.fixture
def expected(comfy) -> torch.Tensor:
    return run(comfy.model(size=SIZE), "cpu")


def engine_of(patcher):
    return patcher.distorch_placed().runner.engine


def test_a_step_copies_each_streamed_group_once_and_ahead(make, expected) -> None:
    patcher = make("sim:0,4%;cpu,*")
    engine = engine_of(patcher)
    assert engine.streamed == [f"blocks.{i}" for i in range(4)]
    value = torch.linspace(-1, 1, 4 * SIZE).reshape(4, SIZE).to("sim:0")
    with torch.inference_mode():
        for _ in range(3):
            assert torch.equal(patcher.model(value).cpu(), expected)
        before = engine.counters
        distorch_sim.reset_counters()
        assert torch.equal(patcher.model(value).cpu(), expected)
    assert distorch_sim.copied("cpu", "sim:0") == engine.bytes_per_step
    assert distorch_sim.copied("sim:0", "cpu") == value.nbytes, "the result; no weights come back"
    assert engine.counters["ahead"] - before["ahead"] == 4
    assert engine.counters["on_demand"] == before["on_demand"]
    assert "4 groups are streamed" in placements.find(patcher.distorch_placed().key).streaming


def test_a_group_s_packed_tensors_are_taken_over_in_one_call(pack, make, monkeypatch) -> None:
    """Each call walks all that is made: one a tensor would be quadratic."""
    weights = pack.load("patches.placing.weights").Weights
    calls: list[int] = []
    replace = weights.replace

    def counted(self, moved):
        calls.append(len(moved))
        replace(self, moved)

    monkeypatch.setattr(weights, "replace", counted)
    engine = engine_of(make("sim:0,4%;cpu,*", mapped=True))
    assert len(calls) == len(engine.streamed) == 4
    assert min(calls) > 1


def test_groups_run_on_their_donor_when_the_string_says_so(make, expected) -> None:
    patcher = make("sim:0,4%;sim:1,*,mode=migrate")
    for _ in range(3):
        assert torch.equal(run(patcher), expected)
    engine = engine_of(patcher)
    assert engine.migrated == {"sim:1": [f"blocks.{i}" for i in range(4)]}
    assert engine.streamed == []
    value = 4 * SIZE * 4
    distorch_sim.reset_counters()
    assert torch.equal(run(patcher), expected)
    assert distorch_sim.copied("sim:0", "sim:1") == value
    assert distorch_sim.copied("sim:1", "sim:0") == value
    patcher.detach()
    assert [torch.sim.memory_allocated(i) for i in range(3)] == [0, 0, 0]
    assert torch.equal(run(patcher, "cpu"), expected)


@pytest.mark.parametrize("text", ["sim:0,4%;sim:1,*,mode=migrate", "sim:0,4%;cpu,*"])
def test_a_sampling_that_was_cut_off_leaves_nothing_on_a_device(make, expected, text) -> None:
    """ComfyUI's interrupt is no `Exception`: torch's hooks do not see it."""
    patcher = make(text)
    for _ in range(3):
        run(patcher)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    held = [torch.sim.memory_allocated(i) for i in range(3)]
    for block in patcher.model.blocks:
        handle = block.up.register_forward_pre_hook(interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(patcher)
        handle.remove()
        left = [torch.sim.memory_allocated(i) for i in range(3)]
        assert (left == held) == ("migrate" not in text), "what the step has sent"
        patcher.cleanup()
        assert [torch.sim.memory_allocated(i) for i in range(3)] == held
        assert torch.equal(run(patcher), expected)


def test_loading_again_keeps_what_was_learned(make, comfy) -> None:
    patcher = make("sim:0,4%;cpu,*")
    for _ in range(2):
        run(patcher)
    engine = engine_of(patcher)
    comfy.load_models_gpu([patcher.clone()])
    assert engine_of(patcher) is engine
    assert list(engine.called) == [f"blocks.{i}" for i in range(4)]


def test_patches_that_change_are_streamed(make, comfy) -> None:
    patcher = make("sim:0,4%;cpu,*")
    for _ in range(3):
        run(patcher)
    key = "blocks.2.up.weight"
    difference = torch.full((2 * SIZE, SIZE), 0.01)
    results = []
    for strength in (1.0, 0.5, 0.0):
        clone = patcher.clone()
        clone.add_patches({key: difference}, strength)
        before = dict(patcher.model.named_parameters())
        comfy.load_models_gpu([clone])
        after = dict(patcher.model.named_parameters())
        assert {n for n in after if after[n] is not before[n]} == {key}
        results.append(run(patcher))
        plain = comfy.model(size=SIZE)
        with torch.no_grad():
            plain.model.blocks[2].up.weight += strength * difference
        for _ in range(2):
            assert torch.equal(run(patcher), run(plain, "cpu")), strength
    assert not torch.equal(results[0], results[1])


def test_what_came_ahead_outlives_the_end_of_a_sampling(make, expected) -> None:
    """ComfyUI then takes its hooks out, also where there were none."""
    patcher = make("sim:0,4%;cpu,*")
    for _ in range(3):
        run(patcher)
    engine, before = engine_of(patcher), engine_of(patcher).counters
    patcher.patch_hooks(None)
    assert torch.equal(run(patcher), expected)
    assert engine.counters["copies"] - before["copies"] == 4
    assert engine.counters["on_demand"] == before["on_demand"]


def test_weights_that_hooks_write_are_copied_again(make, expected) -> None:
    """ComfyUI writes hook LoRAs into the stored weights; a group may have come ahead by then."""
    for text in ("cpu,*", "sim:1,*", "sim:1,*,mode=migrate"):
        patcher = make(f"sim:0,4%;{text}")
        for _ in range(3):
            run(patcher)
        weight = patcher.model.blocks[0].up.weight
        patcher.hook_backup = {"blocks.0.up.weight": (weight.clone(), weight.device)}
        with torch.inference_mode():
            weight.data.copy_(weight * 2)
        patcher._distorch_written()
        changed = run(patcher)
        assert not torch.equal(changed, expected)
        with torch.inference_mode():
            weight.data.copy_(weight / 2)
        patcher.unpatch_hooks()
        assert torch.equal(run(patcher), expected)


def test_a_tensor_that_another_node_replaces_is_used(make, comfy) -> None:
    patcher = make("sim:0,4%;cpu,*")
    for _ in range(3):
        run(patcher)
    replaced = torch.nn.Parameter(torch.full((2 * SIZE, SIZE), 0.02), requires_grad=False)
    patcher.model.blocks[1].up.weight = replaced
    plain = comfy.model(size=SIZE)
    plain.model.blocks[1].up.weight = replaced
    for _ in range(2):
        assert torch.equal(run(patcher), run(plain, "cpu"))


def test_taking_memory_gives_the_slots_back_as_well(make, comfy, expected) -> None:
    patcher = make("sim:0,40%;sim:1,40%;cpu,*")
    run(patcher)
    assert patcher.loaded_size() == torch.sim.memory_allocated(0)
    assert patcher.distorch_placed().held_bytes() > 0
    share = torch.sim.memory_allocated(1)
    freed = patcher.distorch_spill("sim:1", 1)
    assert 0 < freed == share - torch.sim.memory_allocated(1)
    assert torch.sim.memory_allocated(0) == patcher.loaded_size()
    assert torch.equal(run(patcher), expected), "layer by layer until it is loaded again"
    comfy.load_models_gpu([patcher])
    assert torch.equal(run(patcher), expected)


def test_without_room_for_the_slots_layers_cast_one_by_one(
    make, comfy, expected, caplog: pytest.LogCaptureFixture
) -> None:
    patcher = make("sim:0,4%;cpu,*")
    patcher.detach()
    free = torch.sim.mem_get_info(0)[0]
    hog = torch.empty(free - 300_000, dtype=torch.uint8, device="sim:0")
    with caplog.at_level(logging.WARNING, "DisTorch"):
        comfy.load_models_gpu([patcher])
    assert "weights come layer by layer, which is slower" in caplog.text
    assert torch.equal(run(patcher), expected)
    assert patcher.distorch_placed().runner is None
    del hog


def test_patches_inside_of_blocks_stay_on_the_compute_device(
    make, pack, expected, caplog: pytest.LogCaptureFixture
) -> None:
    judge = pack.load("patches.placing.runner")._Judge()
    assert judge((), {"transformer_options": {"patches_replace": {"dit": {}}, "patches": {}}})
    with caplog.at_level(logging.WARNING, "DisTorch"):
        for _ in range(2):
            assert not judge(({"patches": {"attn1_patch": [print]}},), {})
    assert caplog.text.count("another node patches the inside of blocks (attn1_patch)") == 1
    patcher = make("sim:0,4%;sim:1,*,mode=migrate")
    for _ in range(3):
        run(patcher)
    engine = engine_of(patcher)
    engine._may_migrate = lambda args, kwargs: False
    sent = engine.crossings
    assert torch.equal(run(patcher), expected), "the layers cast their weights"
    assert engine.crossings == sent


def test_compiled_graphs_take_the_weights_as_they_are_stored(make, comfy, expected) -> None:
    patcher = make("sim:0,4%;cpu,*")
    compiled = torch.compile(patcher.model, backend="eager")
    value = torch.linspace(-1, 1, 4 * SIZE).reshape(4, SIZE).to("sim:0")
    with torch.no_grad():
        for _ in range(3):
            assert torch.allclose(compiled(value).cpu(), expected, atol=1e-6)
    comfy.mm.current_loaded_models.clear()
    del compiled, patcher
    torch._dynamo.reset()  # its cache holds the model
    gc.collect()


def test_an_interrupt_between_blocks_leaves_a_clean_state(
    make, expected, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Interrupted(Exception):  # noqa: N818  as ComfyUI's is called
        pass

    for text in ("cpu,*", "sim:1,*,mode=migrate"):
        patcher = make(f"sim:0,4%;{text}")
        for _ in range(3):
            run(patcher)
        before = {n: id(p) for n, p in patcher.model.named_parameters()}
        kind = type(patcher.model.blocks[0])
        real = kind.forward
        for bad in range(4):

            def forward(self, value, bad=bad, patcher=patcher, real=real):
                if self is patcher.model.blocks[bad]:
                    raise Interrupted
                return real(self, value)

            with monkeypatch.context() as patch:
                patch.setattr(kind, "forward", forward)
                with pytest.raises(Interrupted):
                    run(patcher)
            assert {n: id(p) for n, p in patcher.model.named_parameters()} == before
            patcher.distorch_placed().verify()
            assert torch.equal(run(patcher), expected)


def test_a_dropped_model_is_gone_at_once(make, comfy) -> None:
    patcher = make("sim:0,4%;sim:1,30%,mode=migrate;cpu,*")
    for _ in range(4):
        run(patcher)
    gone = weakref.ref(patcher.model)
    gc.disable()
    try:
        comfy.mm.current_loaded_models.clear()
        del patcher
        assert gone() is None, "no cycle holds it"
        assert [torch.sim.memory_allocated(i) for i in range(3)] == [0, 0, 0]
    finally:
        gc.enable()


def test_the_nodes_mode_holds_where_the_string_names_none(make, expected) -> None:
    patcher = make("sim:0,4%;sim:1,40%;sim:2,20%,mode=stream;cpu,*", execution_mode="migrate")
    for _ in range(3):
        assert torch.equal(run(patcher), expected)
    engine = engine_of(patcher)
    assert list(engine.migrated) == ["sim:1"]
    assert engine.modes == {
        "sim:0": "migrate",
        "sim:1": "migrate",
        "sim:2": "stream",
        "cpu": "auto",
    }
