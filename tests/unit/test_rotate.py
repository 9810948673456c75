"""Shared keys and tokens for new ones: each phase on the set, and what a killed run finds."""

from __future__ import annotations

import base64
import copy
import json

import pytest
import yaml
from salt.exceptions import CommandExecutionError
from support import load

TOKENS = load("_modules", "indigo_tokens")
ROTATE = load("_modules", "indigo_rotate")
STATES = load("_states", "indigo_rotate")


def a_set() -> dict:
    private = TOKENS._signing_key()
    return {
        "format": 1,
        "cluster": "lab",
        "lineage": "1",
        "generation": 4,
        "tokens": {
            "admin": {"user": "admin", "groups": ["system:masters"], "token": "a" * 64},
            "kubelet:n1": {"user": "system:node:n1", "groups": [], "token": "b" * 64},
        },
        "service_account_key": private,
        "service_account_public": TOKENS._public_part(private),
        "encryption": TOKENS._encryption(),
    }


def phases(document: dict, what: str) -> list[dict]:
    """The set in each phase; the one before stays as it was."""
    found = [document]
    for phase in TOKENS.PHASES:
        before = copy.deepcopy(found[-1])
        found.append(TOKENS._rotated(found[-1], what, phase, 7))
        assert found[-2] == before
        assert found[-1]["rotation"]["phase"] == phase
        assert found[-1]["generation"] == before["generation"] + 1
        # Once more, as a run that was killed does: nothing.
        assert TOKENS._rotated(found[-1], what, phase, 99) == found[-1]
    return found


def keys(document: dict) -> list[str]:
    providers = yaml.safe_load(document["encryption"])["resources"][0]["providers"]
    assert list(providers[-1]) == ["identity"] or "secretbox" in providers[-1]
    return [one["name"] for box in providers for one in box.get("secretbox", {}).get("keys", [])]


def test_an_encryption_key_is_read_with_then_written_with_then_alone():
    found = phases(a_set(), "encryption")
    assert [keys(one) for one in found] == [["key1"], ["key1", "key2"], ["key2", "key1"], ["key2"]]
    secrets = [
        key["secret"]
        for key in yaml.safe_load(found[2]["encryption"])["resources"][0]["providers"][0][
            "secretbox"
        ]["keys"]
    ]
    assert len({len(base64.b64decode(one)) for one in secrets} | {32}) == 1
    assert secrets[1] not in found[3]["encryption"]
    # Secrets from before encryption stay readable.
    assert "identity" in found[3]["encryption"]
    # The next one takes no name again.
    over = TOKENS._over(found[3], "encryption")
    assert "rotation" not in over
    # A backup of etcd of an older generation would need the key that is gone.
    assert over["encryption_since"] == found[3]["generation"]
    assert TOKENS._summary(found[2])["encryption_since"] == 0
    assert keys(phases(over, "encryption")[-1]) == ["key3"]


def test_another_provider_gives_way_to_ours():
    document = a_set()
    config = yaml.safe_load(document["encryption"])
    config["resources"][0]["providers"] = [
        {"aescbc": {"keys": [{"name": "key7", "secret": "eA=="}]}},
        {"identity": {}},
    ]
    document["encryption"] = yaml.safe_dump(config)

    def kinds(one: dict) -> list[str]:
        listed = yaml.safe_load(one["encryption"])["resources"][0]["providers"]
        return [next(iter(provider)) for provider in listed]

    found = phases(document, "encryption")
    assert [kinds(one) for one in found[1:]] == [
        ["aescbc", "identity", "secretbox"],
        ["secretbox", "aescbc", "identity"],
        ["secretbox", "identity"],
    ]


def test_a_configuration_that_encrypts_more_than_secrets_is_left_alone():
    document = a_set()
    document["encryption"] = document["encryption"].replace("- secrets", "- configmaps")
    with pytest.raises(CommandExecutionError, match="names configmaps"):
        TOKENS._rotated(document, "encryption", "trusted", 7)


def test_a_damaged_configuration_is_not_quoted():
    document = {**a_set(), "encryption": "resources: [{secret: c2VjcmV0"}
    with pytest.raises(CommandExecutionError) as failed:
        TOKENS._rotated(document, "encryption", "trusted", 7)
    assert "c2VjcmV0" not in str(failed.value)
    assert failed.value.__cause__ is None


def test_tokens_are_taken_beside_each_other_and_change_places_without_a_restart():
    before, trusted, used, dropped = phases(a_set(), "tokens")
    lines = [TOKENS._csv(one) for one in (before, trusted, used, dropped)]
    assert [text.count("\n") for text in lines] == [2, 4, 4, 2]
    # The file of the API servers is the same, whichever of the two is handed out.
    assert lines[1] == lines[2]
    for name in before["tokens"]:
        assert trusted["tokens"][name]["token"] == before["tokens"][name]["token"]
        assert used["tokens"][name]["token"] == trusted["tokens"][name]["also"]
        assert dropped["tokens"][name]["token"] == used["tokens"][name]["token"]
        assert "also" not in dropped["tokens"][name]
        assert before["tokens"][name]["token"] not in lines[3]


def test_a_host_that_comes_meanwhile_has_one_token_and_the_others_keep_both():
    trusted = phases(a_set(), "tokens")[1]
    wanted = [{"name": name, **entry} for name, entry in trusted["tokens"].items()]
    wanted.append({"name": "kubelet:n2", "user": "system:node:n2", "groups": ["system:nodes"]})
    extended, changes = TOKENS._extend(trusted, wanted, {})
    assert changes == {"added": ["kubelet:n2"]}
    assert extended["rotation"] == trusted["rotation"]
    assert extended["tokens"]["admin"] == trusted["tokens"]["admin"]
    used = TOKENS._rotated(extended, "tokens", "used", 8)
    assert used["tokens"]["kubelet:n2"] == extended["tokens"]["kubelet:n2"]
    assert used["tokens"]["admin"]["token"] == trusted["tokens"]["admin"]["also"]


