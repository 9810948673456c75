"""Commands in the documentation: all are read, are run or say why not, and name what exists."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pages
import pytest
from support import ROOT

ALL = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
#: Salt's own, in commands of the pages.
SALTS = frozenset(
    {
        "cmd.run",
        "key.finger",
        "manage.status",
        "manage.up",
        "saltutil.refresh_pillar",
        "saltutil.running",
        "saltutil.sync_all",
        "schedule.disable",
        "schedule.enable",
        "schedule.show_next_fire_time",
        "service.status",
        "state.apply",
        "state.orchestrate",
        "test.ping",
    }
)

PAGE = """\
Text.

<!-- run "two": on master, exit 1 -->
<!-- not run "three": it burns: tests/unit/test_pages.py::test_x -->

    salt-run one.x       # first
    systemctl two \\
        on             # of two lines
    export A=b
    systemctl three

```
salt-run four.x
echo $?
ls /tmp              # on the node: why
```

```
output
```

1.     salt '*' test.ping
"""


def _read(tmp_path, text):
    (tmp_path / "page.md").write_text(text)
    return pages.commands(tmp_path / "page.md")


def test_a_page_is_read(tmp_path) -> None:
    found = _read(tmp_path, PAGE)
    assert [(one.text, one.on, one.exits) for one in found] == [
        ("salt-run one.x", "salt", 0),
        ("systemctl two on", "master", 1),
        ("export A=b; systemctl three", "salt", 0),
        ("salt-run four.x; echo $?", "salt", 0),
        ("ls /tmp", "node", 0),
        ("salt '*' test.ping", "salt", 0),
    ]
    assert [one.line for one in found] == [6, 7, 10, 13, 15, 22]
    assert found[2].reason.startswith("it burns") and not found[0].reason


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ("on master", "on mars", "found 'on mars'"),
        ('"two"', '"2"', "no command has"),
        ("burns: tests/unit/test_pages.py::test_x -->", "burns", "cannot be read"),
        ("    salt-run one.x ", "Words\n\n    salt-run one.x ", "right before a block"),
    ],
)
def test_a_mark_that_means_nothing_is_an_error(tmp_path, before, after, told) -> None:
    assert before in PAGE
    with pytest.raises(pages.PageError, match=told):
        _read(tmp_path, PAGE.replace(before, after, 1))


@pytest.mark.parametrize("page", pages.pages(), ids=lambda page: page.stem)
def test_every_command_is_run_or_says_why_not(page) -> None:
    for block in pages.blocks(page.read_text("utf-8")):
        if not block.commands:
            flush = [text for _, text in block.lines if not text.startswith(" ")]
            hidden = [text for text in flush if pages.program(text) in pages.PROGRAMS]
            assert not hidden, f"{page.name}: commands in a block of something else: {hidden}"
    for command in pages.commands(page):
        if command.reason:
            assert len(command.reason.split()) > 3, f"{command}: why is it not run?"
        for path, name in re.findall(r"(tests/[\w/]+\.py)::(\w+)", command.reason):
            text = (ROOT / path).read_text("utf-8")
            assert re.search(rf"^def {name}\(", text, re.M), f"{command}: no test {path}::{name}"


def test_most_commands_are_run() -> None:
    found = [command for page in pages.pages() for command in pages.commands(page)]
    assert len(found) > 80
    assert sum(not command.reason for command in found) > 0.75 * len(found)


@cache
def _functions(folder: str) -> dict[str, ast.FunctionDef]:
    """Public functions of our modules or runners, as they are called, with their definitions."""
    found = {}
    for path in sorted((ROOT / folder).glob("indigo*")):
        source = path / "__init__.py" if path.is_dir() else path
        if source.suffix == ".py":
            found |= _public(source)
    return found


def _public(path: Path) -> dict[str, ast.FunctionDef]:
    module = path.parent.name if path.name == "__init__.py" else path.stem
    return {
        f"{module}.{node.name}": node
        for node in ast.parse(path.read_text("utf-8")).body
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")
    }


def _wrong(text: str) -> str:
    """What a command of Salt's names that is not there; empty when all is."""
    program, *words = re.sub(r"'[^']*'", "'-'", text.split(";")[-1].split(" # ")[0]).split()
    while words and words[0].startswith("-"):
        words.pop(0)
    if program == "salt":
        words = words[1:]
    if words[:1] == ["salt.cmd"]:  # a runner that calls a module's function
        program, words = "salt-call", words[1:]
    name = next((word for word in words if re.fullmatch(r"[a-z_]+\.[a-z_]+", word)), None)
    if name is None or name in SALTS:
        return _orchestration(words) if name == "state.orchestrate" else ""
    known = _functions("_runners" if program == "salt-run" else "_modules")
    if name not in known:
        return f"no function {name}"
    arguments = known[name].args
    taken = {one.arg for one in [*arguments.args, *arguments.kwonlyargs]}
    given = {word.split("=")[0] for word in words if re.match(r"[a-z_]+=", word)}
    wrong = given - taken - {"timeout"}
    return f"{name} takes no {', '.join(sorted(wrong))}" if wrong and not arguments.kwarg else ""


def _orchestration(words: list[str]) -> str:
    name = next(word for word in words[words.index("state.orchestrate") + 1 :])
    if not re.fullmatch(r"[a-z_.]+", name):  # stands for several
        return ""
    path = ROOT / "salt" / name.replace(".", "/")
    there = path.with_suffix(".sls").is_file() or (path / "init.sls").is_file()
    return "" if there else f"no orchestration {name}"


@pytest.mark.parametrize("page", ALL, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_commands_name_exists(page) -> None:
    texts = pages.inline(page)
    if page.parent == pages.OPERATIONS:
        texts += [command.text for command in pages.commands(page)]
    wrong = [f"{text}: {why}" for text in texts if (why := _wrong(text))]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("salt-run indigo.statsu", "no function indigo.statsu"),
        ("salt-run indigo.remove hots=node3", "indigo.remove takes no hots"),
        ("salt-run state.orchestrate indigo.dploy", "no orchestration indigo.dploy"),
        ("salt '*' indigo_pki.statsu", "no function indigo_pki.statsu"),
        ("salt-run indigo.remove host=node3 force=True", ""),
    ],
)
def test_what_does_not_exist_is_found(text, wrong) -> None:
    assert _wrong(text) == wrong
