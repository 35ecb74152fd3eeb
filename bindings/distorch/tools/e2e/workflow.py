# SPDX-License-Identifier: Apache-2.0
"""Workflow files: ComfyUI's API form is what a server can be given; every other file is refused with the remedy."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_EXPORT = (
    "open it in ComfyUI and choose Workflow > Export (API) (older menu: Settings > Enable Dev mode Options, then "
    '"Save (API Format)")'
)


class WorkflowError(ValueError):
    """A file that cannot be queued; the message names it, says why and what to do."""


@dataclass(frozen=True)
class Node:
    """A node of a workflow. `title` is what its user named it, else its class."""

    id: str
    kind: str
    title: str


@dataclass(frozen=True)
class Workflow:
    """A workflow in API form, exactly as the file has it."""

    path: Path
    prompt: dict[str, Any]

    @property
    def nodes(self) -> dict[str, Node]:
        """The nodes by id."""
        return {key: _node(key, value) for key, value in self.prompt.items()}


@dataclass(frozen=True)
class Scene:
    """One workflow queued once. `number` counts from 1 over the whole run."""

    number: int
    name: str
    workflow: Workflow


def scenes(workflows: Sequence[Workflow], repeat: int) -> list[Scene]:
    """Return the scenes of a run: all workflows in turn, `repeat` times."""
    names = _names(workflows)
    made: list[Scene] = []
    for turn in range(1, repeat + 1):
        for workflow, name in zip(workflows, names, strict=True):
            label = name if repeat == 1 else f"{name} #{turn}"
            made.append(Scene(len(made) + 1, label, workflow))
    return made


def read(path: Path) -> Workflow:
    """Return the workflow of a file. Raises WorkflowError."""
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise WorkflowError(f"{path}: {error.strerror or error}") from error
    except RecursionError as error:
        raise WorkflowError(f"{path}: nested too deeply") from error
    except ValueError as error:
        raise WorkflowError(f"{path}: no JSON: {error}") from error
    return Workflow(path, api_form(found, str(path)))


def api_form(found: object, where: str) -> dict[str, Any]:
    """Return `found` if it is a workflow in API form. Raises WorkflowError; `where` begins its message.

    The body of a POST to /prompt, {"prompt": {...}}, is taken as well.
    """
    if (
        isinstance(found, dict)
        and isinstance(found.get("prompt"), dict)
        and "class_type" not in found
    ):
        found = found["prompt"]
    if not isinstance(found, dict):
        raise WorkflowError(
            f"{where}: expected an object of nodes (ComfyUI's API form), found a {type(found).__name__}"
        )
    if isinstance(found.get("nodes"), list):
        raise WorkflowError(
            f"{where}: this is a workflow as ComfyUI's editor saves it, which a server cannot run: {_EXPORT}"
        )
    if not found:
        raise WorkflowError(f"{where}: the workflow has no nodes")
    for key, node in found.items():
        if not isinstance(node, dict) or not isinstance(node.get("class_type"), str):
            raise WorkflowError(
                f'{where}: node {key!r} has no "class_type", so this is not ComfyUI\'s API form: {_EXPORT}'
            )
        if not isinstance(node.get("inputs"), dict):
            raise WorkflowError(
                f'{where}: node {key!r} ({node["class_type"]}) has no "inputs" object'
            )
    return found


def _node(key: str, value: dict[str, Any]) -> Node:
    meta = value.get("_meta")
    title = meta.get("title") if isinstance(meta, dict) else None
    kind = str(value["class_type"])
    return Node(key, kind, title if isinstance(title, str) and title else kind)


def _names(workflows: Sequence[Workflow]) -> list[str]:
    """File names; where two are the same, with the folder."""
    short = [w.path.name for w in workflows]
    return [
        str(w.path) if short.count(name) > 1 else name
        for w, name in zip(workflows, short, strict=True)
    ]
