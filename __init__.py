# SPDX-License-Identifier: Apache-2.0
"""ComfyUI's entry: hands over to nodes/ (imported inside, so that pytest may import this file)."""
