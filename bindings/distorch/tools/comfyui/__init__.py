# SPDX-License-Identifier: Apache-2.0
"""What the node pack relies on in ComfyUI, and whether a ComfyUI has it: a source tree, or the one that runs.

    problems_of(Source(folder))       # reads the sources, imports nothing
    problems_of(Running())            # looks at the modules of this process

Needs neither torch nor the compiled core.
"""

from __future__ import annotations

from .check import Problem, problem_of, problems_of
from .facts import Running, Source
from .needs import PLACING, SEAMS, Need, Seam

__all__ = [
    "PLACING",
    "SEAMS",
    "Need",
    "Problem",
    "Running",
    "Seam",
    "Source",
    "problem_of",
    "problems_of",
]
