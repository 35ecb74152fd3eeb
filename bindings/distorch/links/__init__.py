# SPDX-License-Identifier: Apache-2.0
"""How fast the links between devices are: measured once, kept, and used by the planner.

    report = distorch.links.report()                 # from the cache, or measured
    report.gbps("cpu", "cuda:0"), report.link("cuda:0", "cuda:1").way
    distorch.links.cached_gbps("cpu", "cuda:0")      # 0.0 when nothing was measured

GB/s are 2**30 bytes a second, as every size of DisTorch is binary. The cache is a file in the user's cache folder, by
the devices' UUIDs; it is ignored when the driver or torch is another one.
"""

from __future__ import annotations

from distorch.links.cache import cache_path, cached_gbps, cached_ways
from distorch.links.measuring import NOMINAL, Link, Report, measure, report

__all__ = [
    "NOMINAL",
    "Link",
    "Report",
    "cache_path",
    "cached_gbps",
    "cached_ways",
    "measure",
    "report",
]
