"""The states of the tokens, in both modes: what is said, what changes, and what a rerun does."""

from __future__ import annotations

from typing import Any

import pytest
from salt.exceptions import CommandExecutionError
from support import load

TOKENS = [{"identity": "kubelet:n1", "path": "/t/kubelet", "user": "root"}]
SET = {"path": "/t/tokens.set", "user": "root", "files": []}


class Host:
    """The execution module's side, with files as a table of what is wrong."""

    def __init__(self, mendable: dict[str, str], lost: dict[str, str], files: list[str]) -> None:
        self.mendable, self.lost, self.files, self.sets = mendable, lost, files, []

    def inspect(self, tokens, token_set):
        assert tokens == TOKENS
        self.sets.append(token_set)
        return {"mendable": dict(self.mendable), "lost": dict(self.lost)}

    def mend(self, tokens, token_set):
        found, self.mendable = self.mendable, {}
        return found

    def remove(self, tokens, token_set, test):
        found = list(self.files)
        if not test:
            self.files.clear()
        return found


@pytest.fixture
def states():
    module = load("_states", "indigo_tokens")
    module.__pillar__ = {"indigo": {"token_set": SET}}
    module.__context__ = {}

    def on(mendable=None, lost=None, files=(), test=False) -> Any:
        host = Host(mendable or {}, lost or {}, list(files))
        module.__opts__ = {"test": test}
        module.__salt__ = {
            f"indigo_tokens.{name}": getattr(host, name) for name in ("inspect", "mend", "remove")
        }
        module.host = host
        return module

    return on


def test_present_with_all_in_place(states):
    for test in (False, True):
        ret = states(test=test).present("x", TOKENS)
        assert (ret["result"], ret["changes"]) == (True, {})


def test_present_mends_and_tells_then_has_nothing_to_do(states):
    module = states(mendable={"/t/kubelet": "mode 0644, expected 0600"})
    ret = module.present("x", TOKENS)
    assert ret["result"] is True
    assert ret["changes"] == {"/t/kubelet": "mode 0644, expected 0600"}
    assert module.present("x", TOKENS)["changes"] == {}


def test_present_in_test_mode_mends_nothing(states):
    module = states(mendable={"/t/kubelet": "mode 0644, expected 0600"}, test=True)
    for _ in range(2):
        ret = module.present("x", TOKENS)
        assert ret["result"] is None and ret["changes"]


def test_a_missing_token_names_file_and_remedy(states):
    ret = states(lost={"/t/kubelet": "missing"}).present("x", TOKENS)
    assert ret["result"] is False and ret["changes"] == {}
    assert "/t/kubelet: missing" in ret["comment"]
    assert "salt-run state.orchestrate indigo.deploy" in ret["comment"]
    assert states(lost={"/t/kubelet": "missing"}, test=True).present("x", TOKENS)["result"] is None


def test_what_can_be_mended_is_mended_beside_what_is_lost(states):
    module = states(mendable={"/t/a": "missing"}, lost={"/t/kubelet": "missing"})
    ret = module.present("x", TOKENS)
    assert ret["result"] is False
    assert ret["changes"] == {"/t/a": "missing"}
    assert "indigo.deploy" in ret["comment"]


@pytest.mark.parametrize("given, expected", [(False, None), (True, SET), (SET, SET)])
def test_the_set_is_taken_from_the_pillar_or_as_given(states, given, expected):
    module = states()
    module.present("x", TOKENS, set=given)
    assert module.host.sets == [expected]


def test_a_set_that_is_not_declared_is_an_error(states):
    module = states()
    module.__pillar__ = {"indigo": {}}
    ret = module.present("x", TOKENS, set=True)
    assert ret["result"] is False and "role master" in ret["comment"]


def test_an_error_of_the_host_is_the_comment(states):
    module = states()

    def damaged(tokens, token_set):
        raise CommandExecutionError("/t/tokens.set: not a JSON document")

    module.__salt__["indigo_tokens.inspect"] = damaged
    ret = module.present("x", TOKENS)
    assert (ret["result"], ret["comment"]) == (False, "/t/tokens.set: not a JSON document")


def test_absent_in_both_modes_and_again(states):
    module = states(files=["/t/kubelet"], test=True)
    ret = module.absent("x", TOKENS)
    assert ret["result"] is None and ret["changes"] == {"/t/kubelet": "removed"}
    module = states(files=["/t/kubelet"])
    assert module.absent("x", TOKENS)["changes"] == {"/t/kubelet": "removed"}
    ret = module.absent("x", TOKENS)
    assert (ret["result"], ret["changes"]) == (True, {})


@pytest.fixture
def replicated(states, monkeypatch):
    def run(answer, test=False, **kwargs):
        module = states(test=test)
        asked = []

        def replicate(**given):
            asked.append(given)
            if isinstance(answer, Exception):
                raise answer
            return answer

        functions = {"indigo_tokens.replicate": replicate} if answer else {}
        monkeypatch.setattr(module.salt.loader, "runner", lambda opts, context: functions)
        return module.replicated("x", **kwargs), asked

    return run


def answer(changes, unreachable=()):
    return {"changes": changes, "holder": "m1", "in_step": True, "unreachable": list(unreachable)}


def test_replicated_in_step(replicated):
    for test in (True, False):
        ret, asked = replicated(answer({}), test=test)
        assert (ret["result"], ret["changes"]) == (True, {})
        assert asked == [{"test": test, "force": False, "holder": None}]


def test_replicated_tells_what_changed_or_would(replicated):
    changes = {"m2": {"/t": "missing"}}
    ret, _ = replicated(answer(changes))
    assert ret["result"] is True and ret["changes"] == changes
    ret, asked = replicated(answer({"m2": "receives the token set"}), test=True, holder="m1")
    assert ret["result"] is None and "m2 would receive" in ret["comment"]
    assert asked[0]["test"] is True and asked[0]["holder"] == "m1"


def test_replicated_names_the_silent(replicated):
    ret, _ = replicated(answer({}, unreachable=["n2"]))
    assert "not reached: n2" in ret["comment"]


def test_replicated_fails_with_the_runner_s_own_words(replicated):
    ret, _ = replicated(CommandExecutionError("m1 and m2 hold token sets that differ"))
    assert (ret["result"], ret["changes"]) == (False, {})
    assert ret["comment"] == "m1 and m2 hold token sets that differ"


def test_replicated_without_the_runner_names_the_setting(replicated):
    ret, _ = replicated(None)
    assert ret["result"] is False and "runner_dirs" in ret["comment"]
