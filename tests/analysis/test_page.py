"""Pages: whatever a user has called his things, they stay text."""

import json
import re
from collections.abc import Callable
from typing import Any

import pytest

from moe_asr.analysis.page import Html, element, join, page, section

HOSTILE = "</script><script>alert(1)</script>\"'&<!--"


def test_what_is_not_markup_is_escaped() -> None:
    assert element("td", "a<b", class_='x"y', data_v=0) == '<td class="x&quot;y" data-v="0">a&lt;b</td>'
    assert (
        element("td", [Html("<b>"), None, ["&", 3]], hidden=True, title=None, id=False) == "<td hidden><b>&amp;3</td>"
    )
    assert element("br") == "<br>"
    assert isinstance(join("x"), Html)


def test_a_page_survives_hostile_names(structure: Callable[[str], Any]) -> None:
    html = page(HOSTILE, section("one", HOSTILE, element("p", HOSTILE)), ("page.js",), {HOSTILE: [HOSTILE]})
    found = structure(html)
    assert len(found.all("script")) == 3
    assert found.text.count(HOSTILE) == 4  # in the head, the heading, the section and its paragraph
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', html)
    assert data is not None
    assert json.loads(data[1]) == {HOSTILE: [HOSTILE]}
    policy = found.all("meta", **{"http-equiv": "Content-Security-Policy"})[0]["content"]
    assert policy.startswith("default-src 'none';")
    assert "http" not in policy


def test_a_number_that_json_has_not_is_refused() -> None:
    with pytest.raises(ValueError, match="JSON"):
        page("x", Html(""), data=float("nan"))