def test_no_phase_is_left_out_and_no_two_parts_are_exchanged_at_once():
    document = a_set()
    with pytest.raises(CommandExecutionError, match="encryption cannot be used now"):
        TOKENS._rotated(document, "encryption", "used", 7)
    begun = TOKENS._rotated(document, "encryption", "trusted", 7)
    with pytest.raises(CommandExecutionError, match="an exchange of encryption is under way"):
        TOKENS._rotated(begun, "tokens", "trusted", 7)
    with pytest.raises(CommandExecutionError, match="over only when dropped"):
        TOKENS._over(begun, "encryption")


def test_what_is_told_of_a_set_holds_the_phase_and_no_secret():
    begun = TOKENS._rotated(a_set(), "encryption", "trusted", 7)
    told = json.dumps(TOKENS._summary(begun))
    assert json.loads(told)["rotation"] == {
        "what": "encryption", "phase": "trusted", "since": 7, "key": "key2"
    }  # fmt: skip
    for secret in ("a" * 64, "PRIVATE", "secretbox"):
        assert secret not in told


# Secrets in etcd ----------------------------------------------------------------------------------


class Cluster:
    """etcd and an API server, in memory: Secrets by the key that they are encrypted by."""

    def __init__(self, **stored: str) -> None:
        self.stored = stored
        self.writes = 0
        self.with_key = "key2"
        self.statuses: dict[str, list[int]] = {}

    def range(self, body: dict) -> dict:
        start = base64.b64decode(body["key"]).decode()
        names = sorted(f"/registry/secrets/d/{name}" for name in self.stored)
        left = [one for one in names if one >= start]
        rows = [
            {
                "key": base64.b64encode(one.encode()).decode(),
                "value": base64.b64encode(self.value(one).ljust(400, b"x")).decode(),
            }
            for one in left[: body["limit"]]
        ]
        return {"kvs": rows, "more": len(left) > body["limit"]}

    def value(self, key: str) -> bytes:
        how = self.stored[key.rsplit("/", 1)[1]]
        return f"k8s:enc:secretbox:v1:{how}:".encode() if how else b"k8s\0"

    def ask(self, method: str, path: str, body: object = None) -> tuple[int, dict]:
        name = path.rsplit("/", 1)[1]
        if name not in self.stored:
            return 404, {"reason": "NotFound"}
        if method == "GET":
            return 200, {"metadata": {"name": name}}
        status = self.statuses.get(name, [200]).pop(0) if self.statuses.get(name) else 200
        if status != 200:
            return status, {"reason": "Conflict", "message": "c2VjcmV0"}
        self.writes += 1
        self.stored[name] = self.with_key
        return 200, {}

    def close(self) -> None:
        pass


@pytest.fixture
def rotate(monkeypatch):
    def on(**stored: str) -> Cluster:
        cluster = Cluster(**stored)
        monkeypatch.setattr(ROTATE, "_range", cluster.range)
        monkeypatch.setattr(ROTATE, "_prefix", lambda: "/registry/secrets/")
        monkeypatch.setattr(ROTATE, "_Api", lambda: cluster)
        return cluster

    return on


def test_only_what_has_another_key_is_written_again(rotate):
    cluster = rotate(**{f"s{n}": "key1" if n % 2 else "key2" for n in range(120)}, plain="")
    assert ROTATE.stored() == {
        "secretbox:v1:key1": 60, "secretbox:v1:key2": 60, "identity": 1
    }  # fmt: skip
    assert ROTATE.rewrite("key2") == {"written": 61, "secrets": 121}
    assert cluster.writes == 61
    assert ROTATE.rewrite("key2") == {"written": 0, "secrets": 121}


def test_a_conflict_is_tried_again_and_a_refusal_told_without_the_object(rotate):
    cluster = rotate(a="key1")
    cluster.statuses["a"] = [409, 409]
    assert ROTATE.rewrite("key2")["written"] == 1
    cluster = rotate(a="key1")
    cluster.statuses["a"] = [422]
    with pytest.raises(CommandExecutionError, match="Secret d/a could not be written again") as err:
        ROTATE.rewrite("key2")
    assert "c2VjcmV0" not in str(err.value)


def test_an_api_server_that_writes_with_the_old_key_is_found_out(rotate):
    cluster = rotate(a="key1")
    cluster.with_key = "key1"
    with pytest.raises(CommandExecutionError, match="1 Secrets are not encrypted by key2"):
        ROTATE.rewrite("key2")


# The steps ----------------------------------------------------------------------------------------


def test_a_step_that_an_earlier_run_did_is_not_done_again():
    STATES.__opts__ = {"test": False}
    STATES.__context__ = {STATES.RUN: {"plan": {}, "rotation": {"phase": "used"}}}
    STATES.__salt__ = {}
    ret = STATES.reached("x", "encryption", "trusted")
    assert (ret["result"], ret["changes"]) == (True, {})
    STATES.__context__[STATES.RUN]["rotation"]["phase"] = "dropped"
    ret = STATES.rewritten("x")
    assert (ret["result"], ret["changes"]) == (True, {})


def test_in_test_mode_no_step_asks_anybody():
    STATES.__opts__ = {"test": True}
    STATES.__salt__, STATES.__context__ = {}, {}
    for ret in (
        STATES.reached("x", "tokens", "used"),
        STATES.rewritten("x"),
        STATES.finished("x", "tokens"),
    ):
        assert (ret["result"], ret["changes"]) == (None, {})
