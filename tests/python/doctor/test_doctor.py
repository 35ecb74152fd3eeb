# SPDX-License-Identifier: Apache-2.0
"""`distorch doctor` on machines with each of the usual faults: what it says, and what it says to type."""

from __future__ import annotations

import http.server
import json
import os
import subprocess
import sys
import threading
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import distorch_sim
import pytest
import torch

import distorch
from distorch.tools import doctor
from distorch.tools.cli import main
from distorch.tools.doctor import Case, Finding, comfyui, gpus, host, installation

STAGE = Path(distorch.__file__).parents[1]
HIDES = 'os.environ["CUDA_VISIBLE_DEVICES"] = "0"\n'


@pytest.fixture(autouse=True)
def _no_comfyui(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.chdir(tmp_path)


def folder(tmp_path: Path, *, dynamic: bool = True, main: str = "", core: str = "1") -> Path:
    """As much of a ComfyUI as the doctor reads, when it is not the seams that count."""
    root = tmp_path / "ComfyUI"
    for path, text in {
        "comfy/model_management.py": "",
        "comfy/model_patcher.py": f"{'class ModelPatcherDynamic: ...' if dynamic else ''}\n{core}\n",
        "main.py": main,
        "custom_nodes/readme.txt": "",
    }.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    return root


@pytest.fixture
def server() -> Iterator[tuple[str, dict[str, Any]]]:
    """Something that answers /system_stats with the dictionary that it gives."""
    system: dict[str, Any] = {}

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/system_stats" else 404)
            self.end_headers()
            self.wfile.write(json.dumps({"system": system}).encode())

        def log_message(self, *_args: object) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer) as service:
        threading.Thread(target=service.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{service.server_port}", system
        service.shutdown()


def nvml(
    monkeypatch: pytest.MonkeyPatch, count: int, version: str = "580.1", why: str = ""
) -> None:
    devices = [types.SimpleNamespace(name=f"RTX {i}", index=i, problem="") for i in range(count)]
    binary = types.SimpleNamespace(nvml_devices=lambda: (devices, version, why))
    monkeypatch.setattr("distorch._load.core", lambda: binary)


def test_every_row_that_is_not_ok_says_what_to_do(capsys) -> None:
    distorch_sim.install([1 << 26, 1 << 26])
    assert main(["doctor", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert list(rows) == [name for name, _, _ in doctor.CHECKS]
    assert rows["torch"]["found"] == torch.__version__
    assert "sim:1 (Simulated accelerator 1)" in rows["accelerators"]["found"]
    assert all(row["advice"] for row in rows.values() if row["status"] != "ok")


def test_what_is_broken_is_printed_and_is_the_exit_status(capsys, monkeypatch) -> None:
    def broken(_case: Case) -> None:
        raise ValueError("the disk is gone\nmore")

    monkeypatch.setattr(doctor, "CHECKS", [("host memory", broken, "find it")])
    assert main(["doctor"]) == 1
    assert capsys.readouterr().out == (
        "broken  host memory  the disk is gone\n                     -> find it\n"
    )


# 1. No compiled part


def without_core(tmp_path: Path, *files: str) -> list[dict[str, str]]:
    """The rows of a package that has Python files only, and `files`."""
    package = tmp_path / "site" / "distorch"
    package.mkdir(parents=True)
    for path in (STAGE / "distorch").iterdir():
        if path.suffix not in (".so", ".pyd"):
            (package / path.name).symlink_to(path.resolve())
    for name in files:
        (package / name).touch()
    result = subprocess.run(
        [sys.executable, "-m", "distorch", "doctor", "--json"],
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1, result.stderr
    return json.loads(result.stdout)


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ((), "not there"),
        (
            ("_C.cpython-39-x86_64-linux-gnu.so",),
            "compiled for another Python: _C.cpython-39-x86_64-linux-gnu.so",
        ),
    ],
)
def test_it_works_without_the_compiled_core_and_says_what_to_type(
    files: tuple[str, ...], found: str, tmp_path: Path
) -> None:
    rows = {row["name"]: row for row in without_core(tmp_path, *files)}
    core = rows["distorch core"]
    assert (core["status"], core["found"]) == ("broken", found)
    assert (
        f"-m pip install --force-reinstall --no-deps distorch=={distorch.__version__}"
        in (core["advice"])
    )
    assert rows["torch"]["status"] == "ok"
    assert "available of" in rows["host memory"]["found"]
    assert rows["NVIDIA driver"]["found"] == "not known without the compiled core"
    broken = {name for name, row in rows.items() if row["status"] == "broken"}
    assert broken == {"distorch core", "distorch operators"}


# 2. torch too old, or not there


def test_a_torch_that_is_too_old(monkeypatch) -> None:
    monkeypatch.setattr(torch, "__version__", "2.9.1+cu128")
    found = installation.torch(Case())
    assert (found.status, found.found) == ("broken", "2.9.1+cu128 is older than 2.10")
    assert "pip install --upgrade torch" in found.advice
    monkeypatch.setattr(torch, "__version__", "2.10.0")
    assert installation.torch(Case()).status == "ok"


def test_no_torch_at_all(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    rows = {finding.name: finding for finding in doctor.examine(Case())}
    assert (rows["torch"].status, rows["torch"].found) == ("broken", "not installed")
    assert "torch>=2.10" in rows["torch"].advice
    assert rows["CUDA"] == Finding("CUDA", "absent", "not known without torch", "see: torch")


# 3. The predecessor beside the pack


def test_the_predecessor_beside_it(tmp_path: Path) -> None:
    root = folder(tmp_path)
    case = Case(root)
    assert comfyui.predecessor(case).status == "ok"
    other = root / "custom_nodes" / "comfyui_multigpu-main"
    other.mkdir()
    found = comfyui.predecessor(case)
    assert (found.status, found.found.partition(":")[0]) == ("broken", str(other))
    assert found.advice == f'move it away: mv "{other}" "{other}.disabled"'
    other.rename(f"{other}.disabled")
    assert comfyui.predecessor(case).status == "ok"


def test_our_own_folder_of_that_name_is_not_the_predecessor(tmp_path: Path) -> None:
    root = folder(tmp_path)
    ours = root / "custom_nodes" / "ComfyUI-MultiGPU"
    ours.mkdir()
    (ours / "pyproject.toml").write_text('[project]\nname = "distorch"\n')
    assert comfyui.predecessor(Case(root)).status == "ok"
    (ours / "requirements.txt").write_text("distorch==99.0.0\n")
    found = comfyui.pack(Case(root))
    assert found.status == "broken"
    assert found.found == f"{ours} is 99.0.0, the package {distorch.__version__}"
    assert found.advice.endswith(f'-m pip install -r "{ours / "requirements.txt"}"')
    (ours / "requirements.txt").write_text(f"distorch=={distorch.__version__}\n")
    assert comfyui.pack(Case(root)).status == "ok"


# 4. DynamicVRAM


@pytest.mark.parametrize(
    ("arguments", "state"),
    [
        (["main.py"], "on where there is an NVIDIA GPU; "),
        (["main.py", "--disable-dynamic-vram"], "off (--disable-dynamic-vram); "),
        (["main.py", "--novram"], "off (--novram); "),
    ],
)
def test_the_state_of_dynamic_vram(arguments, state: str, tmp_path: Path, server) -> None:
    root = folder(tmp_path, core="CoreModelPatcher = 1")
    address, system = server
    system["argv"] = arguments
    found = comfyui.dynamic_vram(Case(root, address))
    assert found.status == "ok"
    assert found.found.startswith(state)
    unknown = comfyui.dynamic_vram(Case(root)).found
    assert unknown.startswith("on where there is an NVIDIA GPU, unless started with --disable-dyn")


def test_a_comfyui_that_leaves_no_way_beside_dynamic_vram(tmp_path: Path) -> None:
    found = comfyui.dynamic_vram(Case(folder(tmp_path)))
    assert (found.status, found.advice) == ("broken", "start ComfyUI with --disable-dynamic-vram")
    assert comfyui.dynamic_vram(Case(folder(tmp_path, dynamic=False))).found == (
        "this ComfyUI has none"
    )


# 5. The driver


@pytest.mark.parametrize(
    ("cuda", "driver", "oldest"),
    [("13.0", "570.86.15", "580"), ("12.8", "520.61.05", "525.60"), ("13.0", "580.65.06", "")],
)
def test_a_driver_that_is_too_old_for_torchs_cuda(monkeypatch, cuda, driver, oldest) -> None:
    monkeypatch.setattr(torch.version, "cuda", cuda)
    nvml(monkeypatch, 1, driver)
    found = gpus.driver(Case())
    if not oldest:
        assert (found.status, found.advice) == ("ok", "")
        return
    assert found.status == "broken"
    assert found.found == f"{driver}: RTX 0; torch's CUDA {cuda} needs driver {oldest} or later"
    assert found.advice.startswith(f"install NVIDIA's driver {oldest} or later")


@pytest.mark.parametrize(
    ("problem", "status"),
    [
        ("", "ok"),
        ("libnvidia-ml.so.1 was not found: no NVIDIA driver on this machine", "absent"),
        ("nvmlInit failed: NVML error 18, of different versions", "broken"),
        ("nvmlInit failed: NVML error 4, no permission", "absent"),
        ("nvmlInit failed: NVML error 999", "broken"),
    ],
)
def test_a_driver_that_does_not_answer(monkeypatch, problem: str, status: str) -> None:
    nvml(monkeypatch, 0, why=problem)
    finding = gpus.driver(Case())
    assert finding.status == status
    assert bool(finding.advice) == (status != "ok")


@pytest.mark.parametrize(
    ("error", "status", "advice"),
    [
        ("NVML error 15, the GPU is lost", "broken", "a GPU is lost, the others work"),
        ("NVML error 4, no permission", "absent", "give this user, or the container, access"),
        ("NVML error 3, not supported by this device", "ok", ""),
    ],
)
def test_one_gpu_that_does_not_answer(monkeypatch, error, status, advice) -> None:
    lost = types.SimpleNamespace(name="", index=1, problem=f"nvmlDeviceGetName failed: {error}")
    fine = types.SimpleNamespace(name="RTX 9000", index=0, problem="")
    binary = types.SimpleNamespace(nvml_devices=lambda: ([fine, lost], "580.1", ""))
    monkeypatch.setattr("distorch._load.core", lambda: binary)
    finding = gpus.driver(Case())
    assert finding.found == f"580.1: RTX 9000, GPU 1 (nvmlDeviceGetName failed: {error})"
    assert finding.status == status
    assert finding.advice.startswith(advice)
    assert "reboot; in a container" not in finding.advice


# 6. Windows shows one GPU


def test_gpus_that_comfyui_hides_on_windows(tmp_path: Path, monkeypatch, server) -> None:
    hiding, address, system = folder(tmp_path, main=HIDES), *server
    assert comfyui.hidden_gpus(Case(hiding)).status == "ok"  # this is no Windows
    monkeypatch.setattr("platform.system", lambda: "Windows")
    nvml(monkeypatch, 2)
    found = comfyui.hidden_gpus(Case(hiding))
    assert found.status == "note"
    assert "--cuda-device all" in found.advice
    system["argv"] = ["main.py"]
    assert comfyui.hidden_gpus(Case(hiding, address)).status == "broken"
    system["argv"] = ["main.py", "--cuda-device", "all"]
    assert comfyui.hidden_gpus(Case(hiding, address)).found == "chosen by --cuda-device"
    nvml(monkeypatch, 1)
    assert comfyui.hidden_gpus(Case(hiding)).found == "1 of NVIDIA, none is left out"
    nvml(monkeypatch, 2)
    assert comfyui.hidden_gpus(Case(folder(tmp_path, main="pass\n"))).status == "ok"


# 7. Peer access


@pytest.mark.parametrize("reach", [True, False])
def test_gpus_that_do_not_reach_each_other(monkeypatch, reach: bool) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(
        torch.cuda, "can_device_access_peer", lambda a, b: reach or {a, b} != {0, 2}
    )
    found = gpus.peers(Case())
    if reach:
        assert (found.status, found.found) == ("ok", "all 3 pairs")
        return
    assert found.status == "note"
    assert found.found.startswith("none between cuda:0 and cuda:2: ")
    assert "`distorch links`" in found.advice


# 8. Little host memory

GB = 1 << 30


@pytest.mark.parametrize(
    ("total", "available", "machine", "status", "said"),
    [
        (64 * GB, 40 * GB, 64 * GB, "ok", "40.0 GB available of 64.0 GB"),
        (12 * GB, 10 * GB, 12 * GB, "note", "10.0 GB available of 12.0 GB: little"),
        (32 * GB, 2 * GB, 32 * GB, "note", "2.0 GB available of 32.0 GB: little is free"),
        (
            8 * GB,
            7 * GB,
            64 * GB,
            "note",
            "7.0 GB available of 8.0 GB (a container's limit; the machine has 64.0 GB): little",
        ),
    ],
)
def test_host_memory(monkeypatch, total, available, machine, status, said) -> None:
    monkeypatch.setattr(host, "figures", lambda: (total, available, machine))
    found = host.memory(Case())
    assert (found.status, found.found) == (status, said)
    assert bool(found.advice) == (status != "ok")


# 9. The limit of pinned memory


def test_what_may_be_pinned(monkeypatch, server) -> None:
    monkeypatch.setattr(host, "figures", lambda: (64 * GB, 40 * GB, 64 * GB))
    assert host.pinned(Case()).status == "ok"
    monkeypatch.setattr("platform.release", lambda: "5.15.90.1-microsoft-standard-WSL2")
    assert (host.pinned(Case()).status, ".wslconfig" in host.pinned(Case()).advice) == (
        "note",
        True,
    )
    with monkeypatch.context() as windows:
        windows.setattr("platform.system", lambda: "Windows")
        found = host.pinned(Case())
        assert (found.status, found.found) == (
            "note",
            "about half of 64.0 GB: Windows refuses more",
        )
    address, system = server
    system["argv"] = ["main.py", "--disable-pinned-memory"]
    assert "--disable-pinned-memory" in host.pinned(Case(None, address)).found


def test_the_limit_of_locked_memory_counts_for_rocm(monkeypatch) -> None:
    monkeypatch.setattr(torch.version, "hip", "6.4")
    monkeypatch.setattr(host, "_locked_limit", lambda: 8 << 20)
    found = host.pinned(Case())
    assert (found.status, found.found) == ("note", "at most 0.0 GB (ulimit -l)")
    assert found.advice.startswith("ulimit -l unlimited")


# 10. The wrong Python


def test_a_python_that_is_not_comfyuis(tmp_path: Path) -> None:
    root = folder(tmp_path)
    portable = tmp_path / "python_embeded"
    portable.mkdir()
    (portable / "python.exe").touch()
    found = installation.environment(Case(root))
    assert found.status == "broken"
    assert found.found == f"{root} has a Python of its own, and this is {sys.executable}"
    assert found.advice.startswith(f'"{portable / "python.exe"}" -m pip install -r ')


def test_the_python_of_a_virtual_environment_inside_comfyui(tmp_path: Path, monkeypatch) -> None:
    root = folder(tmp_path)
    (root / "venv" / "bin").mkdir(parents=True)
    (root / "venv" / "bin" / "python").symlink_to(sys.executable)
    assert installation.environment(Case(root)).status == "broken"
    monkeypatch.setattr(sys, "prefix", str(root / "venv"))
    assert installation.environment(Case(root)).status == "ok"


def test_a_server_that_runs_another_python(server) -> None:
    address, system = server
    system.update(python_version="3.12.3 (main)", pytorch_version="2.10.0+cu128")
    found = installation.environment(Case(None, address))
    assert found.status == "broken"
    assert "the server runs Python 3.12.3 with torch 2.10.0+cu128" in found.found
    system.update(python_version=sys.version, pytorch_version=torch.__version__)
    assert installation.environment(Case(None, address)).status == "ok"


# The ComfyUI itself


def test_which_comfyui_folder_is_meant(tmp_path: Path, monkeypatch) -> None:
    assert doctor.find_comfyui() is None
    root = folder(tmp_path)
    inside = root / "custom_nodes"
    monkeypatch.chdir(inside)
    assert doctor.find_comfyui() == root
    monkeypatch.setenv("COMFYUI_PATH", f"{tmp_path}{os.pathsep}{root}")
    found = comfyui.folder(Case(doctor.find_comfyui()))
    assert (found.status, found.found) == ("broken", f"no ComfyUI in {tmp_path}")


def test_seams_that_are_not_as_expected_are_named(tmp_path: Path) -> None:
    found = comfyui.folder(Case(folder(tmp_path)))
    assert found.status == "note"
    assert "comfy.model_management.soft_empty_cache is not there: a free empties" in found.found
