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
