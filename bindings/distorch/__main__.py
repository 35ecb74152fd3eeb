# SPDX-License-Identifier: Apache-2.0
"""`python -m distorch` is the command `distorch`."""

from distorch.tools.cli import main

raise SystemExit(main())
