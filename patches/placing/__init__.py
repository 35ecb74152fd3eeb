# SPDX-License-Identifier: Apache-2.0
"""Models that become ours: adopted, planned, placed, run from where their blocks are."""
