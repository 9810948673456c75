"""Add-ons: their pins, what is compared, what is taken away, and the check of their own use."""

from __future__ import annotations

import io
import json
import re
import socket
import struct
import tarfile
import threading
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import jinja2
import pytest
import yaml
from indigo_model import addons, images, versions
from indigo_model.cluster import Cluster, Host, Vip
from salt.exceptions import CommandExecutionError
from support import ROOT, load

module = load("_modules", "indigo_addon")
state = load("_states", "indigo_addon")
cluster_states = load("_states", "indigo_cluster")


def cluster(kubernetes: str = "1.36.2", nodes: int = 3, masters: int = 2, **wanted: Any) -> Cluster:
    hosts = {
        **{f"m{i}": Host(f"m{i}", f"10.0.0.{i + 1}", ("master",)) for i in range(masters)},
        **{f"n{i}": Host(f"n{i}", f"10.0.1.{i + 1}", ("node",)) for i in range(nodes)},
    }
    resolved = versions.resolve({"kubernetes": kubernetes})
    networks = ("10.96.0.0/16", "10.244.0.0/16")
    vip = Vip("10.0.0.9", "eth0")
    return Cluster("x", hosts, vip, *networks, versions=resolved, addons=wanted)


# --- the model -----------------------------------------------------------------------------------


def test_only_the_first_master_brings_them_also_when_none_is_wanted():
    declared = cluster(coredns={})
    found = {id_: addons.view(declared, host) for id_, host in declared.hosts.items()}
    assert set(found["m0"]["addons"]["wanted"]) == {"coredns"}
    assert not any(view for id_, view in found.items() if id_ != "m0")
    none = cluster()
    nothing = {"cluster": "x", "wanted": {}, "services": {}}
    assert addons.view(none, none.hosts["m0"]) == {"addons": nothing}


@pytest.mark.parametrize("minor", range(versions.FIRST_MINOR, versions.LAST_MINOR + 1))
@pytest.mark.parametrize("name", images.NAMES)
def test_every_image_is_pinned_by_version_and_digest(name, minor):
    pinned = images.pinned(name, f"1.{minor}.0")
    # Zabbix names the base of its images before the version, SSM its build behind it. What has no
    # digest is refused until the site names one: test_infrastructures.py, test_accounting.py.
    digest = "" if name in ("im", "kapel", "ssm") else "@sha256:[0-9a-f]{64}"
    assert re.fullmatch(rf"[a-z0-9./-]+:(alpine-)?v?\d+(\.\d+)+(-1)?{digest}", pinned.reference)
    assert pinned.licence and pinned.addon in addons.ADDONS


def test_every_addon_takes_its_images_from_the_table():
    for name, settings in addons.wanted(cluster(**{name: {} for name in addons.ADDONS})).items():
        assert settings["images"]
        text = (ROOT / "salt" / "addons" / name / "manifests.yaml.jinja").read_text()
        named = re.findall(r"^ +image: (.*)$", text, re.MULTILINE)
        assert len(set(named)) == len(settings["images"])
        assert all(one.startswith("{{ addon.images") for one in named)


def test_the_page_has_the_table_of_images():
    page = (ROOT / "docs/operations/addons.md").read_text(encoding="utf-8")
    assert images.table() in page, f"its table must be:\n{images.table()}"


def test_a_site_has_its_own_images_and_loads_those_of_wanted_addons_alone():
    names = ["my/web:1", "my/prometheus:1", images.pinned("coredns", "1.36.2").reference]
    archives = [{"name": name, "source": f"http://x/{n}.tar"} for n, name in enumerate(names)]
    own = {"use": {"prometheus": "my/prometheus:1"}, "archives": archives}

    def loaded(**wanted):
        return [one["name"] for one in images.loaded(with_images(**wanted), archives)]

    def with_images(**wanted):
        return replace(cluster(**wanted), images=own)

    assert loaded() == names[:1]
    assert loaded(prometheus={}) == names[:2]
    assert loaded(coredns={}) == [names[0], names[2]]
    found = {one["name"]: one for one in images.needed(with_images(prometheus={}))}
    assert set(found) == {"prometheus", "node-exporter"}
    assert found["prometheus"]["reference"] == "my/prometheus:1"
    assert (found["prometheus"]["archive"], found["prometheus"]["licence"]) == (
        "http://x/1.tar",
        None,
    )
    assert (found["node-exporter"]["archive"], found["node-exporter"]["licence"]) == (
        None,
        "Apache-2.0",
    )


