# SPDX-License-Identifier: Apache-2.0
"""Selective unload, keeping, and what "free" does, beside the stand-in for ComfyUI."""

from __future__ import annotations

import gc
import logging
import pathlib
import time
import weakref
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import comfy_standin
import pytest
import torch
from slowness import slowness

from distorch.allocation import parse

FLAG = "_mgpu_unload_distorch_model"


class Machine:
    """The pack's modules and models that went through our loaders."""

    def __init__(self, pack: Any, comfy: comfy_standin.StandIn) -> None:
        self.comfy, self.mm = comfy, comfy.mm
        self.unload = pack.load("patches.ejecting.unload")
        self.keep = pack.load("patches.ejecting.keep")
        self.managed = pack.load("patches.ejecting.managed")
        self.cleanup = pack.load("patches.ejecting.cleanup")
        self.lifecycle = pack.load("patches.seams.lifecycle")
        self.request = pack.load("patches.placing.request").Request
        self.originals = (comfy.mm.unload_all_models, comfy.mm.soft_empty_cache)
        self.unload.install()

    def load(self, name: str, *, keep: bool = True, eject: bool = False, **inputs: Any) -> Any:
        """As a node of ours does, without its file."""
        request = self.request(
            "sim:0",
            parse("sim:0,*#sim:0", kinds=["sim"]),
            name,
            name,
            keep_loaded=keep,
            eject_models=eject,
        )
        inputs = {"unet_name": name, "keep_loaded": keep, **inputs}
        kept = self.lifecycle.kept_outputs(request, name, inputs)
        if kept is not None:
            return kept[0]
        self.lifecycle.tell(self.lifecycle.before_load, request, name, inputs)
        patcher = self.comfy.model()
        setattr(patcher.model, FLAG, not keep)
        self.lifecycle.tell(self.lifecycle.adopted, patcher, request)
        self.lifecycle.tell(self.lifecycle.loaded, request, name, inputs, (patcher,))
        self.mm.load_models_gpu([patcher])
        return patcher

    def listed(self) -> list[Any]:
        return [entry.model for entry in self.mm.current_loaded_models]


@pytest.fixture
def machine(pack: Any, comfy: comfy_standin.StandIn) -> Iterator[Machine]:
    machine = Machine(pack, comfy)
    yield machine
    machine.unload.uninstall()
    machine.mm.current_loaded_models.clear()
    gc.collect()


def test_without_a_managed_model_the_core_does_it(machine: Machine) -> None:
    plain = machine.comfy.model()
    machine.mm.load_models_gpu([plain])
    machine.mm.unload_all_models()
    machine.mm.soft_empty_cache()
    assert machine.comfy.calls == ["unload_all_models", "soft_empty_cache"]
    assert machine.listed() == []


def test_none_flagged_is_a_strict_no_op(machine: Machine, caplog: pytest.LogCaptureFixture) -> None:
    plain = machine.comfy.model()
    machine.mm.load_models_gpu([plain])
    first, second = machine.load("a"), machine.load("b")
    before = list(machine.mm.current_loaded_models)
    pointers = [p.data_ptr() for p in first.model.parameters()]
    with caplog.at_level(logging.INFO, "DisTorch"):
        assert machine.mm.unload_all_models() is None
    assert machine.comfy.calls == []
    assert machine.mm.current_loaded_models == before
    assert [p.data_ptr() for p in first.model.parameters()] == pointers
    assert machine.listed() == [second, first, plain]
    assert "no model is flagged, nothing is unloaded" in caplog.text
    assert "free: Model, Model stay (keep_loaded); to let go of one, switch" in caplog.text


def test_exactly_the_flagged_go_and_the_others_keep_their_order(machine: Machine) -> None:
    plain = machine.comfy.model()
    machine.mm.load_models_gpu([plain])
    a, b, c = machine.load("a"), machine.load("b", keep=False), machine.load("c")
    d = machine.load("d", keep=False)
    machine.mm.unload_all_models()
    assert machine.listed() == [c, a, plain]
    assert "unload_all_models" not in machine.comfy.calls
    assert all(p.device.type == "cpu" for m in (b, d) for p in m.model.parameters())
    assert all(p.device.type == "sim" for m in (a, c) for p in m.model.parameters())
    assert [entry.request.node for entry in machine.keep.kept()] == ["a", "c"]
    job = SimpleNamespace(kind="free", details={})
    machine.unload.add_details(job)
    assert sorted(job.details["unloaded"]) == ["Model from sim:0", "Model from sim:0"]
    assert [row["why"] for row in job.details["kept"]] == [
        "keep_loaded is on",
        "keep_loaded is on",
        "only models with keep_loaded off are unloaded",
    ]
    assert all("DisTorch Unload" in row["let_go"] for row in job.details["kept"])
    assert machine.unload.last_free() == {}


