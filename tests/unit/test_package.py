"""Packages: what is lacking, what was broken off, and the state in both modes."""

from __future__ import annotations

import fcntl
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from salt.exceptions import CommandExecutionError
from support import load

STATUS = """\
Package: haproxy
Status: install ok installed
Version: 2.6

Package: keepalived
Status: install ok half-configured
Version: 2.2

Package: gone
Status: deinstall ok config-files
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    module = load("_modules", "indigo_package")
    monkeypatch.setattr(module, "DPKG", tmp_path)
    (tmp_path / "updates").mkdir()
    (tmp_path / "lock").touch()
    (tmp_path / "status").write_text(STATUS)
    return module


def test_only_what_is_installed_to_the_end_is_there(package):
    assert package.lacking(["haproxy", "keepalived", "gone", "socat"]) == [
        "gone",
        "keepalived",
        "socat",
    ]


def test_one_architecture_is_enough(package):
    text = STATUS + "\nPackage: haproxy\nStatus: deinstall ok config-files\n"
    assert package.states(text)["haproxy"] == "installed"


def test_without_dpkg_the_systems_own_manager_is_asked(package, monkeypatch):
    (package.DPKG / "status").unlink()
    asked = {"pkg.list_pkgs": lambda: {"haproxy": "2.6"}}
    monkeypatch.setattr(package, "__salt__", asked, raising=False)
    assert package.lacking(["haproxy", "socat"]) == ["socat"]
    assert package.unfinished() == []


def test_half_done_work_and_the_journal_are_seen(package):
    assert package.unfinished() == ["keepalived is half-configured"]
    (package.DPKG / "updates" / "0003").touch()
    (package.DPKG / "updates" / "tmp.i").touch()
    assert package.unfinished()[1:] == ["dpkg's journal is not written back"]


def test_work_of_another_program_is_not_unfinished(package):
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import fcntl, sys; f = open(sys.argv[1], 'r+b'); fcntl.lockf(f, fcntl.LOCK_EX);"
            "print('held', flush=True); sys.stdin.read()",
            str(package.DPKG / "lock"),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert holder.stdout.readline() == b"held\n"
    assert package.unfinished() == []
    holder.communicate()
    assert package.unfinished() == ["keepalived is half-configured"]
    with (package.DPKG / "lock").open("r+b") as lock:  # and it does not keep the lock itself
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _dpkg(package, monkeypatch, effects):
    """Replaces commands: each takes one effect on the status file."""
    run = []

    def fake(command, **_):
        run.append(command[0])
        text = effects.pop(0)
        if text is not None:
            (package.DPKG / "status").write_text(text)
        return SimpleNamespace(returncode=0, stdout="", stderr="dpkg: error")

    monkeypatch.setattr(package.subprocess, "run", fake)
    return run


def test_it_is_finished_with_as_little_as_is_needed(package, monkeypatch):
    done = STATUS.replace("half-configured", "installed")
    run = _dpkg(package, monkeypatch, [done])
    package.finish()
    assert run == ["dpkg"]
    (package.DPKG / "status").write_text(STATUS)
    run = _dpkg(package, monkeypatch, [None, done])
    package.finish()
    assert run == ["dpkg", "apt-get"]


def test_what_cannot_be_finished_is_told(package, monkeypatch):
    _dpkg(package, monkeypatch, [None, None])
    with pytest.raises(CommandExecutionError, match=r"keepalived is half-configured.*dpkg: error"):
        package.finish()


class Host:
    """A host's packages for the state."""

    def __init__(self, module, missing, broken, test):
        self.missing, self.broken, self.did = list(missing), list(broken), []
        module.__opts__ = {"test": test}
        module.__salt__ = {
            "indigo_package.lacking": lambda names: [n for n in names if n in self.missing],
            "indigo_package.unfinished": lambda: list(self.broken),
            "indigo_package.finish": self.finish,
            "pkg.install": self.install,
        }

    def finish(self):
        self.did.append("finish")
        self.broken.clear()

    def install(self, pkgs, **options):
        self.did.append(("install", pkgs, options))
        self.missing = [name for name in self.missing if name not in pkgs or name == "stubborn"]
        return {name: {"old": "", "new": "1"} for name in pkgs}


NEWER = {"haproxy": "2.7", "keepalived": "2.2"}


