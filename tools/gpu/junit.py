# SPDX-License-Identifier: Apache-2.0
"""Reads what pytest leaves of a run (--junitxml)."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from typing import Any


def counts(text: str) -> dict[str, Any]:
    """Return how many tests passed, failed and were skipped, with the names of those that did not pass."""
    names: dict[str, list[str]] = {"failed": [], "skipped": []}
    passed = 0
    for case in ET.fromstring(text).iter("testcase"):
        name = f"{case.get('classname', '').rpartition('.')[2]}::{case.get('name')}"
        kinds = {child.tag for child in case}
        if kinds & {"failure", "error"}:
            names["failed"].append(name)
        elif "skipped" in kinds:
            reason = next(child.get("message", "") for child in case if child.tag == "skipped")
            names["skipped"].append(f"{name} ({reason})")
        else:
            passed += 1
    said = f"{passed} passed, {len(names['failed'])} failed, {len(names['skipped'])} not run"
    return {"said": said, "passed": passed, **names}
