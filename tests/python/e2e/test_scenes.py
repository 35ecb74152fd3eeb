# SPDX-License-Identifier: Apache-2.0
"""`distorch e2e` against a server that plays every way in which a scene can end."""

from __future__ import annotations

import re
import socket
import threading
import time

import pytest
from fake_comfy import GB, MB
from fake_runner import PROMPT, Play

from distorch.tools.e2e import scene


def with_limits(monkeypatch: pytest.MonkeyPatch, **changed: float) -> None:
    """Limits that have no option of their own, shorter."""
    made = scene.Limits
    monkeypatch.setattr(scene, "Limits", lambda **given: made(**given, **changed))


def test_a_scene_that_succeeds(e2e, server) -> None:
    server.plays = [Play(seconds=0.2, steps=4)]
    ended = e2e()
    assert ended.status == 0
    (found,) = ended.scenes
    assert found["status"] == "success"
    assert [n["kind"] for n in found["ran"]] == ["UNETLoader", "KSampler", "SaveImage"]
    assert all(n["seconds"] >= 0.19 for n in found["ran"])
    assert found["peak"]["sim:0"] == 8 * GB + 500 * MB
    assert found["rest"] == {"sim:0": 500 * MB, "sim:1": MB}
    assert (found["cache"], found["figures_hold"], found["notes"]) == ("none", True, [])
    assert server.prompts[0].prompt == PROMPT
    assert re.search(r"Keep it \(3, SaveImage\)  \d\.\d s", ended.out)
    assert re.search(r"success in \d\.\d s; peak sim:0 8692 MB", ended.out)
    assert ended.json["complete"] is True
    assert ended.json["comfyui_version"] == "0.33.0"
    assert threading.active_count() == 2  # this one and the server's


def test_repeats_are_scenes_in_turn(e2e, server, workflow) -> None:
    other = workflow.with_name("flux.json")
    other.write_text(workflow.read_text())
    ended = e2e(str(other), "--repeat", "2")
    names = [s["name"] for s in ended.scenes]
    assert names == ["wan.json #1", "flux.json #1", "wan.json #2", "flux.json #2"]
    assert [q.prompt for q in server.prompts] == [PROMPT] * 4  # --repeat varies nothing


def test_a_node_that_fails_is_named_and_the_next_scene_runs(e2e, server) -> None:
    server.plays = [Play(fails="2", error=("torch.OutOfMemoryError", "needs 3 GB\nof 2")), Play()]
    ended = e2e("--repeat", "2")
    assert ended.status == 1
    assert ended.statuses == ["execution error", "success"]
    first = ended.scenes[0]
    assert (first["error_node"], first["error_type"]) == ("2", "torch.OutOfMemoryError")
    assert first["message"] == "node 2 (KSampler): needs 3 GB\nof 2"
    assert "execution error: node 2 (KSampler): needs 3 GB" in ended.out


def test_fail_fast_ends_the_run(e2e, server) -> None:
    server.plays = [Play(fails="2"), Play()]
    ended = e2e("--repeat", "3", "--fail-fast")
    assert ended.status == 1
    assert ended.statuses == ["execution error", "not run", "not run"]
    assert len(server.prompts) == 1
    assert "the run ended after scene 1: --fail-fast" in ended.out


def test_a_refused_workflow_tells_comfyui_words_node_by_node(e2e, server) -> None:
    reasons = [{"type": "value_not_in_list", "message": "Value not in list",
                "details": "unet_name: 'wan.safetensors' not in []"}]  # fmt: skip
    server.plays = [Play(refuse={
        "error": {"type": "prompt_outputs_failed_validation", "message": "Prompt outputs failed validation"},
        "node_errors": {"1": {"errors": reasons, "class_type": "UNETLoader", "dependent_outputs": ["3"]}},
    })]  # fmt: skip
    ended = e2e()
    assert ended.status == 1
    (found,) = ended.scenes
    assert (found["status"], found["error_node"]) == ("validation error", "1")
    assert found["message"] == (
        "node 1 (UNETLoader): Value not in list: unet_name: 'wan.safetensors' not in []"
    )


@pytest.mark.parametrize(
    ("error", "message", "node"),
    [
        (
            {"type": "missing_node_type", "message": "Node 'X' not found.", "details": "Node ID '#4'",
             "extra_info": {"node_id": "4"}},
            "Node 'X' not found.: Node ID '#4'", "4",
        ),
        ({"type": "prompt_no_outputs", "message": "Prompt has no outputs", "details": ""},
         "Prompt has no outputs", None),
        ("no prompt", "no prompt", None),
    ],
)  # fmt: skip
def test_refusals_without_node_errors(e2e, server, error, message, node) -> None:
    server.plays = [Play(refuse={"error": error, "node_errors": []})]
    (found,) = e2e().scenes
    assert (found["message"], found["error_node"]) == (message, node)


