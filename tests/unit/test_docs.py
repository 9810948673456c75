"""What documents name exists: tests behind the limits in SECURITY.md, pages behind links."""

from __future__ import annotations

import re

import pytest
from support import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
NAMED = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", (ROOT / "SECURITY.md").read_text("utf-8"))


def test_every_limit_names_a_test_that_exists() -> None:
    assert len(NAMED) >= 15
    missing = [
        f"{path}::{name}"
        for path, name in NAMED
        if not (ROOT / path).is_file()
        or not re.search(rf"^def {name}\(", (ROOT / path).read_text("utf-8"), re.M)
    ]
    assert not missing, missing


def test_every_limit_has_a_test_beside_it() -> None:
    """A row of a table of limits without a test is a wish."""
    rows = re.findall(r"^\| (?!It cannot|-|…)(.*) \| (.*) \| (.*) \|$", _limits(), re.M)
    assert len(rows) >= 15
    assert not [row for row in rows if "tests/" not in row[2] and "---" not in row[0]]


def _limits() -> str:
    text = (ROOT / "SECURITY.md").read_text("utf-8")
    return text[text.index("## What somebody can do") :]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page) -> None:
    text = re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.S)
    targets = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text)
    broken = [
        target
        for target in targets
        if not re.match(r"\w+:", target) and not (page.parent / target).exists()
    ]
    assert not broken, broken
