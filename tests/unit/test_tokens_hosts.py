"""The token set on the hosts: made, extended, sealed, unsealed, mended, and killed in between."""

from __future__ import annotations

import base64
import copy
import csv
import grp
import itertools
import json
import logging
import os
import pwd
import stat
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from indigo_model import tokens as model
from indigo_model.cluster import Cluster, Host, Vip
from salt.exceptions import CommandExecutionError
from support import load

ME = pwd.getpwuid(os.geteuid()).pw_name
CLUSTER = Cluster(
    name="lab",
    hosts={
        "m1": Host("m1", "10.0.0.1", ("master",)),
        "m2": Host("m2", "10.0.0.2", ("master",)),
        "n1": Host("n1", "10.0.0.3", ("node",)),
        "n2": Host("n2", "10.0.0.4", ("node",)),
    },
    vip=Vip("10.0.0.100", "eth0"),
    services="10.96.0.0/16",
    pods="10.244.0.0/16",
)
IDENTITIES = model.identities(CLUSTER)
SEAL = load("_modules", "indigo_seal")


def key(size: int = 2048) -> tuple[bytes, str]:
    private = rsa.generate_private_key(public_exponent=65537, key_size=size)
    return (
        private.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.TraditionalOpenSSL,
            serialization.NoEncryption(),
        ),
        private.public_key()
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        .decode(),
    )


@pytest.fixture(scope="module")
def keys() -> dict[str, tuple[bytes, str]]:
    return {id_: key() for id_ in CLUSTER.hosts}


class Hosts:
    """Every host of the cluster with its own copy of the module, pillar, key and folder."""

    def __init__(self, root: Path, keys: dict[str, tuple[bytes, str]]) -> None:
        self.root, self.keys = root, keys
        self.modules: dict[str, ModuleType] = {}
        for id_, host in CLUSTER.hosts.items():
            folder = root / id_
            (folder / "pki").mkdir(parents=True)
            (folder / "pki" / "minion.pem").write_bytes(keys[id_][0])
            text = json.dumps(model.view(CLUSTER, host)).replace('"/etc/', f'"{folder}/etc/')
            view = json.loads(text)
            for entry in [
                *view["tokens"],
                *([view["token_set"], *view["token_set"]["files"]] if "token_set" in view else []),
            ]:
                entry["user"] = ME
            module = load("_modules", "indigo_tokens")
            module.__opts__ = {"id": id_, "pki_dir": str(folder / "pki")}
            module.__pillar__ = {"indigo": {"cluster": {"name": "lab"}, **view}}
            module.__salt__ = {"indigo_seal.seal": SEAL.seal, "indigo_seal.unseal": SEAL.unseal}
            self.adopt(module)
            self.modules[id_] = module

    def adopt(self, module: ModuleType) -> None:
        """Hook for fixtures."""

    def __getattr__(self, id_: str) -> ModuleType:
        return self.modules[id_]

    def path(self, id_: str, name: str = "") -> Path:
        return self.root / id_ / "etc" / "kubernetes" / name

    def wishes(self, *ids: str) -> dict[str, dict[str, Any]]:
        return {
            id_: {
                "public_key": self.keys[id_][1],
                **(
                    {"set": True}
                    if "master" in CLUSTER.hosts[id_].roles
                    else {"grants": [item["name"] for item in IDENTITIES if item["host"] == id_]}
                ),
            }
            for id_ in ids
        }

    def document(self, id_: str) -> dict[str, Any]:
        return json.loads(self.path(id_, "tokens.set").read_text())

    def secrets(self, id_: str = "m1") -> list[str]:
        """Every secret of the set, in the shapes in which it could leak."""
        document = self.document(id_)
        found = [entry["token"] for entry in document["tokens"].values()]
        found += document["service_account_key"].split("\n")[1:-2]
        config = yaml.safe_load(document["encryption"])
        found.append(config["resources"][0]["providers"][0]["secretbox"]["keys"][0]["secret"])
        found += [base64.b64encode(text.encode()).decode() for text in found[:]]
        return found


@pytest.fixture
def hosts(tmp_path, keys) -> Hosts:
    return Hosts(tmp_path, keys)


@pytest.fixture
def quick(monkeypatch, keys):
    """A service account key made before: RSA keys are slow to make and to check."""
    unpatched = Hosts.adopt

    def adopt(self: Hosts, module: ModuleType) -> None:
        unpatched(self, module)
        module._signing_key = lambda: keys["n2"][0].decode()
        module._public_part = lambda private: keys["n2"][1]

    monkeypatch.setattr(Hosts, "adopt", adopt)


