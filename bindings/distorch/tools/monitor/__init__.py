# SPDX-License-Identifier: Apache-2.0
"""Watching memory over a whole run, from inside or outside of ComfyUI: `distorch monitor`, and the parts it is made of.

    with BackgroundMonitor(open_sources("http://127.0.0.1:8188"), interval=5, sinks=[...]) as monitor:
        ...
    monitor.samples()

Needs neither torch nor a GPU. A server that is down, slow, restarting, or answers garbage is a `Gap`, never an error.
"""

from __future__ import annotations

from distorch.tools.monitor.recorder import BackgroundMonitor, Mark, Sink
from distorch.tools.monitor.sample import DeviceSample, Gap, ModelSample, NodeRun, PromptRun, Sample
from distorch.tools.monitor.sources import SourceChain, open_sources

__all__ = [
    "BackgroundMonitor",
    "DeviceSample",
    "Gap",
    "Mark",
    "ModelSample",
    "NodeRun",
    "PromptRun",
    "Sample",
    "Sink",
    "SourceChain",
    "open_sources",
]
