"""Upkeep against a real etcd: a full one takes writes again, what gains nothing is left alone.

No lab is needed: the members are processes on loopback.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from loopback import PLACES, Members, await_serving, etcd_programs
from salt.exceptions import CommandExecutionError
from support import load

QUOTA = 16 * 2**20
VALUE = "x" * 100_000


@pytest.fixture(scope="module")
def stage() -> SimpleNamespace:
    """In place of the lab of the other files: none is started, none is taken down."""
    return SimpleNamespace(broken=None)


# The newer one by `make test-slow`.
@pytest.fixture(
    scope="module",
    params=[PLACES[0], *(pytest.param(one, marks=pytest.mark.slow) for one in PLACES[1:])],
)
def programs(request: pytest.FixtureRequest) -> dict[str, str]:
    """etcd and the tools that come with it, of each release that can be had."""
    return etcd_programs(request.param)


class Hosts:
    """The module as every member's host has it."""

    def __init__(self, members: Members, programs: dict[str, str]) -> None:
        self.members = members
        self.events: list[str] = []
        rolling, tool = load("_modules", "indigo_rolling"), load("_modules", "indigo_tool")
        self.modules = {}
        for name in members.NAMES:
            module = load("_modules", "indigo_upkeep")
            own = members.settings(who=name)
            etcd = {
                "url": members.url(name),
                "members": {one: {"client": members.url(one)} for one in members.NAMES},
                "flags": {"quota-backend-bytes": str(QUOTA)},
                **{key: own[key] for key in ("ca", "cert", "key")},
            }
            module.__pillar__ = {
                "indigo": {
                    "id": name,
                    "components": {"etcd": etcd},
                    "binaries": programs,
                    "backup": {"defragment": {"share": 50, "least": 2}},
                }
            }
            module.__salt__ = {
                "indigo_rolling.lock": rolling.lock,
                "indigo_tool.run": tool.run,
                "indigo_tool.environment": tool.environment,
                "event.send": lambda tag, _data: self.events.append(tag),
            }
            self.modules[name] = module

    @property
    def leader(self) -> str:
        return next(n for n, module in self.modules.items() if module._leads(module._settings()))

    def ask(self, *arguments: str, answer: bool = False):
        module = self.modules["etcd1"]
        urls = [self.members.url("etcd1")]
        return module._etcdctl(module._settings(), urls, *arguments, answer=answer)

    def sizes(self) -> list[int]:
        module = self.modules["etcd1"]
        return [module._size(module._settings(), self.members.url(n)) for n in self.members.NAMES]

    def fill(self, *keys: str) -> None:
        """Write until etcd takes nothing any more."""
        with pytest.raises(CommandExecutionError, match="database space exceeded"):
            for n in range(4 * QUOTA // len(VALUE)):
                self.ask("put", keys[n % len(keys)], VALUE)
        assert self.ask("alarm", "list", answer=True)["alarms"]


@pytest.fixture
def hosts(tmp_path: Path, programs: dict[str, str]) -> Iterator[Hosts]:
    members = Members(tmp_path, Path(programs["etcd"]))
    for name in members.NAMES:
        members.write(name, f"--quota-backend-bytes={QUOTA}")
    members.start()
    try:
        await_serving(members)
        yield Hosts(members, programs)
    finally:
        members.stop()


def test_a_full_etcd_is_emptied_and_takes_writes_again(hosts, figure):
    hosts.fill("one")
    before = hosts.sizes()
    # The alarm stops writes, and so locks: one host sees to it, the leader's.
    leader = hosts.leader
    other = next(name for name in hosts.modules if name != leader)
    assert "the leader's host sees to it" in hosts.modules[other].run()["why"]
    found = hosts.modules[leader].run()
    assert found["alarms"] == ["NOSPACE"]
    assert set(found["rewritten"]) == {hosts.members.url(name) for name in hosts.modules}
    assert list(found["rewritten"])[-1] == hosts.members.url(leader)
    after = hosts.sizes()
    assert max(after) < QUOTA / 4, (before, after)
    figure(f"upkeep of a full etcd: {max(before) >> 10} KiB to {max(after) >> 10} KiB")
    assert not self_alarms(hosts)
    hosts.ask("put", "two", "again")
    assert hosts.events == ["indigo/upkeep/done"]
    await_serving(hosts.members)
    # There is nothing to do for the next one, on any host.
    for module in hosts.modules.values():
        assert module.run()["why"] == "no database is mostly free space"


def self_alarms(hosts: Hosts) -> list:
    return (hosts.ask("alarm", "list", answer=True) or {}).get("alarms", [])


def test_one_that_is_full_of_what_is_needed_says_what_to_do(hosts):
    told = ""
    for turn in range(5):
        # Half-filled pages make room for a little more, at first.
        hosts.fill(*(f"key-{turn}-{n}" for n in range(4 * QUOTA // len(VALUE))))
        try:
            hosts.modules[hosts.leader].run()
        except CommandExecutionError as error:
            told = str(error)
            break
    assert re.search("Remove objects, or raise .*quota-backend", told), told
    assert self_alarms(hosts)
    with pytest.raises(CommandExecutionError, match="database space exceeded"):
        hosts.ask("put", "more", "x")
    # What it says helps.
    hosts.ask("del", "--prefix", "key-")
    assert hosts.modules[hosts.leader].run()["alarms"] == ["NOSPACE"]
    hosts.ask("put", "more", "x")


def test_what_was_freed_goes_back_to_the_disk_beyond_the_threshold_alone(hosts):
    for _ in range(60):
        hosts.ask("put", "one", VALUE)
    revision = hosts.ask("endpoint", "status", answer=True)[0]["Status"]["header"]["revision"]
    hosts.ask("compact", "--physical", str(revision))
    # What a transaction frees counts as free with those after it.
    for _ in range(3):
        hosts.ask("put", "one", "x")
        time.sleep(0.3)
    before = hosts.sizes()
    assert min(before) > 5 * 2**20
    # Most of it is free, yet less than is asked for.
    for module in hosts.modules.values():
        module.__pillar__["indigo"]["backup"]["defragment"]["least"] = 100
        assert module.run()["why"] == "no database is mostly free space"
    assert hosts.sizes() == before
    leader = hosts.leader
    module = next(module for name, module in hosts.modules.items() if name != leader)
    module.__pillar__["indigo"]["backup"]["defragment"]["least"] = 2
    found = module.run()
    assert len(found["rewritten"]) == 3, found
    assert list(found["rewritten"])[-1] == hosts.members.url(leader)
    assert max(hosts.sizes()) < 2**20
    assert hosts.leader == leader


def test_while_a_member_is_down_none_stops_and_the_lock_is_free_again(hosts):
    for _ in range(60):
        hosts.ask("put", "one", VALUE)
    down = next(name for name in hosts.modules if name not in (hosts.leader, "etcd1"))
    hosts.members.units[down].stop()
    with pytest.raises(CommandExecutionError, match=f"{hosts.members.url(down)} does not serve"):
        hosts.modules["etcd1"].run(force=True)
    hosts.members.start()
    await_serving(hosts.members)
    assert len(hosts.modules["etcd1"].run(force=True)["rewritten"]) == 3
