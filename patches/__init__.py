# SPDX-License-Identifier: Apache-2.0
"""What DisTorch changes in ComfyUI, in four rooms, each of which may use those before it.

`seams/`: one file a seam of the core, each with `install()` and `uninstall()`. `placing/`: models become ours and their
blocks are placed. `ejecting/`: what stays and what leaves through "free". `view/`: the tab, its routes, the settings
applied. `settings.py`, at the ground, holds values only.
"""
