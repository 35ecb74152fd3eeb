# SPDX-License-Identifier: Apache-2.0
"""What is told of nodes, prompts, steps and models that run, and that telling never breaks a run."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from stand_in import load_patches

node_events = load_patches("seams.node_events")


def module_of(**names: Any) -> ModuleType:
    module = ModuleType("of_comfyui")
    module.__dict__.update(names)
    return module


class ComfyUI:
    """The functions that are wrapped."""

    def __init__(self) -> None:
        async def get_output_data(
            prompt_id: str, unique_id: str, obj: Any, input_data_all: Any, *args: Any, **kw: Any
        ) -> tuple[Any, ...]:
            if input_data_all.get("fail"):
                raise ValueError("the node failed")
            return ([["out", args, kw]], {}, False)

        class PromptExecutor:
            def add_message(self, event: str, data: Any, broadcast: bool) -> Any:
                return (event, data, broadcast)

        class ProgressBar:
            def __init__(self) -> None:
                self.current, self.total = 0.0, 4.0

            def update_absolute(self, value: Any, total: Any = None, preview: Any = None) -> Any:
                self.current = value
                return preview

        class BaseModel:
            def apply_model(self, x: int, t: int = 1) -> int:
                return x + t

        self.execution = module_of(get_output_data=get_output_data, PromptExecutor=PromptExecutor)
        self.utils = module_of(ProgressBar=ProgressBar)
        self.model_base = module_of(BaseModel=BaseModel)


class Listener:
    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments: self.told.append((name, *arguments))


@pytest.fixture
def comfy() -> ComfyUI:
    return ComfyUI()


@pytest.fixture
def events(comfy: ComfyUI) -> Iterator[Any]:
    events = node_events.NodeEvents(comfy.execution, comfy.utils, comfy.model_base)
    events.install()
    yield events
    events.uninstall()


class Loader:
    pass


def test_a_node_is_told_of_with_its_inputs_and_outputs(comfy: ComfyUI, events: Any) -> None:
    listener = Listener()
    events.listeners.append(listener)
    run = comfy.execution.get_output_data("p", 7, Loader, {"name": ["a"]}, "extra", more=1)
    assert asyncio.run(run)[0] == [["out", ("extra",), {"more": 1}]]
    with pytest.raises(ValueError, match="the node failed"):
        asyncio.run(comfy.execution.get_output_data("p", 8, Loader(), {"fail": [1]}))
    assert listener.told == [
        ("node_started", "p", "7", "Loader", {"name": ["a"]}),
        ("node_ended", "p", "7", [["out", ("extra",), {"more": 1}]]),
        ("node_started", "p", "8", "Loader", {"fail": [1]}),
        ("node_ended", "p", "8", None),
    ]


def test_prompts_steps_and_passes_are_told_of(comfy: ComfyUI, events: Any) -> None:
    listener = Listener()
    events.listeners.append(listener)
    assert comfy.execution.PromptExecutor().add_message("execution_start", {"a": 1}, True) == (
        "execution_start", {"a": 1}, True,
    )  # fmt: skip
    assert comfy.utils.ProgressBar().update_absolute(2, preview="image") == "image"
    model = comfy.model_base.BaseModel()
    assert model.apply_model(3, t=4) == 7
    assert listener.told == [
        ("message", "execution_start", {"a": 1}),
        ("progress", 2, 4),
        ("passed", model),
    ]


class Broken:
    def __getattr__(self, name: str) -> Any:
        def fail(*_: Any) -> None:
            raise RuntimeError(f"{name} went wrong")

        return fail


def test_a_listener_that_fails_breaks_no_run(
    comfy: ComfyUI, events: Any, caplog: pytest.LogCaptureFixture
) -> None:
    good = Listener()
    events.listeners += [Broken(), good]
    with caplog.at_level(logging.ERROR):
        asyncio.run(comfy.execution.get_output_data("p", 7, Loader, {}))
        comfy.utils.ProgressBar().update_absolute(1)
        assert comfy.model_base.BaseModel().apply_model(1) == 2
    assert [told[0] for told in good.told] == ["node_started", "node_ended", "progress", "passed"]
    assert "DisTorch: progress of Broken failed" in caplog.text


@pytest.mark.parametrize("value", [None, float("nan"), float("inf"), "three"])
def test_a_progress_bar_that_counts_oddly_breaks_no_run(
    value: Any, comfy: ComfyUI, events: Any
) -> None:
    listener = Listener()
    events.listeners.append(listener)
    assert comfy.utils.ProgressBar().update_absolute(value, preview="image") == "image"
    assert listener.told == []


def test_everything_is_given_back(comfy: ComfyUI, events: Any) -> None:
    listener = Listener()
    events.listeners.append(listener)
    events.uninstall()
    comfy.model_base.BaseModel().apply_model(1)
    comfy.utils.ProgressBar().update_absolute(1)
    assert listener.told == []
    assert not hasattr(comfy.execution.get_output_data, "__wrapped__")


def test_a_node_is_called_as_workflows_call_it(comfy: ComfyUI) -> None:
    class Loader:
        pass

    class KSampler:
        pass

    comfy.execution.nodes = SimpleNamespace(
        NODE_CLASS_MAPPINGS={"Load it (pack)": Loader, "Same again": Loader, "Broken": None}
    )
    kinds = node_events._Kinds(comfy.execution)
    assert kinds.of(Loader()) == kinds.of(Loader) == "Load it (pack)"
    assert kinds.of(KSampler()) == "KSampler"  # not in the table
    comfy.execution.nodes.NODE_CLASS_MAPPINGS |= {"Old name": KSampler, "KSampler": KSampler}
    assert kinds.of(KSampler()) == "KSampler"
    assert node_events._Kinds(SimpleNamespace()).of(Loader) == "Loader"
