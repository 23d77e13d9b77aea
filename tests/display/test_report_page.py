"""The HTML page of a report: texts cannot become markup or script, numbers are those that were given."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmjax.display.report_page import Chart, Folded, Link, Page, Section, Series, Table, Text, render

HOSTILE = """<script>alert(1)</script><img src=x onerror=alert(1)>"'&</pre></script><!--\u2028\x00"""


class Elements(HTMLParser):
    """The elements of a page with their attributes, and its text."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, Any]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def page(text: str, y: np.ndarray, *, x: np.ndarray | None = None) -> Page:
    places = np.arange(len(y), dtype=float) if x is None else x
    chart = Chart(text, [Series(text, 0, {"updates": places}, y)], references={text: 1.5}, note=text)
    table = Table([(text, Link(text, f"spikes/{text}.md"))], header=(text, text), title=text)
    blocks = [chart, table, Text(text, title=text, folded=True), Folded(text, [text])]
    return Page(text, text, [text], {"updates": "updates"}, [Section(text, blocks), Section("empty", [])])


def elements(written: str) -> Elements:
    parser = Elements()
    parser.feed(written)
    return parser


@given(st.one_of(st.just(HOSTILE), st.text(min_size=1, max_size=40)))
def test_no_text_becomes_an_element(text: str) -> None:
    plain, other = elements(render(page("x", np.ones(3)))), elements(render(page(text, np.ones(3))))
    shapes = [[(tag, sorted(attributes)) for tag, attributes in parsed.found] for parsed in (plain, other)]
    assert shapes[0] == shapes[1]


def test_the_page_runs_its_own_script_only_and_loads_nothing() -> None:
    written = render(page(HOSTILE, np.ones(3)))
    found = elements(written).found
    (policy,) = [a["content"] for tag, a in found if a.get("http-equiv") == "Content-Security-Policy"]
    script, style = (re.findall(rf"<{tag}>(.*?)</{tag}>", written, re.S)[0] for tag in ("script", "style"))
    for kind, text in (("script", script), ("style", style)):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'")
    assert not [a for _, a in found if {"src", "onerror", "onclick", "onload"} & a.keys()]
    assert all(a["href"].startswith(("#", "spikes/")) for tag, a in found if tag == "a")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e308])
def test_curves_keep_their_numbers_and_gaps(value: float) -> None:
    y = np.array([1.0, value, 2.5e-7, 12345678.0])
    written = render(page("x", y))
    data = json.loads(re.findall(r'id="data">(.*?)</script>', written, re.S)[0])
    (series,) = data["charts"][0]["series"]
    second = pytest.approx(value) if np.isfinite(value) else None
    assert series["y"] == [1, second, 2.5e-7, pytest.approx(y[3], 1e-5)]  # six digits
    assert series["x"]["updates"] == [0, 1, 2, 3]
    assert data["charts"][0]["references"] == {"x": 1.5}
