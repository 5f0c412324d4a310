"""How far something is, while it takes long: a bar of rich on a terminal, one of the page in a notebook."""

from __future__ import annotations

import os
import sys
from abc import ABC, abstractmethod
from importlib import import_module
from typing import Any, final

from optlayers.common.pages import shown

__all__ = ["AbstractBar", "bar"]


class AbstractBar(ABC):
    """Something that shows a number of steps, until it is closed."""

    @abstractmethod
    def show(self, done: int, what: str) -> None:
        """So many steps are done, and this is being done."""

    @abstractmethod
    def close(self) -> None:
        """Nothing more is shown."""


def bar(steps: int, what: str, *, asked: bool = False) -> AbstractBar | None:
    """A bar of so many steps, of which none is done; None where nobody would see it.

    On standard error it needs rich, and a terminal. In a notebook it needs nothing: rich would need ipywidgets there,
    and standard error is no terminal. ``OPTLAYERS_QUIET`` hides it. What a user has ``asked`` for is shown in any case.
    """
    if not asked and os.environ.get("OPTLAYERS_QUIET", "0") != "0":
        return None
    if _in_notebook():
        return _OfPage(steps, what)
    if not (asked or sys.stderr.isatty()):
        return None
    try:
        return _OfTerminal(steps, what)
    except ImportError:
        return None


def _in_notebook() -> bool:
    """Whether a kernel of Jupyter runs this, which shows pages."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return shell is not None and hasattr(shell, "kernel")


@final
class _OfTerminal(AbstractBar):
    def __init__(self, steps: int, what: str) -> None:
        console, progress = import_module("rich.console"), import_module("rich.progress")
        # In a file a line remains at the end, for who has asked for it; a terminal is left as it was.
        self._bar = progress.Progress(console=console.Console(stderr=True), transient=sys.stderr.isatty())
        self._task = self._bar.add_task(what, total=steps)
        self._bar.start()

    def show(self, done: int, what: str) -> None:
        self._bar.update(self._task, completed=done, description=what)

    def close(self) -> None:
        self._bar.stop()


@final
class _OfPage(AbstractBar):
    def __init__(self, steps: int, what: str) -> None:
        self._steps = steps
        self._display: Any = import_module("IPython.display")
        self._handle = self._display.display(self._page(0, what), display_id=True)

    def _page(self, done: int, what: str) -> Any:
        return self._display.HTML(f'<progress value="{done}" max="{self._steps}"></progress> {shown(what)}')

    def show(self, done: int, what: str) -> None:
        self._handle.update(self._page(done, what))

    def close(self) -> None:
        self._handle.update(self._display.HTML("<span></span>"))  # some pages show the text of an empty one
