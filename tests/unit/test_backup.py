"""Backups: when one is due, which are kept, what is a set, and what is sealed for whom."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from indigo_model import backup as model
from indigo_model.cluster import BACKUP, Cluster, Host, Vip
from salt.exceptions import CommandExecutionError
from support import load

DAY = 86400
KEEP = {"daily": 7, "weekly": 4, "monthly": 6}


@pytest.fixture
def backup():
    return load("_modules", "indigo_backup")


@pytest.fixture(scope="module")
def pair() -> tuple[bytes, str]:
    """A private and a public key."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = serialization.Encoding.PEM
    private = key.private_bytes(
        pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
    return private, public.decode()


# When ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("now", "newest", "expected"),
    [
        ("20260310T013000Z", None, True),
        ("20260310T013000Z", "20260309T013500Z", True),
        ("20260310T012900Z", "20260309T013500Z", False),
        ("20260310T020000Z", "20260310T013001Z", False),
        # One that somebody made in the evening does not move the hour.
        ("20260310T013100Z", "20260309T230000Z", True),
    ],
)
def test_a_daily_backup_is_due_at_its_hour(backup, now, newest, expected):
    moments = [backup.made_at(f"{one}-x") if one else None for one in (now, newest)]
    assert backup.due(*moments, 24, "01:30") is expected


def test_every_six_hours_counts_from_the_same_hour(backup):
    now = backup.made_at("20260310T143000Z-x")
    assert backup.stamp(backup.slot(now, 6, "01:30")) == "20260310T133000Z"


def test_none_is_due_where_none_is_wanted(backup):
    assert not backup.due(time.time(), None, 0, "01:30")


# Which --------------------------------------------------------------------------------------------


def test_a_year_of_daily_sets_is_thinned_out(backup):
    names: set[str] = set()
    first = backup.made_at("20250101T013000Z-a")
    for day in range(400):
        names.add(f"{backup.stamp(first + day * DAY)}-{'abc'[day % 3]}")
        names = backup.kept(names, KEEP)
        assert len(names) <= sum(KEEP.values())
    assert sorted(name[:8] for name in names) == [
        "20250930", "20251031", "20251130", "20251231",  # months
        "20260118", "20260125",  # weeks end on Sundays
        "20260129", "20260130", "20260131", "20260201", "20260202", "20260203", "20260204",
    ]  # fmt: skip


def test_what_is_newest_is_always_kept_and_what_is_no_set_never_counted(backup):
    names = ["20260101T000000Z-a", "20250101T000000Z-a", ".partial-x", "suspect-20270101T000000Z-a"]
    assert backup.kept(names, dict.fromkeys(KEEP, 0)) == {"20260101T000000Z-a"}
    assert backup.kept([], KEEP) == set()


def test_gaps_lose_nothing(backup):
    names = [f"2026{month:02}01T000000Z-a" for month in range(1, 7)]
    assert backup.kept(names, {"daily": 6, "weekly": 0, "monthly": 0}) == set(names)


# Sets ---------------------------------------------------------------------------------------------


@pytest.fixture
def host(backup, tmp_path):
    """An etcd host with its folder."""
    etcd = {
        "name": "a",
        "url": "https://127.0.0.1:1",
        "members": {n: {"client": f"https://{n}:1", "peer": f"https://{n}:2"} for n in ("a", "b")},
        "flags": {},
        **dict.fromkeys(("ca", "cert", "key"), "/nonexistent"),
    }
    view = {
        "id": "a",
        "cluster": {"name": "lab"},
        "versions": {"etcd": "3.4.23"},
        "binaries": {"etcdctl": "/nonexistent/etcdctl", "etcd": "/nonexistent/etcd"},
        "components": {"etcd": etcd},
        "backup": {
            "folder": str(tmp_path / "sets"),
            "target": "",
            "keep": KEEP,
            "every": 24,
            "at": "01:30",
            "copies": True,
            "recipient": "",
            "members": ["a", "b"],
            "hosts": {"a": "127.0.0.1:1", "b": "127.0.0.1:2"},
            "secrets": {"authorities": ["c"], "tokens": ["m"]},
            "schedule": {"etcd_backup": {"seconds": 900, "splay": 300}},
        },
    }
    backup.__pillar__, backup.__opts__ = {"indigo": view}, {"multiprocessing": False}
    events: list[tuple[str, dict]] = []
    seal, tool = load("_modules", "indigo_seal"), load("_modules", "indigo_tool")
    backup.__salt__ = {
        "event.send": lambda tag, data: events.append((tag, data)),
        **{f"indigo_seal.{name}": getattr(seal, name) for name in ("seal", "unseal")},
        "indigo_seal.fingerprint": seal.fingerprint,
        "indigo_tool.run": tool.run,
        "indigo_tool.environment": tool.environment,
    }
    (tmp_path / "sets").mkdir()
    return SimpleNamespace(backup=backup, folder=tmp_path / "sets", view=view, events=events)