@pytest.mark.parametrize(
    ("nodes", "given", "replicas"),
    [(0, {}, 1), (1, {}, 1), (2, {}, 2), (32, {}, 2), (33, {}, 3), (3, {"replicas": 5}, 5)],
)
def test_replicas_follow_the_nodes(nodes, given, replicas):
    found = addons.wanted(cluster(nodes=nodes, coredns=given))
    assert found["coredns"]["replicas"] == replicas


@pytest.mark.parametrize(
    ("kubernetes", "policy"), [("1.20.2", "policy/v1beta1"), ("1.21.0", "policy/v1")]
)
def test_the_disruption_budget_has_the_api_that_the_release_serves(kubernetes, policy):
    assert addons.wanted(cluster(kubernetes, coredns={}))["coredns"]["policy"] == policy


def test_every_addon_has_its_manifests_and_a_check():
    for name in addons.ADDONS:
        assert (ROOT / "salt" / "addons" / name / "manifests.yaml.jinja").is_file()
        assert name in module._CHECKS


# --- what is there, and what would change --------------------------------------------------------

MANIFESTS = """
apiVersion: v1
kind: Service
metadata: {name: a, namespace: n}
---
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: b, namespace: n}
"""
SERVICE, DEPLOYMENT = ("", "Service", "n", "a"), ("apps", "Deployment", "n", "b")
OLD = ("", "ConfigMap", "n", "old")


def folders(files: dict[str, tuple[str | None, str | None]]) -> bytes:
    """A tar of two folders as kubectl compares them: name to what is live and what is merged."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, sides in files.items():
            for folder, text in zip(("tmp/LIVE-1", "tmp/MERGED-2"), sides, strict=True):
                if text is not None:
                    info = tarfile.TarInfo(f"{folder}/{name}")
                    info.size = len(text)
                    archive.addfile(info, io.BytesIO(text.encode()))
    return out.getvalue()


def test_what_differs_is_found_and_who_manages_a_field_does_not_count():
    same = "metadata: {name: x}\nspec: {a: 1}"
    managed = "metadata: {name: x, managedFields: [{manager: y}]}\nspec: {a: 1}"
    files = {"same": (same, managed), "other": (same, "spec: {a: 2}"), "new": (None, same)}
    assert module.differing(folders(files)) == {"other", "new"}


class Kubectl:
    """Notes each call of kubectl; `diff` says what it is told to."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.differs: list[str] = []

    def __call__(self, *words: str, stdin: str | None = None) -> bytes:
        self.calls.append((words[0], stdin if words[0] == "apply" else words[-2:]))
        return folders(dict.fromkeys(self.differs, ("spec: {a: 1}", "spec: {a: 2}")))

    @property
    def verbs(self) -> list[str]:
        return [call[0] for call in self.calls]


@pytest.fixture
def kubectl(monkeypatch):
    found = Kubectl()
    monkeypatch.setattr(module, "_kubectl", found)
    return found


@pytest.fixture
def manifests(tmp_path: Path) -> str:
    path = tmp_path / "x.yaml"
    path.write_text(MANIFESTS)
    return str(path)


def test_what_is_as_declared_is_compared_once_and_left_alone(kubectl, manifests):
    assert module.pending(manifests, [list(SERVICE), list(DEPLOYMENT)]) == {}
    assert kubectl.verbs == ["diff"]


def test_what_differs_is_told_by_its_name(kubectl, manifests):
    kubectl.differs = ["apps.v1.Deployment.n.b"]
    found = module.pending(manifests, [SERVICE, DEPLOYMENT])
    assert found == {"Deployment n/b": "updated"}


def test_what_is_new_or_no_longer_declared_needs_no_comparison(kubectl, manifests):
    found = module.pending(manifests, [SERVICE, OLD])
    assert found == {"Deployment n/b": "created", "ConfigMap n/old": "removed"}
    assert module.pending(manifests, None) == {
        "Service n/a": "created",
        "Deployment n/b": "created",
    }
    assert kubectl.calls == []


