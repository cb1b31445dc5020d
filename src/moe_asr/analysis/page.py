"""Self-contained HTML pages: one style and one script for all, nothing fetched, light and dark, for phones too.

page.css and page.js beside this file hold both. What a reader chose (sorting, theme, ...) is kept in the fragment of
the address, so that a link to a page shows it as it was.
"""

import json
from html import escape
from pathlib import Path
from typing import Any

Attribute = str | int | float | bool | None


class Html(str):
    """Text that is markup already; any other is escaped by `element`."""


def element(tag: str, *children: Any, **attributes: Attribute) -> Html:
    """``element("td", text, class_="number", data_v=1)``: children are escaped unless `Html`, lists are joined.

    True makes an attribute without value, False and None none at all; underscores become hyphens.
    """
    given = {name.rstrip("_").replace("_", "-"): value for name, value in attributes.items()}
    written = "".join(
        f" {name}" if value is True else f' {name}="{escape(str(value))}"'
        for name, value in given.items()
        if value is not None and value is not False
    )
    return Html(f"<{tag}{written}>{join(children)}" + ("" if tag in ("input", "meta", "br") else f"</{tag}>"))


def join(children: Any) -> Html:
    """Of nested lists of texts and markup; None is nothing."""
    if isinstance(children, list | tuple):
        return Html("".join(map(join, children)))
    if isinstance(children, Html):
        return children
    return Html("" if children is None else escape(str(children)))


def section(name: str, title: str, *children: Any) -> Html:
    return element("section", element("h2", title, id=name), *children, aria_labelledby=name)


def page(title: str, body: Html, scripts: tuple[str, ...] = (), data: Any = None) -> str:
    """The whole file: body under the heading `title`; scripts, of this folder, read `data` as ``pageData()``."""

    def asset(name: str) -> Html:
        return Html((Path(__file__).parent / name).read_text(encoding="utf8"))

    # "</script>" within a text must not end the script.
    plain = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:; media-src data:"
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("title", title),
        element("style", asset("page.css")),
    )
    toggle = element("button", "Theme", type="button", id="theme", title="automatic, light or dark")
    content = element(
        "body",
        element("header", element("h1", title), toggle),
        element("main", body),
        element("script", Html(plain), type="application/json", id="data"),
        [element("script", asset(name)) for name in ("page.js", *scripts)],
    )
    return f"<!doctype html>\n{element('html', head, content, lang='en')}\n"
