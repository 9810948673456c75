"""Shared keys and tokens for new ones: each phase on the set, and what a killed run finds."""

from __future__ import annotations

import base64
import copy
import json

import pytest
import yaml
from salt.exceptions import CommandExecutionError
from support import asking, load

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


# Service accounts ---------------------------------------------------------------------------------


def key_pair():
    text = TOKENS._signing_key().encode()
    return ROTATE.serialization.load_pem_private_key(text, password=None)


def jwt(key, **claims: str) -> str:
    body = base64.urlsafe_b64encode(json.dumps(claims).encode()).rstrip(b"=").decode()
    return ROTATE.signed_again(f"x.{body}.x", key)


def test_a_token_is_signed_again_with_the_same_claims():
    old, new = key_pair(), key_pair()
    token = jwt(old, sub="system:serviceaccount:d:a")
    assert ROTATE.signed_by(token, old.public_key())
    assert not ROTATE.signed_by(token, new.public_key())
    again = ROTATE.signed_again(token, new)
    assert ROTATE.signed_by(again, new.public_key())
    assert again.split(".")[1] == token.split(".")[1]
    header = json.loads(ROTATE._decoded(again.split(".")[0]))
    assert header["alg"] == "RS256"
    assert header["kid"] != json.loads(ROTATE._decoded(token.split(".")[0]))["kid"]
    assert not ROTATE.signed_by("", new.public_key())
    assert not ROTATE.signed_by("a.b.c", new.public_key())


class Api:
    """An API server with a controller manager, in memory."""

    def __init__(self, key) -> None:
        self.key = key
        self.objects: dict[str, dict] = {}
        self.patched: list[str] = []

    def close(self) -> None:
        pass

    def add(self, path: str, thing: dict) -> None:
        space, name = path.split("/")[-3], path.split("/")[-1]
        thing["metadata"] = {"namespace": space, "name": name, **thing.get("metadata", {})}
        self.objects[path] = thing

    def secret(self, name: str, key, account: str) -> str:
        path = f"/api/v1/namespaces/d/secrets/{name}"
        token = base64.b64encode(jwt(key, name=name).encode()).decode()
        self.add(path, {"type": ROTATE.TOKEN_TYPE, "data": {"token": token},
                        "metadata": {"annotations": {ROTATE.OF_ACCOUNT: account}}})  # fmt: skip
        return path

    def all(self, path: str):
        kind = path.split("?")[0].rsplit("/", 1)[1]
        return [it for where, it in list(self.objects.items()) if where.split("/")[-2] == kind]

    def ask(self, method: str, path: str, body=None):
        if method == "POST":
            self.secret(body["metadata"]["name"], self.key,
                        body["metadata"]["annotations"][ROTATE.OF_ACCOUNT])  # fmt: skip
            return 201, {}
        if path not in self.objects:
            return 404, {"reason": "NotFound"}
        if method == "PUT":
            self.objects[path] = body
        if method == "PATCH":
            self.patched.append(path)
            self.replace(body["spec"]["template"]["metadata"]["annotations"])
        if method == "DELETE":
            del self.objects[path]
            return 200, {}
        return 200, copy.deepcopy(self.objects[path])

    def done(self, method: str, path: str, body=None):
        status, found = self.ask(method, path, body)
        assert status < 400, (status, path)
        return found

    def replace(self, annotations: dict) -> None:
        """What the controllers do: the pod of the replica set for one with the new template."""
        del self.objects["/api/v1/namespaces/d/pods/managed"]
        self.pod("fresh", made="2026-01-01T00:00:01Z", annotations=annotations, owner="ReplicaSet")

    def pod(self, name: str, made: str, owner: str = "", **meta) -> None:
        owners = [{"kind": owner, "name": "rs", "controller": True}] if owner else []
        self.add(f"/api/v1/namespaces/d/pods/{name}", {
            "metadata": {"creationTimestamp": made, "ownerReferences": owners, **meta},
            "spec": {"containers": [{"volumeMounts": [{"mountPath": ROTATE.MOUNT}]}]},
            "status": {"phase": "Running"},
        })  # fmt: skip


