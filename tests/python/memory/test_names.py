# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import logging
import pathlib
import types

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from distorch import memory
from distorch.memory import Scanner, names, scanning


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    """Model folders with a few files; resolver_of(folder) finds them."""
    weight = {"w": torch.zeros(2)}
    files = {
        "checkpoints/wan.safetensors": {
            "model_type": "Wan2_2-T2V-A14B-HIGH",
            "modelspec.architecture": "wan-2.2",
            "modelspec.title": "not this",
            "base_model": "Wan 2.2",
        },
        "checkpoints/titled.safetensors": {"modelspec.title": "My Model"},
        "loras/style.safetensors": {"model_type": "MyLoRA"},
        "vae/plain.safetensors": None,
        "text_encoders/clip_l.safetensors": None,
        "text_encoders/t5.safetensors": None,
    }
    for name, metadata in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        save_file(weight, tmp_path / name, metadata=metadata)
    (tmp_path / "checkpoints/old.ckpt").write_bytes(b"pickled")
    return tmp_path


def resolver_of(folder: pathlib.Path):
    def resolve(kind: str, name: str) -> str | None:
        if ".." in pathlib.PurePosixPath(name).parts or name.startswith("/"):
            return None
        path = folder / kind / name
        return str(path) if path.exists() else None

    return resolve


