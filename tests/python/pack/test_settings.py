# SPDX-License-Identifier: Apache-2.0
"""The settings page: one table in the browser and in the server, read from ComfyUI's own file."""

from __future__ import annotations

import json
import logging
import os
import pathlib
import shutil
import subprocess
import sys
import types
from typing import Any

import pytest

from distorch.allocation import parse

ROOT = pathlib.Path(__file__).resolve().parents[3]


@pytest.fixture
def module(pack: Any) -> Any:
    return pack.load("patches.settings")


@pytest.fixture
def file(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / "comfy.settings.json"


@pytest.fixture
def chosen(module: Any, file: pathlib.Path) -> Any:
    return module.Settings(lambda: [file])


def write(file: pathlib.Path, **choices: Any) -> None:
    """As ComfyUI writes it; each time with another modification time."""
    before = file.stat().st_mtime_ns if file.exists() else 0
    file.write_text(json.dumps({f"DisTorch.{k}": v for k, v in choices.items()}, indent=4))
    os.utime(file, ns=(before + 10**9, before + 10**9))


def test_without_a_file_everything_is_at_its_default(chosen: Any) -> None:
    assert chosen.look() is False
    assert chosen["cpu_memory_threshold"] == 85
    assert chosen["log_level"] == "INFO"


def test_a_change_of_the_file_is_told_once(chosen: Any, file: pathlib.Path) -> None:
    told: list[float] = []
    chosen.listen(lambda values: told.append(values["reserve_gb"]))
    assert told == [0]
    write(file, reserve_gb=1.5, **{"other": 1})
    assert chosen.look() is True
    assert chosen.look() is False
    assert told == [0, 1.5]
    write(file, reserve_gb=1.5, other=2)
    assert chosen.look() is False  # nothing of ours
    file.unlink()
    assert chosen.look() is True
    assert told == [0, 1.5, 0]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("cpu_memory_threshold", 101),
        ("cpu_memory_threshold", "85"),
        ("cpu_memory_threshold", True),
        ("cpu_memory_threshold", float("nan")),
        ("strict", 1),
        ("strict", "false"),
        ("log_level", "LOUD"),
        ("log_level", ["INFO"]),
        ("scan_interval", 0),
        ("reserve_gb", -1),
        ("reserve_gb", {}),
    ],
)
def test_a_value_that_cannot_be_is_passed_over(
    chosen: Any, file: pathlib.Path, name: str, value: Any, caplog: pytest.LogCaptureFixture
) -> None:
    default = chosen[name]
    write(file, **{name: value, "debug_mode": True})
    with caplog.at_level(logging.WARNING, "DisTorch"):
        assert chosen.look() is True
    assert chosen[name] == default
    assert f"setting DisTorch.{name} cannot be" in caplog.text


@pytest.mark.parametrize("text", ['{"DisTorch.strict": tr', "", "[" * 10000])
def test_a_file_that_is_being_written_is_read_again(
    chosen: Any, file: pathlib.Path, text: str
) -> None:
    write(file, strict=True)
    assert chosen.look() is True
    file.write_text(text)
    assert chosen.look() is False
    assert chosen["strict"] is True
    write(file, strict=False)
    assert chosen.look() is True


def broken(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.message for r in caplog.records if "cannot be read" in r.message]


