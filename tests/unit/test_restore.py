"""Restores: which set, under which id, what is lost, and a member's steps, each of them twice."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from salt.exceptions import CommandExecutionError
from support import load

STATES = load("_states", "indigo_restore")


def one(name: str, made: int, sha256: str = "x") -> dict:
    return {"name": name, "made": made, "sha256": sha256, "revision": 5, "keys": 3, "bytes": 4}


# The choice ---------------------------------------------------------------------------------------


def test_the_newest_is_chosen_or_the_one_that_is_named():
    reports = {"a": {"sets": [one("old", 1), one("new", 2)]}, "b": {"sets": [one("old", 1)]}}
    assert STATES.choose(["a", "b"], reports, None)[1] == ["a"]
    assert STATES.choose(["a", "b"], reports, "old")[1] == ["a", "b"]
    with pytest.raises(ValueError, match="no etcd host has the set x; there are: new, old"):
        STATES.choose(["a", "b"], reports, "x")
    with pytest.raises(ValueError, match="no etcd host has a proven set"):
        STATES.choose(["a"], {"a": {"sets": []}}, None)


def journal(id_: str, stage: str, backup: str = "s", at: int = 0) -> dict:
    return {"journal": {"id": id_, "stage": stage, "backup": backup, "at": at}}


@pytest.mark.parametrize(
    ("journals", "expected"),
    [
        ([{"journal": None}, {"journal": None}], "19700101T000000Z"),
        ([journal("7", "begun"), {"journal": None}], "7"),
        ([journal("7", "started"), journal("7", "restored")], "7"),
        # All were started: what was written since must not be lost unseen.
        ([journal("7", "started"), journal("7", "started")], "19700101T000000Z"),
        ([journal("7", "done"), journal("7", "done")], "19700101T000000Z"),
        ([journal("7", "begun", backup="other"), {"journal": None}], "19700101T000000Z"),
        ([journal("7", "begun", at=1), journal("8", "begun", at=2)], "8"),
    ],
)
def test_a_restore_that_was_broken_off_goes_on(journals, expected):
    reports = dict(zip("ab", journals, strict=True))
    assert STATES.identify("s", ["a", "b"], reports, 0) == expected


def test_a_backup_from_before_an_exchange_of_the_encryption_key_is_refused():
    backup = {"secrets": {"tokens": {"lineage": "x", "generation": 4}}}
    for since, told in ((0, 0), (4, 0), (5, 1)):
        tokens = {"lineage": "x", "generation": 9, "encryption_since": since}
        kinds, problems = STATES.keys_wanted(
            backup, ["m"], "c", {"m": {"tokens": tokens}, "c": {"authorities": {}}}
        )
        assert kinds == []
        assert len(problems) == told
        assert not problems or "was exchanged since" in problems[0]


def test_keys_come_back_where_nobody_has_them():
    full = {
        "secrets": {
            "tokens": {"lineage": "x"},
            "authorities": {"authorities": {"etcd": "1", "kubernetes": "2"}},
        }
    }
    lost = {"m": {"tokens": None}, "c": {"authorities": {}}}
    assert STATES.keys_wanted(full, ["m"], "c", lost) == (["tokens", "authorities"], [])
    there = {
        "m": {"tokens": {"lineage": "x"}},
        "c": {"authorities": {"etcd": "1", "kubernetes": "9"}},
    }
    assert STATES.keys_wanted(full, ["m"], "c", there) == ([], [])
    # New ones, made by a deploy of bare hosts, open nothing of what the backup holds.
    new = {**there, "m": {"tokens": {"lineage": "y"}}}
    assert STATES.keys_wanted(full, ["m"], "c", new) == (["tokens"], [])
    kinds, problems = STATES.keys_wanted({"secrets": {}}, ["m"], "c", lost)
    assert kinds == []
    assert "the set holds none" in problems[0]


def test_the_loss_is_told_in_time_and_revisions():
    backup = {"name": "s", "made": 0, "revision": 5}
    told = STATES.losses(backup, ["a", "b"], {"a": {"revision": 9}, "b": {"revision": 11}}, 7200)
    assert told.endswith("2.0 h ago: 6 revisions")
    assert STATES.losses(backup, ["a"], {"a": {"data": True}}, 60).endswith("how much that is")
    assert STATES.losses(backup, ["a"], {"a": {"data": False}}, 60).endswith("have no data")


def test_the_survivor_is_the_one_that_knows_most():
    positions = {
        "a": {"data": True, "revision": 5},
        "b": {"data": False, "revision": None},
        "c": {"data": True, "revision": 9},
    }
    assert STATES.survivor(positions) == "c"
    with pytest.raises(ValueError, match="restore a backup"):
        STATES.survivor({"b": positions["b"]})


# A first step that refuses ------------------------------------------------------------------------


@pytest.fixture
def step():
    """The first step, on a cluster that is well."""
    module = load("_states", "indigo_restore")
    plan = {
        "cluster": "lab",
        "hosts": {"e": {}, "m": {}, "c": {}},
        "roles": {"etcd": ["e"], "master": ["m"], "ca": ["c"], "node": []},
    }
    reports = {
        "e": {"sets": [one("s", 0)], "journal": None, "data": True, "revision": 9, "roles": []},
        "m": {"tokens": {"lineage": "x"}, "roles": []},
        "c": {"authorities": {}, "roles": []},
    }
    module.__salt__ = {"indigo_model.plan": lambda: plan}
    module.__opts__, module.__context__ = {"test": False}, {}
    module._reports = lambda _hosts: reports
    return SimpleNamespace(module=module, reports=reports)


def test_without_the_cluster_s_name_nothing_goes_on(step):
    for confirm in (None, "other", True):
        found = step.module.chosen("x", confirm=confirm)
        assert found["result"] is False
        assert '"confirm": "lab"' in found["comment"]
        assert "4 revisions" in found["comment"]
        assert step.module.__context__ == {}
    assert step.module.chosen("x", confirm="lab")["result"] is True
    assert step.module.__context__[step.module.PLAN]["backup"]["name"] == "s"


def test_the_preview_tells_the_loss(step):
    step.module.__opts__["test"] = True
    found = step.module.chosen("x")
    assert found["result"] is None
    assert "This is lost" in found["comment"]


@pytest.mark.parametrize("silent", ["e", "m", "c"])
def test_a_host_that_could_keep_the_old_data_must_answer(step, silent):
    step.reports[silent] = "Minion did not return"
    found = step.module.chosen("x", confirm="lab")
    assert found["result"] is False
    assert f"{silent} does not say what it has" in found["comment"]


def test_lost_keys_need_the_operator_s(step):
    step.reports["m"]["tokens"] = None
    step.reports["e"]["sets"][0]["secrets"] = {"tokens": {"lineage": "x"}}
    found = step.module.chosen("x", confirm="lab")
    assert '"key"' in found["comment"]
    assert step.module.chosen("x", confirm="lab", key="/k")["result"] is True


# A member -----------------------------------------------------------------------------------------


@pytest.fixture
def member(tmp_path):
    """A member with old data, a set, and an etcdctl that restores by writing a folder."""
    module = load("_modules", "indigo_restore")
    data, source = tmp_path / "etcd", tmp_path / "set"
    (data / "member" / "wal").mkdir(parents=True)
    (data / "member" / "wal" / "old").write_text("old")
    source.mkdir()
    etcd = {
        "name": "a",
        "user": "root",
        "data": str(data),
        "initial": str(tmp_path / "initial.env"),
        "url": "https://a:1",
        "members": {"a": {"peer": "https://a:2"}},
        **dict.fromkeys(("ca", "cert", "key"), "/nonexistent"),
    }
    view = {
        "id": "a",
        "roles": ["etcd", "master"],
        "cluster": {"name": "lab"},
        "components": {"etcd": etcd},
        "binaries": {"etcdctl": "etcdctl"},
    }
    calls: list[str] = []
    found = {**one("s", 0), "path": str(source)}
    salt = {
        "indigo_backup.sets": lambda: [found],
        "indigo_backup.content_problem": lambda *_: "",
        "indigo_service.show": lambda _unit: {"LoadState": "loaded"},
        "indigo_service.pause": lambda unit: calls.append(f"stop {unit}"),
        "indigo_service.resume": lambda unit: calls.append(f"start {unit}"),
        "indigo_etcd.withdraw_bootstrap": lambda: False,
        "indigo_etcd.has_data": lambda: True,
        "indigo_health.wait_unit": lambda *_, **__: {"ok": True, "last": {}},
        "indigo_backup.contents": lambda: {"revision": 5, "keys": 3},
    }
    module.__pillar__, module.__salt__ = {"indigo": view}, salt
    module.JOURNAL = str(tmp_path / "journal.json")
    commands: list[list[str]] = []
    fail = {"restore": False}

    def tool(_view, command, timeout=0):
        commands.append(command)
        if "--help" in command:
            return {"retcode": 0, "stdout": "", "stderr": "", "told": ""}
        folder = next(w for w in command if w.startswith("--data-dir=")).partition("=")[2]
        Path(folder, "member").mkdir(parents=True)
        Path(folder, "member", "new").write_text("new")
        said = "Error: no"
        return {"retcode": int(fail["restore"]), "stdout": "", "stderr": said, "told": said}

    module._tool = tool
    return SimpleNamespace(
        module=module, data=data, calls=calls, commands=commands, salt=salt, fail=fail, etcd=etcd
    )


def test_old_data_is_kept_and_the_set_s_in_its_place(member):
    found = member.module.restore("7", "s", "lab")
    assert found["aside"] == str(member.data / "replaced-7")
    assert (member.data / "replaced-7/member/wal/old").read_text() == "old"
    assert (member.data / "member/new").read_text() == "new"
    assert member.calls[-1] == "stop etcd"
    assert "stop kube-apiserver" in member.calls
    assert "--initial-cluster-token=lab-7" in member.commands[-1]
    assert not any(call.startswith("start") for call in member.calls)


def test_a_second_run_changes_nothing_and_never_loses_the_old_data(member):
    member.module.restore("7", "s", "lab")
    (member.data / "member/new").write_text("served")
    member.module.restore("7", "s", "lab")
    assert (member.data / "member/new").read_text() == "served"
    assert (member.data / "replaced-7/member/wal/old").read_text() == "old"


@pytest.mark.parametrize("moved", [False, True])
def test_killed_between_two_renames_the_next_run_goes_on(member, moved):
    member.module._note(id="7", backup="s", bumped=False, aside=None, stage="begun")
    if moved:
        (member.data / "replaced-7").mkdir()
        (member.data / "member").rename(member.data / "replaced-7/member")
        (member.data / "member").mkdir()
        (member.data / "member/half").write_text("half")
    member.module.restore("7", "s", "lab")
    assert (member.data / "replaced-7/member/wal/old").read_text() == "old"
    assert sorted(path.name for path in (member.data / "member").iterdir()) == ["new"]


def test_a_damaged_set_stops_nothing(member):
    member.salt["indigo_backup.content_problem"] = lambda *_: "its SHA-256 is another"
    with pytest.raises(CommandExecutionError, match="nothing was stopped"):
        member.module.restore("7", "s", "lab")
    assert member.calls == []


def test_another_cluster_s_name_is_refused(member):
    with pytest.raises(CommandExecutionError, match="of lab, not of prod"):
        member.module.restore("7", "s", "prod")


def test_a_restore_that_fails_leaves_the_old_data_where_it_is(member):
    member.fail["restore"] = True
    with pytest.raises(CommandExecutionError, match="Error: no"):
        member.module.restore("7", "s", "lab")
    assert (member.data / "member/wal/old").read_text() == "old"
    assert member.module.journal()["stage"] == "begun"


def test_what_is_served_must_be_what_the_set_held(member):
    member.module.restore("7", "s", "lab")
    with pytest.raises(CommandExecutionError, match="5 with 3 keys, expected 5 with 4"):
        member.module.start("7", 5, 4)
    assert member.module.start("7", 5, 3) == {"revision": 5, "keys": 3}
    assert member.module.journal()["stage"] == "started"
    with pytest.raises(CommandExecutionError, match="not restored as 8"):
        member.module.start("8", 5, 3)


def test_where_the_program_can_the_revision_is_raised():
    command = load("_modules", "indigo_restore").restore_command
    plain = command("etcdctl", "s", "d", "a", {"a": "https://a:2"}, "t", False)
    raised = command("etcdutl", "s", "d", "a", {"a": "https://a:2"}, "t", True)
    assert [w for w in raised if w not in plain] == [
        "etcdutl", "--bump-revision=1000000000", "--mark-compacted",
    ]  # fmt: skip


def test_force_new_cluster_is_gone_once_it_serves(member):
    seen: list[str] = []
    initial = Path(member.etcd["initial"])
    member.salt["indigo_service.resume"] = lambda _unit: seen.append(initial.read_text())
    found = member.module.survive("7")
    assert "ETCD_FORCE_NEW_CLUSTER=true" in seen[0]
    assert not initial.exists()
    assert (member.data / "replaced-7/member/wal/old").read_text() == "old"
    assert (member.data / "member/wal/old").read_text() == "old"
    assert found["keys"] == 3
    # Never a second time: it would throw out those that have joined since.
    member.module.survive("7")
    assert len(seen) == 1


def test_who_gives_way_keeps_its_data_aside_once(member):
    assert member.module.give_way("7") == {"aside": str(member.data / "replaced-7")}
    assert not (member.data / "member").exists()
    (member.data / "member").mkdir()  # it has joined
    member.module.give_way("7")
    assert (member.data / "member").exists()
    assert json.loads(Path(member.module.JOURNAL).read_text())["stage"] == "restored"
