# SPDX-License-Identifier: Apache-2.0
"""The modules beside the tests can be imported by them."""

from __future__ import annotations

import pathlib
import sys

sys.path.append(str(pathlib.Path(__file__).parent))
