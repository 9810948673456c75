"""The commands of the documentation, read from its pages as they are written there.

A block of code (fenced without a language, or indented by four spaces) whose first word is a
program is a block of commands. A comment of the page right before it, which readers do not see,
says what is special about it:

    <!-- run: on master, exit 1, slow -->     where it runs, how it ends, that it takes long
    <!-- run "stop keepalived": on holder --> the same for the commands that have these words
    <!-- not run: why -->                     what cannot be run in the lab
    <!-- not run "load=", "save=": why -->

The pages' own comments behind a command (``# on the node``) say where, too. Salt's own
commands run on the Salt master, those of the lab on the machine that has it. Without any of this a
command runs on the Salt master, and must end with 0.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from support import ROOT

OPERATIONS = ROOT / "docs" / "operations"

#: First words by which a block of commands is known.
PROGRAMS = frozenset(
    {
        ".venv/bin/python",
        "apt-get",
        "cat",
        "echo",
        "etcdctl",
        "export",
        "firewall-cmd",
        "git",
        "ip",
        "journalctl",
        "kubectl",
        "ls",
        "make",
        "nft",
        "openssl",
        "podman",
        "rm",
        "salt",
        "salt-call",
        "salt-key",
        "salt-pip",
        "salt-run",
        "ssh",
        "systemctl",
        "tar",
        "tests/lab/lab",
        "vi",
    }
)

SALT = frozenset({"salt", "salt-key", "salt-run"})
MACHINE = frozenset({".venv/bin/python", "make", "podman", "tests/lab/lab"})

#: Whoever runs it: words of the pages to roles of hosts, or to what a test has to find out.
PLACES = {
    "CA host": "ca", "Salt master": "salt", "holder": "holder", "load balancer": "lb",
    "machine": "machine", "master": "master", "member": "etcd", "node": "node",
}  # fmt: skip

_MARK = re.compile(r'^ {0,3}<!-- (run|not run)((?: "[^"]+",?)*): (.+) -->$')
_PLACE = re.compile(rf"^on (?:a |the )?({'|'.join(PLACES)})\b")
_FENCE = re.compile(r"^```(\S*)$")
_CODE = re.compile(r"^(?:\d+\. )? {4,}(?=\S)")


class PageError(Exception):
    """A page says of its commands what cannot be understood."""


@dataclass(frozen=True)
class Command:
    """One command of a page.

    Attributes:
        page, line: where it is.
        text: as a shell takes it, without the page's comment.
        on: a value of :data:`PLACES`.
        exits: the exit code.
        slow: whether it takes long or destroys something.
        reason: why it is not run; empty when it is.
    """

    page: str
    line: int
    text: str
    on: str = "salt"
    exits: int = 0
    slow: bool = False
    reason: str = ""

    def __str__(self) -> str:
        return f"{self.page}:{self.line}: {self.text}"


@dataclass(frozen=True)
class Mark:
    """What a page says of the block that follows."""

    runs: bool
    words: tuple[str, ...]
    says: str

    def about(self, command: Command) -> bool:
        """Whether it is about this command."""
        return not self.words or any(word in command.text for word in self.words)

    def apply(self, command: Command) -> Command:
        """The command with what the mark says of it."""
        if not self.runs:
            return replace(command, reason=self.says)
        for word in self.says.split(", "):
            if word == "slow":
                command = replace(command, slow=True)
            elif found := re.fullmatch(r"exit (\d+)", word):
                command = replace(command, exits=int(found[1]))
            elif found := _PLACE.fullmatch(word):
                command = _at(command, PLACES[found[1]])
            else:
                raise PageError(
                    f"{command.page}:{command.line}: found {word!r} in a mark; expected slow, "
                    f"exit N, or on one of {', '.join(PLACES)}"
                )
        return command


@dataclass
class Block:
    """Lines of code, with their numbers, and the marks before them."""

    marks: list[Mark]
    lines: list[tuple[int, str]] = field(default_factory=list)
    language: str = ""

    @property
    def commands(self) -> bool:
        """Whether a reader types this."""
        first = next((text for _, text in self.lines if not text.startswith("#")), "")
        return not self.language and program(first) in PROGRAMS


def program(text: str) -> str:
    """The program of a command, without variables set before it.

    >>> program("A=1 salt-run indigo.status")
    'salt-run'
    """
    words = text.split()
    while words and re.match(r"[A-Z_]+=", words[0]):
        words.pop(0)
    return words[0] if words else ""


def blocks(text: str) -> Iterator[Block]:
    """All blocks of code of a page."""
    marks: list[Mark] = []
    block: Block | None = None
    fenced = blank = False
    for number, line in enumerate(text.splitlines(), 1):
        if found := _MARK.match(line):
            words = tuple(re.findall(r'"([^"]+)"', found[2]))
            marks.append(Mark(found[1] == "run", words, found[3]))
            continue
        if line.lstrip().startswith(("<!-- run", "<!-- not run")):
            raise PageError(f"line {number}: a mark that cannot be read: {line}")
        if fence := _FENCE.match(line):
            if fenced and block:
                yield block
                block, marks = None, []
            else:
                if block:
                    yield block
                    marks = []
                block = Block(marks, language=fence[1])
            fenced = not fenced
        elif fenced and block:
            block.lines.append((number, line))
        elif (code := _CODE.match(line)) and (block or blank or line[0].isdigit()):
            block = block or Block(marks)
            block.lines.append((number, line[code.end() :]))
        elif block and line.strip():
            yield block
            block, marks = None, []
        elif line.strip() and marks:
            raise PageError(f"line {number}: a mark must be right before a block of code")
        blank = not line.strip() or bool(marks)
    if block:
        yield block


def commands(page: Path) -> list[Command]:
    """The commands of a page, those that are not run, too."""
    found = []
    for block in blocks(page.read_text("utf-8")):
        if block.commands:
            found += _commands(page.name, block)
        elif block.marks:
            raise PageError(f"{page.name}: a mark before a block without commands: {block.lines}")
    return found


def _at(command: Command, place: str) -> Command:
    own = program(command.text) in SALT
    return replace(command, on="salt" if own else place)


def _commands(page: str, block: Block) -> list[Command]:
    found: list[Command] = []
    exports: list[str] = []
    for number, text, comment in joined(block.lines):
        if text == "echo $?":  # belongs to the one before
            found[-1] = replace(found[-1], text=f"{found[-1].text}; {text}")
            continue
        if program(text) == "export":
            exports.append(text)
            continue
        command = Command(page, number, "; ".join([*exports, text]))
        command = _at(command, "machine" if program(text) in MACHINE else "salt")
        if place := _PLACE.match(comment):
            command = _at(command, PLACES[place[1]])
        for mark in block.marks:
            if mark.about(command):
                command = mark.apply(command)
        found.append(command)
    for mark in block.marks:
        if not any(mark.about(command) for command in found):
            raise PageError(f"{page}: no command has {mark.words} of a mark")
    return found


def joined(lines: Iterable[tuple[int, str]]) -> Iterator[tuple[int, str, str]]:
    r"""Commands of several lines in one, each with its number and the comment behind it.

    >>> list(joined([(1, "tar -c \\"), (2, "    x     # on a node"), (3, "# nothing")]))
    [(1, 'tar -c x', 'on a node')]
    """
    start, text = 0, ""
    for number, line in lines:
        if not text:
            start = number
        text = f"{text} {line.strip()}".strip()
        if text.endswith("\\"):
            text = text[:-1].strip()
            continue
        code, _, comment = _uncommented(text)
        if code:
            yield start, code, comment
        text = ""


def _uncommented(text: str) -> tuple[str, str, str]:
    quoted = ""
    for at, letter in enumerate(text):
        if quoted:
            quoted = "" if letter == quoted else quoted
        elif letter in "'\"":
            quoted = letter
        elif letter == "#" and (at == 0 or text[at - 1].isspace()):
            return text[:at].strip(), "#", text[at + 1 :].strip()
    return text.strip(), "", ""


def inline(page: Path) -> list[str]:
    """Commands within sentences and tables: in backticks, and with a program of Salt's."""
    text = re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.S | re.M)
    return [one for one in re.findall(r"`([^`\n]+)`", text) if program(one) in ("salt", "salt-run")]


def pages() -> Sequence[Path]:
    """The pages of tasks."""
    return sorted(OPERATIONS.glob("*.md"))
