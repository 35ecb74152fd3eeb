# SPDX-License-Identifier: Apache-2.0
"""Programs that use the library and are never used by it: command line, demo, monitor, end-to-end runs, log statistics."""