def test_a_file_that_stays_broken_is_told_once(
    chosen: Any, file: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(file, strict=True)
    chosen.look()
    file.write_text('{"DisTorch.strict": tr')
    chosen.look()
    assert broken(caplog) == [], "ComfyUI may be writing it"
    for _ in range(3):
        chosen.look()
    (message,) = broken(caplog)
    assert str(file) in message
    assert "Expecting value" in message
    assert "Mend the file, or remove it" in message
    assert chosen["strict"] is True
    file.write_text('{"DisTorch.strict": fals')
    chosen.look()
    chosen.look()
    assert len(broken(caplog)) == 1, "it is known by now"
    write(file, strict=False)
    assert chosen.look() is True
    file.write_text("{")
    chosen.look()
    chosen.look()
    assert len(broken(caplog)) == 2, "another fault"


def test_a_file_that_is_written_in_steps_is_not_told(
    chosen: Any, file: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    for text in ("{", '{"DisTorch.', '{"DisTorch.strict":', '{"DisTorch.strict": true}'):
        file.write_text(text)
        chosen.look()
    assert chosen["strict"] is True
    assert broken(caplog) == []


def test_a_file_of_another_form_sets_nothing(chosen: Any, file: pathlib.Path) -> None:
    file.write_text("[1, 2]")
    assert chosen.look() is False
    assert chosen["strict"] is False


def test_of_several_users_the_choice_made_last_counts(module: Any, tmp_path: pathlib.Path) -> None:
    ann, bob = tmp_path / "ann.json", tmp_path / "bob.json"
    write(ann, reserve_gb=1, strict=True)
    write(bob, reserve_gb=2)
    os.utime(ann, ns=(5 * 10**9, 5 * 10**9))
    chosen = module.Settings(lambda: [ann, bob])
    assert chosen.look() is True
    assert (chosen["reserve_gb"], chosen["strict"]) == (1, True), "written last"
    write(bob, reserve_gb=3)
    os.utime(bob, ns=(4 * 10**9, 4 * 10**9))
    assert chosen.look() is True
    assert chosen["reserve_gb"] == 3, "made last"
    write(ann, reserve_gb=1, strict=True, theme="dark")
    assert chosen.look() is False, "another matter of the other user's"
    write(ann, strict=False, theme="dark")
    assert chosen.look() is True
    assert (chosen["reserve_gb"], chosen["strict"]) == (3, False)
    bob.unlink()
    assert chosen.look() is True
    assert chosen["reserve_gb"] == 0


def test_users_files_are_followed_where_comfyui_has_users(
    module: Any, pack: Any, comfy: Any, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = types.SimpleNamespace(multi_user=False)
    monkeypatch.setitem(sys.modules, "comfy.cli_args", types.SimpleNamespace(args=arguments))
    comfy.folders.get_user_directory = lambda: str(tmp_path)
    for user in ("default", "ann_1", "bob_2", "__manager"):
        (tmp_path / user).mkdir()
        (tmp_path / user / module.FILE).write_text("{}")
    assert [path.parent.name for path in module._files()] == ["default"]
    arguments.multi_user = True
    assert sorted(p.parent.name for p in module._files()) == ["ann_1", "bob_2", "default"]


def test_a_listener_that_fails_keeps_nobody_from_the_news(
    chosen: Any, file: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[bool] = []
    chosen.listen(lambda values: 1 / 0)
    chosen.listen(lambda values: told.append(values["strict"]))
    write(file, strict=True)
    chosen.look()
    assert told == [False, True]
    assert "a setting could not be applied" in caplog.text


def test_the_thread_follows_the_file(
    module: Any, chosen: Any, file: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import threading

    monkeypatch.setattr(module, "LOOK_SECONDS", 0.01)
    changed = threading.Event()
    chosen.start()
    try:
        chosen.listen(lambda values: changed.set() if values["strict"] else None)
        write(file, strict=True)
        assert changed.wait(5)
    finally:
        chosen.stop()


def test_uninstalling_gives_listeners_thread_and_choices_back(
    pack: Any, module: Any, comfy: Any, tmp_path: pathlib.Path
) -> None:
    import threading

    from distorch import memory

    def threads() -> list[str]:
        return [t.name for t in threading.enumerate() if t.name == "distorch-settings"]

    lifecycle, cleanup = pack.load("patches.seams.lifecycle"), pack.load("patches.ejecting.cleanup")
    apply = pack.load("patches.view.apply_settings")
    comfy.folders.get_user_directory = lambda: str(tmp_path)
    (tmp_path / "default").mkdir()
    write(tmp_path / "default" / module.FILE, cpu_memory_threshold=60, strict=True, reserve_gb=2)
    lists = (lifecycle.loaded, lifecycle.changed, module.settings._listeners)
    before, logger = [list(listeners) for listeners in lists], logging.getLogger("DisTorch")
    level, cached = logger.level, memory.scanner().cache_seconds
    try:
        for _ in range(2):
            apply.install()
            apply.install()
            assert [
                len(listeners) - len(b) for listeners, b in zip(lists, before, strict=True)
            ] == [1] * 3
            assert threads() == ["distorch-settings"]
            assert (cleanup.cpu_threshold, module.settings["strict"]) == (0.6, True)
            assert module.reserve_bytes() == 2 * 2**30
            apply.uninstall()
            apply.uninstall()
            assert [list(listeners) for listeners in lists] == before
            assert threads() == []
            assert (cleanup.cpu_threshold, module.settings["strict"]) == (0.85, False)
            assert module.reserve_bytes() == 0
    finally:
        logger.setLevel(level)
        memory.scanner().cache_seconds = cached


def test_each_choice_reaches_whom_it_concerns(
    pack: Any, module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from distorch import memory

    cleanup, keep = (pack.load(f"patches.ejecting.{n}") for n in ("cleanup", "keep"))
    apply = pack.load("patches.view.apply_settings")
    logger = logging.getLogger("DisTorch")
    level, cached = logger.level, memory.scanner().cache_seconds
    try:
        apply._apply({
            "cpu_memory_threshold": 70, "cpu_memory_hysteresis": 9, "kept_under_pressure": True,
            "kept_memory_threshold": 80, "log_level": "ERROR", "debug_mode": True, "scan_interval": 4,
        })  # fmt: skip
        assert (cleanup.cpu_threshold, cleanup.cpu_hysteresis, keep.pressure) == (0.7, 0.09, 0.8)
        assert logger.level == logging.ERROR
        assert memory.scanner().cache_seconds == 4
        defaults = {name: choice.default for name, choice in module.CHOICES.items()}
        apply._apply({**defaults, "kept_under_pressure": False})
        assert keep.pressure == 1.0
    finally:
        logger.setLevel(level)
        memory.scanner().cache_seconds = cached


@pytest.mark.parametrize("on", [False, True])
def test_loads_are_recorded_in_debug_mode(
    pack: Any, module: Any, monkeypatch: pytest.MonkeyPatch, on: bool
) -> None:
    notes: list[tuple[str, str]] = []
    cleanup = pack.load("patches.ejecting.cleanup")
    monkeypatch.setattr(cleanup, "multigpu_memory_log", lambda *note: notes.append(note))
    monkeypatch.setitem(module.settings._values, "debug_mode", on)
    pack.load("patches.view.apply_settings")._note_loaded(
        types.SimpleNamespace(file="a"), "7", {}, ()
    )
    assert notes == ([("a", "loaded by 7")] if on else [])


def test_reserve_and_strictness_change_plans(
    pack: Any, comfy: Any, module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A donor of 1 GB with all but 100 KB reserved."""
    request = pack.load("patches.placing.request").Request(
        "sim:0", parse("sim:1,300kb;cpu,*#sim:0", kinds=["sim"]), "node"
    )
    patcher = comfy.model()
    values = module.settings._values
    placed = pack.load("patches.placing.patcher").attach(patcher.model, request)
    pack.load("patches.placing.donors").plan_for_an_empty_machine(placed)
    assert placed.planned_bytes("sim:1") > 200 * 1024
    monkeypatch.setitem(values, "reserve_gb", 1 - 100 / 2**20)
    pack.load("patches.placing.donors").plan_for_an_empty_machine(placed)
    assert placed.planned_bytes("sim:1") <= 100 * 1024
    monkeypatch.setitem(values, "strict", True)
    from distorch.allocation import PlanError

    with pytest.raises(PlanError, match="sim:1"):
        pack.load("patches.placing.donors").plan_for_an_empty_machine(placed)


def shown_in_the_browser() -> list[dict[str, Any]]:
    node = shutil.which("node")
    assert node, "node is needed: the table of the browser is JavaScript"
    script = "import('./web/lib/settings.js').then(m => console.log(JSON.stringify([...m.serverSettings(), ...m.pageSettings(() => 0)])))"
    done = subprocess.run(
        [node, "--experimental-default-type=module", "-e", script],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return list(json.loads(done.stdout))


def test_browser_and_server_know_the_same_settings(module: Any) -> None:
    rows = {row["id"].removeprefix("DisTorch."): row for row in shown_in_the_browser()}
    assert set(rows) == set(module.CHOICES) | {"badges"}
    del rows["badges"]  # the page's own
    for name, row in rows.items():
        choice = module.CHOICES[name]
        assert row["defaultValue"] == choice.default, name
        assert tuple(row.get("options", ())) == choice.options
        if row["type"] == "slider":
            assert (row["attrs"]["min"], row["attrs"]["max"]) == (choice.low, choice.high)
        assert row["category"][0] == "DisTorch"
        assert row["tooltip"]
