# SPDX-License-Identifier: Apache-2.0
"""comfy-import-guard over the pack against each checkout: what is imported, called and wrapped there binds."""

from __future__ import annotations

import json
import pathlib
import shutil
import subprocess
import sys
from typing import Any

import pytest
from comfy_harness import repository_root, versions

pytestmark = pytest.mark.comfy

PATHS = sorted({v.path for v in versions()}) or [None]
# Behind a `hasattr`, which the guard does not read: ComfyUI before 0.25 has none of them, or not all.
ASKED_FOR = {"get_all_torch_devices", "is_oom", "MAX_PINNED_MEMORY", "TOTAL_PINNED_MEMORY"}
PACK = ("__init__.py", "install.py", "nodes", "patches")


def snapshot(checkout: pathlib.Path, cache: pathlib.Path) -> None:
    """The checkout as the one commit of a repository, where the guard looks for its clone."""
    clone = cache / "ComfyUI"
    clone.mkdir(parents=True)
    git = ("git", f"--git-dir={clone / '.git'}", f"--work-tree={checkout}")
    who = ("-c", "user.name=test", "-c", "user.email=test@localhost")
    for command in (
        ("git", "init", "--quiet", str(clone)),
        (*git, "add", "--force", "comfy", "comfy_extras", "comfy_execution", "*.py"),
        (*git, *who, "commit", "--quiet", "--message", "as it is"),
        (*git, "update-ref", "refs/remotes/origin/master", "HEAD"),
    ):
        subprocess.run(command, cwd=checkout, check=True, capture_output=True)


def guard(checkout: pathlib.Path, tmp_path: pathlib.Path, more: str = "") -> dict[str, Any]:
    """The guard's report on the pack; `more` is added to its entry."""
    snapshot(checkout, tmp_path / "cache")
    pack = tmp_path / "install" / "custom_nodes" / "DisTorch"
    for name in PACK:
        source = repository_root() / name
        if source.is_dir():
            shutil.copytree(source, pack / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            pack.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, pack / name)
    with (pack / "__init__.py").open("a") as file:
        file.write(more)
    program = "import sys; from comfy_import_guard.cli import main; sys.exit(main())"
    result = subprocess.run(
        [
            *(sys.executable, "-c", program, "--offline", "--json", "--quiet"),
            *("--cache-dir", str(tmp_path / "cache")),
            *("check", "--comfy-dir", str(tmp_path / "install"), "--strict"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode in (0, 1), result.stderr
    (found,) = json.loads(result.stdout)["packs"]
    return found


@pytest.mark.parametrize("checkout", PATHS, ids=lambda p: p.name if p else "none")
def test_the_pack_is_clean(checkout, tmp_path: pathlib.Path) -> None:
    if checkout is None:
        pytest.skip("COMFYUI_PATH is not set")
    found = guard(checkout, tmp_path)
    hard = [row for row in found["breaking"] if row["symbol"] not in ASKED_FOR]
    assert hard == found["soft"] == found["signature_drift"] == [], json.dumps(found, indent=1)
    for row in found["breaking"]:
        assert f'hasattr(mm, "{row["symbol"]}")' in (repository_root() / row["file"]).read_text()
    assert found["references"] > 20


@pytest.mark.parametrize("checkout", PATHS[:1], ids=lambda p: p.name if p else "none")
def test_the_guard_sees_a_name_that_is_gone(checkout, tmp_path: pathlib.Path) -> None:
    if checkout is None:
        pytest.skip("COMFYUI_PATH is not set")
    found = guard(checkout, tmp_path, "\nfrom comfy.model_management import no_such_function\n")
    assert found["verdict"] == "WILL BREAK"