def test_a_free_by_the_core_reports_nothing_of_an_earlier_one(machine: Machine) -> None:
    machine.load("a")
    machine.mm.unload_all_models()  # by the Manager: nobody asks for its report
    machine.keep.uninstall()
    machine.mm.current_loaded_models.clear()
    gc.collect()
    machine.mm.unload_all_models()
    assert machine.comfy.calls == ["unload_all_models"]
    assert machine.unload.last_free() == {}


def test_a_kept_model_outlives_everyone_and_a_flagged_one_does_not(machine: Machine) -> None:
    kept = weakref.ref(machine.load("a").model)
    held_by_the_executor = machine.load("b", keep=False)
    gone = weakref.ref(held_by_the_executor.model)
    machine.mm.unload_all_models()
    del held_by_the_executor
    gc.collect()  # the executor's reset has dropped its outputs
    machine.mm.soft_empty_cache()
    assert kept() is not None
    assert gone() is None
    assert len(machine.listed()) == 1
    assert machine.unload.violations == 0
    assert machine.managed.make_room("sim:0") == ["Model"]
    assert kept() is not None
    machine.keep.release(kept())
    machine.mm.unload_all_models()
    gc.collect()
    assert kept() is None
    assert torch.sim.memory_allocated(0) == 0


def test_recovery_from_out_of_memory_unloads_everything(machine: Machine) -> None:
    machine.load("a")
    try:
        raise torch.OutOfMemoryError("sim:0")
    except torch.OutOfMemoryError:
        machine.mm.unload_all_models()
    assert machine.comfy.calls == ["unload_all_models"]
    assert machine.listed() == []


@pytest.mark.parametrize("reason", ["recovery", "no smart memory"])
def test_devices_that_an_old_core_leaves_alone_are_emptied_too(
    machine: Machine, reason: str
) -> None:
    machine.unload.uninstall()
    machine.mm.unload_all_models = lambda: machine.comfy.calls.append("the first device only")
    machine.unload.install()
    other = machine.load("a")
    on_host = machine.comfy.model()
    on_host.load_device = torch.device("cpu")
    machine.mm.load_models_gpu([on_host])
    if reason == "no smart memory":
        machine.mm.DISABLE_SMART_MEMORY = True
        machine.mm.unload_all_models()
    else:
        try:
            raise torch.OutOfMemoryError("sim:1")
        except torch.OutOfMemoryError:
            machine.mm.unload_all_models()
    assert machine.comfy.calls[0] == "the first device only"
    assert machine.listed() == [on_host]
    assert all(p.device.type == "cpu" for p in other.model.parameters())


def test_disabled_smart_memory_unloads_everything(machine: Machine) -> None:
    machine.load("a")
    machine.mm.DISABLE_SMART_MEMORY = True
    machine.mm.unload_all_models()
    assert machine.comfy.calls == ["unload_all_models"]


def test_the_same_loader_finds_the_kept_model(machine: Machine) -> None:
    first = machine.load("a", weight_dtype="default")
    assert machine.load("a", weight_dtype="default") is first
    assert len(machine.keep.kept()) == 1
    assert machine.load("a", weight_dtype="fp8") is not first
    assert len(machine.keep.kept()) == 1, "the same file with other settings takes its place"
    assert machine.load("b", weight_dtype="default") is not first


def test_a_changed_file_is_read_again(machine: Machine, tmp_path: pathlib.Path) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"1")
    machine.comfy.folders.folder_names_and_paths = {"diffusion_models": None}
    machine.comfy.folders.get_full_path = lambda folder, name: str(tmp_path / name)
    first = machine.load("a")
    assert machine.load("a") is first
    file.write_bytes(b"22")
    assert machine.load("a") is not first


def test_what_was_kept_of_a_file_is_let_go_of_before_it_is_read_anew(machine: Machine) -> None:
    old = weakref.ref(machine.load("a", weight_dtype="default").model)
    alive: list[bool] = []
    read = machine.comfy.model
    machine.comfy.model = lambda: alive.append(old() is not None) or read()
    machine.load("a", weight_dtype="fp8")
    assert alive == [False], "both at once may not fit into the host's memory"


