# SPDX-License-Identifier: Apache-2.0
"""What the user chose on ComfyUI's settings page under "DisTorch", as the server sees it.

ComfyUI's front end writes each choice into `user/default/comfy.settings.json` by itself. That file is what is read
here, whenever it has changed: so the choices hold after a restart, before any page is open, and without a route that
could be called from elsewhere. With `--multi-user` each user has such a file, but the server is one: for each setting
the choice that was made last counts, whoever made it; after a restart, that of the file written last. A value of a
wrong type or out of its range is passed over with a warning; so is a file that is not JSON for longer than a look, as
ComfyUI's own page then shows the defaults too.

`web/lib/settings.js` shows the same table in the browser; a test compares the two.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import pathlib
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any

log = logging.getLogger("DisTorch")

PREFIX = "DisTorch."
FILE = "comfy.settings.json"
FILE_LIMIT = 16 * 2**20  # bytes; a settings file is a few KB
LOOK_SECONDS = 1.0

_BROKEN = (
    "the settings in %s cannot be read, those of before stay in force: %s. Mend the file, or remove it and choose "
    "anew on the settings page"
)


@dataclasses.dataclass(frozen=True)
class Choice:
    """One setting: its default gives the type; a number lies in [low, high], a text is one of `options`."""

    default: bool | float | str
    low: float = 0
    high: float = 0
    options: tuple[str, ...] = ()

    def accepts(self, value: object) -> bool:
        """Whether a value from the file is of the right type and in range."""
        if isinstance(self.default, bool) or isinstance(value, bool):
            return isinstance(self.default, bool) and isinstance(value, bool)
        if isinstance(self.default, str):
            return value in self.options
        return isinstance(value, (int, float)) and self.low <= value <= self.high


#: Every setting that the server reads, by its name behind "DisTorch.".
CHOICES: dict[str, Choice] = {
    "cpu_memory_threshold": Choice(85, 50, 100),  # % of the host's memory; 100: never
    "cpu_memory_hysteresis": Choice(5, 0, 20),  # points above what was in use at a reset
    "kept_under_pressure": Choice(True),
    "kept_memory_threshold": Choice(92, 50, 100),  # % of the host's memory
    "reserve_gb": Choice(0, 0, 64),  # left free on each accelerator
    "strict": Choice(False),
    "log_level": Choice("INFO", options=("DEBUG", "INFO", "WARNING", "ERROR")),
    "debug_mode": Choice(False),
    "scan_interval": Choice(1, 1, 60),  # seconds
}


@dataclasses.dataclass
class _File:
    """One user's choices as they were read, and when each of them was made, by a count."""

    mark: tuple[int, int] = (0, 0)
    values: dict[str, Any] = dataclasses.field(default_factory=dict)
    since: dict[str, int] = dataclasses.field(default_factory=dict)
    broken: tuple[int, int] | None = None  # its mark when it could not be read
    warned: bool = False