def test_another_version_than_declared_is_seen(package):
    differs = package.differing(NEWER)
    # What is half done counts as not installed.
    assert differs == {
        "haproxy": {"old": "2.6", "new": "2.7"},
        "keepalived": {"old": "", "new": "2.2"},
    }
    assert package.differing({"haproxy": "2.6"}) == {}
    assert package.differing({}) == {}


class Manager:
    """The package manager's part: what was asked of it; ``has`` are the versions it can install."""

    def __init__(self, package, monkeypatch, has: dict[str, str]) -> None:
        self.package, self.has, self.asked = package, has, []
        monkeypatch.setattr(package, "__salt__", {"pkg.install": self.install}, raising=False)

    def install(self, pkgs, **options):
        self.asked.append((pkgs, options))
        text = ""
        for one in pkgs:
            ((name, version),) = one.items()
            if self.has.get(name) != version:
                raise CommandExecutionError(f"E: Version '{version}' for '{name}' was not found")
            text += f"Package: {name}\nStatus: install ok installed\nVersion: {version}\n\n"
        if not options.get("downloadonly"):
            (self.package.DPKG / "status").write_text(text)


def test_packages_are_downloaded_one_by_one_and_exchanged_together(package, monkeypatch):
    manager = Manager(package, monkeypatch, NEWER)
    assert set(package.fetch(NEWER)) == {"haproxy", "keepalived"}
    download = {"downloadonly": True, "install_recommends": False}
    assert manager.asked == [
        ([{"haproxy": "2.7"}], {"refresh": True, **download}),
        ([{"keepalived": "2.2"}], {"refresh": False, **download}),
    ]
    manager.asked.clear()
    assert package.exchange(NEWER)["haproxy"] == {"old": "2.6", "new": "2.7"}
    options = {"refresh": False, "install_recommends": False}
    assert manager.asked == [([{"haproxy": "2.7"}, {"keepalived": "2.2"}], options)]
    assert package.exchange(NEWER) == {}


def test_what_cannot_only_be_downloaded_is_not_installed_early(package, monkeypatch):
    """With dnf5 Salt's pkg.install installs, whatever it is asked for."""
    manager = Manager(package, monkeypatch, NEWER)
    monkeypatch.setattr(package.shutil, "which", lambda name: f"/usr/bin/{name}")
    assert set(package.fetch(NEWER)) == {"haproxy", "keepalived"}
    assert manager.asked == []
    package.exchange(NEWER)
    assert len(manager.asked) == 1


def test_a_version_that_nobody_has_names_the_key(package, monkeypatch):
    Manager(package, monkeypatch, {})
    with pytest.raises(CommandExecutionError, match=r"packages.haproxy: 2.7 cannot be had: E: Ver"):
        package.fetch({"haproxy": "2.7"})


def test_a_version_that_does_not_come_is_told(package, monkeypatch):
    monkeypatch.setattr(package, "__salt__", {"pkg.install": lambda **_: None}, raising=False)
    with pytest.raises(CommandExecutionError, match=r"haproxy is 2.6, declared is 2.7"):
        package.exchange({"haproxy": "2.7"})


@pytest.fixture
def state():
    return load("_states", "indigo_package")


@pytest.mark.parametrize("test", [False, True])
def test_nothing_is_done_when_all_is_there(state, test):
    host = Host(state, [], [], test)
    ret = state.installed("packages", ["b", "a"])
    assert (ret["result"], ret["changes"], host.did) == (True, {}, [])


def test_the_preview_touches_nothing(state):
    host = Host(state, ["a"], ["b is unpacked"], True)
    ret = state.installed("packages", ["a", "b"])
    assert ret["result"] is None
    assert ret["changes"] == {"a": {"old": "", "new": "installed"}}
    assert "a would be installed; b is unpacked: that would be finished" in ret["comment"]
    assert host.did == []


def test_what_is_missing_is_installed_after_what_was_broken_off(state):
    host = Host(state, ["a"], ["b is unpacked"], False)
    ret = state.installed("packages", ["a", "b"], install_recommends=False)
    assert ret["result"] is True
    assert ret["changes"]["a"] == {"old": "", "new": "1"}
    options = {"refresh": True, "install_recommends": False}
    assert host.did == ["finish", ("install", ["a"], options)]


def test_what_is_missing_comes_in_its_declared_version(state):
    host = Host(state, ["a", "b"], [], False)

    def install(pkgs, **_):
        host.missing.clear()
        return {"got": pkgs}

    state.__salt__["pkg.install"] = install
    ret = state.installed("packages", ["a", "b"], versions={"b": "2", "c": "3"})
    assert ret["changes"] == {"got": ["a", {"b": "2"}]}