@pytest.mark.parametrize(
    "settings", [{"weight_dtype": "fp8"}, {"weight_dtype": "fp8", "keep": False}]
)
def test_a_replaced_model_that_somebody_still_holds_is_flagged(
    machine: Machine, settings: dict[str, Any]
) -> None:
    first = machine.load("a", weight_dtype="default")
    second = machine.load("a", **settings)
    assert getattr(first.model, FLAG) is True
    assert not machine.keep.is_kept(first.model)
    assert machine.keep.is_kept(second.model) is settings.get("keep", True)
    machine.mm.unload_all_models()
    assert first not in machine.listed()
    del first
    gc.collect()
    machine.mm.soft_empty_cache()
    assert machine.unload.violations == 0


def test_a_file_of_that_name_in_another_folder_hides_no_change(
    machine: Machine, tmp_path: pathlib.Path
) -> None:
    folders = {"loras": tmp_path / "loras", "diffusion_models": tmp_path / "models"}
    for folder in folders.values():
        folder.mkdir()
        (folder / "a").write_bytes(b"1")
    machine.comfy.folders.folder_names_and_paths = dict.fromkeys(folders)
    machine.comfy.folders.get_full_path = lambda folder, name: str(folders[folder] / name)
    first = machine.load("a")
    assert machine.load("a") is first
    (folders["diffusion_models"] / "a").write_bytes(b"22")
    assert machine.load("a") is not first


def test_a_model_as_an_input_is_compared_by_itself(machine: Machine) -> None:
    class Model:
        def __repr__(self) -> str:
            return "a model"

    model = Model()
    first = machine.load("a", model=model)
    assert machine.load("a", model=model) is first
    assert machine.load("a", model=Model()) is not first


def test_what_was_loaded_with_a_model_stays_kept_without_it(machine: Machine) -> None:
    model, encoder = machine.comfy.model(), machine.comfy.model()
    request = machine.request("sim:0", parse("sim:0,*#sim:0", kinds=["sim"]), "checkpoint", "a")
    for patcher in (model, encoder):
        machine.lifecycle.tell(machine.lifecycle.adopted, patcher, request)
    machine.lifecycle.tell(machine.lifecycle.loaded, request, "checkpoint", {}, (model, encoder))
    assert machine.keep.release(model.model)
    assert machine.keep.is_kept(encoder.model)
    assert not machine.keep.is_kept(model.model)
    assert machine.lifecycle.kept_outputs(request, "checkpoint", {}) is None, "it is not whole"
    assert machine.keep.release(encoder.model)
    assert machine.keep.kept() == []


def test_all_that_a_node_gave_is_flagged_with_keep_loaded_off(machine: Machine) -> None:
    placed, plain = machine.comfy.model(), machine.comfy.model()
    request = machine.request(
        "sim:0", parse("sim:0,*#sim:0", kinds=["sim"]), "checkpoint", "a", keep_loaded=False
    )
    machine.lifecycle.tell(machine.lifecycle.adopted, placed, request)
    machine.lifecycle.tell(machine.lifecycle.loaded, request, "checkpoint", {}, (placed, plain))
    machine.mm.load_models_gpu([placed, plain])
    machine.mm.unload_all_models()
    assert machine.listed() == []


def test_keep_loaded_switched_off_lets_go_and_gives_the_same_model(machine: Machine) -> None:
    first = machine.load("a")
    again = machine.load("a", keep=False)
    assert again is first
    assert getattr(first.model, FLAG) is True
    assert machine.keep.kept() == []
    machine.mm.unload_all_models()
    assert machine.listed() == []


def test_eject_models_empties_the_compute_device_and_no_other(machine: Machine) -> None:
    plain = machine.comfy.model()
    other = machine.comfy.model()
    other.load_device = torch.device("sim", 1)
    machine.mm.load_models_gpu([plain, other])
    kept, loose = machine.load("a"), machine.load("b", keep=False)
    pointers = {n: p.data_ptr() for n, p in kept.model.named_parameters()}
    new = machine.load("c", eject=True)
    assert machine.listed() == [new, other]
    assert {p.device.type for m in (plain, kept, loose) for p in m.model.parameters()} == {"cpu"}
    assert machine.keep.is_kept(kept.model)
    assert not machine.keep.is_flagged(kept.model)
    assert machine.load("a") is kept, "it comes back without a file being read"
    assert pointers.keys() == {n for n, _ in kept.model.named_parameters()}
    assert machine.unload.violations == 0


