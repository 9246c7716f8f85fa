"""A table as a notebook shows it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape


def html_table(header: Sequence[str], rows: Iterable[Sequence[str]], below: str = "") -> str:
    """HTML of plain text: everything is escaped, and line breaks stay in the lines `below` the table."""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    after = f'<p style="white-space: pre-wrap">{escape(below)}</p>' if below else ""
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{after}"
