"""The add-on ``openstack``: what it is given, the file with its password, the Secret, its check."""

from __future__ import annotations

import base64
import configparser
import hashlib
import json
import re
import stat
from pathlib import Path
from typing import Any

import jinja2
import pytest
import yaml
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from indigo_model import addons, images, openstack, validate, versions
from indigo_model.cluster import Cluster, Host, Vip
from salt.exceptions import CommandExecutionError
from support import ROOT, load

module = load("_modules", "indigo_cloud")
seal = load("_modules", "indigo_seal")
state = load("_states", "indigo_cloud")
checks = load("_modules", "indigo_addon")
report = load("_modules", "indigo_report")

URL = {"auth_url": "https://keystone.example.org:5000/v3", "region": "RegionOne"}
USER = URL | {"user": "indigo", "project": "5a1b"}
WORD = "p\"a\\ss ;#'=[x]"


def wanted(kubernetes: str = "1.33.1", **more: Any) -> dict[str, Any]:
    hosts = {
        "m": Host("m", "10.0.0.3", ("lb", "etcd", "master")),
        **{f"n{i}": Host(f"n{i}", f"10.0.1.{i}", ("node",)) for i in (1, 2)},
    }
    found = Cluster(
        "prod",
        hosts,
        Vip("10.0.0.9", "eth0"),
        "10.96.0.0/16",
        "10.244.0.0/16",
        versions=versions.resolve({"kubernetes": kubernetes}),
        addons={"openstack": USER | more},
    )
    return addons.wanted(found)["openstack"]


def objects(**more: Any) -> dict[tuple[str, str], dict[str, Any]]:
    """The manifests by kind and name."""
    folder = jinja2.FileSystemLoader(ROOT / "salt" / "addons")
    environment = jinja2.Environment(loader=folder, undefined=jinja2.StrictUndefined)
    text = environment.get_template("openstack/manifests.yaml.jinja").render(addon=wanted(**more))
    return {(one["kind"], one["metadata"]["name"]): one for one in yaml.safe_load_all(text)}


# --- the model -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"subnet": "1"}, "subnet: found it without cloud_controller: true; .* delete it, or set"),
        ({"project": None}, "project: found nothing; expected an id"),
        ({"application_credential": "77"}, "openstack: found both user and application_credential"),
        ({"ca": "salt://ca.pem"}, "ca_sha256: found no such key, and ca; expected both"),
        ({"ca_sha256": "0" * 64}, "ca: found no such key, and ca_sha256; expected both"),
        ({"ca": "https://x/ca.pem", "ca_sha256": "0" * 64}, "ca: found .*; expected a file of the"),
        ({"ca": "salt://ca.pem", "ca_sha256": "00"}, "ca_sha256: found .*64 hexadecimal digits"),
        ({"auth_url": "keystone"}, "auth_url: found 'keystone'; expected a URL"),
        ({"region": "a\nb"}, "region: found .*; expected a text of one line"),
        ({"cloud_controller": True}, "subnet: found no such key, and cloud_controller: true"),
        ({"password": WORD}, "password: found an unknown key; expected one of auth_url"),
    ],
)
def test_a_mistake_is_told_by_its_key(more, expected):
    document = yaml.safe_load(validate.EXAMPLE) | {
        "versions": {"kubernetes": "1.33.1"},
        "addons": {"openstack": USER | more},
    }
    (problem,) = validate.problems(document)
    assert problem.startswith("addons.openstack")
    assert WORD not in problem
    assert re.search(expected, problem), problem


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (URL, "nobody who signs in; expected user, with project, or application_credential"),
        (URL | {"user": "u"}, "project: found no such key; expected it beside user"),
        (URL | {"application_credential": "7", "project": "p"}, "delete it"),
        ({"user": "u", "project": "p", "region": "r"}, "auth_url: found no such key"),
        ({"user": "u", "project": "p", "auth_url": URL["auth_url"]}, "region: found no such key"),
    ],
)
def test_who_signs_in_is_said_once_and_whole(given, expected):
    document = yaml.safe_load(validate.EXAMPLE) | {"addons": {"openstack": given}}
    (problem,) = validate.problems(document)
    assert expected in problem


