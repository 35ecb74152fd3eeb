# SPDX-License-Identifier: Apache-2.0
"""Who holds what, where: the tab, its routes, the settings applied."""