def test_a_workflow_of_which_a_part_is_ignored_has_failed(e2e, server) -> None:
    """ComfyUI queues what is valid and says "Output will be ignored" in its own log only."""
    reason = {"message": "Value not in list", "details": "x"}
    server.plays = [Play(node_errors={"9": {"errors": [reason], "class_type": "PreviewImage"}})]
    ended = e2e()
    assert ended.status == 1
    (found,) = ended.scenes
    assert found["status"] == "validation error"
    assert found["message"] == (
        "ComfyUI ignored a part of the workflow: node 9 (PreviewImage): Value not in list: x"
    )
    assert len(found["ran"]) == 3


def test_interrupted_by_somebody_else(e2e, server) -> None:
    def interrupt(node: str) -> None:
        server._interrupted = node == "2"

    server.plays = [Play(at=interrupt, seconds=0.05)]
    ended = e2e()
    assert ended.status == 1
    (found,) = ended.scenes
    assert found["status"] == "interrupted"
    assert found["message"] == "node 2 (KSampler): interrupted, not by this program"
    assert server.interrupts == []


def test_time_limit_interrupts_the_prompt_on_the_server(e2e, server) -> None:
    server.plays = [Play(seconds=30, steps=600), Play()]
    ended = e2e("--repeat", "2", "--timeout", "0.6")
    assert ended.status == 3
    assert ended.statuses == ["timeout", "success"]
    first = ended.scenes[0]
    assert first["message"] == "not done within 0.6 s: node 1 (UNETLoader) was running"
    assert 0.6 <= first["seconds"] < 10
    assert server.interrupts == [first["prompt_id"]]
    assert first["rest"]["sim:0"] == 500 * MB


def test_time_limit_in_the_queue_takes_the_prompt_out(e2e, server) -> None:
    server.plays = [Play(seconds=1.5, steps=30)]
    server._queue({"prompt": PROMPT, "prompt_id": "somebody-else", "client_id": "x"})
    ended = e2e("--timeout", "0.5")
    assert ended.status == 3
    assert ended.scenes[0]["message"] == "not done within 0.5 s: it was still waiting in the queue"
    assert server.interrupts == []  # the other prompt goes on
    assert server._pending == []


def test_waiting_in_the_queue_does_not_count(e2e, server) -> None:
    server.plays = [Play(seconds=1.1), Play(seconds=0.3)]
    server._queue({"prompt": PROMPT, "prompt_id": "somebody-else", "client_id": "x"})
    ended = e2e("--timeout", "4")
    assert ended.statuses == ["success"]
    assert ended.scenes[0]["seconds"] < 3.3  # it waited as long
    assert ended.scenes[0]["notes"] == [
        "prompts of others were in the queue (1): the memory figures are theirs too"
    ]


def test_a_server_that_does_not_react_ends_the_run(e2e, server, monkeypatch) -> None:
    with_limits(monkeypatch, interrupt=0.3)
    server.plays = [Play(seconds=30, steps=300, deaf=True)]
    ended = e2e("--repeat", "2", "--timeout", "0.4")
    assert ended.status == 3
    assert ended.statuses == ["timeout", "not run"]
    assert "interrupted, but it goes on after 0.3 s" in ended.scenes[0]["message"]
    assert "the run ended early: the server does not react to the interruption" in ended.out


def test_fast_iteration_is_six_minutes(e2e, monkeypatch) -> None:
    from distorch.tools.e2e import runner

    seen = []
    monkeypatch.setattr(runner.Run, "run", lambda self: _note(seen, self._options.limits))
    e2e("--fast-iteration")
    e2e()
    assert [limits.scene for limits in seen] == [360, 3600]


async def _note(seen: list, limits: object) -> None:
    seen.append(limits)


def test_websocket_that_drops_is_made_up_for(e2e, server) -> None:
    server.plays = [Play(drop="2", seconds=0.1)]
    ended = e2e()
    assert ended.status == 0
    assert ended.statuses == ["success"]
    assert server.sockets_opened == 2