@pytest.mark.parametrize(
    ("kubernetes", "own", "good"),
    [
        ("1.23.0", False, False),
        ("1.24.0", False, True),
        ("1.34.2", False, True),
        ("1.36.2", False, False),
        ("1.36.2", True, True),
    ],
)
def test_a_cloud_controller_is_never_newer_than_the_api_nor_two_minors_older(kubernetes, own, good):
    settings = USER | {"cloud_controller": True, "subnet": "1"}
    document = yaml.safe_load(validate.EXAMPLE) | {
        "versions": {"kubernetes": kubernetes},
        "addons": {"openstack": settings},
        "images": {"use": {openstack.CONTROLLER: "my/controller:1.36"} if own else {}},
    }
    document["versions"] |= {"containerd": "1.7.29"} if kubernetes < "1.25" else {}
    found = validate.problems(document)
    assert bool(found) is not good, found
    if found:
        assert f"images.use.{openstack.CONTROLLER}" in found[0]
    pinned = images.pinned(openstack.CONTROLLER, kubernetes)
    if good and not own:
        assert 0 <= versions.minor(kubernetes) - int(pinned.tag.split(".")[1]) <= 1


def test_the_pillar_has_all_but_the_password():
    (way,) = wanted(ca="salt://ca.pem", ca_sha256="0" * 64)["clouds"]
    assert way["sections"]["Global"] == {
        "auth-url": URL["auth_url"],
        "region": "RegionOne",
        "username": "indigo",
        "user-domain-name": "Default",
        "tenant-id": "5a1b",
        "ca-file": "/etc/openstack/ca.pem",
    }
    assert (way["option"], way["file"]) == ("password", module.FILE)
    assert way["file"] in report.SECRETS
    assert "LoadBalancer" not in way["sections"]
    given = {**openstack.DEFAULTS, **URL, "application_credential": "77"}
    way = openstack.cloud(given)
    assert way["option"] == "application-credential-secret"
    assert set(way["sections"]["Global"]) == {"auth-url", "region", "application-credential-id"}


def test_load_balancers_are_told_where_they_are():
    more = {"cloud_controller": True, "subnet": "11", "floating_network": "33"}
    (way,) = wanted(**more)["clouds"]
    expected = {"subnet-id": "11", "floating-network-id": "33", "create-monitor": "true"}
    assert way["sections"]["LoadBalancer"] == expected
    del more["floating_network"]
    (inside,) = wanted(**more)["clouds"]
    expected = {"subnet-id": "11", "internal-lb": "true", "create-monitor": "true"}
    assert inside["sections"]["LoadBalancer"] == expected
    assert wanted(**more)["digest"] != wanted()["digest"]


# --- the manifests -------------------------------------------------------------------------------


def test_nodes_have_the_password_only_where_the_driver_needs_it_there():
    new = objects(kubernetes="1.25.0")["DaemonSet", "cinder-node"]["spec"]["template"]["spec"]
    assert not [one for one in new["volumes"] if "secret" in one]
    assert "--provide-controller-service=false" in new["containers"][0]["args"]
    old = objects(kubernetes="1.24.0")["DaemonSet", "cinder-node"]["spec"]["template"]["spec"]
    assert [one["secret"]["secretName"] for one in old["volumes"] if "secret" in one] == ["cloud"]
    assert "--provide-controller-service=false" not in old["containers"][0]["args"]
    for one in (new, old):
        assert one["automountServiceAccountToken"] is False


def test_what_is_said_of_disks_reaches_the_part_that_reads_it():
    def told(kubernetes: str) -> list[configparser.RawConfigParser]:
        more = {"zone": "disks", "any_zone": True, "volumes_per_node": 25}
        found = objects(kubernetes=kubernetes, **more)
        (way,) = wanted(kubernetes=kubernetes, **more)["clouds"]
        texts = [module.text(way["sections"])]
        if ("ConfigMap", "node") in found:
            texts.append(found["ConfigMap", "node"]["data"]["cloud.conf"])
        read = []
        for text in texts:
            read.append(configparser.RawConfigParser())
            read[-1].read_string(text)
        return read

    (old,) = told("1.24.0")
    new, node = told("1.25.0")
    for one in (old, new):
        expected = {"ignore-volume-az": '"true"', "node-volume-attach-limit": '"25"'}
        assert dict(one["BlockStorage"]) == expected
    assert dict(node["BlockStorage"]) == {"node-volume-attach-limit": '"25"'}
    assert set(node.sections()) == {"BlockStorage", "Metadata"}
    assert "BlockStorage" not in wanted()["clouds"][0]["sections"]


