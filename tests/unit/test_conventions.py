"""Rules that hold for every extension module."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from support import ROOT

DUNDERS = {"__salt__", "__opts__", "__grains__", "__pillar__", "__context__", "__states__"}
FILES = sorted(
    path for kind in ("_modules", "_states", "_runners") for path in (ROOT / kind).rglob("*.py")
)


def assigned(tree: ast.Module) -> set[str]:
    """Names that a module binds at its top level."""
    names: set[str] = set()
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_module_defines_what_the_loader_injects(path: Path) -> None:
    """The loader compares such a name with its own, which loads every Salt module: 1 s a job.

    See salt/loader/lazy.py, LazyLoader._load_module, "Override".
    """
    assert not assigned(ast.parse(path.read_text("utf-8"))) & DUNDERS


def test_the_check_can_fail() -> None:
    assert assigned(ast.parse("__salt__: dict = {}\n__opts__ = {}\n")) == {"__salt__", "__opts__"}