def test_the_core_keeps_no_model_alive(machine: Machine) -> None:
    plain, loose = machine.comfy.model(), machine.load("a", keep=False)
    machine.mm.load_models_gpu([plain])
    machine.mm.unload_all_models()  # both are known from now on
    assert len(machine.managed._core.handles) == 2
    gone = [weakref.ref(patcher.model) for patcher in (plain, loose)]
    machine.mm.current_loaded_models.clear()
    del plain, loose
    gc.collect()
    assert [model() for model in gone] == [None, None]
    assert machine.managed._core.handles == []


@pytest.mark.parametrize("in_host_memory", [True, False])
def test_a_kept_model_makes_room_only_when_it_has_to_be_loaded(
    machine: Machine, in_host_memory: bool
) -> None:
    kept = machine.load("a", eject=True)
    if in_host_memory:
        machine.managed.make_room("sim:0")
    other = machine.comfy.model()
    machine.mm.load_models_gpu([other])
    assert machine.load("a", eject=True) is kept
    assert (other in machine.listed()) is not in_host_memory


def test_what_lies_on_a_donor_makes_room_there_and_the_rest_stays(
    machine: Machine, pack: Any
) -> None:
    request = machine.request("sim:0", parse("sim:1,300kb;sim:0,*#sim:0", kinds=["sim"]), "a", "a")
    patcher = machine.comfy.model()
    pack.load("patches.placing.adopt").adopt(patcher, request)
    machine.mm.load_models_gpu([patcher])
    here = patcher.distorch_placed().bytes_per_device()["sim:0"]
    assert torch.sim.memory_allocated(1) > 0
    assert machine.managed.make_room("sim:1") == ["Model (a)"]
    assert torch.sim.memory_allocated(1) == 0
    assert patcher in machine.listed()
    assert patcher.distorch_placed().bytes_per_device()["sim:0"] == here