def test_where_disks_are_checked_no_memory_is_short():
    pod = objects()["DaemonSet", "cinder-node"]["spec"]["template"]["spec"]
    assert "limits" not in pod["containers"][0]["resources"]


def test_any_zone_needs_the_zone_of_the_disks():
    document = yaml.safe_load(validate.EXAMPLE) | {
        "addons": {"openstack": USER | {"any_zone": True}}
    }
    (problem,) = validate.problems(document)
    assert "any_zone: found true without zone" in problem
    document["addons"]["openstack"]["zone"] = "disks"
    assert validate.problems(document) == []


def test_a_cloud_controller_comes_when_wanted_and_may_touch_no_node():
    assert ("Deployment", "cloud-controller") not in objects()
    more = {"cloud_controller": True, "subnet": "11"}
    for kubernetes in ("1.27.0", "1.28.0"):
        found = objects(kubernetes=kubernetes, **more)
        pod = found["Deployment", "cloud-controller"]["spec"]["template"]["spec"]
        assert "--controllers=service" in pod["containers"][0]["args"]
        for rule in found["ClusterRole", "indigo:cloud-controller"]["rules"]:
            if "nodes" in rule["resources"]:
                assert set(rule["verbs"]) == {"get", "list", "watch"}


def test_snapshots_come_when_wanted():
    plain, found = objects(), objects(snapshots=True, keep=True)
    assert set(found) - set(plain) == {("VolumeSnapshotClass", "cinder")}
    assert found["VolumeSnapshotClass", "cinder"]["deletionPolicy"] == "Retain"
    names = [
        {one["name"] for one in all_["Deployment", "cinder-controller"]["spec"]["template"]["spec"]
         ["containers"]}
        for all_ in (plain, found)
    ]  # fmt: skip
    assert names[1] - names[0] == {"csi-snapshotter"}
    rules = plain["ClusterRole", "indigo:cinder-controller"]["rules"]
    assert not [rule for rule in rules if "snapshot.storage.k8s.io" in rule["apiGroups"]]


def test_the_class_is_as_the_site_wants_it():
    found = objects(type="ssd", zone="az1", default_class=True)["StorageClass", "cinder"]
    assert found["parameters"] == {"type": "ssd", "availability": "az1"}
    key = "storageclass.kubernetes.io/is-default-class"
    assert found["metadata"]["annotations"] == {key: "true"}
    plain = objects()["StorageClass", "cinder"]
    assert plain["metadata"]["annotations"] == {key: "false"}
    # The API keeps none for an empty one, and then refuses the empty one as a change.
    assert "parameters" not in plain and plain["reclaimPolicy"] == "Delete"


# --- the password --------------------------------------------------------------------------------


@pytest.mark.parametrize("word", ["plain", WORD, '"', "\\", '\\"', "a\\nb", "ü€"])
def test_any_password_is_read_as_it_was_written(word):
    text = module.text({"Global": {"password": word, "region": "r"}, "Metadata": {}})
    assert module.value_of("password", text) == word
    assert text.count("\n") == 4
    assert module.value_of("secret", text) is None


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "openstack.secret"
    path.write_text(f"{WORD}\n")
    path.chmod(0o600)
    return path


def test_a_password_is_one_line_of_a_file_that_only_root_can_read(file):
    assert module.password(str(file)) == WORD
    assert module.password(str(file) + ".not-there") is None
    for mode in (0o640, 0o604, 0o620):
        file.chmod(mode)
        with pytest.raises(CommandExecutionError, match=f"found mode {mode:04o}") as told:
            module.password(str(file))
        assert WORD not in str(told.value)
    file.chmod(0o600)
    for text in ("", "\n", f"{WORD}\n{WORD}\n"):
        file.write_text(text)
        with pytest.raises(CommandExecutionError, match="lines; expected one") as told:
            module.password(str(file))
        assert WORD not in str(told.value)
    link = file.with_name("link")
    link.symlink_to(file)
    with pytest.raises(CommandExecutionError, match="found no plain file"):
        module.password(str(link))