@pytest.fixture
def made(quick, tmp_path, keys) -> Hosts:
    hosts = Hosts(tmp_path, keys)
    hosts.m1.ensure(IDENTITIES, create=True)
    return hosts


def everything(folder: Path) -> dict[str, tuple[bytes, int, int, int]]:
    """Content, inode, ctime and mode of every file below a folder."""
    return {
        str(path.relative_to(folder)): (
            path.read_bytes(),
            path.stat().st_ino,
            path.stat().st_ctime_ns,
            path.stat().st_mode,
        )
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


# --- making and extending ----------------------------------------------------------------------


def test_a_new_set_is_complete_private_and_random(hosts):
    made = hosts
    made.m1.ensure(IDENTITIES, create=True)
    rows = list(csv.reader(made.path("m1", "tokens.csv").read_text().splitlines()))
    assert {row[2] for row in rows} == {item["name"] for item in IDENTITIES}
    assert len({row[0] for row in rows}) == len(IDENTITIES)
    assert all(len(bytes.fromhex(row[0])) == 32 for row in rows)
    config = yaml.safe_load(made.path("m1", "encryption.yaml").read_text())
    providers = config["resources"][0]["providers"]
    assert [next(iter(provider)) for provider in providers] == ["secretbox", "identity"]
    secret = providers[0]["secretbox"]["keys"][0]["secret"]
    assert len(base64.b64decode(secret, validate=True)) == 32
    private = serialization.load_pem_private_key(made.path("m1", "pki/sa.key").read_bytes(), None)
    public = serialization.load_pem_public_key(made.path("m1", "pki/sa.pub").read_bytes())
    assert isinstance(private, rsa.RSAPrivateKey) and private.key_size == 2048
    assert private.public_key().public_numbers() == public.public_numbers()
    assert made.path("m1", "pki/sa.key").read_bytes() == (
        made.path("m1", "pki/controller-manager-sa.key").read_bytes()
    )
    modes = {
        path.name: stat.S_IMODE(path.stat().st_mode)
        for path in made.path("m1").rglob("*")
        if path.is_file()
    }
    assert modes.pop("sa.pub") == 0o644
    assert set(modes.values()) == {0o600}


def test_an_identity_without_groups_has_no_empty_group(made):
    lines = made.path("m1", "tokens.csv").read_text().splitlines()
    proxy = next(line for line in lines if "kube-proxy:n1" in line)
    assert proxy.endswith(",system:kube-proxy,kube-proxy:n1")


def test_several_groups_stay_one_column(hosts):
    document = {"tokens": {"x": {"token": "t" * 40, "user": "u", "groups": ["a", "b"]}}}
    assert hosts.m1._csv(document) == "t" * 40 + ',u,x,"a,b"\n'
    assert hosts.m1._parse_csv(hosts.m1._csv(document)) == document["tokens"]


def test_two_sets_share_nothing(tmp_path, keys):
    first, second = Hosts(tmp_path / "a", keys), Hosts(tmp_path / "b", keys)
    for one in (first, second):
        one.m1.ensure(IDENTITIES, create=True)
    assert not set(first.secrets()) & set(second.secrets())


def test_nothing_is_made_unless_told(hosts):
    with pytest.raises(CommandExecutionError, match=r"tokens\.set: missing.*indigo\.deploy"):
        hosts.m1.ensure(IDENTITIES)
    assert not everything(hosts.root / "m1" / "etc")


def test_a_second_run_changes_no_file(made):
    before = everything(made.root)
    result = made.m1.ensure(IDENTITIES, create=True)
    assert result["changed"] == {} and result["identities"] == {} and not result["created"]
    assert everything(made.root) == before


def test_a_new_identity_keeps_the_others_tokens_and_both_keys(made):
    before, files = made.document("m1"), everything(made.path("m1"))
    new = {"name": "kubelet:n9", "user": "system:node:n9", "groups": ["system:nodes"]}
    result = made.m1.ensure([*IDENTITIES, new])
    after = made.document("m1")
    assert result["identities"] == {"added": ["kubelet:n9"]}
    assert after["generation"] == before["generation"] + 1
    assert after["lineage"] == before["lineage"]
    assert {k: v for k, v in after["tokens"].items() if k != "kubelet:n9"} == before["tokens"]
    assert after["service_account_key"] == before["service_account_key"]
    assert after["encryption"] == before["encryption"]
    # Only what changed was written: the controller manager has no reason to restart.
    changed = {k for k, v in everything(made.path("m1")).items() if files.get(k) != v}
    assert changed == {"tokens.set", "tokens.csv"}
    assert set(result["changed"]) == {str(made.path("m1", name)) for name in changed}


def test_an_identity_no_longer_declared_is_dropped_and_gets_a_new_token_if_it_returns(made):
    old = made.document("m1")["tokens"]["kubelet:n2"]["token"]
    fewer = [item for item in IDENTITIES if item["name"] != "kubelet:n2"]
    assert made.m1.ensure(fewer)["identities"] == {"dropped": ["kubelet:n2"]}
    assert old not in made.path("m1", "tokens.csv").read_text()
    made.m1.ensure(IDENTITIES)
    assert made.document("m1")["tokens"]["kubelet:n2"]["token"] != old


def test_a_changed_group_keeps_the_token(made):
    old = made.document("m1")["tokens"]["admin"]["token"]
    other = copy.deepcopy(IDENTITIES)
    other[0]["groups"] = ["operators"]
    assert made.m1.ensure(other)["identities"] == {"altered": ["admin"]}
    assert made.document("m1")["tokens"]["admin"] == {
        "token": old,
        "user": "admin",
        "groups": ["operators"],
    }


def test_the_order_of_identities_is_no_change(made):
    before = everything(made.root)
    made.m1.ensure(IDENTITIES[::-1])
    assert everything(made.root) == before


def test_above_makes_the_generation_win(made):
    made.m1.ensure(IDENTITIES, above=7)
    assert made.document("m1")["generation"] == 8


@pytest.mark.parametrize(
    "identities, message",
    [
        ([], "empty.*revoke every token"),
        ([IDENTITIES[0], IDENTITIES[0]], "admin is there twice"),
        ([{"name": "a\nb", "user": "u", "groups": []}], "cannot be a name"),
        ([{"name": "a", "user": "u", "groups": ["a,b"]}], "'a,b' cannot be"),
    ],
)
def test_identities_that_cannot_be_right_are_refused(made, identities, message):
    before = everything(made.root)
    with pytest.raises(CommandExecutionError, match=message):
        made.m1.ensure(identities)
    assert everything(made.root) == before


def test_keys_of_an_earlier_installation_are_taken_over(hosts, keys):
    hosts.path("m1", "pki").mkdir(parents=True)
    hosts.path("m1", "pki/sa.key").write_bytes(keys["m2"][0])
    hosts.path("m1", "encryption.yaml").write_text(hosts.m1._encryption("old"))
    hosts.path("m1", "tokens.csv").write_text(
        f'{"k" * 43},admin,admin,"system:masters"\nshort,u,kube-scheduler\n{"z" * 43},someone,7\n'
    )
    remains = hosts.m1.state()["remains"]
    assert set(remains) == {"service-account-key", "encryption"}
    hosts.m1.ensure(IDENTITIES, create=True)
    document = hosts.document("m1")
    assert document["service_account_key"].encode() == keys["m2"][0]
    assert "name: old" in document["encryption"]
    assert document["tokens"]["admin"]["token"] == "k" * 43
    assert len(document["tokens"]["kube-scheduler"]["token"]) == 64  # a guessable one is not kept
    assert set(document["tokens"]) == {item["name"] for item in IDENTITIES}


def test_a_node_never_makes_or_seals_a_set(hosts):
    for call in (lambda: hosts.n1.ensure(IDENTITIES, create=True), lambda: hosts.n1.seal({})):
        with pytest.raises(CommandExecutionError, match="n1 is no master"):
            call()


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda d: "{", "not a JSON document"),
        (lambda d: "[]", "not a token set"),
        (lambda d: json.dumps({**d, "format": 99}), "format 99, expected 1"),
        (lambda d: json.dumps({**d, "encryption": None}), "encryption is missing"),
        (
            lambda d: json.dumps({**d, "tokens": {"admin": {"token": "guess"}}}),
            "admin has no proper token",
        ),
        (lambda d: json.dumps({**d, "cluster": "other"}), "cluster other, expected lab"),
    ],
)
def test_a_damaged_set_is_named_and_never_overwritten(made, spoil, message):
    path = made.path("m1", "tokens.set")
    secrets = made.secrets()
    path.write_text(spoil(made.document("m1")))
    before = everything(made.root)
    with pytest.raises(CommandExecutionError, match=message) as caught:
        made.m1.ensure(IDENTITIES, create=True)
    assert str(path) in str(caught.value)
    assert not any(secret in str(caught.value) for secret in secrets)
    assert everything(made.root) == before
    state = made.m1.state()
    assert state["set"] is None and str(path) in state["damaged"]