def test_nothing_is_ever_there_that_the_inventory_does_not_name(kubectl, manifests):
    module.apply("x", manifests, [SERVICE, OLD])
    verbs = kubectl.verbs
    assert verbs == ["apply", "apply", "delete", "apply"]

    def listed(text):
        return {tuple(one) for one in json.loads(json.loads(text)["data"]["objects"])}

    assert listed(kubectl.calls[0][1]) == {SERVICE, DEPLOYMENT, OLD}
    assert kubectl.calls[1][1] == MANIFESTS
    assert kubectl.calls[2][1] == ("ConfigMap", "old")
    assert listed(kubectl.calls[3][1]) == {SERVICE, DEPLOYMENT}


def test_what_the_aggregator_keeps_is_applied_by_the_client(kubectl, tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text(
        MANIFESTS + "---\napiVersion: apiregistration.k8s.io/v1\nkind: APIService\n"
        "metadata: {name: v1.x}\n"
    )
    (_, first), (options, second) = module._ways(str(path))
    assert "APIService" not in first and options == ()
    assert yaml.safe_load(second)["metadata"] == {"name": "v1.x"}
    known = [SERVICE, DEPLOYMENT, ("apiregistration.k8s.io", "APIService", "", "v1.x")]
    assert module.pending(str(path), known) == {}
    assert kubectl.verbs == ["diff", "diff"]


def test_an_addon_goes_before_its_inventory(kubectl):
    assert module.remove({"x": [list(DEPLOYMENT)]}) == {}
    assert [call[1] for call in kubectl.calls] == [
        ("Deployment.apps", "b"),
        ("ConfigMap", "indigo-addon-x"),
    ]


@pytest.mark.parametrize(
    ("said", "tries", "passes"),
    [
        ("Error from server: rpc error: code = Unavailable desc = transport is closing", 2, True),
        (
            "rpc error: desc = OK: HTTP status code 200; transport: missing content-type field",
            2,
            True,
        ),
        ("Error from server: etcdserver: leader changed", 9, False),
        ("error: namespaces is forbidden", 1, False),
    ],
)
def test_what_was_lost_while_etcd_restarted_is_asked_again(
    monkeypatch, tmp_path, said, tries, passes
):
    count, kubectl = tmp_path / "count", tmp_path / "kubectl"
    kubectl.write_text(
        f"#!/bin/sh\necho >> {count}\n"
        + (f"[ $(wc -l < {count}) -lt {tries} ] || exec echo done\n" if passes else "")
        + f"echo '{said}' >&2\nexit 1\n"
    )
    kubectl.chmod(0o755)
    view = {
        "binaries": {"kubectl": str(kubectl)},
        "paths": {"kubernetes": "/x"},
        "components": {"kube-apiserver": {"url": ""}},
    }
    monkeypatch.setattr(module, "__pillar__", {"indigo": view}, raising=False)
    monkeypatch.setattr(module, "PAUSE", 0)
    if passes:
        assert module._kubectl("apply") == b"done\n"
    else:
        with pytest.raises(CommandExecutionError, match=said):
            module._kubectl("apply")
    assert len(count.read_text().splitlines()) == min(tries, module.TRIES)


@pytest.mark.parametrize(
    ("group", "status", "goes"),
    [("x.io", 404, True), ("x.io", 200, False), ("x.io", 503, False), ("", 404, False)],
)
def test_what_the_api_knows_nothing_of_is_gone_and_all_else_is_an_error(
    monkeypatch, group, status, goes
):
    deleted = []

    def refused(*words, stdin=None):
        if words[-2].startswith("Thing"):
            raise CommandExecutionError("the server doesn't have a resource type")
        deleted.append(words[-1])

    monkeypatch.setattr(module, "_kubectl", refused)
    monkeypatch.setattr(module, "_server", lambda: "https://x")
    functions = {"indigo_kube.request": lambda *_, **__: {"status": status}}
    monkeypatch.setattr(module, "__salt__", functions, raising=False)
    objects = [(group, "Thing", "", "t"), DEPLOYMENT]
    failed = module._delete({"x": objects, "y": [SERVICE]})
    if goes:
        assert (failed, deleted) == ({}, ["b", "a"])
    else:
        assert list(failed) == ["x"] and "resource type" in failed["x"]
        assert deleted[-1] == "a"  # another add-on goes all the same


def test_what_others_stand_on_goes_last(kubectl):
    module.remove({"x": [("", "Namespace", "", "n"), OLD, DEPLOYMENT]})
    assert [call[1][0] for call in kubectl.calls] == [
        "ConfigMap",
        "Deployment.apps",
        "Namespace",
        "ConfigMap",
    ]


def test_what_ends_slowly_ends_all_at_the_same_time(monkeypatch):
    told = []
    monkeypatch.setattr(
        module, "_kubectl", lambda *words, stdin=None: told.append((words[2], words[-1]))
    )
    gone = {name: [("", "Namespace", "", name), OLD] for name in ("x", "y")}
    assert module.remove(gone) == {}
    end, wait = "--wait=false", "--timeout=110s"
    assert told == [
        (wait, "old"), (wait, "old"),
        (end, "x"), (end, "y"), (wait, "x"), (wait, "y"),
        (wait, "indigo-addon-x"), (wait, "indigo-addon-y"),
    ]  # fmt: skip


def test_what_cannot_go_keeps_its_inventory_and_no_other_add_on(monkeypatch):
    deleted = []

    def stuck(*words, stdin=None):
        if words[-1] == "x":
            raise CommandExecutionError("timed out waiting for the condition")
        deleted.append(words[-1])

    monkeypatch.setattr(module, "_kubectl", stuck)
    gone = {name: [("", "Namespace", "", name)] for name in ("x", "y")}
    assert module.remove(gone) == {"x": "Namespace x: timed out waiting for the condition"}
    assert deleted == ["y", "y", "indigo-addon-y"]


@pytest.mark.parametrize("text", ["a: [", "- 1\n", "kind: Service\nmetadata: {}\n"])
def test_a_file_of_something_else_is_refused_by_name(tmp_path, text):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(CommandExecutionError, match=r"bad\.yaml"):
        module.read(str(path))


# --- the states ----------------------------------------------------------------------------------


@pytest.fixture
def run(monkeypatch):
    """Run a state over some functions of the module; which of them changed something."""

    def runner(function, *arguments, test=False, error=None, installed=None, pending=None, **more):
        done: list[str] = []
        stuck = more.pop("stuck", {})

        def inventories():
            if error:
                raise CommandExecutionError(error)
            return installed or {}

        functions = {
            "indigo_addon.installed": inventories,
            "indigo_addon.pending": lambda *_: pending or {},
            "indigo_addon.apply": lambda name, *_: done.append(f"apply {name}"),
            "indigo_addon.remove": lambda gone: done.append(f"remove {' '.join(gone)}") or stuck,
        }
        monkeypatch.setattr(state, "__salt__", functions, raising=False)
        monkeypatch.setattr(state, "__opts__", {"test": test}, raising=False)
        return function(*arguments, **more), done

    return runner


@pytest.mark.parametrize("test", [False, True])
def test_present_applies_only_what_is_pending(run, manifests, test):
    ret, done = run(state.present, "x", manifests, test=test, pending={"Service n/a": "updated"})
    assert ret["changes"] == {"Service n/a": "updated"}
    assert (ret["result"], done) == ((None, []) if test else (True, ["apply x"]))
    ret, done = run(state.present, "x", manifests, test=test)
    assert (ret["result"], ret["changes"], done) == (True, {}, [])


def test_an_api_that_does_not_answer_fails_and_lets_a_preview_go_on(run, manifests):
    ret, _ = run(state.present, "x", manifests, error="no answer")
    assert (ret["result"], ret["comment"]) == (False, "no answer")
    ret, _ = run(state.present, "x", manifests, error="no answer", test=True)
    assert ret["result"] is None and "no answer" in ret["comment"]
    ret, _ = run(state.present, "x", manifests + ".not-there", test=True)
    assert ret["result"] is None


@pytest.mark.parametrize("test", [False, True])
def test_only_removes_what_an_inventory_names_and_nobody_declares(run, tmp_path, test):
    for name in ("x", "y"):
        (tmp_path / f"{name}.yaml").touch()
    found = {"x": [], "y": [OLD]}
    ret, done = run(state.only, "n", ["x"], str(tmp_path), test=test, installed=found)
    assert ret["changes"] == {"y": "removed"}
    assert (ret["result"], done) == ((None, []) if test else (True, ["remove y"]))
    assert (tmp_path / "y.yaml").exists() is test
    assert (tmp_path / "x.yaml").exists()
    ret, done = run(state.only, "n", ["x"], str(tmp_path), installed={"x": []})
    assert (ret["result"], ret["changes"], done) == (True, {}, [])


def test_an_add_on_that_cannot_go_fails_by_name_and_the_others_are_told_as_gone(run, tmp_path):
    for name in ("x", "y"):
        (tmp_path / f"{name}.yaml").touch()
    found = {"x": [OLD], "y": [OLD]}
    stuck = {"x": "Namespace x: timed out"}
    ret, _ = run(state.only, "n", [], str(tmp_path), installed=found, stuck=stuck)
    assert (ret["result"], ret["changes"]) == (False, {"y": "removed"})
    assert ret["comment"] == "x is not gone: Namespace x: timed out"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.yaml"]


# --- the cache of names on nodes ---------------------------------------------------------------


def test_a_cache_is_there_only_where_it_is_wanted():
    assert addons.wanted(cluster(coredns={}))["coredns"]["cache"] is None
    found = addons.wanted(cluster(coredns={"node_cache": True}))["coredns"]["cache"]
    assert found == {"address": "169.254.20.10", "health": 9254, "metrics": None}
    found = addons.wanted(cluster(coredns={"node_cache": True}, prometheus={}))["coredns"]["cache"]
    assert found["metrics"] == 9253


def corefile(**given: Any) -> list[str]:
    """What the cache is told, without what indents it."""
    folder = jinja2.FileSystemLoader(ROOT / "salt" / "addons")
    environment = jinja2.Environment(loader=folder, undefined=jinja2.StrictUndefined)
    text = environment.get_template("coredns/manifests.yaml.jinja").render(
        addon=addons.wanted(cluster(**given))["coredns"],
        networks={"dns": "10.96.0.10"},
        domain="x.y",
    )
    (found,) = [
        one["data"]["Corefile"]
        for one in yaml.safe_load_all(text)
        if (one["kind"], one["metadata"]["name"]) == ("ConfigMap", "coredns-cache")
    ]
    return [line.strip() for line in found.splitlines()]


def test_the_cache_asks_coredns_over_tcp_and_upstream_for_the_rest():
    lines = corefile(coredns={"node_cache": True, "upstream": ["10.0.0.2", "10.0.0.3"]})
    second = lines.index(".:53 {")
    first, rest = lines[:second], lines[second:]
    assert first[0] == "x.y:53 in-addr.arpa:53 ip6.arpa:53 {"
    assert "forward . 10.96.0.10 {" in first and "force_tcp" in first
    assert "forward . 10.0.0.2 10.0.0.3 {" in rest and "force_tcp" not in rest
    assert [part.count("bind 169.254.20.10") for part in (first, rest)] == [1, 1]
    assert [line for line in lines if line.startswith("health")] == ["health 169.254.20.10:9254"]
    assert not [line for line in lines if line.startswith("prometheus")]


def test_a_cache_without_upstream_knows_the_cluster_alone():
    lines = corefile(coredns={"node_cache": True, "upstream": []}, prometheus={})
    assert [line for line in lines if line.endswith(":53 {")] == [
        "x.y:53 in-addr.arpa:53 ip6.arpa:53 {"
    ]
    assert "loop" not in lines
    assert lines.count("prometheus {$ADDRESS}:9253") == 1


# --- the check of CoreDNS ------------------------------------------------------------------------


def reply(number: int, address: str | None, code: int = 0) -> bytes:
    """A DNS answer as a server makes it: the question, and an address by a compressed name."""
    name = b"\x01a\x00"
    head = struct.pack(">6H", number, 0x8180 | code, 1, int(bool(address)), 0, 0)
    question = name + struct.pack(">2H", 1, 1)
    if not address:
        return head + question
    record = struct.pack(">HHHIH", 0xC00C, 1, 1, 30, 4) + socket.inet_aton(address)
    return head + question + record


def test_an_answer_is_read():
    assert module.answer(reply(7, "10.96.0.1"), 7) == ["10.96.0.1"]
    assert module.answer(reply(7, None), 7) == []


@pytest.mark.parametrize(
    "packet",
    [b"", reply(8, "10.96.0.1"), reply(7, None, code=3), reply(7, "10.96.0.1")[:-6], b"\0" * 12],
)
def test_an_answer_of_another_an_error_and_a_cut_one_are_refused(packet):
    with pytest.raises(ValueError, match="answer"):
        module.answer(packet, 7)


def test_every_answer_cut_anywhere_is_refused_or_empty():
    whole = reply(7, "10.96.0.1")
    for end in range(len(whole)):
        with pytest.raises(ValueError, match="cut off"):
            module.answer(whole[:end], 7)


@pytest.fixture
def server():
    """A DNS server on loopback that knows one address for everything."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listening:
        listening.bind(("127.0.0.1", 0))

        def serve():
            packet, asking = listening.recvfrom(512)
            listening.sendto(reply(struct.unpack(">H", packet[:2])[0], "10.96.0.1"), asking)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listening.getsockname()[1]
        thread.join(5)


def test_a_server_is_asked(server):
    assert module.resolve("kubernetes.default.svc.x", "127.0.0.1", server) == ["10.96.0.1"]


def slices(*addresses: str, starting: str | None = None) -> dict[str, Any]:
    ports = [{"name": "metrics", "port": 9153}, {"name": "dns", "port": 1053}]
    found = [{"addresses": [one], "conditions": {"ready": True}} for one in addresses]
    if starting:
        found.append({"addresses": [starting], "conditions": {"ready": False}})
    return {"items": [{"ports": ports, "endpoints": found}, {"ports": None, "endpoints": None}]}


def slices_of(service: str, version: str = "v1") -> str:
    return (
        f"/apis/discovery.k8s.io/{version}/namespaces/kube-system/endpointslices"
        f"?labelSelector=kubernetes.io/service-name={service}"
    )


@pytest.mark.parametrize(
    ("ready", "knows", "problem"),
    [
        (["10.244.0.2", "10.244.1.2"], "10.96.0.1", ""),
        (
            ["10.244.0.2"],
            "10.96.0.1",
            "Deployment kube-system/coredns: 1 of 2 replicas are ready: no pod",
        ),
        ([], "10.96.0.1", "Deployment kube-system/coredns: 0 of 2 replicas are ready: no pod"),
        (["10.244.0.2", "10.244.1.2"], "10.9.9.9", "10.244.0.2 says that kubernetes.default.svc.x"),
    ],
)
def test_coredns_works_when_every_replica_knows_the_api(monkeypatch, ready, knows, problem):
    view = {
        "cluster": {"domain": "x"},
        "networks": {"api": "10.96.0.1"},
        "components": {"kube-apiserver": {"url": "https://10.0.0.1:6443"}},
        "addons": {"wanted": {"coredns": {"replicas": 2}}},
        "versions": {"kubernetes": "1.36.3"},
    }
    answers = {
        slices_of("kube-dns"): slices(*ready, starting="10.244.9.9"),
        "/apis/apps/v1/namespaces/kube-system/deployments/coredns": workload(2, len(ready)),
        "/api/v1/namespaces/kube-system/pods?labelSelector=a=b": {"items": []},
    }
    functions = {"indigo_kube.get": lambda path, server: answers[path]}
    there = {"coredns": [("apps", "Deployment", "kube-system", "coredns")]}
    monkeypatch.setattr(module, "__pillar__", {"indigo": view}, raising=False)
    monkeypatch.setattr(module, "__salt__", functions, raising=False)
    monkeypatch.setattr(module, "installed", lambda: there)
    monkeypatch.setattr(module, "resolve", lambda *_: [knows])
    assert module.works()["coredns"].startswith(problem)
    assert bool(module.works()["coredns"]) == bool(problem)


@pytest.mark.parametrize(("release", "version"), [("1.20.2", "v1beta1"), ("1.36.3", "v1")])
def test_a_service_leads_to_its_ready_pods(monkeypatch, release, version):
    view = {"components": {"kube-apiserver": {"url": ""}}, "versions": {"kubernetes": release}}
    answers = {
        slices_of("s", version): slices("10.244.0.2", starting="10.244.0.3"),
        slices_of("new", version): {"items": []},
    }
    monkeypatch.setattr(module, "__pillar__", {"indigo": view}, raising=False)
    functions = {"indigo_kube.get": lambda path, **_: answers[path]}
    monkeypatch.setattr(module, "__salt__", functions, raising=False)
    assert module._endpoints("kube-system", "s") == [("10.244.0.2", 9153)]
    assert module._endpoints("kube-system", "s", "dns") == [("10.244.0.2", 1053)]
    assert module._endpoints("kube-system", "s", "web") == []
    # A service is there before anybody has looked for its pods.
    assert module._endpoints("kube-system", "new") == []


def workload(wanted: int, ready: int, updated: int | None = None, seen: int = 3) -> dict[str, Any]:
    return {
        "metadata": {"generation": 3},
        "spec": {"replicas": wanted, "selector": {"matchLabels": {"a": "b"}}},
        "status": {
            "observedGeneration": seen,
            "readyReplicas": ready,
            "updatedReplicas": wanted if updated is None else updated,
            "desiredNumberScheduled": wanted,
            "numberReady": ready,
            "updatedNumberScheduled": wanted if updated is None else updated,
            "currentRevision": "1",
            "updateRevision": "2",
        },
    }


# --- whether pods are ready, and why not ---------------------------------------------------------


@pytest.mark.parametrize("kind", module.WORKLOADS)
@pytest.mark.parametrize(
    ("found", "told"),
    [
        (workload(2, 2), ""),
        (workload(2, 1), "1 of 2 replicas are ready"),
        (workload(2, 2, updated=1), "1 of 2 replicas are up to date"),
        (workload(2, 2, seen=2), "its controller has not looked at it yet"),
    ],
)
def test_a_workload_is_ready_when_all_of_it_is_new_and_ready(kind, found, told):
    assert module.lacking(kind, found) == told


def test_old_pods_that_a_deployment_keeps_for_new_ones_that_fail_do_not_pass_for_ready():
    found = workload(1, 1, updated=1)
    found["status"]["replicas"] = 2
    assert module.lacking("Deployment", found) == "1 replicas of before are still needed"


def pod(name: str, *states: dict[str, Any], **conditions: dict[str, Any]) -> dict[str, Any]:
    return {
        "metadata": {"name": name},
        "status": {
            "conditions": [{"type": kind, **one} for kind, one in conditions.items()],
            "containerStatuses": [{"name": f"c{n}", **one} for n, one in enumerate(states)],
        },
    }


READY = {"status": "True"}
PULL = {"waiting": {"reason": "ErrImagePull", "message": "no such host"}}


@pytest.mark.parametrize(
    ("pods", "told"),
    [
        ([], "no pod of it is there yet"),
        (
            [pod("a", {"state": PULL}, Ready={"status": "False"})],
            "a: c0: ErrImagePull: no such host",
        ),
        ([pod("a", Ready=READY), pod("b", {"state": PULL})], "b: c0: ErrImagePull: no such host"),
        (
            [pod("a", PodScheduled={"status": "False", "reason": "Unschedulable", "message": "x"})],
            "a: Unschedulable: x",
        ),
        ([pod("a", {"state": {"waiting": {"reason": "ContainerCreating"}}})], "a is starting"),
        (
            [
                pod(
                    "a",
                    {
                        "state": {"running": {}},
                        "lastState": {"terminated": {"reason": "OOMKilled"}},
                    },
                )
            ],
            "a: c0: OOMKilled",
        ),
    ],
)
def test_kubernetes_own_reason_is_told(pods, told):
    assert module.reason(pods) == told


def test_one_addon_that_does_not_work_says_nothing_of_the_other(monkeypatch):
    there = {name: [("apps", "Deployment", "n", name)] for name in ("coredns", "prometheus")}
    objects = {"coredns": workload(1, 0), "prometheus": workload(1, 1)}

    def get(path, server):
        if "pods?" in path:
            return {"items": [pod("x", {"state": PULL})]}
        return objects[path.rsplit("/", 1)[-1]]

    view = {
        "components": {"kube-apiserver": {"url": ""}},
        "addons": {"wanted": {"coredns": {}, "prometheus": {}}},
    }
    monkeypatch.setattr(module, "__pillar__", {"indigo": view}, raising=False)
    monkeypatch.setattr(module, "__salt__", {"indigo_kube.get": get}, raising=False)
    monkeypatch.setattr(module, "installed", lambda: there)
    monkeypatch.setattr(module, "_CHECKS", {"prometheus": lambda _: ""})
    assert module.works() == {
        "coredns": "Deployment n/coredns: 0 of 1 replicas are ready: "
        "x: c0: ErrImagePull: no such host",
        "prometheus": "",
    }
    monkeypatch.setattr(module, "installed", lambda: {})
    assert all("is not in the cluster" in why for why in module.works().values())


@pytest.mark.parametrize(("told", "problem"), [(["a", "b"], ""), (["b"], "it tells nothing of a")])
def test_metrics_server_works_when_it_tells_of_every_node(monkeypatch, told, problem):
    answer = {"items": [{"metadata": {"name": name}} for name in told]}
    view = {"components": {"kube-apiserver": {"url": ""}}}
    monkeypatch.setattr(module, "__pillar__", {"indigo": view}, raising=False)
    functions = {"indigo_kube.get": lambda path, server: {module.USAGE: answer}[path]}
    monkeypatch.setattr(module, "__salt__", functions, raising=False)
    assert module._usage({"nodes": ["a", "b"]}) == problem


def test_waiting_ends_with_what_is_wrong(monkeypatch):
    answers = [{"coredns": "not yet"}, {"coredns": ""}]
    monkeypatch.setattr(module, "works", lambda: answers.pop(0))
    assert module.wait(timeout=5, interval=0) == {"coredns": ""}
    monkeypatch.setattr(module, "works", lambda: {"coredns": "never"})
    assert module.wait(timeout=0, interval=0) == {"coredns": "never"}


@pytest.mark.parametrize(
    ("found", "seconds"),
    [
        ({"coredns": "x: c: ImagePullBackOff: gone"}, 46),
        ({"coredns": "x: c: ErrImagePull", "ingress": ""}, 46),
        ({"coredns": "x: c: ImagePullBackOff", "ingress": "0 of 2 replicas are ready"}, 121),
        ({"coredns": "x: c: CrashLoopBackOff"}, 121),
    ],
)
def test_for_an_image_that_cannot_be_had_nobody_waits_long(monkeypatch, found, seconds):
    now = [0.0]
    clock = types.SimpleNamespace(
        monotonic=lambda: now[0], sleep=lambda span: now.__setitem__(0, now[0] + span)
    )
    monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(module, "works", lambda: found)
    assert module.wait() == found
    assert now[0] == seconds


# --- the step of the orchestration ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "answer", "test", "result", "told"),
    [
        ([], None, False, True, "No add-on is declared"),
        (["coredns"], None, True, None, "These would be tried: coredns"),
        (["coredns"], {"coredns": ""}, False, True, "Tried, and they work: coredns"),
        (["coredns"], {"coredns": "0 of 2"}, False, False, "- coredns: 0 of 2"),
        (["coredns"], None, False, False, "m1 does not answer"),
        (["coredns"], "Traceback: boom", False, False, "- Traceback: boom"),
    ],
)
def test_a_deploy_ends_when_the_addons_work(monkeypatch, wanted, answer, test, result, told):
    plan = {"addons": wanted, "roles": {"master": ["m1", "m2"]}}
    asked = {} if answer is None else {"m1": answer}
    functions = {"indigo_model.plan": lambda: plan, "indigo_ask.minions": lambda *_, **__: asked}
    monkeypatch.setattr(cluster_states, "__salt__", functions, raising=False)
    monkeypatch.setattr(cluster_states, "__opts__", {"test": test}, raising=False)
    ret = cluster_states.addons_work("step")
    assert ret["result"] is result
    assert told in ret["comment"]