def make(host, name: str, content: bytes = b"data", **more) -> Path:
    """A set on disk."""
    folder = host.folder / name
    folder.mkdir()
    (folder / "snapshot.db").write_bytes(content)
    manifest = {
        "format": 1,
        "name": name,
        "cluster": "lab",
        "made": host.backup.made_at(name),
        "host": "a",
        "sha256": host.backup._digest(folder / "snapshot.db"),
        "bytes": len(content),
        "revision": 5,
        "keys": 3,
        "hash": 1,
        "secrets": {},
        "proven": {"at": 1},
        "seconds": {"total": 1.0},
        **more,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def test_only_proven_sets_of_this_cluster_count(host):
    make(host, "20260101T000000Z-a")
    make(host, "20260102T000000Z-a", proven=None)
    make(host, "20260103T000000Z-a", cluster="other")
    make(host, "suspect-20260104T000000Z-a")
    (host.folder / "20260105T000000Z-a").mkdir()
    assert [one["name"] for one in host.backup.sets()] == ["20260101T000000Z-a"]


def test_expired_sets_go_and_the_shared_folder_too(host, tmp_path):
    host.view["backup"]["keep"] = dict.fromkeys(KEEP, 0)
    for day in (1, 2):
        make(host, f"2026010{day}T000000Z-a")
    assert host.backup._expire(host.backup._settings(), host.folder) == ["20260101T000000Z-a"]
    assert [path.name for path in host.folder.iterdir()] == ["20260102T000000Z-a"]


def test_what_somebody_brought_never_expires(host):
    host.view["backup"]["keep"] = dict.fromkeys(KEEP, 0)
    make(host, "20250101T000000Z-a", brought="/root/x.db")
    for day in (1, 2):
        make(host, f"2026010{day}T000000Z-a")
    assert host.backup._expire(host.backup._settings(), host.folder) == ["20260101T000000Z-a"]


def test_a_changed_byte_is_seen(host):
    folder = make(host, "20260101T000000Z-a")
    (manifest,) = host.backup.sets()
    assert host.backup.content_problem(folder, manifest) == ""
    (folder / "snapshot.db").write_bytes(b"dbta")
    assert "SHA-256" in host.backup.content_problem(folder, manifest)


def test_a_set_that_does_not_restore_is_put_aside_and_told(host):
    make(host, "20260101T000000Z-a")

    def prove(_path, compare):
        raise host.backup.Suspect("it does not restore")

    host.backup.prove = prove
    found = host.backup.check("20260101T000000Z-a")
    assert not found["ok"]
    assert host.backup.sets() == []
    assert host.backup.status()["suspects"] == ["suspect-20260101T000000Z-a"]
    assert host.events[0][0] == "indigo/backup/alarm"


def test_a_set_that_restores_to_something_else_is_put_aside(host):
    make(host, "20260101T000000Z-a")
    host.backup.prove = lambda _path, **_: {"revision": 5, "keys": 2, "hash": 1}
    assert "keys is 2, expected 3" in host.backup.check("20260101T000000Z-a")["problem"]


def test_a_failure_is_remembered_told_and_forgotten_with_the_next_success(host):
    backup = host.backup

    def fail(*_):
        raise CommandExecutionError("no room")

    backup._run_alone = fail
    with pytest.raises(CommandExecutionError):
        backup.run()
    assert backup.status()["problem"] == "no room"
    assert host.events == [("indigo/backup/failed", {"host": "a", "problem": "no room"})]
    backup._run_alone = lambda *_: {"made": None, "why": "none is due"}
    backup.run()
    assert backup.status()["problem"] is None


def test_only_an_etcd_host_of_this_cluster_may_have_a_set_fetched(host):
    for source in (None, "a", "node1"):
        found = host.backup.fetch("20260101T000000Z-a", "0", 1, __pub_id=source)
        assert not found["ok"]
        assert "no other etcd host" in found["problem"]
    assert "no name" in host.backup.fetch("../x", "0", 1, __pub_id="b")["problem"]


def test_a_partial_copy_never_becomes_a_set(host):
    def download(_settings, _where, path, optional):
        if not optional:
            path.write_bytes(b"{}")

    host.backup._download = download
    found = host.backup.fetch("20260101T000000Z-b", "0", 1, __pub_id="b")
    assert "is not the set" in found["problem"]
    assert [p.name for p in host.folder.iterdir()] == [".lock"]


def test_a_file_is_written_little_by_little_and_rests_follow_each_piece(
    host, tmp_path, monkeypatch
):
    backup = host.backup
    source = tmp_path / "source"
    source.write_bytes(bytes(range(256)) * 4096 + b"end")
    rests: list[float] = []
    sizes: list[int] = []
    monkeypatch.setattr(backup, "STEP", 2**18)
    backup.time = SimpleNamespace(sleep=rests.append, monotonic=time.monotonic)
    seen = {"fdatasync": lambda handle: sizes.append(os.fstat(handle).st_size)}
    backup.os = SimpleNamespace(**{**vars(os), **seen})
    target = tmp_path / "target"
    assert backup._pour(source, target) == backup._digest(source)
    assert target.read_bytes() == source.read_bytes()
    assert target.stat().st_mode & 0o777 == 0o600
    assert sizes == [2**18, 2**19, 3 * 2**18, 2**20, 2**20 + 3]
    assert len(rests) == 5 and all(0 < rest <= backup.SLOWEST for rest in rests)
    with pytest.raises(FileExistsError):
        backup._pour(source, target)


def test_a_snapshot_waits_in_memory_where_it_is_small(host, tmp_path, monkeypatch):
    backup = host.backup
    # One file system: nothing would be gained.
    monkeypatch.setattr(backup, "MEMORY_FOLDER", str(tmp_path))
    assert backup._work(host.folder, 2**20) is None
    memory = Path(tempfile.mkdtemp(dir="/dev/shm"))
    monkeypatch.setattr(backup, "MEMORY_FOLDER", str(memory))
    (memory / "indigo-backup").mkdir()
    (memory / "indigo-backup" / "left").touch()
    work = backup._work(host.folder, 2**20)
    assert work == memory / "indigo-backup"
    assert list(work.iterdir()) == []
    assert backup._work(host.folder, 65 * 2**20) is None
    # What a run that was killed left in memory is gone either way.
    assert not work.exists()
    usage = SimpleNamespace(free=backup.LOGS + 3 * 2**20)
    backup.shutil = SimpleNamespace(disk_usage=lambda _: usage, rmtree=shutil.rmtree)
    assert backup._work(host.folder, 2**20) is None
    assert backup._scratch(host.folder, 2**20) == memory / "indigo-backup-proof"
    memory.rmdir()


def test_the_room_is_looked_at_first(host):
    host.backup.shutil = SimpleNamespace(
        disk_usage=lambda _: SimpleNamespace(free=2**20), rmtree=lambda *_, **__: None
    )
    with pytest.raises(CommandExecutionError, match="1 MiB are free"):
        host.backup._make(host.backup._settings(), host.folder, 0, 2**20)
    assert list(host.folder.iterdir()) == []


# Secrets ------------------------------------------------------------------------------------------


def test_a_master_seals_its_tokens_for_etcd_hosts_only(host, pair, tmp_path):
    private, public = pair
    path = tmp_path / "tokens.set"
    path.write_text(json.dumps({"lineage": "l", "generation": 2, "tokens": {"x": "s3cr3t"}}))
    host.view["backup"]["recipient"] = public
    host.view["token_set"] = {"path": str(path)}
    found = host.backup.secrets("tokens", __pub_id="b")
    assert found["sealed"]["header"]["lineage"] == "l"
    opened = load("_modules", "indigo_seal").unseal(found["sealed"], private, "no")
    assert opened["tokens"] == {"x": "s3cr3t"}
    assert "no etcd host" in host.backup.secrets("tokens", __pub_id="node1")["problem"]
    host.view["backup"]["recipient"] = ""
    assert "nobody to seal for" in host.backup.secrets("tokens", __pub_id="b")["problem"]


def test_authorities_come_back_only_where_there_are_none(host, pair, tmp_path):
    private, public = pair
    backup, view = host.backup, host.view
    (tmp_path / "pki").mkdir()
    (tmp_path / "pki" / "minion.pem").write_bytes(private)
    backup.__opts__ = {"pki_dir": str(tmp_path / "pki")}
    held = [
        {
            "name": name,
            "key": str(tmp_path / "ca" / name / "ca.key"),
            "certificate": str(tmp_path / "ca" / name / "ca.crt"),
        }
        for name in ("etcd", "kubernetes")
    ]
    view["pki"] = {"held": held}
    (tmp_path / "ca" / "etcd").mkdir(parents=True)
    for kind in ("key", "certificate"):
        Path(held[0][kind]).write_text("present")
    payload = {name: {"key": "old key", "certificate": "old"} for name in ("etcd", "kubernetes")}
    header = {"recipient": "a", "cluster": "lab", "kind": "authorities"}
    seal = load("_modules", "indigo_seal").seal
    changed = backup.take(seal(header, payload, public, "x", "y"))["changed"]
    assert changed == [held[1]["key"], held[1]["certificate"]]
    assert Path(held[0]["key"]).read_text() == "present"
    assert Path(held[1]["key"]).stat().st_mode & 0o777 == 0o600
    wrong = seal({**header, "recipient": "b"}, payload, public, "x", "y")
    with pytest.raises(CommandExecutionError, match="recipient 'b'"):
        backup.take(wrong)


# The model ----------------------------------------------------------------------------------------


def cluster(**more) -> Cluster:
    hosts = {
        "salt": Host("salt", "10.0.0.5", ("ca",)),
        "e1": Host("e1", "10.0.0.1", ("etcd",)),
        "m1": Host("m1", "10.0.0.2", ("master",)),
        "n1": Host("n1", "10.0.0.3", ("node",)),
    }
    settings = {**BACKUP, **more}
    vip = Vip("10.0.0.9", "eth0")
    return Cluster("x", hosts, vip, "10.96.0.0/16", "10.244.0.0/16", backup=settings)


def test_a_host_s_view_holds_its_part_alone():
    declared = cluster(recipient="key")
    views = {id_: model.view(declared, host) for id_, host in declared.hosts.items()}
    assert views["n1"] == {}
    assert views["m1"]["backup"] == {"recipient": "key", "members": ["e1"]}
    assert views["e1"]["backup"]["secrets"] == {"authorities": ["salt"], "tokens": ["m1"]}


def test_the_schedule_looks_often_and_one_at_a_time():
    jobs = model.schedule(cluster(look=60, splay=7).backup)
    assert jobs["etcd_backup"]["seconds"] == 60
    assert jobs["etcd_backup"]["splay"] == 7
    assert jobs["etcd_backup"]["maxrunning"] == 1
    assert "etcd_backup" not in model.schedule(cluster(every=0).backup)


# What the Salt master tells -----------------------------------------------------------------------


PLAN = {"roles": {"etcd": ["a", "b"]}, "backup": {"every": 24}}


def told(*names: str, since: int = 1, problem: str | None = None, suspects: tuple = ()):
    made = load("_modules", "indigo_backup").made_at
    rows = [
        {"name": n, "made": made(n), "bytes": 1, "seconds": {"total": 1}, "complete": True}
        for n in names
    ]
    return {"sets": rows, "since": since, "problem": problem, "suspects": list(suspects)}


def test_the_newest_proven_backup_may_be_26_hours_old(backup):
    runner = load("_runners", "indigo_backup")
    made = "20260101T000000Z-a"
    moment = backup.made_at(made)
    answers = {"a": told(made), "b": told(made)}
    assert runner.overview(PLAN, answers, moment + 26 * 3600)["problems"] == []
    (late,) = runner.overview(PLAN, answers, moment + 27 * 3600)["problems"]
    assert late.startswith("backup: the newest proven one is 27 h old")
    assert runner.overview(PLAN, answers, moment)["sets"][0]["hosts"] == ["a", "b"]


def test_a_new_cluster_has_time_for_its_first(backup):
    runner = load("_runners", "indigo_backup")
    answers = {"a": told(since=1000), "b": told(since=1000)}
    assert runner.overview(PLAN, answers, 1000 + 25 * 3600)["problems"] == []
    assert len(runner.overview(PLAN, answers, 1000 + 27 * 3600)["problems"]) == 1
    none = {"roles": PLAN["roles"], "backup": {"every": 0}}
    assert runner.overview(none, answers, 1000 + 99 * 3600)["problems"] == []


def test_failures_and_newer_suspects_are_problems():
    runner = load("_runners", "indigo_backup")
    old, new = "20260101T000000Z-a", "20260102T000000Z-a"
    answers = {"a": told(old, problem="no room", suspects=(f"suspect-{new}",)), "b": "boom"}
    moment = answers["a"]["sets"][0]["made"] + 25 * 3600
    problems = runner.overview(PLAN, answers, moment)["problems"]
    assert [one.split(":")[0] for one in problems] == ["backup on b", "backup on a", "backup on a"]
    # A failed look that is not late: the next one may do better.
    assert len(runner.overview(PLAN, answers, moment - 3600)["problems"]) == 2
    answers = {"a": told(new, suspects=(f"suspect-{old}",)), "b": told(new)}
    assert runner.overview(PLAN, answers, 0)["problems"] == []