# --- sealing and unsealing ---------------------------------------------------------------------


def test_masters_become_equal_and_nodes_get_their_own_alone(made):
    sealed = made.m1.seal(made.wishes("m2", "n1", "n2"))["sealed"]
    for id_ in ("m2", "n1", "n2"):
        assert made.modules[id_].unseal(sealed)["changed"]
    masters = [
        {name: value[0] for name, value in everything(made.path(id_)).items()}
        for id_ in ("m1", "m2")
    ]
    assert masters[0] == masters[1]
    tokens = made.document("m1")["tokens"]
    for id_ in ("n1", "n2"):
        files = {path.name: path.read_text() for path in made.path(id_, "tokens").iterdir()}
        assert files == {
            name: tokens[f"{name}:{id_}"]["token"] + "\n" for name in ("kubelet", "kube-proxy")
        }
        assert set(os.listdir(made.path(id_))) == {"tokens"}


def test_unsealing_again_changes_no_file(made):
    sealed = made.m1.seal(made.wishes("m2", "n1"))["sealed"]
    made.m2.unseal(sealed)
    made.n1.unseal(sealed)
    before = everything(made.root)
    again = made.m1.seal(made.wishes("m2", "n1"))["sealed"]
    assert made.m2.unseal(again)["changed"] == {} == made.n1.unseal(again)["changed"]
    assert everything(made.root) == before


