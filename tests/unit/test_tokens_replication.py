"""The Salt master's part: who holds the set, who lacks what, and what is said when that fails."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from salt.exceptions import CommandExecutionError
from support import load

PLAN = {
    "cluster": "lab",
    "masters": ["m1", "m2"],
    "nodes": ["n1", "n2"],
    "identities": [
        {"name": "admin", "user": "admin", "groups": ["system:masters"], "host": None},
        {"name": "kubelet:n1", "user": "u", "groups": [], "host": "n1"},
        {"name": "kubelet:n2", "user": "u", "groups": [], "host": "n2"},
    ],
}
TOKENS = {"admin": "aa", "kubelet:n1": "11", "kubelet:n2": "22"}


@pytest.fixture
def runner():
    return load("_runners", "indigo_tokens")


def held(**changes: Any) -> dict[str, Any]:
    """A master's answer; ``set`` is changed by keywords, None takes it away."""
    whole = {
        "lineage": "L",
        "generation": 3,
        "fingerprint": "F",
        "identities": "I",
        "tokens": dict(TOKENS),
    }
    found = None if changes.pop("nothing", False) else {**whole, **changes}
    return {"set": found, "tokens": {}, "problems": [], "damaged": None, "remains": {}}


def node(**tokens: str | None) -> dict[str, Any]:
    named = {f"kubelet:{name}": value for name, value in tokens.items()}
    return {"set": None, "tokens": named, "problems": [], "damaged": None, "remains": {}}


def steady() -> dict[str, dict[str, Any]]:
    return {"m1": held(), "m2": held(), "n1": node(n1="11"), "n2": node(n2="22")}


def bare() -> dict[str, dict[str, Any]]:
    return {
        "m1": held(nothing=True),
        "m2": held(nothing=True),
        "n1": node(n1=None),
        "n2": node(n2=None),
    }


def decide(runner: Any, answers: dict[str, Any], **kwargs: Any) -> Any:
    hosts = [*PLAN["masters"], *PLAN["nodes"]]
    unreachable = [host for host in hosts if host not in answers]
    return runner._decide(PLAN, kwargs.pop("declared", "I"), answers, unreachable, **kwargs)


def test_in_step_nothing_is_done(runner):
    decision = decide(runner, steady())
    assert (decision.holder, decision.ensure, decision.recipients) == ("m1", False, {})
    assert not decision.reasons


def test_on_bare_hosts_the_first_master_makes_it_for_all(runner):
    decision = decide(runner, bare())
    assert (decision.holder, decision.create, decision.ensure) == ("m1", True, True)
    assert decision.recipients == {
        "m2": {"set": True},
        "n1": {"grants": ["kubelet:n1"]},
        "n2": {"grants": ["kubelet:n2"]},
    }
    assert set(decision.reasons) == {"m1", "m2", "n1", "n2"}


def test_no_host_is_special_a_replaced_first_master_receives_the_set(runner):
    answers = steady()
    answers["m1"] = held(nothing=True)
    decision = decide(runner, answers)
    assert (decision.holder, decision.create, decision.ensure) == ("m2", False, False)
    assert decision.recipients == {"m1": {"set": True}}


def test_a_new_node_concerns_the_masters_and_that_node_alone(runner):
    answers = steady()
    for id_ in ("m1", "m2"):
        answers[id_] = held(tokens={k: v for k, v in TOKENS.items() if k != "kubelet:n2"})
    answers["n2"] = node(n2=None)
    decision = decide(runner, answers, declared="J")
    assert decision.ensure and not decision.create
    assert decision.recipients == {"m2": {"set": True}, "n2": {"grants": ["kubelet:n2"]}}


def test_a_node_with_a_wrong_or_broken_token_receives_it_again(runner):
    answers = steady()
    answers["n1"] = node(n1="old")
    answers["n2"]["problems"] = ["/etc/kubernetes/tokens/kubelet: mode 0644, expected 0600"]
    decision = decide(runner, answers)
    assert not decision.ensure
    assert set(decision.recipients) == {"n1", "n2"}
    assert "mode 0644" in decision.reasons["n2"]


def test_problems_of_masters_are_mended_where_they_are(runner):
    answers = steady()
    answers["m1"]["problems"] = ["/etc/kubernetes/tokens.csv: missing"]
    decision = decide(runner, answers)
    assert decision.ensure and decision.recipients == {}
    answers = steady()
    answers["m2"]["problems"] = ["/etc/kubernetes/tokens.csv: missing"]
    decision = decide(runner, answers)
    assert not decision.ensure and decision.recipients == {"m2": {"set": True}}


def test_a_damaged_set_is_replaced_from_the_other_master(runner):
    answers = steady()
    answers["m1"] = {**held(nothing=True), "damaged": "tokens.set: not a JSON document"}
    decision = decide(runner, answers)
    assert decision.holder == "m2" and decision.recipients == {"m1": {"set": True}}


