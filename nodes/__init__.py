# SPDX-License-Identifier: Apache-2.0
"""ComfyUI nodes: schema and one call each."""

from __future__ import annotations

import logging
import pathlib
import sys
from collections.abc import Iterable
from typing import Any

log = logging.getLogger("DisTorch")


def mappings() -> tuple[dict[str, type], dict[str, str]]:
    """Node classes and display names by id; installs the seams that the nodes need."""
    from ..patches.ejecting import unload, unload_now
    from ..patches.placing import sharing
    from ..patches.seams import devices, expected, pinned_memory
    from ..patches.view import apply_settings, memory_view
    from . import old_names

    found = named()

    expected.look()
    devices.install()
    pinned_memory.install()
    sharing.install()
    unload.install()
    unload_now.install()
    memory_view.install()
    apply_settings.install()
    old_names.install(__name__.rpartition(".")[0])
    return found


def named() -> tuple[dict[str, type], dict[str, str]]:
    """Node classes and display names by id."""
    import folder_paths
    import nodes as core

    from . import table, words

    folders = other_folders(map(pathlib.Path, folder_paths.get_folder_paths("custom_nodes")))
    classes = table.node_classes(core.NODE_CLASS_MAPPINGS, folders)
    words.explain(classes)
    _when_all_are_loaded(lambda: drop_without_packs(classes))
    return classes, {node_id: title(node_id, cls) for node_id, cls in classes.items()}


def drop_without_packs(classes: dict[str, type]) -> None:
    """Takes our nodes away whose pack has none of that name: packs are loaded in any order, this is after the last."""
    import nodes as core

    needs = {name: getattr(cls, "NEEDS", None) for name, cls in classes.items()}
    known = set(core.NODE_CLASS_MAPPINGS)
    gone = [name for name, other in needs.items() if other is not None and other not in known]
    for name in gone:
        core.NODE_CLASS_MAPPINGS.pop(name, None)
        core.NODE_DISPLAY_NAME_MAPPINGS.pop(name, None)
    if gone:
        log.info(
            "left out, because their packs were not loaded or have no such node: %s",
            ", ".join(gone),
        )


def _when_all_are_loaded(act: Any) -> None:
    """Calls it when ComfyUI's server starts; never where there is none."""
    server = getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)
    app = getattr(server, "app", None)
    if app is None:
        return

    async def start(_app: Any) -> None:
        act()

    app.on_startup.append(start)


def other_folders(paths: Iterable[pathlib.Path]) -> list[str]:
    """Names of the other packs' folders: ours may have taken the place, and the name, of ComfyUI-MultiGPU's."""
    own = pathlib.Path(__file__).resolve().parent.parent
    found = [folder for path in paths if path.is_dir() for folder in path.iterdir()]
    return [folder.name for folder in found if folder.is_dir() and folder.resolve() != own]


def title(node_id: str, cls: Any) -> str:
    """The name shown: the class's own, or one made from the id."""
    given = getattr(cls, "TITLE", None)
    if given:
        return str(given)
    for ending, words in (
        ("DisTorch2MultiGPU", " (DisTorch2)"),
        ("DisTorchMultiGPU", " (DisTorch, legacy)"),
        ("MultiGPU", " (MultiGPU)"),
    ):
        if node_id.endswith(ending):
            return node_id.removesuffix(ending) + words
    return node_id
