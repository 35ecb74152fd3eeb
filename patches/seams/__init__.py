# SPDX-License-Identifier: Apache-2.0
"""What the pack changes in ComfyUI, one file a seam."""