def test_fingerprints_agree_where_secrets_do(made):
    sealed = made.m1.seal(made.wishes("m2", "n1"))["sealed"]
    made.m2.unseal(sealed)
    made.n1.unseal(sealed)
    one, two, node = made.m1.state(), made.m2.state(), made.n1.state()
    assert one["set"] == two["set"]
    assert one["tokens"] == two["tokens"]
    assert node["tokens"].items() <= one["set"]["tokens"].items()
    assert not one["problems"] + two["problems"] + node["problems"]


def test_no_secret_leaves_a_host(made, caplog):
    caplog.set_level(logging.DEBUG)
    ensured = made.m1.ensure([*IDENTITIES, {"name": "x", "user": "x", "groups": []}])
    sealed = made.m1.seal(made.wishes("m2", "n1"), IDENTITIES)
    said = [ensured, sealed, made.m2.unseal(sealed["sealed"]), made.n1.unseal(sealed["sealed"])]
    said += [module.state() for module in made.modules.values()]
    said += [made.m1.inspect(), made.m1.mend(), made.m1.remove(test=True)]
    text = json.dumps(said) + caplog.text
    leaked = [secret for secret in made.secrets() if secret in text]
    assert not leaked
    # The control: the same search finds what is there.
    assert made.secrets()[0] in made.path("m1", "tokens.csv").read_text()


def test_the_same_secret_is_never_sealed_the_same_way(made):
    first = made.m1.seal(made.wishes("n1"))["sealed"]["n1"]
    second = made.m1.seal(made.wishes("n1"))["sealed"]["n1"]
    assert all(first[part] != second[part] for part in ("key", "nonce", "data"))


def test_another_host_cannot_open_it(made):
    sealed = made.m1.seal(made.wishes("m2"))["sealed"]
    stolen = {"n1": sealed["m2"]}
    with pytest.raises(CommandExecutionError, match="recipient is 'm2', expected 'n1'"):
        made.n1.unseal(stolen)
    stolen["n1"]["header"]["recipient"] = "n1"
    stolen["n1"]["header"]["kind"] = "tokens"
    with pytest.raises(CommandExecutionError, match="do not open"):
        made.n1.unseal(stolen)
    assert not everything(made.root / "n1" / "etc")


@pytest.mark.parametrize("field", ["generation", "fingerprint", "kind"])
def test_a_changed_header_does_not_open(made, field):
    sealed = made.m1.seal(made.wishes("m2"))["sealed"]
    sealed["m2"]["header"][field] = {"generation": 99, "fingerprint": "0" * 32, "kind": "tokens"}[
        field
    ]
    with pytest.raises(CommandExecutionError, match=r"do not open|kind is 'tokens'"):
        made.m2.unseal(sealed)
    assert not everything(made.root / "m2" / "etc")


