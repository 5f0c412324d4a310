"""What a notebook shows of an object: headings, sentences, tables and lists, in which all text is escaped."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable, Sequence
from functools import wraps
from typing import Any, TypeVar

__all__ = ["code", "facts", "heading", "items", "page", "sentence", "shown", "table", "told"]

LONGEST = 500
"""Letters of a text that are shown."""
LEFT = ' style="text-align:left"'
"""Notebooks push the cells of tables to the right, where words are hard to read."""
Shown = TypeVar("Shown")


def page(parts: Callable[[Shown], Iterable[str]]) -> Callable[[Shown], str]:
    """A method ``_repr_html_`` of these parts.

    A page must not stop a notebook: where code of a user's fails on the way, the page says what was raised.
    """

    @wraps(parts)
    def made(self: Shown) -> str:
        try:
            return f"<div>{''.join(parts(self))}</div>"
        except Exception as error:
            failed = f"no page can be made of this {type(self).__name__}: {type(error).__name__}: {error}; print() it"
            return f"<div>{sentence(failed)}</div>"

    return made


def heading(text: str) -> str:
    """A headline."""
    return f"<h4>{shown(text)}</h4>"


def sentence(text: str) -> str:
    """A paragraph."""
    return f"<p>{shown(text)}</p>"


def code(text: str) -> str:
    """A line as it is written in a program."""
    return f"<code>{shown(text)}</code>"


def items(parts: Iterable[str]) -> str:
    """A list of parts that are escaped already."""
    return f"<ul>{''.join(f'<li>{part}</li>' for part in parts)}</ul>"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of texts under a header."""
    head = "".join(f"<th{LEFT}>{shown(cell)}</th>" for cell in header)
    body = "".join(f"<tr>{''.join(f'<td{LEFT}>{shown(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def facts(known: Iterable[tuple[str, str]]) -> str:
    """A table of names and what is known of them; what is empty is left out."""
    rows = (f"<tr><th{LEFT}>{shown(name)}</th><td{LEFT}>{shown(text)}</td></tr>" for name, text in known if text)
    return f"<table><tbody>{''.join(rows)}</tbody></table>"


def shown(text: str) -> str:
    """Text with its signs escaped; a long one is cut, and what no page can hold (half a letter) is a question mark."""
    cut = text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"
    return html.escape(cut.encode("utf-8", "replace").decode())


def told(value: Any) -> str:
    """The ``repr`` of an object of a user's; where that raises, its type and what was raised."""
    try:
        return repr(value)
    except Exception as error:
        return f"({type(value).__name__}, whose repr raises {type(error).__name__})"