def test_without_any_websocket_the_queue_is_asked(e2e, server) -> None:
    server.accept_sockets = False
    server.plays = [Play(seconds=0.3), Play(fails="2")]
    ended = e2e("--repeat", "2")
    assert ended.status == 1
    assert ended.statuses == ["success", "execution error"]
    assert ended.scenes[1]["message"] == "node 2 (KSampler): no such luck"
    assert (ended.scenes[0]["cache"], ended.scenes[0]["ran"]) == ("none", [])


def test_a_mute_websocket_is_no_cached_scene(e2e, server, monkeypatch) -> None:
    """Messages that never come: the queue is asked all the same, and /history knows what was cached."""
    with_limits(monkeypatch, look=0.2)
    server.plays = [Play(mute=True, seconds=0.2)]
    ended = e2e()
    assert ended.statuses == ["success"]


def test_garbage_on_the_websocket_is_ignored(e2e, server) -> None:
    texts = (
        "\x00\xff no JSON", "[1, 2]", "null", '{"type": 7}', '{"type": "executing"}', '{"type": "progress", "data": 3}',
        '{"type": "executing", "data": {"prompt_id": "another", "node": "99"}}', "[" * 5000,
    )  # fmt: skip
    server.plays = [Play(garbage=texts)]
    ended = e2e()
    assert ended.status == 0
    assert [n["id"] for n in ended.scenes[0]["ran"]] == ["1", "2", "3"]


def test_history_cleared_by_somebody_else(e2e, server) -> None:
    server.plays = [Play(forget=True), Play(forget=True, fails="1")]
    ended = e2e("--repeat", "2")
    assert ended.statuses == ["success", "execution error"]


def test_restart_in_the_middle(e2e, server) -> None:
    """The prompt is lost, and said to be; the scenes after it run on the new server."""

    def restart(node: str) -> None:
        if node == "2":
            server.restart_soon(down=0.4)

    server.plays = [Play(), Play(at=restart, seconds=0.3), Play()]
    ended = e2e("--repeat", "3")
    assert ended.status == 5
    assert ended.statuses == ["success", "server lost", "success"]
    assert ended.scenes[1]["message"] == (
        "the server knows nothing of the prompt any more: it was restarted, or its queue was cleared"
    )
    assert ended.json["complete"] is True


def test_a_server_that_goes_away_for_good(e2e, server) -> None:
    server.plays = [
        Play(seconds=0.1, at=lambda _: threading.Thread(target=server.stop, daemon=True).start())
    ]
    start = time.monotonic()
    ended = e2e("--repeat", "2", "--reconnect", "0.8")
    assert ended.status == 5
    assert ended.statuses == ["server lost", "not run"]
    assert "no usable answer for 1 s: " in ended.scenes[0]["message"]
    assert "the server is gone: " in ended.out
    assert time.monotonic() - start < 20


def test_nobody_listens(e2e, server) -> None:
    server.stop()
    with socket.socket() as taken:  # nobody else may get the port meanwhile
        taken.bind(("127.0.0.1", server.port))
        ended = e2e()
    assert ended.status == 5
    assert ended.statuses == ["not run"]
    assert f"no ComfyUI answers at {server.url}: " in ended.out
    assert "name another address with --url" in ended.out


@pytest.mark.parametrize("fault", ["garbage", "html", "null", "list", "empty", "error500", "deep"])
def test_something_else_listens(e2e, server, fault) -> None:
    server.fault = fault
    ended = e2e()
    assert ended.status == 5
    assert "no ComfyUI answers at" in ended.out
    assert server.prompts == []


@pytest.mark.parametrize("fault", ["garbage", "null", "list", "error500", "empty"])
def test_answers_that_are_garbage_for_a_while(e2e, server, fault) -> None:
    """/queue and /history fail while the scene runs, and the websocket too: asked again until they answer."""

    def break_it(node: str) -> None:
        if node == "2":
            server.fault, server.faulty_paths = fault, None
            threading.Timer(0.5, lambda: setattr(server, "fault", None)).start()

    server.accept_sockets = False
    server.plays = [Play(seconds=0.2, at=break_it)]
    ended = e2e()
    assert ended.status == 0
    assert ended.statuses == ["success"]


def test_prompt_route_that_answers_garbage(e2e, server) -> None:
    server.fault, server.faulty_paths = "garbage", {"/prompt"}
    ended = e2e("--reconnect", "0.2")
    assert ended.status == 5
    assert ended.scenes[0]["message"] == (
        "it could not be queued: POST /prompt: HTTP 200, an answer that is not ComfyUI's"
    )
