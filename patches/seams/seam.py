# SPDX-License-Identifier: Apache-2.0
"""A function of a ComfyUI module, wrapped so that it can be taken back."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import ModuleType
from typing import Any

from . import expected


class FunctionSeam:
    """Replaces `module.name` by a wrapper around it, and gives it back.

    `around(original, *args, **kwargs)` is called instead of the function; the wrapper keeps the
    function as `__wrapped__`. A function that is not as expected (expected.py) is left alone. If another pack has
    wrapped ours since, uninstalling leaves the chain as it is and ours passes everything on.
    """

    def __init__(
        self, module: ModuleType | type, name: str, around: Callable[..., Any], reason: str
    ) -> None:
        self.module, self.name, self.reason = module, name, reason
        self._around = around
        self._wrapper: Callable[..., Any] | None = None
        self._active = False

    @property
    def full_name(self) -> str:
        """As the table of expectations has it."""
        owner = self.module
        if isinstance(owner, type):
            return f"{owner.__module__}.{owner.__qualname__}.{self.name}"
        return f"{owner.__name__}.{self.name}"

    @property
    def installed(self) -> bool:
        """Whether calls go through `around`."""
        return self._active

    def install(self) -> None:
        """Wraps the function; a second call does nothing."""
        if self._active or expected.problem_with(self.full_name) is not None:
            return
        self._active = True
        if self._in_chain():
            return
        original = getattr(self.module, self.name)

        @functools.wraps(original)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            if not self._active:
                return original(*args, **kwargs)
            return self._around(original, *args, **kwargs)

        self._wrapper = wrapper
        setattr(self.module, self.name, wrapper)

    def uninstall(self) -> None:
        """Puts the function back; a second call does nothing."""
        self._active = False
        if self._wrapper is not None and getattr(self.module, self.name) is self._wrapper:
            setattr(self.module, self.name, self._wrapper.__wrapped__)  # type: ignore[attr-defined]
            self._wrapper = None

    def _in_chain(self) -> bool:
        function = getattr(self.module, self.name)
        while function is not None:
            if function is self._wrapper:
                return True
            function = getattr(function, "__wrapped__", None)
        return False