# --- the Secret ----------------------------------------------------------------------------------

PEM = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"


class Api:
    """An API with at most one Secret; notes what is written."""

    def __init__(self) -> None:
        self.live: dict[str, Any] | None = None
        self.asked: list[tuple[str, str]] = []
        self.namespaces: list[str] = []

    def request(self, method, path, body=None, content="application/json", server=None):
        del content, server
        if method == "GET":
            found = self.live
            return {"status": 200 if found else 404, "body": found or {}}
        self.asked.append((method, path))
        if body["kind"] == "Namespace":
            self.namespaces.append(body["metadata"]["name"])
            return {"status": 409 if self.namespaces.count("openstack") > 1 else 201, "body": {}}
        self.live = body
        return {"status": 201 if method == "POST" else 200, "body": body}


@pytest.fixture
def api(monkeypatch, tmp_path):
    found = Api()
    (tmp_path / "ca.pem").write_bytes(PEM)

    def cached(source):
        path = tmp_path / source.removeprefix("salt://")
        return str(path) if path.exists() else False

    functions = {
        "indigo_kube.request": found.request,
        "cp.cache_file": cached,
        "indigo_cloud.difference": module.difference,
        "indigo_cloud.bring": module.bring,
        "indigo_seal.unseal": seal.unseal,
    }
    view = {"components": {"kube-apiserver": {"url": "https://x"}}}
    monkeypatch.setattr(module, "__salt__", functions, raising=False)
    monkeypatch.setattr(module, "__pillar__", {"indigo": view}, raising=False)
    monkeypatch.setattr(state, "__salt__", functions, raising=False)
    return found


def way(file: Path, **more: Any) -> dict[str, Any]:
    (found,) = wanted(**more)["clouds"]
    return found | {"file": str(file)}


def run(monkeypatch, cloud, test=False):
    monkeypatch.setattr(state, "__opts__", {"test": test}, raising=False)
    ret = state.secret("openstack/cloud", cloud)
    assert WORD not in json.dumps(ret) and module.quoted(WORD) not in json.dumps(ret)
    return ret


def conf(api: Api) -> str:
    assert api.live is not None
    return base64.b64decode(api.live["data"]["cloud.conf"]).decode()


def test_the_secret_is_made_told_without_its_content_and_then_left_alone(api, file, monkeypatch):
    authority = {"ca": "salt://ca.pem", "ca_sha256": hashlib.sha256(PEM).hexdigest()}
    cloud = way(file, **authority)
    ret = run(monkeypatch, cloud, test=True)
    assert (ret["result"], ret["changes"]) == (None, {"Secret openstack/cloud": "created"})
    assert api.asked == []
    ret = run(monkeypatch, cloud)
    assert (ret["result"], ret["changes"]) == (True, {"Secret openstack/cloud": "created"})
    assert module.value_of("password", conf(api)) == WORD
    assert base64.b64decode(api.live["data"]["ca.pem"]) == PEM
    assert run(monkeypatch, cloud)["changes"] == {}
    # Without an authority any more the Secret has none.
    assert run(monkeypatch, way(file))["changes"] == {"Secret openstack/cloud": "updated"}
    assert set(api.live["data"]) == {"cloud.conf"}
    assert [method for method, _ in api.asked] == ["POST", "POST", "PUT"]
    assert api.namespaces == ["openstack"]
    # A namespace that the add-on has made already is as good.
    api.live = None
    assert run(monkeypatch, cloud)["changes"] == {"Secret openstack/cloud": "created"}


def test_a_new_password_is_brought_and_a_lost_file_keeps_the_old_one(api, file, monkeypatch):
    run(monkeypatch, way(file))
    file.write_text("another\n")
    assert run(monkeypatch, way(file))["changes"] == {"Secret openstack/cloud": "updated"}
    file.unlink()
    assert run(monkeypatch, way(file))["changes"] == {}
    assert run(monkeypatch, way(file, region="Two"))["changes"] != {}
    assert module.value_of("password", conf(api)) == "another"
    assert module.value_of("region", conf(api)) == "Two"