def test_the_only_set_being_damaged_stops_before_a_new_one_is_made(runner):
    answers = bare()
    answers["m2"]["damaged"] = "tokens.set: not a JSON document"
    with pytest.raises(CommandExecutionError, match=r"m2: tokens\.set: not a JSON"):
        decide(runner, answers, force=True)


def test_the_highest_generation_wins(runner):
    answers = steady()
    answers["m2"] = held(generation=4, fingerprint="G")
    decision = decide(runner, answers)
    assert decision.holder == "m2" and decision.recipients == {"m1": {"set": True}}


def test_different_sets_of_one_generation_name_both_hosts_and_the_way_out(runner):
    answers = steady()
    answers["m2"] = held(fingerprint="G")
    with pytest.raises(CommandExecutionError, match=r"m1 and m2 .*both of generation 3.*holder="):
        decide(runner, answers)
    decision = decide(runner, answers, wish="m2")
    assert (decision.holder, decision.above) == ("m2", 3)
    assert decision.recipients["m1"] == {"set": True}


def test_sets_of_different_origin_never_replace_each_other_by_themselves(runner):
    answers = steady()
    answers["m2"] = held(lineage="M", fingerprint="G", generation=9)
    with pytest.raises(CommandExecutionError, match=r"m2 and m1 .*different origin.*holder="):
        decide(runner, answers)
    decision = decide(runner, answers, wish="m1")
    assert (decision.holder, decision.above, decision.ensure) == ("m1", 9, True)


def test_a_wished_holder_must_have_a_set(runner):
    answers = steady()
    answers["m2"] = held(nothing=True)
    for wish in ("m2", "n1", "typo"):
        with pytest.raises(CommandExecutionError, match=f"{wish} is no reachable.*those are: m1"):
            decide(runner, answers, wish=wish)
    assert not decide(runner, steady(), wish="m1").reasons


def test_no_set_is_made_while_a_silent_master_may_hold_it(runner):
    answers = bare()
    del answers["m2"]
    with pytest.raises(CommandExecutionError, match=r"m2 may hold it.*force=True"):
        decide(runner, answers)
    assert decide(runner, answers, force=True).create


def test_a_silent_master_does_not_stop_a_new_node(runner):
    answers = steady()
    del answers["m1"]
    decision = decide(runner, answers, declared="J")
    assert decision.holder == "m2" and decision.ensure


def test_no_master_at_all_is_an_error(runner):
    answers = steady()
    del answers["m1"], answers["m2"]
    with pytest.raises(CommandExecutionError, match="none of m1, m2 answers"):
        decide(runner, answers)


def test_keys_of_an_earlier_installation_choose_the_creator(runner):
    answers = bare()
    answers["m2"]["remains"] = {"encryption": "e"}
    assert decide(runner, answers).holder == "m2"
    answers["m1"]["remains"] = {"encryption": "e"}
    assert decide(runner, answers).holder == "m1"
    answers["m1"]["remains"] = {"encryption": "other"}
    with pytest.raises(CommandExecutionError, match=r"m1, m2 hold different keys"):
        decide(runner, answers)


def test_a_host_with_both_roles_receives_the_set_only(runner):
    plan = copy.deepcopy(PLAN)
    plan["nodes"].append("m2")
    plan["identities"].append({"name": "kubelet:m2", "user": "u", "groups": [], "host": "m2"})
    decision = runner._decide(plan, "I", bare(), [])
    assert decision.recipients["m2"] == {"set": True}


def test_batches_stay_below_an_event(runner):
    nodes = {f"n{i}": {"grants": []} for i in range(120)}
    sizes = [len(batch) for batch in runner._batches({"m": {"set": True}, **nodes}, 20)]
    assert sizes == [50, 50, 21]
    masters = {f"m{i}": {"set": True} for i in range(3)}
    assert [len(batch) for batch in runner._batches(masters, 2003)] == [1, 1, 1]
    assert [len(batch) for batch in runner._batches(masters, 20)] == [3]
    assert list(runner._batches({}, 20)) == []


# --- the whole runner, with the publishes replaced by a table of answers -------------------------


class Client:
    """Answers as LocalClient.cmd(full_return=True) does, and keeps what was asked."""

    def __init__(self, answers: dict[str, Any]) -> None:
        self.answers, self.asked = answers, []

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: Any) -> None:
        pass

    def cmd(self, tgt, fun, kwarg, tgt_type, full_return):
        assert tgt_type == "list" and full_return
        self.asked.append((fun, list(tgt), kwarg))
        answer = self.answers[fun]
        found = answer(tgt, kwarg) if callable(answer) else answer
        silence = {"ret": "Minion did not return. [No response]", "out": "no_return", "retcode": 1}
        return {
            host: {"ret": found[host], "retcode": int(isinstance(found[host], str))}
            if host in found
            else silence
            for host in tgt
        }


