# SPDX-License-Identifier: Apache-2.0
"""Does memory come back? A trend in what a device holds at rest after each scene, beyond its noise.

Pure functions of numbers. The size is the Theil-Sen slope with Sen's confidence interval, the certainty is the
Mann-Kendall test; docs/end-to-end.md has the formulas, their sources and the reasons for the limits.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

# The normal approximation of Kendall's statistic is good from ten values on (Mann 1945, Kendall 1975).
MIN_SCENES = 10
# One-sided. Eight devices without a leak give a false alarm in about four runs of a hundred at most; the two
# further conditions (size, still growing) leave far fewer.
SIGNIFICANCE = 0.005
# All pairs are compared: beyond this many scenes neighbours are put together, so that a week's run stays cheap.
MOST_POINTS = 200
# Two-sided, of the printed interval.
_CONFIDENCE_Z = 1.959963984540054

CLEAN = "clean"
LEAK = "leak"
LEVELLED = "levelled off"
NOT_JUDGED = "not judged"


@dataclass(frozen=True)
class Drift:
    """What one device's memory at rest did from scene to scene. Bytes; slopes are bytes a scene.

    `low` and `high` hold the slope with 95 % confidence; `p` is the chance that a series without any trend rises
    as steadily as this one; `late_slope` is the slope of the second half alone.
    """

    device: str
    verdict: str
    scenes: int
    baseline: int
    last: int
    slope: float
    low: float
    high: float
    p: float
    late_slope: float

    @property
    def leaks(self) -> bool:
        """Whether this device lost memory in each scene."""
        return self.verdict == LEAK


def theil_sen(points: Sequence[tuple[float, float]]) -> tuple[float, float, float]:
    """Return the median of the slopes between all pairs, and Sen's 95 % interval of it.

    >>> theil_sen([(1, 10.0), (2, 12.0), (3, 14.0), (4, 99.0)])[0]  # one wild value moves it little
    15.5

    Points of the same x give no slope. Fewer than two slopes: all three numbers are 0.
    """
    slopes = sorted(
        (y2 - y1) / (x2 - x1) for (x1, y1), (x2, y2) in combinations(points, 2) if x1 != x2
    )
    if not slopes:
        return 0.0, 0.0, 0.0
    spread = _CONFIDENCE_Z * math.sqrt(_variance([y for _, y in points]))
    lower = max(round((len(slopes) - spread) / 2) - 1, 0)
    upper = min(round((len(slopes) + spread) / 2), len(slopes) - 1)
    return statistics.median(slopes), slopes[lower], slopes[upper]


def rising_chance(values: Sequence[float]) -> float:
    """Return the one-sided p of the Mann-Kendall test for a rise: the chance of it in a series without trend.

    Equal values are corrected for, and a step of one in the statistic for continuity. A series that never changes
    gives 1.
    """
    score = sum((late > early) - (late < early) for early, late in combinations(values, 2))
    variance = _variance(values)
    if variance == 0 or score <= 0:
        return 1.0
    return 0.5 * math.erfc((score - 1) / math.sqrt(2 * variance))


def _variance(values: Sequence[float]) -> float:
    """Variance of Kendall's statistic of `values` in random order, with ties."""
    n = len(values)
    ties = sum(t * (t - 1) * (2 * t + 5) for t in Counter(values).values())
    return (n * (n - 1) * (2 * n + 5) - ties) / 18


def judge(device: str, rests: Sequence[tuple[int, int]], least: float) -> Drift:
    """Return the verdict on one device.

    Args:
        device: its name.
        rests: (number of the scene, bytes held at rest after it) in order, the first of them the baseline.
        least: bytes a scene below which a rise is no leak.
    """
    points = _thinned([(float(scene), float(used)) for scene, used in rests])
    if not points:
        return Drift(device, NOT_JUDGED, 0, 0, 0, 0.0, 0.0, 0.0, 1.0, 0.0)
    slope, low, high = theil_sen(points)
    p = rising_chance([used for _, used in points])
    late = theil_sen(points[len(points) // 2 :])[0]
    if len(points) < MIN_SCENES:
        verdict = NOT_JUDGED
    elif p >= SIGNIFICANCE or slope < least:
        verdict = CLEAN
    else:  # a cache that fills up and then stays is no leak
        verdict = LEAK if late >= least / 2 else LEVELLED
    first, last = rests[0][1], rests[-1][1]
    return Drift(device, verdict, len(rests), first, last, slope, low, high, p, late)


def _thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the medians of neighbours, as few as needed to have `MOST_POINTS` at most."""
    size = math.ceil(len(points) / MOST_POINTS)
    if size < 2:
        return points
    groups = (points[i : i + size] for i in range(0, len(points), size))
    return [
        (statistics.median(x for x, _ in group), statistics.median(y for _, y in group))
        for group in groups
    ]
