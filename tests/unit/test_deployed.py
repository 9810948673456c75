"""Which hosts a deploy may leave alone."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from support import load

module = load("_modules", "indigo_deployed")
state = load("_states", "indigo_deployed")


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A host with a file and a link, its units running, and one certificate."""

    class Here:
        etc = tmp_path / "etc"
        record = tmp_path / "var" / "deployed.json"
        pillar = "p"
        days = 100
        units: dict[str, str] = {"etcd": "active", "haproxy": "active"}

        def differs(self) -> str:
            return str(module.differs()).replace(str(self.etc), "ETC")

    here = Here()
    (here.etc / "sub").mkdir(parents=True)
    (here.etc / "sub" / "unit").write_text("a")
    (here.etc / "link").symlink_to("sub")
    view = {
        "roles": ["etcd", "lb"],
        "pki": {"certificates": [{"path": "/c", "renew_before": 60}], "held": []},
    }
    functions = {
        "indigo_pki.status": lambda: [
            {"path": "/c", "days_left": here.days},
            {"path": "/authority", "days_left": 1},
        ],
        "indigo_preflight.pillar_digest": lambda: here.pillar,
        "indigo_preflight.code": lambda: "code",
        "indigo_status.units": lambda roles: list(here.units) if roles else [],
    }
    monkeypatch.setattr(module, "__salt__", functions, raising=False)
    monkeypatch.setattr(module, "__pillar__", {"indigo": view}, raising=False)
    monkeypatch.setattr(module, "RECORD", str(here.record))
    monkeypatch.setattr(module, "FOLDERS", (str(here.etc), str(tmp_path / "not-there")))

    def is_active(command, **_):
        assert command[:2] == ["systemctl", "is-active"]
        answer = "".join(f"{here.units[unit]}\n" for unit in command[2:])
        return type("Done", (), {"stdout": answer})

    monkeypatch.setattr(module.subprocess, "run", is_active)
    return here


def test_a_host_is_left_alone_once_it_is_recorded(host):
    assert host.differs() == "it was never deployed"
    module.record()
    assert host.differs() == ""
    assert module.forget() is True
    assert module.forget() is False
    assert host.differs() == "it was never deployed"


def rewritten(host):
    (host.etc / "sub" / "unit").write_text("b")


def restored(host):
    """Same content, size and time of modification as before."""
    path = host.etc / "sub" / "unit"
    before = path.stat()
    path.write_text("a")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda host: setattr(host, "pillar", "q"), "its declaration or the tree has changed"),
        (rewritten, "ETC/sub/unit was changed"),
        (restored, "ETC/sub/unit was changed"),
        (lambda host: (host.etc / "sub" / "unit").chmod(0o600), "ETC/sub/unit was changed"),
        (lambda host: (host.etc / "sub" / "unit").unlink(), "ETC/sub/unit is gone"),
        (lambda host: (host.etc / "new").touch(), "ETC/new is new"),
        (lambda host: (host.etc / "link").unlink(), "ETC/link is gone"),
        (lambda host: host.units.update(haproxy="failed"), "haproxy is failed"),
        (lambda host: host.record.write_text("{"), "RECORD cannot be read"),
        (lambda host: host.record.write_text("[]"), "RECORD cannot be read"),
    ],
)
def test_what_was_touched_is_told(host, change, expected):
    module.record()
    change(host)
    assert host.differs() == expected.replace("RECORD", str(host.record))


def test_a_certificate_falls_due(host, monkeypatch):
    module.record()
    now = module.time.time()
    assert json.loads(host.record.read_text())["due"] == pytest.approx(now + 40 * 86400, abs=60)
    monkeypatch.setattr(module.time, "time", lambda: now + 41 * 86400)
    assert host.differs() == "a certificate is due for renewal"


def test_an_incomplete_record_counts_for_nothing():
    assert module.difference({"inputs": "a"}, "a", {}, 0) == "its record is incomplete"


def test_a_disk_that_takes_no_record_is_told(host):
    host.record.parent.write_text("a file where the folder should be")
    with pytest.raises(module.CommandExecutionError, match=r"deployed\.json cannot be written"):
        module.record()


# --- the state -----------------------------------------------------------------------------------


@pytest.fixture
def run(monkeypatch):
    """Run the state after others: their results, test mode; how often it recorded."""

    def runner(results, test=False):
        calls: list[int] = []
        monkeypatch.setattr(
            state, "__salt__", {"indigo_deployed.record": lambda: calls.append(1)}, raising=False
        )
        monkeypatch.setattr(state, "__opts__", {"test": test}, raising=False)
        running = {str(n): {"name": f"s{n}", "result": r} for n, r in enumerate(results)}
        monkeypatch.setattr(state, "__running__", running, raising=False)
        return state.recorded("end"), len(calls)

    return runner


@pytest.mark.parametrize(
    ("results", "test", "recorded"),
    [
        ([True, True], False, 1),
        ([True, False], False, 0),
        ([True, None], False, 0),
        ([True, True], True, 0),
    ],
)
def test_only_a_run_that_succeeded_whole_is_recorded(run, results, test, recorded):
    ret, calls = run(results, test)
    assert (ret["result"], ret["changes"], calls) == (True, {}, recorded)


def test_the_first_failure_is_named(run):
    ret, _ = run([True, False])
    assert ret["comment"] == "Nothing is noted, 1 states did not succeed: s1"