@pytest.mark.parametrize("part", ["key", "nonce", "data"])
def test_changed_ciphertext_does_not_open(made, part):
    sealed = made.m1.seal(made.wishes("n1"))["sealed"]
    raw = bytearray(base64.b64decode(sealed["n1"][part]))
    raw[-1] ^= 1
    sealed["n1"][part] = base64.b64encode(raw).decode()
    with pytest.raises(CommandExecutionError, match="do not open"):
        made.n1.unseal(sealed)
    assert not everything(made.root / "n1" / "etc")


@pytest.mark.parametrize("broken", [{}, {"header": None}, {"key": "ü"}, {"data": None}])
def test_a_malformed_envelope_is_an_error_not_a_crash(made, broken):
    sealed = made.m1.seal(made.wishes("n1"))["sealed"]
    envelope = {**sealed["n1"], **broken} if broken else {}
    with pytest.raises(CommandExecutionError, match="sealed tokens"):
        made.n1.unseal({"n1": envelope})


def test_another_cluster_s_tokens_are_refused(made):
    sealed = made.m1.seal(made.wishes("n1"))["sealed"]
    made.n1.__pillar__["indigo"]["cluster"]["name"] = "production"
    with pytest.raises(CommandExecutionError, match="cluster is 'lab', expected 'production'"):
        made.n1.unseal(sealed)


def test_a_node_refuses_the_set_and_others_tokens(made):
    wishes = {"n1": {"public_key": made.keys["n1"][1], "set": True}}
    with pytest.raises(CommandExecutionError, match=r"kind is 'set'.*a node.*refresh_pillar"):
        made.n1.unseal(made.m1.seal(wishes)["sealed"])
    for grants in (["kubelet:n2"], ["kubelet:n1"], ["kubelet:n1", "kube-proxy:n1", "admin"]):
        wishes = {"n1": {"public_key": made.keys["n1"][1], "grants": grants}}
        with pytest.raises(CommandExecutionError, match="pillar of n1 declares"):
            made.n1.unseal(made.m1.seal(wishes)["sealed"])
    assert not everything(made.root / "n1" / "etc")


def test_nothing_for_this_host_is_an_error(made):
    with pytest.raises(CommandExecutionError, match="nothing for n2"):
        made.n2.unseal(made.m1.seal(made.wishes("n1"))["sealed"])


def test_an_older_set_does_not_replace_a_newer_one(made):
    old = made.m1.seal(made.wishes("m2"))["sealed"]
    made.m1.ensure([*IDENTITIES, {"name": "x", "user": "x", "groups": []}])
    made.m2.unseal(made.m1.seal(made.wishes("m2"))["sealed"])
    before = everything(made.root / "m2")
    with pytest.raises(CommandExecutionError, match="generation 2 is newer than the sealed one, 1"):
        made.m2.unseal(old)
    assert everything(made.root / "m2") == before


def test_a_set_of_another_origin_is_replaced_and_kept(made):
    made.m2.ensure(IDENTITIES, create=True)
    lost = made.path("m2", "tokens.set").read_bytes()
    changed = made.m2.unseal(made.m1.seal(made.wishes("m2"))["sealed"])["changed"]
    kept = list(made.path("m2").glob("tokens.set.replaced-*"))
    assert [path.read_bytes() for path in kept] == [lost]
    assert stat.S_IMODE(kept[0].stat().st_mode) == 0o600
    assert str(kept[0]) in changed
    assert made.m2.state()["set"] == made.m1.state()["set"]
    made.m2.remove()
    assert not everything(made.path("m2"))


@pytest.mark.parametrize(
    "public, message",
    [("nonsense", "is no PEM public key"), (None, "not RSA with 2048 bits or more")],
)
def test_a_public_key_that_cannot_be_used_names_the_host(made, public, message):
    wishes = {"n1": {"public_key": public or key(1024)[1], "grants": ["kubelet:n1"]}}
    with pytest.raises(CommandExecutionError, match=f"n1: .*{message}"):
        made.m1.seal(wishes)


def test_a_missing_minion_key_is_named(made):
    sealed = made.m1.seal(made.wishes("n1"))["sealed"]
    (made.root / "n1" / "pki" / "minion.pem").unlink()
    with pytest.raises(CommandExecutionError, match=r"n1/pki/minion\.pem"):
        made.n1.unseal(sealed)