@pytest.fixture
def accounts(monkeypatch):
    old, new = key_pair(), key_pair()
    api = Api(new)
    api.secret("default-token-1", old, "default")
    api.secret("person", old, "client")
    for name, names in (("default", ["default-token-1", "pull"]), ("client", [])):
        api.add(f"/api/v1/namespaces/d/serviceaccounts/{name}",
                {"secrets": [{"name": one} for one in names]})  # fmt: skip
    monkeypatch.setattr(ROTATE, "_Api", lambda: api)
    monkeypatch.setattr(ROTATE, "_signing_key", lambda: new)
    monkeypatch.setattr(ROTATE, "LOOK", 0)
    return api


def held(api, account: str) -> list[str]:
    found = api.objects[f"/api/v1/namespaces/d/serviceaccounts/{account}"]
    return [one["name"] for one in found["secrets"]]


def test_an_account_gets_a_second_token_and_the_old_one_ends_last(accounts):
    assert ROTATE.second_tokens() == {"made": 1}
    first, *others = held(accounts, "default")
    assert first.startswith("default-token-")
    assert others == ["default-token-1", "pull"]
    assert ROTATE.second_tokens() == {"made": 0}
    # Nothing is taken away yet.
    public = accounts.key.public_key()
    person = accounts.objects["/api/v1/namespaces/d/secrets/person"]
    assert not ROTATE.signed_by(ROTATE._token(person), public)
    assert ROTATE.old_tokens_end() == {"removed": 1, "signed": 1}
    assert all(ROTATE.signed_by(ROTATE._token(one), public) for one in accounts.all("/x/secrets"))
    assert "/api/v1/namespaces/d/secrets/default-token-1" not in accounts.objects
    assert ROTATE.old_tokens_end() == {"removed": 0, "signed": 0}


def test_a_token_that_a_killed_run_made_is_taken_and_not_made_again(accounts):
    accounts.secret("default-token-2", accounts.key, "default")
    assert ROTATE.second_tokens() == {"made": 1}
    assert held(accounts, "default")[0] == "default-token-2"


def test_workloads_restart_and_pods_that_nothing_replaces_are_named(accounts):
    api, before, since = accounts, "2025-12-31T23:59:00Z", ROTATE.seconds("2026-01-01T00:00:05Z")
    deployment = "/apis/apps/v1/namespaces/d/deployments/web"
    owners = [{"kind": "Deployment", "name": "web", "controller": True}]
    api.add("/apis/apps/v1/namespaces/d/replicasets/rs", {"metadata": {"ownerReferences": owners}})
    api.add(deployment, {})
    api.pod("managed", before, "ReplicaSet")
    api.pod("alone", before)
    api.pod("late", "2026-01-01T00:01:00Z")
    looked = ROTATE.renew_pods(since, restart=False)
    assert looked == {"restarted": [], "left": ["d/managed", "d/alone"], "waiting": []}
    # The clock of the API server is behind: the new pod says by its annotation that it is new.
    found = ROTATE.renew_pods(since, timeout=5)
    assert found == {"restarted": [deployment], "left": ["d/alone"], "waiting": []}
    assert api.patched == [deployment]
    assert ROTATE.renew_pods(since)["restarted"] == []


def test_pods_are_told_of_both_authorities_before_any_is_restarted(accounts, monkeypatch, tmp_path):
    pem = "-----BEGIN {0}-----\n{0}\n-----END {0}-----\n"
    both = pem.format("old") + pem.format("new")
    (tmp_path / "ca.crt").write_text(both)
    monkeypatch.setattr(ROTATE, "_view", lambda: {"id": "m1", "paths": {"pki": str(tmp_path)}})
    api = accounts
    for one in api.all("/x/secrets"):
        one["data"]["ca.crt"] = base64.b64encode(both.encode()).decode()
    api.add("/api/v1/namespaces/d/configmaps/kube-root-ca.crt", {"data": {"ca.crt": both}})
    assert ROTATE.published(timeout=0) == 3
    # One ConfigMap that holds the old one alone is enough, and so is one Secret.
    api.add("/api/v1/namespaces/e/configmaps/kube-root-ca.crt",
            {"data": {"ca.crt": pem.format("old")}})  # fmt: skip
    with pytest.raises(CommandExecutionError, match=r"1 objects .* m1 trusts, for example e/kube-"):
        ROTATE.published(timeout=0)
    del api.objects["/api/v1/namespaces/e/configmaps/kube-root-ca.crt"]
    del api.objects["/api/v1/namespaces/d/secrets/person"]["data"]["ca.crt"]
    with pytest.raises(CommandExecutionError, match=r"1 objects .* for example d/person"):
        ROTATE.published(timeout=0)


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