@pytest.fixture
def salt_master(runner, monkeypatch):
    """Replicate against given states; returns (result, what was asked)."""

    def run(states, unseal=None, **kwargs):
        def seal(tgt, kwarg):
            sealed = {host: {"data": "ciphertext"} for host in kwarg["recipients"]}
            ensured = {"changed": {"/tokens.set": "missing"}} if "identities" in kwarg else None
            return {tgt[0]: {"sealed": sealed, "ensured": ensured, "set": {}}}

        def received(tgt, kwarg):
            assert set(tgt) == set(kwarg["sealed"])
            return {host: {"changed": {"/token": "missing"}} for host in tgt}

        client = Client(
            {
                "indigo_tokens.state": states,
                "indigo_tokens.seal": seal,
                "indigo_tokens.unseal": unseal or received,
            }
        )
        monkeypatch.setattr(runner, "__opts__", {}, raising=False)
        monkeypatch.setattr(runner.salt.client, "get_local_client", lambda mopts: client)
        monkeypatch.setattr(
            runner,
            "_model",
            lambda: {
                "indigo_model.tokens_plan": lambda: PLAN,
                "indigo_tokens.digest": lambda _: "I",
            },
        )
        monkeypatch.setattr(runner, "_public_key", lambda host: f"key of {host}")
        return runner.replicate(**kwargs), client.asked

    return run


def test_a_steady_cluster_costs_one_publish(salt_master):
    result, asked = salt_master(steady())
    assert result == {"changes": {}, "holder": "m1", "in_step": True, "unreachable": []}
    assert [fun for fun, _, _ in asked] == ["indigo_tokens.state"]


def test_a_first_run_costs_three(salt_master):
    result, asked = salt_master(bare())
    assert [(fun, tgt) for fun, tgt, _ in asked] == [
        ("indigo_tokens.state", ["m1", "m2", "n1", "n2"]),
        ("indigo_tokens.seal", ["m1"]),
        ("indigo_tokens.unseal", ["m2", "n1", "n2"]),
    ]
    wishes = asked[1][2]["recipients"]
    assert wishes["n1"] == {"grants": ["kubelet:n1"], "public_key": "key of n1"}
    assert wishes["m2"] == {"set": True, "public_key": "key of m2"}
    assert asked[1][2]["create"] is True
    assert set(result["changes"]) == {"m1", "m2", "n1", "n2"} and result["in_step"]


def test_test_mode_asks_and_tells_and_does_nothing(salt_master):
    result, asked = salt_master(bare(), test=True)
    assert [fun for fun, _, _ in asked] == ["indigo_tokens.state"]
    assert result["changes"] == {
        "m1": "makes the token set",
        "m2": "receives the token set",
        "n1": "receives kubelet:n1",
        "n2": "receives kubelet:n2",
    }
    assert result["in_step"] is False


def test_a_silent_node_is_named_and_not_in_step(salt_master):
    states = steady()
    del states["n2"]
    result, _ = salt_master(states)
    assert result["unreachable"] == ["n2"] and result["in_step"] is False
    assert result["changes"] == {}


def test_a_host_that_cannot_be_looked_at_stops_before_any_change(salt_master):
    states = {**bare(), "n1": "'indigo_tokens.state' is not available."}
    with pytest.raises(CommandExecutionError, match=r"nothing was changed: n1: .*sync_all"):
        salt_master(states)


def test_hosts_that_do_not_take_their_tokens_are_named_with_the_reason(salt_master):
    def some(tgt, kwarg):
        return {"m2": {"changed": {}}, "n1": "Traceback\nERROR: the sealed tokens do not open"}

    with pytest.raises(
        CommandExecutionError, match=r"n1: ERROR: the sealed tokens do not open; n2: did not answer"
    ):
        salt_master(bare(), unseal=some)


def test_a_key_that_is_not_accepted_stops_before_any_change(runner, salt_master, monkeypatch):
    class Cache:
        def __init__(self, opts, driver):
            assert driver == "localfs_key"

        def fetch(self, bank, host):
            return {"m2": {"state": "accepted", "pub": "PEM"}, "n1": {"state": "pending"}}.get(host)

    monkeypatch.setattr(runner, "__opts__", {"keys.cache_driver": "localfs_key"}, raising=False)
    monkeypatch.setattr(runner.salt.cache, "Cache", Cache)
    assert runner._public_key("m2") == "PEM"
    with pytest.raises(CommandExecutionError, match="n1: its Salt key is pending, expected"):
        runner._public_key("n1")
    with pytest.raises(CommandExecutionError, match="n2: its Salt key is unknown, expected"):
        runner._public_key("n2")
