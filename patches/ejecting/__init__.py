# SPDX-License-Identifier: Apache-2.0
"""What stays and what leaves: keep and eject flags, the selective unload, cleaning up."""