def test_a_kept_model_that_was_moved_is_an_error_with_its_name(
    machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    model = machine.load("a").model
    machine.load("b")
    machine.mm.unload_all_models()
    name, parameter = next(iter(model.named_parameters()))
    parameter_owner = model.get_submodule(name.rpartition(".")[0])
    parameter_owner._parameters[name.rpartition(".")[2]] = torch.nn.Parameter(parameter.cpu())
    with caplog.at_level(logging.ERROR, "DisTorch"):
        machine.mm.soft_empty_cache()
    assert machine.unload.violations == 1
    assert (
        f"Model was to stay through this free, but tensors have moved: {name} (1 in all)"
        in caplog.text
    )
    machine.mm.soft_empty_cache()
    assert machine.unload.violations == 1


def test_pressure_lets_go_of_kept_models_that_are_not_loaded_first(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.load("a")
    machine.load("b")
    machine.mm.current_loaded_models.pop()  # a is on the host only
    free = iter([5, 50, 50])
    monkeypatch.setattr(machine.keep, "hostmemory", SimpleNamespace(
        available_bytes=lambda: next(free), total_bytes=lambda: 100
    ))  # fmt: skip
    assert machine.keep.relieve() == ["Model"]
    assert [entry.request.node for entry in machine.keep.kept()] == ["b"]


def test_pressure_ends_when_enough_was_let_go_of(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = weakref.ref(machine.load("a").model)
    machine.load("b")
    monkeypatch.setattr(machine.keep, "hostmemory", SimpleNamespace(
        available_bytes=lambda: 5 if first() is not None else 50, total_bytes=lambda: 100
    ))  # fmt: skip
    machine.mm.current_loaded_models.clear()
    assert machine.keep.relieve() == ["Model"]
    assert [entry.request.node for entry in machine.keep.kept()] == ["b"]


def test_a_node_that_frees_in_the_middle_of_a_prompt_causes_no_false_alarm(
    machine: Machine,
) -> None:
    model = machine.load("a").model
    machine.comfy.queue.currently_running = {1: "prompt"}
    machine.mm.unload_all_models()
    layer = model.blocks[0].up  # a LoRA is patched in
    layer.weight = torch.nn.Parameter(layer.weight.detach() * 2, requires_grad=False)
    machine.mm.soft_empty_cache()
    assert machine.unload.violations == 0


def test_a_model_that_nobody_holds_may_go(machine: Machine) -> None:
    loose = machine.load("a", keep=False)
    machine.keep.retain(loose.model)  # as the tab does: no longer flagged, but held by others only
    machine.mm.unload_all_models()
    machine.mm.current_loaded_models.clear()
    del loose
    gc.collect()
    machine.mm.soft_empty_cache()
    assert machine.unload.violations == 0


def test_caches_of_changed_devices_are_cleared_and_the_current_one_stays(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.load("a")
    cached, waits = [0, 4096, 0], []
    allocated = torch.sim.memory_allocated
    monkeypatch.setattr(torch.sim, "memory_reserved", lambda i: allocated(i) + cached[i])
    monkeypatch.setattr(torch.sim, "synchronize", waits.append)
    torch.sim.set_device(2)
    before = torch.sim.empty_cache_calls
    for _ in range(3):  # as after each node; the last two find nothing new
        machine.mm.soft_empty_cache()
    assert torch.sim.empty_cache_calls == before + 1
    assert waits == [1], "idle devices are not waited for"
    cached[0] = 512
    machine.mm.soft_empty_cache()
    assert waits == [1, 0]
    assert torch.sim.current_device() == 2
    torch.sim.set_device(0)


def test_clearing_with_nothing_to_do_costs_at_most_50_us_a_device(machine: Machine) -> None:
    machine.load("a")
    seconds = []
    for _ in range(200):
        start = time.perf_counter()
        machine.mm.soft_empty_cache()
        seconds.append(time.perf_counter() - start)
    a_device = sorted(seconds)[len(seconds) // 4] / 3 * 1e6
    print(f"soft_empty_cache with nothing to do: {a_device:.1f} us a device")
    assert a_device <= 50 * slowness()


def test_a_host_that_fills_up_is_watched_without_a_model_of_ours_too(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = SimpleNamespace(total_and_available=lambda: (100, 8))
    monkeypatch.setattr(machine.cleanup, "hostmemory", memory)
    machine.mm.soft_empty_cache()
    assert machine.comfy.queue.flags == {"free_memory": True}


def test_a_cleanup_without_force_leaves_a_running_prompt_alone(machine: Machine) -> None:
    machine.comfy.queue.currently_running = {1: "prompt"}
    report = machine.cleanup.force_full_system_cleanup("test", force=False)
    assert machine.comfy.queue.flags == {}
    assert (report.done, report["sim:0"]["freed"]) == (False, 0)


def test_a_full_host_resets_the_executors_caches_once_and_never_in_a_run(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [1000.0]
    monkeypatch.setattr(machine.cleanup.time, "monotonic", lambda: clock[0])
    memory = SimpleNamespace(total_and_available=lambda: (100, 8))
    monkeypatch.setattr(machine.cleanup, "hostmemory", memory)
    queue = machine.comfy.queue
    queue.currently_running = {1: "prompt"}
    assert not machine.cleanup.check_cpu_memory_threshold()
    queue.currently_running = {}
    assert machine.cleanup.check_cpu_memory_threshold()
    assert queue.flags == {"free_memory": True}
    assert not machine.cleanup.check_cpu_memory_threshold(), "the threshold was raised"
    clock[0] += 130
    assert machine.cleanup.current_threshold() == machine.cleanup.cpu_threshold
    assert machine.cleanup.check_cpu_memory_threshold(), "and has come down again"


def test_forced_cleanup_sets_both_flags_as_the_manager_does(machine: Machine) -> None:
    report = machine.cleanup.force_full_system_cleanup("test")
    assert machine.comfy.queue.flags == {"unload_models": True, "free_memory": True}
    assert set(report) >= {"cpu", "sim:0"}
    assert report["sim:0"]["total"] == comfy_standin.GIB
    assert report.done is False
    assert str(report) == "models and caches are freed when the running prompt has ended"
    machine.comfy.queue.flags.clear()
    machine.load("a")
    machine.mm.soft_empty_cache(force=True)
    assert machine.comfy.queue.flags == {"free_memory": True}


def test_memory_lines_by_their_old_names(
    machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    cleanup = machine.cleanup
    assert cleanup.comfyui_memory_load("x").startswith("tag=x|cpu=")
    assert cleanup.multigpu_memory_log("load", "before").startswith("tag=before|cpu=")
    assert "=== memory over 1 snapshots" in cleanup.multigpu_memory_log("print_summary", "")
    with caplog.at_level(logging.INFO, "DisTorch"):
        logging.getLogger("DisTorch").mgpu_mm_log("seen %d", 1)
    assert caplog.messages == ["[memory] seen 1"]


def test_uninstalling_gives_the_cores_functions_back(machine: Machine) -> None:
    assert machine.mm.unload_all_models is not machine.originals[0]
    machine.unload.uninstall()
    assert (machine.mm.unload_all_models, machine.mm.soft_empty_cache) == machine.originals
    assert machine.keep.kept() == []