class Exchange:
    """A host with a unit of a tier, for the states of versions."""

    def __init__(self, module, test=False, active=True, ok=True):
        self.did, self.installed = [], "1"
        self.ok = ok
        module.__opts__ = {"test": test}
        module.__salt__ = {
            "indigo_package.differing": self.differing,
            "indigo_package.fetch": lambda versions: self.did.append("fetch"),
            "indigo_package.exchange": self.exchange,
            "indigo_service.active": lambda unit: active,
            "indigo_service.restart": lambda unit, files: self.did.append(f"restart {unit}"),
            "indigo_rolling.restart": self.restart,
            "indigo_rolling.describe": lambda tier: "one at a time",
        }

    def differing(self, versions):
        return {
            name: {"old": self.installed, "new": version}
            for name, version in versions.items()
            if version != self.installed
        }

    def exchange(self, versions):
        self.did.append("exchange")
        self.installed = versions["haproxy"]

    def restart(self, unit, files, tier, packages):
        self.did.append(f"roll {unit} {','.join(files)}")
        if self.ok:
            self.installed = packages["haproxy"]
        return {"ok": self.ok, "comment": "2 members"}


def exchanged(state, version="2", tier=True):
    return state.exchanged(
        "/usr/sbin/haproxy",
        {"haproxy": version},
        "haproxy",
        ["/f"],
        {"name": "lb"} if tier else None,
    )


def test_a_running_unit_gets_its_package_in_its_turn(state):
    host = Exchange(state)
    ret = exchanged(state)
    assert (ret["result"], ret["changes"]) == (True, {"haproxy": {"old": "1", "new": "2"}})
    assert host.did == ["fetch", "roll haproxy /f"]
    assert ret["comment"] == "haproxy 1 to 2: 2 members"
    assert exchanged(state)["changes"] == {}
    assert host.did == ["fetch", "roll haproxy /f"]


def test_nobody_is_asked_where_the_unit_does_not_run(state):
    host = Exchange(state, active=False)
    assert exchanged(state)["result"] is True
    assert host.did == ["fetch", "exchange"]


def test_a_unit_that_is_alone_is_restarted(state):
    host = Exchange(state)
    assert exchanged(state, tier=False)["result"] is True
    assert host.did == ["fetch", "exchange", "restart haproxy"]


def test_an_exchange_that_was_refused_changed_nothing(state):
    Exchange(state, ok=False)
    ret = exchanged(state)
    assert (ret["result"], ret["changes"]) == (False, {})


def test_the_preview_of_an_exchange_names_the_program_and_touches_nothing(state):
    host = Exchange(state, test=True)
    ret = exchanged(state)
    assert (ret["result"], ret["name"]) == (None, "/usr/sbin/haproxy")
    assert ret["comment"] == (
        "haproxy 1 to 2: would be exchanged, and haproxy restarted, one at a time"
    )
    assert state.fetched("x", {"haproxy": "2"})["result"] is None
    other = state.exchanged("/usr/sbin/haproxy", {"keepalived": "2"}, "haproxy")
    assert (other["result"], other["name"]) == (None, "haproxy")
    assert host.did == []


def test_without_declared_versions_nothing_is_exchanged(state):
    host = Exchange(state)
    ret = state.exchanged("/usr/sbin/haproxy", {}, "haproxy")
    assert (ret["result"], ret["comment"]) == (True, "The packages are the distribution's")
    assert state.fetched("x", {})["result"] is True
    assert host.did == []


def test_what_is_fetched_is_said(state):
    host = Exchange(state)
    ret = state.fetched("x", {"haproxy": "2"})
    assert (ret["result"], ret["changes"]) == (True, {"haproxy": {"fetched": "2"}})
    assert host.did == ["fetch"]


def test_a_package_that_does_not_come_is_an_error(state):
    Host(state, ["stubborn"], [], False)
    ret = state.installed("packages", ["stubborn"])
    assert ret["result"] is False
    assert "stubborn: still missing" in ret["comment"]


def test_the_status_file_of_this_machine_can_be_read():
    module = load("_modules", "indigo_package")
    if not Path("/var/lib/dpkg/status").exists():
        pytest.skip("no dpkg here")
    known = module.states(Path("/var/lib/dpkg/status").read_text("utf-8"))
    assert known["dpkg"] == "installed"