class Wrapper:
    """As ComfyUI's patcher: the module is an attribute."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model


def row_of(scanner: Scanner, module: nn.Module) -> memory.Row:
    return next(r for r in scanner.rows(max_age=0) if scanner.module(r.id) is module)


def test_the_loaders_own_return_value_is_matched(scanner, folder):
    other = nn.Linear(4, 4)
    scanner.node_started("n", {"ckpt_name": ["wan.safetensors"]}, resolver_of(folder))
    model = nn.Linear(3, 3)
    scanner.node_ended("n", [[Wrapper(model)], [None]])
    row = row_of(scanner, model)
    assert row.name == "Wan2_2-T2V-A14B-HIGH"
    assert row.file == "checkpoints/wan.safetensors"
    assert row.type == "checkpoint"
    assert row.architecture == "wan-2.2"
    assert row.base_model == "Wan 2.2"
    assert row.metadata == {
        "modelspec.architecture": "wan-2.2",
        "modelspec.title": "not this",
    }
    assert row.display == "Wan2_2-T2V-A14B-HIGH (checkpoint, 0 MB, 1 layer) (offloaded)"
    assert row_of(scanner, other).name == "Linear"


def test_a_model_that_the_node_keeps_is_matched_by_time(scanner, folder):
    before = nn.Linear(4, 4)
    scanner.node_started("n", {"ckpt_name": "titled.safetensors"}, resolver_of(folder))
    kept = nn.Linear(3, 3)
    scanner.node_ended("n", [])
    assert row_of(scanner, kept).name == "My Model"
    assert row_of(scanner, before).name == "Linear"


def test_what_appears_after_a_load_that_returned_its_model_is_something_else(scanner, folder):
    scanner.node_started("n", {"ckpt_name": "titled.safetensors"}, resolver_of(folder))
    model = nn.Linear(3, 3)
    scanner.node_ended("n", [[Wrapper(model)]])
    other = nn.Linear(4, 4)  # of the next node, within the five seconds
    assert row_of(scanner, model).name == "My Model"
    assert row_of(scanner, other).name == "Linear"


def test_a_pending_load_is_forgotten_after_five_seconds(folder):
    now = [1000.0]
    pending = names.PendingLoads(clock=lambda: now[0])
    pending.started("n", {"ckpt_name": "titled.safetensors"}, resolver_of(folder))
    pending.ended("n")
    now[0] = 1004.9
    assert pending.waiting()
    assert pending.match(1004.0, "model").name == "My Model"
    now[0] = 1005.1
    assert not pending.waiting()
    assert pending.match(1004.0, "model") is None


def test_a_model_that_appeared_before_is_not_the_pending_one(folder):
    pending = names.PendingLoads(clock=lambda: 1000.0)
    pending.started("n", {"ckpt_name": "titled.safetensors"}, resolver_of(folder))
    assert pending.match(999.9, "model") is None


def test_a_lora_does_not_rename_the_model_it_is_put_on(scanner, folder):
    model = nn.Linear(3, 3)
    scanner.note_loaded(Wrapper(model), name="Base", file="checkpoints/wan.safetensors")
    scanner.node_started("n", {"lora_name": "style.safetensors"}, resolver_of(folder))
    scanner.node_ended("n", [[Wrapper(model)]])
    assert row_of(scanner, model).name == "Base"


def test_a_lora_does_not_name_what_appears_after_it(scanner, folder):
    scanner.node_started("n", {"lora_name": "style.safetensors"}, resolver_of(folder))
    scanner.node_ended("n", [])
    other = nn.Linear(3, 3)  # of the next node, of a class that says nothing
    assert row_of(scanner, other).name == "Linear"


def test_a_kept_model_that_is_returned_again_leaves_no_name_to_others(scanner, folder):
    model = nn.Linear(3, 3)
    scanner.note_loaded(Wrapper(model), name="Kept", file="checkpoints/titled.safetensors")
    scanner.node_started("n", {"ckpt_name": "titled.safetensors"}, resolver_of(folder))
    scanner.node_ended("n", [[Wrapper(model)]])
    other = nn.Linear(3, 3)
    assert row_of(scanner, other).name == "Linear"
    assert row_of(scanner, model).name == "Kept"


def test_a_gguf_model_goes_by_the_name_of_its_file(scanner, folder):
    scanner.node_started("n", {"unet_name": "flux-Q8_0.gguf"}, lambda *_: "/models/flux-Q8_0.gguf")
    model = nn.Linear(3, 3)
    scanner.node_ended("n", [[Wrapper(model)]])
    row = row_of(scanner, model)
    assert (row.name, row.file) == ("flux-Q8_0", "diffusion_models/flux-Q8_0.gguf")


def test_two_text_encoders_of_one_node_are_both_named(folder):
    found = names.files_named_by(
        {"clip_name1": "clip_l.safetensors", "clip_name2": "t5.safetensors", "type": "flux"},
        resolver_of(folder),
    )
    load = names.PendingLoad(found, 0.0)
    note = load.note_for("clip")
    assert note.name == "clip_l + t5"
    assert note.file == "text_encoders/clip_l.safetensors"
    assert load.note_for("vae") is None


@pytest.mark.parametrize(
    "inputs",
    [
        {"ckpt_name": "../../etc/passwd"},
        {"ckpt_name": "/etc/passwd"},
        {"ckpt_name": "missing.safetensors"},
        {"filename": "wan.safetensors"},
        {"ckpt_name": ["1", 0]},
        {"ckpt_name": 7},
        {"ckpt_name": ""},
    ],
)
def test_what_the_model_folders_do_not_hold_is_not_read(folder, inputs, monkeypatch):
    monkeypatch.setattr(names, "_read_metadata", lambda path: pytest.fail(f"read {path}"))
    assert names.files_named_by(inputs, resolver_of(folder)) == []


@pytest.mark.parametrize("widget", ["vae", "vae_file", "my_favourite"])
def test_a_file_is_found_whatever_the_input_is_called(folder, widget):
    (folder / "vae/mine.safetensors").write_bytes(b"")
    resolver = resolver_of(folder)

    def resolve(kind: str, name: str) -> str | None:
        if kind:
            return resolver(kind, name)
        return next((k for k in ("loras", "vae") if resolver(k, name)), None)

    (found,) = names.files_named_by({widget: "mine.safetensors", "text": "a cat"}, resolve)
    assert (found.file, found.kind) == ("vae/mine.safetensors", "vae")


def test_a_file_of_another_format_leaves_the_class_name(scanner, folder):
    scanner.node_started("n", {"ckpt_name": "old.ckpt"}, resolver_of(folder))
    model = nn.Linear(3, 3)
    scanner.node_ended("n", [[model]])
    row = row_of(scanner, model)
    assert row.name == "Linear"
    assert row.file == "checkpoints/old.ckpt"


def test_a_broken_file_warns_once_and_leaves_the_class_name(folder, caplog, monkeypatch):
    monkeypatch.setattr(names, "_warned", False)
    (folder / "vae/broken.safetensors").write_bytes((2**60).to_bytes(8, "little"))
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            (found,) = names.files_named_by({"vae_name": "broken.safetensors"}, resolver_of(folder))
            assert found.title == ""
    assert len(caplog.records) == 1
    assert "cannot read the metadata of broken.safetensors" in caplog.text


def test_names_of_attributes_in_order():
    module = nn.Linear(1, 1)
    assert names.name_by_attributes(module) == ""
    module.__dict__["__metadata__"] = {"model_type": "from metadata"}
    assert names.name_by_attributes(module) == "from metadata"
    module.config = types.SimpleNamespace(_name_or_path="org/tiny-model")
    assert names.name_by_attributes(module) == "tiny-model"
    module.model_name = "model name"
    assert names.name_by_attributes(module) == "model name"
    module.name = "name"
    assert names.name_by_attributes(module) == "name"


def test_modules_in_finds_the_outermost_ones():
    inner = nn.Linear(1, 1)
    outer = nn.Sequential(inner)
    clip = types.SimpleNamespace(cond_stage_model=nn.Linear(2, 2), patcher=Wrapper(inner))
    value = [[Wrapper(outer)], {"clip": clip}, "text", None]
    assert names.modules_in(value) == [outer, clip.cond_stage_model, inner]


def test_a_name_and_a_use_are_kept_in_the_row(scanner):
    model = nn.Linear(2, 2)
    scanner.note_loaded(model, name="Named", file="vae/x.safetensors", since=123.0)
    scanner.note_used(model)
    row = row_of(scanner, model)
    assert (row.name, row.type, row.loaded_since) == ("Named", "vae", 123.0)
    assert row.last_used > 0
    assert json.loads(json.dumps(row.as_json()))["display"] == row.display


def test_a_managed_model_says_how(scanner):
    model = nn.Linear(2, 2)
    management = memory.Management(eject=True, compute="cuda:0", streamed=5, migrated=7)
    scanner.add_management(lambda module: management if module is model else None)
    row = row_of(scanner, model)
    assert row.managed
    assert (row.eject, row.compute, row.streamed, row.migrated) == (True, "cuda:0", 5, 7)


@pytest.mark.parametrize(("grown_mb", "told"), [(150, True), (50, False)])
def test_a_node_that_changes_memory_much_is_told(scanner, monkeypatch, caplog, grown_mb, told):
    used = iter([{"sim:0": 0}, {"sim:0": grown_mb << 20}])
    monkeypatch.setattr(scanning, "memory_used", lambda: next(used))
    with caplog.at_level(logging.DEBUG, "distorch.memory"):
        scanner.node_started("n", {"seed": 1}, lambda *_: None)
        scanner.node_ended("n", [])
    line = "Significant change of memory (150.0 MB on sim:0): the models are looked at anew"
    assert (line in caplog.messages) == told
    assert any("Significant" in message for message in caplog.messages) == told
