# SPDX-License-Identifier: Apache-2.0
"""Generations that come from ComfyUI's cache measure nothing, and are said to; clearing it."""

from __future__ import annotations

import json
import time

from fake_comfy import MB, node_run, prompt_run
from fake_runner import PROMPT, Play


def test_a_scene_that_is_all_cached_fails_the_run(e2e, server) -> None:
    server.plays = [Play(), Play(cached="all")]
    ended = e2e("--repeat", "2")
    assert ended.status == 6
    assert ended.statuses == ["success", "success"]
    second = ended.scenes[1]
    assert (second["cache"], second["figures_hold"], second["ran"]) == ("all", False, [])
    assert second["cached_nodes"] == ["1", "2", "3"]
    assert second["notes"] == [
        "everything came from ComfyUI's cache and no node ran, so the memory figures mean nothing: clear the cache "
        "before each scene with --clear-cache, or vary a seed in the workflow"
    ]
    assert "  from ComfyUI's cache: 1 (the first: scene 2); their figures mean nothing" in ended.out


def test_it_may_be_allowed(e2e, server) -> None:
    server.plays = [Play(cached="all")]
    ended = e2e("--allow-cached")
    assert ended.status == 0
    assert ended.scenes[0]["figures_hold"] is False


def test_only_the_last_node_ran_and_no_model_was_loaded(e2e, server) -> None:
    server.plays = [Play(cached={"1", "2"}, rise={}, seconds=1)]
    ended = e2e()
    assert ended.status == 6
    (scene,) = ended.scenes
    assert scene["cache"] == "part"
    assert scene["notes"][0].startswith(
        "2 of 3 nodes came from ComfyUI's cache and no model was loaded or used, so the memory figures mean nothing"
    )


def test_a_cached_loader_before_a_sampler_that_works_is_fine(e2e, server) -> None:
    server.plays = [Play(cached={"1"}, rise={"sim:1": 40 * MB}, seconds=0.2)]
    ended = e2e()
    assert ended.status == 0
    assert (ended.scenes[0]["cache"], ended.scenes[0]["figures_hold"]) == ("part", True)


def test_a_sampler_on_a_model_that_was_there_before_is_fine(e2e, server) -> None:
    """The allocator has its memory already: nothing rises, and yet the figures hold."""
    server.plays = [Play(cached={"1"}, rise={}, seconds=0.3, steps=4)]
    ended = e2e()
    assert (ended.status, ended.scenes[0]["figures_hold"]) == (0, True)


def test_too_short_to_tell_is_not_called_cached(e2e, server) -> None:
    server.plays = [Play(cached={"1"}, rise={"sim:1": 40 * MB}, seconds=0.01)]
    ended = e2e("--interval", "30")
    assert (ended.status, ended.scenes[0]["figures_hold"]) == (0, True)


def test_the_pack_tells_that_a_model_was_loaded(e2e, server) -> None:
    """Where the pack is there, its record of the prompt decides, not the level of memory."""
    live = server.live_history()
    before = prompt_run("before", 0.5, [node_run("8", "VAEDecode", 0.5, 0.9)], 0.9, "success")
    live.runs.append(before)

    def note(node: str) -> None:
        if node != "3":
            return
        loaded = [{"name": "wan", "type": "model", "bytes": {"sim:0": 9 * MB}}]
        now = time.time()
        nodes = [node_run(node, "KSampler", now - 1, now, loaded=loaded)]
        live.runs.append(
            prompt_run(
                server.prompts[-1].prompt_id, now - 1, nodes, now, "success", {"sim:0": 777 * MB}
            )
        )

    server.plays = [Play(cached={"1", "2"}, rise={}, seconds=0.2, at=note)]
    ended = e2e()
    assert ended.status == 0
    assert ended.scenes[0]["figures_hold"] is True
    assert ended.scenes[0]["peak"]["sim:0"] == 777 * MB
    (node,) = ended.json["statistics"]["nodes"]  # not those of the prompt before
    assert (node["name"], node["type"], node["count"]) == ("KSampler", "3", 1)


def test_a_spike_between_two_samples_is_in_the_peak(e2e, server) -> None:
    """The allocator's own counter, that the pack passes on, is read before and after each scene."""
    live = server.live_history()

    def spike(node: str) -> None:
        live.peak = 20_000 * MB  # what the allocator's counter tells at the next sample

    server.plays = [Play(at=spike, rise={})]
    ended = e2e("--interval", "60")
    assert ended.scenes[0]["peak"]["sim:0"] == 20_000 * MB


def test_clear_cache_frees_before_and_after_each_scene(e2e, server) -> None:
    ended = e2e("--repeat", "2", "--clear-cache")
    assert ended.status == 0
    sent = [(r.path, r.body) for r in server.requests if r.path in ("/free", "/prompt")]
    assert {b for p, b in sent if p == "/free"} == {b'{"unload_models": true, "free_memory": true}'}
    assert [p for i, (p, _) in enumerate(sent) if not i or sent[i - 1][0] != p] == [
        "/free", "/prompt", "/free", "/prompt", "/free",
    ]  # fmt: skip
    assert [q.prompt for q in server.prompts] == [PROMPT, PROMPT]
    assert [json.loads(b)["prompt"] for p, b in sent if p == "/prompt"] == [PROMPT, PROMPT]


def test_where_the_pack_is_there_it_tells_when_the_cache_is_clear(e2e, server) -> None:
    server.reports = ["queued", "running", "done"]
    ended = e2e("--clear-cache")
    assert ended.status == 0
    asked = [
        r.path
        for r in server.requests
        if r.path in ("/distorch/free", "/distorch/report", "/free", "/prompt")
    ]
    assert asked == [
        "/distorch/free", *["/distorch/report"] * 3, "/prompt", "/distorch/free", "/distorch/report",
    ]  # fmt: skip
    sent = next(r for r in server.requests if r.path == "/distorch/free")
    assert json.loads(sent.body) == {"unload_models": True, "free_memory": True}
    report = next(r for r in server.requests if r.path == "/distorch/report")
    assert report.query == {"ticket": "1"}


def test_where_the_pack_fails_to_clear_comfyui_is_asked(e2e, server) -> None:
    server.reports = ["failed"]
    ended = e2e("--clear-cache")
    assert ended.status == 0
    asked = [r.path for r in server.requests if r.path in ("/distorch/free", "/free", "/prompt")]
    assert asked == ["/distorch/free", *["/free"] * 3, "/prompt", "/distorch/free", *["/free"] * 3]


def test_a_cache_that_does_not_clear_is_said(e2e, server) -> None:
    server.plays = [Play(cached={"1"}, seconds=0.1)]
    ended = e2e("--clear-cache")
    assert "ComfyUI was asked to clear its cache and still had results of nodes" in ended.out
