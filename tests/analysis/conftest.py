"""What the tests of pages share: a strict reader of their structure, and a browser, where there is one."""

import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

import pytest

VOID = {"meta", "input", "br", "path", "use", "rect", "link", "source"}


@dataclass
class Structure(HTMLParser):
    """Every element by its tag, with its attributes; raises at wrong nesting and at anything that would be fetched."""

    elements: list[tuple[str, dict[str, str | None]]] = field(default_factory=list)
    text: str = ""
    _open: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        assert len(attributes) == len(attrs), f"an attribute of <{tag}> is there twice: {attrs}"
        assert not any(name.startswith("on") for name in attributes), attributes
        for name in ("src", "href", "xlink:href", "action", "poster", "data"):
            assert (attributes.get(name) or "#").startswith(("#", "data:")), (tag, attributes)
        assert "url(http" not in (attributes.get("style") or "")
        self.elements.append((tag, attributes))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag in VOID:
            return
        assert self._open, f"</{tag}> ends nothing"
        assert self._open.pop() == tag, f"</{tag}> is wrongly nested"

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] not in ("script", "style"):
            self.text += data

    def all(self, tag: str, **attributes: str) -> list[dict[str, str | None]]:
        return [a for t, a in self.elements if t == tag and attributes.items() <= a.items()]


@pytest.fixture
def structure() -> Callable[[str], Structure]:
    """Reads a page; its elements are closed in order, its ids are unique, and no address of another place is in it."""

    def read(html: str) -> Structure:
        found = Structure()
        found.feed(html)
        found.close()
        assert not found._open
        ids = [a["id"] for _, a in found.elements if "id" in a]
        assert len(set(ids)) == len(ids)
        labelled = {a["aria-labelledby"] for _, a in found.elements if "aria-labelledby" in a}
        assert labelled <= set(ids)
        addresses = set(re.findall(r"https?://[^\s\"'<>)]*", html))
        assert {a for a in addresses if not a.startswith(("http://www.w3.org/", "https://www.w3.org/"))} == set()
        return found

    return read


@pytest.fixture
def browser(tmp_path: Path) -> Callable[..., str]:
    """Opens a page in headless Chromium: (file, fragment) -> the document after its scripts; no console error."""
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        pytest.skip("no Chromium is installed")

    def open_page(file: Path, fragment: str = "") -> str:
        quiet = ["gpu", "quic", "background-networking", "component-update", "sync", "default-apps", "extensions"]
        options = [*(f"--disable-{name}" for name in quiet), "--headless", "--no-sandbox", "--no-first-run"]
        options += [
            "--enable-logging=stderr",
            "--v=0",
            "--host-resolver-rules=MAP * ~NOTFOUND",
            "--window-size=1280,1000",
            f"--user-data-dir={tmp_path / 'user'}",
        ]
        address = f"{file.absolute().as_uri()}{fragment}"
        done = subprocess.run([program, *options, "--dump-dom", address], capture_output=True, text=True, check=True)
        console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
        assert console == []
        return done.stdout

    return open_page
