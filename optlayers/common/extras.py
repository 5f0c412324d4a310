"""Packages that only some of the library needs: they are imported when it is used, and one that is missing is named."""

from __future__ import annotations

from importlib import import_module
from typing import Any

__all__ = ["needed"]


def needed(module: str, extra: str, use: str) -> Any:
    """A module of an optional package.

    Parameters
    ----------
    module : its full name.
    extra : what brings it: ``pip install 'optlayers[extra]'``.
    use : what needs it, the beginning of a sentence: ``"optlayers.plots draws with matplotlib"``.

    Raises
    ------
    ImportError : where the package, or one that it imports, is not installed.

    Examples
    --------
    >>> needed("no_such_package", "plots", "This page is drawn with no_such_package")
    Traceback (most recent call last):
    ImportError: This page is drawn with no_such_package, which is not installed: pip install 'optlayers[plots]'
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        top = module.partition(".")[0]
        missing = (error.name or top).partition(".")[0]
        what = "which" if missing == top else f"for which {missing}"
        raise ImportError(
            f"{use}, {what} is not installed: pip install 'optlayers[{extra}]'", name=error.name
        ) from error
