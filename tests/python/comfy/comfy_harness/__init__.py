# SPDX-License-Identifier: Apache-2.0
"""Runs the pack inside real ComfyUI: a server on simulated devices, tiny models, workflows."""

from __future__ import annotations

from . import help_pages, models
from .server import (
    ComfyError,
    ComfyServer,
    Result,
    Start,
    python_environment,
    repository_root,
    staged,
    versions,
)
from .state import State, count_reads, reads, reset_counters, state
from .workflows import Workflow, wan, wan_model, write_empty_files

__all__ = [
    "ComfyError",
    "ComfyServer",
    "Result",
    "Start",
    "State",
    "Workflow",
    "count_reads",
    "help_pages",
    "models",
    "python_environment",
    "reads",
    "repository_root",
    "reset_counters",
    "staged",
    "state",
    "versions",
    "wan",
    "wan_model",
    "write_empty_files",
]