def test_an_unknown_identity_is_never_sealed(made):
    wishes = {"n1": {"public_key": made.keys["n1"][1], "grants": ["kubelet:n9"]}}
    with pytest.raises(CommandExecutionError, match="n1: the token set has no kubelet:n9"):
        made.m1.seal(wishes)


def test_a_set_for_a_thousand_nodes_fits_an_event(quick, tmp_path, keys):
    many = [
        {"name": f"{kind}:node-{i:04}", "user": f"system:node:node-{i:04}", "groups": ["x"]}
        for i in range(1000)
        for kind in ("kubelet", "kube-proxy")
    ]
    hosts = Hosts(tmp_path, keys)
    answer = hosts.m1.seal(hosts.wishes("m2"), [*IDENTITIES, *many], create=True)
    assert len(json.dumps(answer["sealed"])) < 400_000
    assert len(json.dumps(answer)) < 1_048_576


# --- mending -----------------------------------------------------------------------------------


def spoil_mode(path: Path) -> None:
    path.chmod(0o644 if stat.S_IMODE(path.stat().st_mode) == 0o600 else 0o600)


def spoil_link(path: Path) -> None:
    target = path.with_name("elsewhere")
    path.rename(target)
    path.symlink_to(target)


@pytest.mark.parametrize("spoil", [Path.unlink, spoil_mode, spoil_link, lambda p: p.write_text("")])
@pytest.mark.parametrize(
    "name", ["tokens.csv", "pki/sa.key", "pki/sa.pub", "encryption.yaml", "tokens/admin"]
)
def test_a_master_mends_what_follows_from_the_set(made, name, spoil):
    path = made.path("m1", name)
    before, mode = path.read_bytes(), path.stat().st_mode
    spoil(path)
    problems = made.m1.state()["problems"]
    assert len(problems) == 1 and problems[0].startswith(f"{path}: ")
    assert list(made.m1.mend()) == [str(path)]
    assert path.read_bytes() == before and path.lstat().st_mode == mode
    assert made.m1.mend() == {} and made.m1.state()["problems"] == []


def test_a_node_mends_modes_and_misses_contents(made):
    made.n1.unseal(made.m1.seal(made.wishes("n1"))["sealed"])
    path = made.path("n1", "tokens/kubelet")
    path.chmod(0o640)
    assert made.n1.mend() == {str(path): "mode 0640, expected 0600"}
    path.write_text("half a tok")
    assert made.n1.inspect()["lost"] == {str(path): "does not hold one token"}
    assert made.n1.mend() == {}
    assert made.n1.state()["tokens"]["kubelet:n1"] is None


def test_a_wrong_owner_is_seen_and_told(made, monkeypatch):
    other = next(entry for entry in pwd.getpwall() if entry.pw_uid != os.geteuid())
    view = made.m1.__pillar__["indigo"]
    view["tokens"][0]["user"] = other.pw_name
    problems = made.m1.state()["problems"]
    assert f"owner {ME}, expected {other.pw_name}" in problems[0]
    assert f"expected {grp.getgrgid(other.pw_gid).gr_name}" in problems[0]


def test_root_holds_a_file_until_its_reader_has_an_account(made, monkeypatch):
    view = made.m1.__pillar__["indigo"]
    view["tokens"][0]["user"] = "nobody-of-that-name"
    assert made.m1.state()["problems"] == []
    assert made.m1.mend() == {}
    # The account appears: the file is no longer as it should be, and is handed over.
    real = made.m1.pwd.getpwnam
    account = real("nobody")
    monkeypatch.setattr(
        made.m1.pwd, "getpwnam", lambda user: account if user.startswith("nobody-") else real(user)
    )
    assert "expected nobody" in made.m1.state()["problems"][0]


def test_a_host_that_is_not_declared_says_so(hosts):
    hosts.n1.__pillar__.clear()
    with pytest.raises(CommandExecutionError, match="pillar indigo: n1 has none"):
        hosts.n1.state()


def test_removal_takes_the_secrets_and_nothing_else(made):
    made.path("m1", "pki/ca.crt").write_text("public")
    made.path("m1", ".tokens.csv.indigo-new").write_text("left by a kill")
    paths = made.m1.remove(test=True)
    assert made.path("m1", "tokens.set").exists()
    assert made.m1.remove() == paths
    assert list(everything(made.path("m1"))) == ["pki/ca.crt"]
    assert made.m1.remove() == []


