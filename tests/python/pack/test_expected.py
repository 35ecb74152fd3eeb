# SPDX-License-Identifier: Apache-2.0
"""A ComfyUI in which one seam is not as expected: that one is left alone, with one line, and the others are not."""

from __future__ import annotations

import logging
import sys
import types

import pytest

GOOD = "class PromptExecutor:\n    def add_message(self, event, data, broadcast): return event\n"
BAD = "class PromptExecutor:\n    def add_message(self, data, event, broadcast): return event\n"


def execution(monkeypatch: pytest.MonkeyPatch, text: str) -> types.ModuleType:
    """ComfyUI's module of that name, with one class."""
    module = types.ModuleType("execution")
    exec(text, module.__dict__)  # noqa: S102 - the text is above
    monkeypatch.setitem(sys.modules, "execution", module)
    return module


@pytest.mark.parametrize(("text", "wrapped"), [(GOOD, True), (BAD, False)])
def test_a_function_is_wrapped_if_it_is_as_expected(
    text: str, wrapped: bool, pack, monkeypatch: pytest.MonkeyPatch, caplog
) -> None:
    expected, seams = pack.load("patches.seams.expected"), pack.load("patches.seams.seam")
    module = execution(monkeypatch, text)
    with caplog.at_level(logging.WARNING):
        assert expected.look() < 1
    told = [m for m in caplog.messages if "add_message" in m]
    assert told == (
        []
        if wrapped
        else [
            "ComfyUI's execution.PromptExecutor.add_message takes (self, data, event, broadcast), "
            "not (self, event, data): the tab has no history of prompts"
        ]
    )
    heard = []

    def around(original, executor, event, *rest):
        heard.append(event)
        return original(executor, event, *rest)

    owner = module.PromptExecutor
    seam = seams.FunctionSeam(owner, "add_message", around, "for this test")
    assert seam.full_name == "execution.PromptExecutor.add_message"
    before = owner.add_message
    seam.install()
    assert seam.installed is wrapped
    assert (owner.add_message is not before) is wrapped
    owner().add_message("event", {}, False)
    assert heard == (["event"] if wrapped else [])
    seam.uninstall()
    assert owner.add_message is before
    other = types.ModuleType("elsewhere")
    other.function = lambda: 1
    apart = seams.FunctionSeam(other, "function", lambda original: original() + 1, "another seam")
    apart.install()
    assert other.function() == 2


def test_where_nothing_can_be_placed_models_are_comfyuis_own(pack, comfy, monkeypatch) -> None:
    expected, loading = pack.load("patches.seams.expected"), pack.load("patches.placing.loading")
    request = pack.load("patches.placing.request")
    monkeypatch.delattr(comfy.patcher.ModelPatcher, "partially_load")
    expected.look()
    assert not expected.can_place()
    plainly = []
    monkeypatch.setattr(
        loading, "load_plainly", lambda node, name, inputs, **more: plainly.append((name, inputs))
    )
    wanted = request.Request("sim:0", request.spec_for("sim:0", "sim:1,*", 0, []))
    loading.load(object, "id", wanted, {"unet_name": "a"}, text_encoder=False)
    assert plainly == [("sim:0", {"unet_name": "a"})]
