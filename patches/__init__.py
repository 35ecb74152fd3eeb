# SPDX-License-Identifier: Apache-2.0
"""What DisTorch changes in ComfyUI: one file a seam, each with `install()` and `uninstall()`."""
