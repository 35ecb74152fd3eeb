# SPDX-License-Identifier: Apache-2.0
"""`distorch demo`: the main job from end to end, on real weights."""

from distorch.tools.demo.model import DemoError, find_model
from distorch.tools.demo.run import Demo

__all__ = ["Demo", "DemoError", "find_model"]
