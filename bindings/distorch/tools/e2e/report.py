# SPDX-License-Identifier: Apache-2.0
"""The summary as text and as JUnit XML."""

from __future__ import annotations

import datetime
import re
from xml.etree import ElementTree

from distorch.tools.e2e import drift
from distorch.tools.e2e.drift import Drift
from distorch.tools.e2e.events import Status
from distorch.tools.e2e.results import RunResult, SceneResult

MB = 2**20
# What XML 1.0 cannot hold, whatever the escaping.
_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def text(result: RunResult) -> str:
    """Return the summary that is printed at the end."""
    lines = ["", *_scene_lines(result)]
    if result.statistics.devices:
        lines += ["", result.statistics.text().rstrip("\n")]
    lines += _drift_lines(result)
    if result.message:
        lines += ["", result.message]
    return "\n".join(lines) + "\n"


def _scene_lines(result: RunResult) -> list[str]:
    counts: dict[str, int] = {}
    for scene in result.scenes:
        counts[scene.outcome.status.value] = counts.get(scene.outcome.status.value, 0) + 1
    many = ", ".join(f"{n} {status}" for status, n in counts.items())
    scenes = f"{len(result.scenes)} scene{'s' * (len(result.scenes) != 1)}"
    lines = [f"{scenes} in {result.ended - result.started:.0f} s: {many}"]
    for scene in result.scenes:
        if scene.outcome.status not in (Status.SUCCESS, Status.NOT_RUN):
            words = scene.outcome.message
            lines.append(f"  scene {scene.number} {scene.name}: {scene.outcome.status.value}"
                         + (f": {words}" if words else ""))  # fmt: skip
    cached = [s.number for s in result.scenes if not s.figures_hold]
    if cached:
        lines.append(
            f"  from ComfyUI's cache: {len(cached)} (the first: scene {cached[0]}); their figures mean nothing"
        )
    return lines


def _drift_lines(result: RunResult) -> list[str]:
    judged = [d for d in result.drift if d.scenes]
    if not judged:
        return []
    lines = ["", "=== Memory at rest after each scene ==="]
    return lines + [drift_line(d) for d in judged]


def drift_line(d: Drift) -> str:
    """Return the verdict on a device in one line."""
    rise = f"{d.baseline / MB:.1f} MB after the first scene, {d.last / MB:.1f} MB after the last"
    if d.verdict == drift.NOT_JUDGED:
        return f"{d.device}: not judged, {d.scenes} of the {drift.MIN_SCENES} scenes that it takes; {rise}"
    trend = f"{d.slope / MB:+.2f} MB/scene ({d.low / MB:+.2f} to {d.high / MB:+.2f}) over {d.scenes} scenes"
    if d.verdict == drift.LEAK:
        return f"{d.device}: LEAK, {trend}, p = {d.p:.1g}; {rise}"
    if d.verdict == drift.LEVELLED:
        return f"{d.device}: levelled off, it grew and then stayed: {trend}; {rise}"
    return f"{d.device}: clean, {trend}; {rise}"


def junit(result: RunResult) -> str:
    """Return JUnit XML: a test case a scene, and one a device for its drift."""
    suite = ElementTree.Element("testsuite", name="distorch e2e")
    if result.message:  # scenes that were not run are only skipped
        case = ElementTree.SubElement(
            suite, "testcase", classname="run", name="the run reaches its end", time="0"
        )
        _child(case, "error", result.message, "incomplete")
    for scene in result.scenes:
        _scene_case(suite, scene, result.allow_cached)
    for d in result.drift:
        case = ElementTree.SubElement(
            suite, "testcase", classname="memory", name=f"memory comes back: {d.device}", time="0"
        )
        if d.leaks:
            _child(case, "failure", drift_line(d), "leak")
        elif d.verdict == drift.NOT_JUDGED:
            _child(case, "skipped", drift_line(d))
    stamp = datetime.datetime.fromtimestamp(result.started, datetime.timezone.utc)
    suite.attrib.update(
        tests=str(len(suite)),
        failures=str(len(suite.findall("testcase/failure"))),
        errors=str(len(suite.findall("testcase/error"))),
        skipped=str(len(suite.findall("testcase/skipped"))),
        time=f"{max(result.ended - result.started, 0):.3f}",
        timestamp=stamp.strftime("%Y-%m-%dT%H:%M:%S"),
    )
    properties = ElementTree.Element("properties")
    for name, value in (("url", result.url), ("comfyui_version", result.comfyui)):
        ElementTree.SubElement(properties, "property", name=name, value=_clean(value))
    suite.insert(0, properties)
    root = ElementTree.Element("testsuites")
    root.append(suite)
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, "unicode") + "\n"


def _scene_case(suite: ElementTree.Element, scene: SceneResult, allow_cached: bool) -> None:
    case = ElementTree.SubElement(
        suite,
        "testcase",
        classname=_clean(scene.file),
        name=_clean(f"{scene.number} {scene.name}"),
        time=f"{scene.seconds:.3f}",
    )
    status, words = scene.outcome.status, scene.outcome.message
    if status is Status.NOT_RUN:
        _child(case, "skipped", words or "not run")
    elif status in (Status.LOST, Status.STOPPED):
        _child(case, "error", words or status.value, status.value)
    elif not scene.good:
        _child(case, "failure", words or status.value, scene.outcome.error or status.value)
    elif not scene.figures_hold and not allow_cached:
        _child(case, "failure", "; ".join(scene.notes), "cached")
    said = [*scene.notes, *(f"peak {d}: {b} bytes" for d, b in scene.peak.items())]
    said += [f"at rest {d}: {b} bytes" for d, b in scene.rest.items()]
    said += [f"{n.kind} ({n.id}): {n.seconds:.3f} s" for n in scene.ran if n.seconds is not None]
    ElementTree.SubElement(case, "system-out").text = _clean("\n".join(said))


def _child(case: ElementTree.Element, tag: str, message: str, kind: str | None = None) -> None:
    child = ElementTree.SubElement(case, tag, message=_clean(message.partition("\n")[0]))
    if kind is not None:
        child.set("type", _clean(kind))
    child.text = _clean(message)


def _clean(words: str) -> str:
    return _NOT_XML.sub("?", words)
