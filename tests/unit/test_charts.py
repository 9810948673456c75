"""The charts of the docs: drawn from the figures beside them, which are those of the pages."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import charts
import pytest
from support import ROOT

SVG = "{http://www.w3.org/2000/svg}"
ROWS = [
    {"name": "a < b", "values": [0.5, 1.5, 0.7], "target": 1, "says": "too long"},
    {"name": "c", "values": [0.25], "target": 3, "says": "well"},
]


def test_a_chart_is_whole_and_to_scale() -> None:
    svg = ElementTree.fromstring(charts.chart("Title", "Note", ROWS, " s"))
    first, second = svg.findall(f"{SVG}rect")[1:]
    assert (first.get("class"), second.get("class")) == ("bad", "good")
    assert float(first.get("width")) == pytest.approx(charts._WIDTH / 2)
    assert float(second.get("width")) == pytest.approx(charts._WIDTH / 12)
    assert len(svg.findall(f"{SVG}circle")) == 2
    marks = [float(one.get("x1")) for one in svg.findall(f"{SVG}line[@class='target']")]
    assert marks == pytest.approx([charts._LEFT + charts._WIDTH / 3, charts._LEFT + charts._WIDTH])
    words = {one.text for one in svg.findall(f"{SVG}text")}
    assert {"Title", "Note", "a < b", "too long", "0 s", "3 s"} <= words


def test_what_was_not_measured_is_kept(tmp_path) -> None:
    rows = [{key: row[key] for key in ("name", "values", "target")} for row in ROWS]
    charts.keep("chaos", rows, tmp_path)
    charts.keep("chaos", [{"name": "c", "values": [0.75], "target": 3}], tmp_path)
    found = charts.load("chaos", tmp_path)
    assert [row["name"] for row in found] == ["a < b", "c"]
    assert found[1]["values"] == [0.75]
    assert "0.75 s" in (tmp_path / "chaos.svg").read_text()


@pytest.mark.parametrize("name", charts.DRAWN)
def test_the_committed_charts_are_those_of_the_figures(name) -> None:
    """After new figures: ``python tests/charts.py``."""
    drawn = charts.DRAWN[name](charts.load(name))
    assert (charts.FOLDER / f"{name}.svg").read_text("utf-8") == drawn


def test_the_page_about_faults_has_the_figures_of_its_chart() -> None:
    page = (ROOT / "docs" / "operations" / "chaos.md").read_text("utf-8")
    rows = {
        name: [float(value) for value in values.split(", ")]
        for name, runs, values in re.findall(r"^\| ([^|]+) \| (\d+) \| ([\d., ]+) s \|", page, re.M)
        if int(runs) == len(values.split(", "))
    }
    assert len(rows) > 40
    assert rows == {row["name"]: row["values"] for row in charts.load("chaos")}


def test_the_page_of_benchmarks_has_the_figures_of_its_chart() -> None:
    page = (ROOT / "docs" / "benchmarks.md").read_text("utf-8")
    row = r"^\| [^|]+ \| ([\d.]+) m?s \|[^|]*\| ?([\d.]*)(?:, missed)? \|"
    table = re.findall(row, page, re.M)
    ratios = [
        (float(above), float(below), float(ratio))
        for (above, ratio), (below, _) in zip(table[::2], table[1::2], strict=True)
    ]
    figures = charts.load("benchmarks")
    assert sorted(ratios) == sorted((row["above"], row["below"], row["ratio"]) for row in figures)
