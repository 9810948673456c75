"""How a member comes into its cluster: the decision, and both states in both modes."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from salt.exceptions import CommandExecutionError
from support import load

MEMBERS = {
    name: {"id": name, "peer": f"https://{name}:2380", "client": f"https://{name}:2379"}
    for name in ("a", "b", "c")
}


def listed(name: str, *, started: bool = True, learner: bool = False, number: int = 0) -> dict:
    number = number or ord(name)
    return {
        "ID": number,
        "name": name if started else "",
        "peerURLs": [f"https://{name}:2380"],
        "clientURLs": [f"https://{name}:2379"] if started else [],
        **({"isLearner": True} if learner else {}),
    }


@pytest.fixture
def member(tmp_path):
    """Member ``c`` on a host of its own, with two others that may answer."""
    module = load("_modules", "indigo_etcd")
    settings = {
        "name": "c",
        "data": str(tmp_path / "data"),
        "initial": str(tmp_path / "initial.env"),
        "grant": str(tmp_path / "grant"),
        "members": MEMBERS,
        "url": MEMBERS["c"]["client"],
        "ca": "ca",
        "cert": "cert",
        "key": "key",
    }
    healthy: set[str] = set()
    module.__pillar__ = {
        "indigo": {
            "components": {"etcd": settings},
            "cluster": {"name": "x"},
            "binaries": {"etcdctl": "/nonexistent/etcdctl"},
        }
    }
    module.__salt__ = {
        "indigo_health.check": lambda url, **_: {"ok": url.removesuffix("/health") in healthy},
        "indigo_service.active": lambda _: False,
    }
    calls: list[tuple[str, ...]] = []
    answers: dict[str, object] = {"member list": []}

    def etcdctl(_settings, endpoints, *arguments, **_):
        assert list(endpoints), "etcdctl needs an endpoint"
        calls.append(arguments)
        answer = answers.get(" ".join(arguments[:2]))
        if isinstance(answer, list) and answer and isinstance(answer[0], Exception):
            raise answer.pop(0)
        if arguments[:2] == ("member", "list"):
            return {"members": answer}
        return answer

    module._etcdctl = etcdctl
    state = load("_states", "indigo_etcd")
    names = ("has_data", "plan", "enter", "settle", "leftovers")
    state.__salt__ = {f"indigo_etcd.{name}": getattr(module, name) for name in names}
    state.__opts__ = {"test": False}

    def data() -> None:
        wal = Path(settings["data"], "member", "wal")
        wal.mkdir(parents=True)
        (wal / "0.wal").touch()

    return SimpleNamespace(
        module=module,
        state=state,
        settings=settings,
        healthy=healthy,
        calls=calls,
        answers=answers,
        data=data,
        initial=Path(settings["initial"]),
        grant=Path(settings["grant"]),
    )


def configured(member, test=False):
    member.state.__opts__ = {"test": test}
    return member.state.member_configured(str(member.initial), timeout=1)


OWN = {"name": "c", "peer": "https://c:2380"}


@pytest.mark.parametrize(
    ("data", "granted", "members", "expected"),
    [
        # 1. Data decides all, whatever else there is.
        (True, True, [listed("a")], {"action": "none"}),
        # 2. Alone: only with leave.
        (False, True, None, {"action": "new"}),
        (False, False, None, {"action": "refuse"}),
        # 3. A cluster that lives is joined, leave or not: a stale grant makes no second one.
        (False, True, [listed("a"), listed("b")], {"action": "join", "remove": []}),
        (False, False, [listed("a"), listed("b")], {"action": "join", "remove": []}),
        # 4. One of the declared members that is late to the first quorum, or added and then killed.
        (False, True, [listed("a"), listed("c", started=False)], {"action": "start"}),
        # 5. A replaced host: its entry had data that is lost.
        (False, False, [listed("a"), listed("c")], {"action": "join", "remove": [99]}),
        # 6. The same name at another address.
        (
            False,
            False,
            [listed("a"), {**listed("c"), "peerURLs": ["https://old:2380"]}],
            {"action": "join", "remove": [99]},
        ),
        # 7. Both at once.
        (
            False,
            False,
            [
                listed("c", started=False, number=7),
                {**listed("c", number=8), "peerURLs": ["https://old:2380"]},
            ],
            {"action": "join", "remove": [7, 8]},
        ),
    ],
)
def test_decision(member, data, granted, members, expected):
    assert member.module.decide(data, granted, OWN, members) == expected


def test_a_half_made_data_directory_is_no_data(member):
    Path(member.settings["data"], "member", "snap").mkdir(parents=True)
    assert not member.module.has_data()


def test_no_leave_and_no_answer_fails_and_says_what_to_run(member):
    ret = configured(member)
    assert ret["result"] is False
    assert "indigo.deploy" in ret["comment"]
    assert "https://a:2379, https://b:2379" in ret["comment"]
    assert not member.initial.exists()


def test_a_grant_forms_the_declared_cluster_and_a_second_run_changes_nothing(member):
    assert member.module.grant_bootstrap("x", ["c", "a", "b"])
    ret = configured(member)
    assert ret["result"] is True
    assert ret["changes"] == {"initial-cluster-state": "new"}
    text = member.initial.read_text()
    assert "ETCD_INITIAL_CLUSTER_STATE=new" in text
    assert "ETCD_INITIAL_CLUSTER=a=https://a:2380,b=https://b:2380,c=https://c:2380" in text
    assert configured(member)["changes"] == {}


@pytest.mark.parametrize(
    "grant",
    ["", "{", "[]", '{"cluster": "y", "members": ["a", "b", "c"]}', '{"cluster": "x"}'],
)
def test_a_grant_for_something_else_is_none(member, grant):
    member.grant.write_text(grant)
    assert member.module.facts()["grant"] is False
    assert configured(member)["result"] is False


def test_a_grant_is_refused_for_other_members_and_over_data(member):
    with pytest.raises(CommandExecutionError, match="refresh_pillar"):
        member.module.grant_bootstrap("x", ["a", "b"])
    member.data()
    with pytest.raises(CommandExecutionError, match="holds data"):
        member.module.grant_bootstrap("x", ["a", "b", "c"])
    assert not member.grant.exists()


def test_a_grant_is_readable_by_root_alone(member):
    member.module.grant_bootstrap("x", ["a", "b", "c"])
    assert member.grant.stat().st_mode & 0o777 == 0o600
    assert json.loads(member.grant.read_text())["members"] == ["a", "b", "c"]


def test_a_late_member_of_the_first_quorum_starts_without_changing_the_members(member):
    member.module.grant_bootstrap("x", ["a", "b", "c"])
    member.healthy.update({"https://a:2379", "https://b:2379"})
    member.answers["member list"] = [listed("a"), listed("b"), listed("c", started=False)]
    ret = configured(member)
    assert ret["changes"] == {"initial-cluster-state": "existing"}
    assert {call[:2] for call in member.calls} == {("member", "list")}


def test_a_replaced_member_is_removed_and_added_as_a_learner(member):
    member.healthy.add("https://b:2379")
    member.answers["member list"] = [listed("a"), listed("b"), listed("c")]
    added = [listed("a"), listed("b"), listed("c", started=False, learner=True, number=5)]
    member.answers["member add"] = {"members": added}
    ret = configured(member)
    assert ret["result"] is True
    assert ret["changes"] == {
        "removed": ["63"],
        "added": "as a learner",
        "initial-cluster-state": "existing",
    }
    assert ("member", "add", "c", "--peer-urls=https://c:2380", "--learner") in member.calls
    assert "ETCD_INITIAL_CLUSTER_STATE=existing" in member.initial.read_text()


def test_a_passing_refusal_is_waited_out_and_a_lost_answer_is_no_failure(member):
    member.healthy.add("https://b:2379")
    member.answers["member list"] = [listed("a"), listed("b")]
    member.answers["member add"] = [
        CommandExecutionError("etcdserver: unhealthy cluster"),
        CommandExecutionError("etcdserver: Peer URLs already exists"),
    ]
    ret = configured(member)
    assert ret["result"] is True, ret["comment"]


def test_another_refusal_fails(member):
    member.healthy.add("https://b:2379")
    member.answers["member list"] = [listed("a"), listed("b")]
    member.answers["member add"] = [CommandExecutionError("permission denied")]
    ret = configured(member)
    assert (ret["result"], ret["comment"]) == (False, "permission denied")


def test_test_mode_on_a_bare_host_predicts_and_asks_nobody(member):
    ret = configured(member, test=True)
    assert (ret["result"], ret["changes"]) == (None, {})
    assert member.calls == []
    assert not member.initial.exists()


@pytest.mark.parametrize("test", [True, False])
def test_with_data_there_is_nothing_to_decide(member, test):
    member.data()
    ret = configured(member, test)
    assert (ret["result"], ret["changes"]) == (True, {})


def settled(member, test=False):
    member.state.__opts__ = {"test": test}
    return member.state.member_settled("x", timeout=1)


def test_settling_removes_the_leave_and_is_done_once(member):
    member.data()
    member.module._write(member.grant, "{}")
    member.module._write(member.initial, "x")
    member.answers["member list"] = [listed("a"), listed("b"), listed("c")]
    assert settled(member, test=True)["result"] is None
    assert member.grant.exists()
    ret = settled(member)
    assert ret["changes"] == {"removed": [str(member.grant), str(member.initial)]}
    assert not member.grant.exists()
    assert not member.initial.exists()
    for test in (True, False):
        again = settled(member, test)
        assert (again["result"], again["changes"]) == (True, {})


def test_settling_promotes_a_learner_once_it_has_caught_up(member):
    member.data()
    member.module._write(member.initial, "x")
    member.healthy.add("https://a:2379")
    member.answers["member list"] = [listed("a"), listed("c", learner=True)]
    member.answers["member promote"] = [
        CommandExecutionError(
            "etcdserver: can only promote a learner member which is in sync with leader"
        )
    ]
    ret = settled(member)
    assert ret["result"] is True, ret["comment"]
    assert ret["changes"]["promoted"] is True
    assert ("member", "promote", "63") in member.calls


def test_a_member_that_cannot_be_promoted_keeps_its_files_for_the_next_run(member):
    member.data()
    member.module._write(member.initial, "x")
    member.healthy.add("https://a:2379")
    member.answers["member list"] = [listed("a"), listed("c", learner=True)]
    member.answers["member promote"] = [CommandExecutionError("auth: denied")]
    assert settled(member)["result"] is False
    assert member.initial.exists()


def test_settling_without_data_fails(member):
    member.module._write(member.initial, "x")
    ret = settled(member)
    assert ret["result"] is False
    assert "no data" in ret["comment"]


def test_status_names_the_leader_and_who_is_down(member):
    members = [listed("a"), listed("b"), listed("c", learner=True)]
    statuses = {
        97: {"leader": 98, "version": "3.6.14", "dbSize": 10},
        98: {"leader": 98, "version": "3.6.14", "dbSize": 20},
    }
    found = member.module.summary(members, statuses, ["https://a:2379", "https://b:2379"])
    assert found["leader"] == "b"
    assert [(row["name"], row["healthy"], row["db_size"]) for row in found["members"]] == [
        ("a", True, 10),
        ("b", True, 20),
        ("c", False, None),
    ]
    assert found["members"][2]["learner"] is True


def test_status_without_quorum_says_what_is_needed(member):
    with pytest.raises(CommandExecutionError, match="majority"):
        member.module.status()


def test_a_host_without_the_role_is_told(member):
    member.module.__pillar__ = {"indigo": {"components": {}}}
    with pytest.raises(CommandExecutionError, match="no role etcd"):
        member.module.facts()