def test_without_a_password_anywhere_the_file_is_named(api, file, monkeypatch):
    file.unlink()
    ret = run(monkeypatch, way(file))
    assert ret["result"] is False and api.asked == []
    assert (
        f"{file}: found no such file; expected the password of addons.openstack" in ret["comment"]
    )
    assert run(monkeypatch, way(file), test=True)["result"] is None


@pytest.mark.parametrize(
    ("content", "digest", "expected"),
    [
        (None, None, "addons.openstack.ca: found nothing at salt://ca.pem"),
        (b"other", hashlib.sha256(PEM).hexdigest(), "addons.openstack.ca_sha256: found "),
        (b"text", hashlib.sha256(b"text").hexdigest(), "addons.openstack.ca: found no certificate"),
    ],
)
def test_another_authority_is_never_trusted(
    api, file, monkeypatch, tmp_path, content, digest, expected
):
    (tmp_path / "ca.pem").unlink()
    if content is not None:
        (tmp_path / "ca.pem").write_bytes(content)
    ret = run(monkeypatch, way(file, ca="salt://ca.pem", ca_sha256=digest or "0" * 64))
    assert ret["result"] is False and ret["comment"].startswith(expected)
    assert api.asked == []


# --- a password that comes from the Salt master --------------------------------------------------


@pytest.fixture
def minion(api, monkeypatch, tmp_path):
    """A minion with a key; its public key."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    (tmp_path / "minion.pem").write_bytes(pem)
    monkeypatch.setattr(module, "FILE", str(tmp_path / "folder" / "openstack.secret"))
    options = {"id": "m", "pki_dir": str(tmp_path)}
    monkeypatch.setattr(module, "__opts__", options, raising=False)
    public = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return public.decode()


def sealed(public: str, word: str = WORD, **header: str) -> dict[str, Any]:
    found = {"recipient": "m", "file": module.FILE} | header
    return seal.seal(found, word, public, "m", "do")


def test_a_sealed_password_is_kept_for_root_alone(minion):
    envelope = sealed(minion)
    assert WORD not in json.dumps(envelope)
    assert module.keep(envelope) == {"changed": True}
    path = Path(module.FILE)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert module.password(module.FILE) == WORD
    assert module.keep(sealed(minion)) == {"changed": False}
    path.chmod(0o644)
    assert module.keep(sealed(minion, "new")) == {"changed": True}
    assert module.password(module.FILE) == "new"
    assert list(path.parent.iterdir()) == [path]


def test_a_password_for_another_host_or_place_is_refused(minion):
    for header in ({"recipient": "other"}, {"file": "/etc/shadow"}):
        with pytest.raises(CommandExecutionError, match="a sealed password: found"):
            module.keep(sealed(minion, **header))
    envelope = sealed(minion, recipient="other")
    envelope["header"]["recipient"] = "m"
    with pytest.raises(CommandExecutionError, match="does not open"):
        module.keep(envelope)
    assert not Path(module.FILE).exists()


def test_the_model_and_the_host_mean_the_same_file():
    assert module.FILE == openstack.SECRET_FILE
    absent = (ROOT / "salt/master/absent.sls").read_text()
    assert f"'{Path(openstack.SECRET_FILE).name}'" in absent


# --- the check -----------------------------------------------------------------------------------


def test_a_node_without_the_driver_is_named(monkeypatch):
    items = [
        {"metadata": {"name": "n1"}, "spec": {"drivers": [{"name": openstack.DRIVER}]}},
        {"metadata": {"name": "n2"}, "spec": {"drivers": None}},
    ]
    view = {"components": {"kube-apiserver": {"url": "https://x"}}}
    monkeypatch.setattr(checks, "__pillar__", {"indigo": view}, raising=False)
    functions = {"indigo_kube.get": lambda path, server: {"items": items}}
    monkeypatch.setattr(checks, "__salt__", functions, raising=False)
    told = checks._CHECKS["openstack"](wanted())
    assert told == f"{openstack.DRIVER} is not registered on n2"
    items[1]["spec"]["drivers"] = [{"name": "other"}, {"name": openstack.DRIVER}]
    assert checks._CHECKS["openstack"](wanted()) == ""
