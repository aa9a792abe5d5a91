"""Markup that cannot be forged: what is not `Html` is escaped when it is put into an element."""

import html
from collections.abc import Iterable


class Html(str):
    """Text that is markup already."""

    __slots__ = ()


def el(tag: str, *content: object, **attributes: object) -> Html:
    """An element. Content that is not `Html` is escaped; attributes that are None or False are
    left out, `_` in their names is `-`, and a last `_` is dropped (`class_`)."""
    words = [tag]
    for name, value in attributes.items():
        if value is None or value is False:
            continue
        words.append(f'{name.rstrip("_").replace("_", "-")}="{html.escape(_text(value))}"')
    inner = "".join(text(x) for x in content)
    return Html(f"<{' '.join(words)}>{inner}</{tag}>")


def text(content: object) -> Html:
    """`Html` as it is, anything else escaped."""
    return content if isinstance(content, Html) else Html(html.escape(_text(content)))


def join(parts: Iterable[Html]) -> Html:
    """One after the other."""
    return Html("".join(parts))


def _text(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def share(value: float) -> str:
    """Length in an SVG whose unit is its own width: `12.5%`."""
    return f"{value * 100:.4g}%"


def section(title: str, *content: Html, note: str = "", id_: str = "") -> Html:
    """A part of the page with its heading."""
    lead = [el("p", note, class_="note")] if note else []
    return el("section", el("h2", title), *lead, *content, id=id_ or None)


def table(heads: Iterable[str], rows: Iterable[Iterable[object]], *, chosen: int = -1) -> Html:
    """A table that scrolls in itself where it is too wide; `>` begins the heads of numbers."""
    heads = list(heads)
    number = ["num" if head.startswith(">") else None for head in heads]
    top = el("tr", *(el("th", h.lstrip(">"), class_=c) for h, c in zip(heads, number, strict=True)))
    body = [
        el(
            "tr",
            *(el("td", cell, class_=c) for cell, c in zip(row, number, strict=True)),
            class_="chosen" if place == chosen else None,
        )
        for place, row in enumerate(rows)
    ]
    return el("div", el("table", el("thead", top), el("tbody", *body)), class_="scroll", tabindex=0)


def legend(items: Iterable[tuple[str, str]]) -> Html:
    """(class of the colour, words) as swatches."""
    marks = (el("li", el("i", class_=f"swatch {name}"), words) for name, words in items)
    return el("ul", *marks, class_="legend")