# --- killed at any moment ----------------------------------------------------------------------

CALLS = ("open", "rename", "fsync", "fchown", "fchmod", "unlink", "makedirs")


def dying(call: Any, counter: Any, number: int) -> Any:
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if next(counter) == number:
            os._exit(9)
        return call(*args, **kwargs)

    return wrapped


def killed_at(number: int, action: Any) -> bool:
    """Run an action in a child that dies at its n-th call to the system; False if it ended."""
    child = os.fork()
    if child == 0:
        counter = itertools.count(1)
        for name in CALLS:
            setattr(os, name, dying(getattr(os, name), counter, number))
        try:
            action()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


def consistent(hosts: Hosts, id_: str) -> str:
    """Fingerprint of a host's set after it put itself right; its files must then be whole."""
    hosts.modules[id_].mend()
    state = hosts.modules[id_].state()
    assert not state["damaged"] and not state["problems"]
    assert not list(hosts.path(id_).rglob("*.indigo-new*"))
    return state["set"]["fingerprint"]


def test_making_the_set_survives_a_kill_at_every_step(quick, tmp_path, keys):
    for number in itertools.count(1):
        hosts = Hosts(tmp_path / str(number), keys)
        if not killed_at(number, lambda h=hosts: h.m1.ensure(IDENTITIES, create=True)):
            break
        made = hosts.path("m1", "tokens.set").exists()
        if made:
            known = consistent(hosts, "m1")
        else:
            assert hosts.m1.state()["set"] is None and not hosts.m1.state()["damaged"]
        hosts.m1.ensure(IDENTITIES, create=True)
        if made:
            assert hosts.m1.state()["set"]["fingerprint"] == known
        assert not hosts.m1.state()["problems"]
    assert number > 20


def test_extending_and_receiving_survive_a_kill_at_every_step(made, tmp_path):
    new = {"name": "x", "user": "x", "groups": []}
    made.m2.unseal(made.m1.seal(made.wishes("m2"))["sealed"])
    old = made.document("m1")
    for number in itertools.count(1):
        generation = made.document("m1")["generation"]
        wanted = [*IDENTITIES, new] if "x" not in made.document("m1")["tokens"] else IDENTITIES
        if not killed_at(number, lambda w=wanted: made.m1.ensure(w)):
            break
        consistent(made, "m1")
        assert made.document("m1")["generation"] in (generation, generation + 1)
        made.m1.ensure(wanted)
        sealed = made.m1.seal(made.wishes("m2"))["sealed"]
        killed_at(number, lambda s=sealed: made.m2.unseal(s))
        assert consistent(made, "m2")
        made.m2.unseal(sealed)
        assert made.m2.state()["set"] == made.m1.state()["set"]
        assert not made.m2.state()["problems"]
    assert number > 10
    after = made.document("m1")
    assert after["service_account_key"] == old["service_account_key"]
    assert after["encryption"] == old["encryption"]
    assert after["tokens"]["admin"] == old["tokens"]["admin"]


def test_a_node_killed_while_it_receives_gets_it_on_the_next_run(made):
    sealed = made.m1.seal(made.wishes("n1"))["sealed"]
    for number in itertools.count(1):
        for path in (made.path("n1", "tokens/kubelet"), made.path("n1", "tokens/kube-proxy")):
            path.unlink(missing_ok=True)
        if not killed_at(number, lambda: made.n1.unseal(sealed)):
            break
        for path in made.path("n1", "tokens").glob("[!.]*"):  # whole or not there
            assert len(path.read_text()) == 65
        made.n1.unseal(sealed)
        assert made.n1.state()["problems"] == []
        assert not list(made.path("n1").rglob("*.indigo-new"))
    assert number > 10


def test_two_writers_wait_for_each_other(made):
    """Many at once leave one set, whole."""
    children = []
    for number in range(6):
        child = os.fork()
        if child == 0:
            try:
                made.m1.ensure([*IDENTITIES, {"name": f"x{number}", "user": "x", "groups": []}])
                os._exit(0)
            finally:
                os._exit(1)
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    assert codes == [0] * 6
    # The first only adds, each later one adds its own and drops the one before: all were counted.
    assert made.document("m1")["generation"] == 7
    assert made.m1.state()["problems"] == []
