# SPDX-License-Identifier: Apache-2.0
"""Whole workflows on a running ComfyUI, and what they did to memory: `distorch e2e`; see docs/end-to-end.md.

    workflow.py  files -> scenes          client.py  HTTP and websocket        events.py  one prompt, as told
    scene.py     one scene to its end     runner.py  all of them               memory.py  samples, peaks, rest
    drift.py     does memory come back    results.py data, exit status, JSON   report.py, plot.py, display.py

`drift`, `workflow`, `events` and `results` are plain data and need nothing but Python; `client` needs aiohttp.
"""