class Hosts:
    """Minions that are asked, in memory: the CA host notes the phase, ``silent`` say nothing."""

    def __init__(self) -> None:
        self.phase: dict = {}
        self.asked: list[tuple[str, str]] = []
        self.silent: set[str] = set()
        self.left: list[str] = []

    def __call__(self, hosts, function, arg=(), kwarg=None):
        words = kwarg or {}
        self.asked.append((function, str(words.get("phase", ""))))
        answers: dict[str, object] = {
            "indigo_pki.trust": {}, "indigo_pki.follow": {}, "indigo_rotate.published": 3,
            "indigo_rotate.renew_pods":
                {"restarted": ["web"], "left": self.left, "waiting": []},
        }  # fmt: skip
        if function == "indigo_pki.exchange":
            self.phase = {"phase": words["phase"], **({"pods": words["pods"]} if "pods" in words
                                                      else {})}  # fmt: skip
            answers[function] = {"rotation": self.phase, "changes": {}}
        return {one: answers[function] for one in hosts if one not in self.silent}


@pytest.fixture
def hosts():
    asked, applied = Hosts(), []
    plan = {"hosts": {"c": {}, "m": {}, "n": {}}, "roles": {"master": ["m"], "ca": ["c"]}}

    def apply(name, tgt, tgt_type, sls, queue):
        applied.append((sls, list(tgt)))
        return {"name": name, "result": True, "changes": {}, "comment": ""}

    STATES.__opts__ = {"test": False}
    STATES.__salt__ = asking(asked)
    STATES.__states__ = {"salt.state": apply}
    STATES.__context__ = {STATES.RUN: {"plan": plan, "rotation": None, "ca": "c"}}
    asked.applied = applied
    return asked


def test_no_host_restarts_before_every_host_has_both_authorities(hosts):
    hosts.silent = {"n"}
    ret = STATES.authorities_reached("x", "trusted")
    assert ret["result"] is False
    assert "n: no answer" in ret["comment"]
    assert "run salt-run state.orchestrate indigo.rotate.ca again" in ret["comment"]
    assert hosts.applied == []
    # Run again: the same phase is done once more, for all.
    hosts.silent = set()
    assert STATES.authorities_reached("x", "trusted")["result"] is True
    assert hosts.applied == [("indigo.host", ["c", "m", "n"])]


def test_pods_that_were_made_before_both_were_published_stop_the_exchange(hosts):
    run = STATES.__context__[STATES.RUN]
    STATES.authorities_reached("x", "trusted")
    hosts.left = ["d/alone"]
    ret = STATES.pods_trust("x")
    assert ret["result"] is False
    assert "d/alone" in ret["comment"]
    functions = [function for function, _ in hosts.asked]
    assert functions.index("indigo_rotate.published") < functions.index("indigo_rotate.renew_pods")
    # The time is noted once: a run that goes on does not restart again what is new already.
    since = run["rotation"]["pods"]
    hosts.asked.clear()
    assert STATES.pods_trust("x", pods="leave")["result"] is True
    assert [function for function, _ in hosts.asked] == ["indigo_rotate.renew_pods"]
    assert run["rotation"]["pods"] == since


def test_certificates_change_in_the_second_phase_alone(hosts):
    for phase in STATES.PHASES:
        assert STATES.authorities_reached("x", phase)["result"] is True
    assert hosts.asked == [
        ("indigo_pki.exchange", "trusted"), ("indigo_pki.trust", ""),
        ("indigo_pki.exchange", "used"), ("indigo_pki.follow", ""),
        ("indigo_pki.exchange", "dropped"), ("indigo_pki.trust", ""),
    ]  # fmt: skip
    # A run after one that was killed in the last phase does that one alone again.
    hosts.asked.clear()
    for phase in STATES.PHASES:
        STATES.authorities_reached("x", phase)
    assert hosts.asked == [("indigo_pki.exchange", "dropped"), ("indigo_pki.trust", "")]