class Settings:
    """The choices now, and who is told when they change. Thread safe."""

    def __init__(self, paths: Callable[[], Iterable[pathlib.Path]]) -> None:
        """`paths` gives the files, one a user; they may be missing."""
        self._paths = paths
        self._values = {name: choice.default for name, choice in CHOICES.items()}
        self._files: dict[pathlib.Path, _File] = {}
        self._count = 0
        self._listeners: list[Callable[[Mapping[str, Any]], None]] = []
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def values(self) -> dict[str, Any]:
        """All choices."""
        return dict(self._values)

    def listen(self, listener: Callable[[Mapping[str, Any]], None]) -> None:
        """Have a function called with all choices, now and after each change, in any thread."""
        with self._lock:
            self._listeners.append(listener)
            self._tell([listener])

    def unlisten(self, listener: Callable[[Mapping[str, Any]], None]) -> None:
        """Call it no more; one that was not listening is no error."""
        with self._lock:
            self._listeners[:] = [other for other in self._listeners if other is not listener]

    def look(self) -> bool:
        """Read the files that have changed; returns whether a choice did."""
        with self._lock:
            marks = {path: _mark(path) for path in self._paths()}
            for path in sorted(marks, key=lambda path: marks[path]):
                self._follow(path, marks[path])
            self._files = {path: file for path, file in self._files.items() if path in marks}
            values = {name: self._last(name) for name in CHOICES}
            if values == self._values:
                return False
            self._values = values
            self._tell(self._listeners)
            return True

    def _follow(self, path: pathlib.Path, mark: tuple[int, int]) -> None:
        file = self._files.setdefault(path, _File())
        if mark == file.mark:
            return
        try:
            found = _read(path) if mark != (0, 0) else {}
        except (OSError, ValueError, RecursionError) as error:
            # ComfyUI is writing it, and the next look reads it; unless it stays so.
            if file.broken == mark and not file.warned:
                file.warned = True
                log.warning(_BROKEN, path, error)
            file.broken = mark
            return
        file.broken, file.warned = None, False
        values = {name: found[PREFIX + name] for name in CHOICES if _is_chosen(name, found)}
        for name in values.keys() | file.values.keys():
            if name not in file.values or values.get(name) != file.values[name]:
                self._count += 1
                file.since[name] = self._count
        file.mark, file.values = mark, values

    def _last(self, name: str) -> Any:
        """The choice that was made last; the default where there is none."""
        made = [file for file in self._files.values() if name in file.values]
        if not made:
            return CHOICES[name].default
        return max(made, key=lambda file: file.since[name]).values[name]

    def _tell(self, listeners: list[Callable[[Mapping[str, Any]], None]]) -> None:
        for listener in listeners:
            try:
                listener(self.values())
            except Exception:  # one that fails must not keep the others from the news
                log.exception("a setting could not be applied")

    def start(self) -> None:
        """Look now, and from now on every second."""
        self.look()
        if self._thread is None:
            self._stop.clear()
            thread = threading.Thread(target=self._run, name="distorch-settings", daemon=True)
            thread.start()  # may fail: then there is none
            self._thread = thread

    def stop(self) -> None:
        """End it; start() begins again."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def reset(self) -> None:
        """Forget what was read: every choice is at its default, and who listens is told."""
        with self._lock:
            self._files.clear()
            self._values = {name: choice.default for name, choice in CHOICES.items()}
            self._tell(self._listeners)

    def _run(self) -> None:
        while not self._stop.wait(LOOK_SECONDS):
            try:
                self.look()
            except Exception:  # the thread must live: later choices count as well
                log.exception("the settings could not be read")


def _mark(path: pathlib.Path) -> tuple[int, int]:
    """Changes with the file; (0, 0) where there is none."""
    try:
        status = path.stat()
    except OSError:
        return (0, 0)
    return (status.st_mtime_ns, status.st_size)


def _read(path: pathlib.Path) -> Mapping[str, Any]:
    with path.open("rb") as file:
        found = json.loads(file.read(FILE_LIMIT))
    return found if isinstance(found, dict) else {}


def _is_chosen(name: str, found: Mapping[str, Any]) -> bool:
    """Whether a file holds a choice; one that cannot be is reported."""
    value = found.get(PREFIX + name)
    if value is None or CHOICES[name].accepts(value):
        return value is not None
    log.warning("setting %s%s cannot be %.60r: it is passed over", PREFIX, name, value)
    return False


def _files() -> list[pathlib.Path]:
    """ComfyUI's settings files: one, or with `--multi-user` one for each user."""
    import folder_paths

    folder = pathlib.Path(folder_paths.get_user_directory())
    if not _has_users():
        return [folder / "default" / FILE]
    return [path for path in folder.glob(f"*/{FILE}") if not path.parent.name.startswith("__")]


def _has_users() -> bool:
    try:
        from comfy.cli_args import args
    except ImportError:
        return False
    return bool(getattr(args, "multi_user", False))


settings = Settings(_files)


def reserve_bytes() -> int:
    """Bytes to leave free on each accelerator."""
    return int(settings["reserve_gb"] * 2**30)
