"""Zabbix: its part of the model, its check, and what removes its agents and its database."""

from __future__ import annotations

import base64
import time
from typing import Any

import pytest
from indigo_model import addons, derive, ingress, ports, validate, versions, zabbix
from indigo_model.cluster import Cluster, Host, Vip, parse
from lab.indigo_lab import zabbix as images_of_lab
from support import load

module = load("_modules", "indigo_addon")

HOSTS = {
    "ca": Host("ca", "10.0.0.1", ("ca",)),
    "lb": Host("lb", "10.0.0.2", ("lb",)),
    "m": Host("m", "10.0.0.3", ("master", "etcd")),
    **{f"N{n}": Host(f"N{n}", f"10.0.0.{10 + n}", ("node",)) for n in range(5)},
}


def cluster(**settings: Any) -> Cluster:
    return Cluster(
        "x",
        HOSTS,
        Vip("10.0.0.9", "eth0"),
        "10.96.0.0/16",
        "10.244.0.0/16",
        versions=versions.resolve({}),
        addons={"zabbix": settings},
        lans=("10.0.0.0/24",),
    )


def wanted(**settings: Any) -> dict[str, Any]:
    return addons.wanted(cluster(**settings))["zabbix"]


# --- the model -----------------------------------------------------------------------------------


def test_the_key_under_services_is_ours_and_needs_no_source():
    document = {
        "name": "x",
        "vip": {"address": "10.0.0.9", "interface": "eth0"},
        "hosts": {"a": {"address": "10.0.0.1", "roles": ["ca", "node"]}},
        "networks": {"services": "10.96.0.0/16", "pods": "10.244.0.0/16"},
        "services": {"zabbix": {"size": "1Gi"}, "wiki": {"source": "salt://wiki"}},
    }
    found = parse(document)
    assert set(found.addons) == {"zabbix"} and set(found.workloads) == {"wiki"}
    assert not [one for one in validate.problems(document) if one.startswith("services")]


@pytest.mark.parametrize(
    ("services", "told"),
    [
        ({"source": "salt://x"}, "services.zabbix.source: found an unknown key"),
        ({"node": "lb1"}, "services.zabbix.node: found 'lb1'; expected the id of a host"),
        ({"port": 8443}, "services.zabbix.port: found 8443, which is vip.port too"),
        ({"port": 80}, "services.zabbix.port: found 80, which is addons.ingress.http too"),
        ({"port": 5432}, "services.zabbix.port: found 5432, which is addons.ingress.tcp too"),
        ({"size": "much"}, "services.zabbix.size"),
        ({"port": [1]}, "services.zabbix.port"),
    ],
)
def test_mistakes_are_told(services, told):
    document = {
        "services": {"zabbix": services},
        "addons": {"ingress": {"tcp": [{"port": 5432, "node_port": 30432}]}},
    }
    assert any(told in one for one in validate.problems(document)), validate.problems(document)


def test_it_is_no_addon_of_that_name():
    found = validate.problems({"addons": {"zabbix": {}}})
    assert any("addons.zabbix: found an unknown key" in one for one in found)


def test_every_host_has_an_agent_that_sends_to_the_virtual_address():
    declared = cluster(port=10055)
    for host in HOSTS.values():
        found = zabbix.view(declared, host)["zabbix"]
        assert (found["name"], found["server"]) == (host.name, "10.0.0.9:10055")
        assert found["source"] == host.address and found["metadata"].startswith("indigo x ")
    assert wanted()["hosts"] == [host.name for host in HOSTS.values()]
    nobody = Cluster("x", HOSTS, Vip("10.0.0.9", "eth0"), "10.96.0.0/16", "10.244.0.0/16")
    assert zabbix.view(nobody, HOSTS["m"]) == {"zabbix": None}
    assert zabbix.proxies(nobody, 8000) == []


def test_load_balancers_lead_to_the_same_few_nodes_whatever_others_come():
    (way,) = zabbix.proxies(cluster(node_port=31000), 8000)
    assert way["bind"] == "10.0.0.9:10051"
    assert [one["endpoint"] for one in way["servers"]] == [
        f"10.0.0.{10 + n}:31000" for n in range(3)
    ]
    assert set(way) == set(ingress.proxies(_with_ingress(), 8000)[0])


def _with_ingress() -> Cluster:
    node = Host("n", "10.0.0.4", ("node",), labels={"role": "loadbalancer"})
    vip, networks = Vip("10.0.0.9", "eth0"), ("10.96.0.0/16", "10.244.0.0/16")
    return Cluster("x", {"n": node}, vip, *networks, addons={"ingress": {}})


def test_only_hosts_of_the_cluster_come_to_its_port():
    declared = cluster()
    (row,) = [one for one in ports.table(declared, "lb") if one.port == "10051"]
    assert ports.sources(declared, HOSTS["lb"], row) == ["10.0.0.0/24"]


def test_the_database_lies_on_one_node_or_on_a_class_of_disks():
    for node, name in ((None, "n0"), ("N3", "n3")):
        found = wanted(node=node)
        assert found["claim"]["spec"]["volumeName"] == f"zabbix-database-{name}"
        (term,) = found["volume"]["spec"]["nodeAffinity"]["required"]["nodeSelectorTerms"]
        assert term["matchExpressions"][0]["values"] == [name]
        assert found["volume"]["spec"]["claimRef"]["name"] == found["claim"]["name"]
        views = {id_: zabbix.view(cluster(node=node), one) for id_, one in HOSTS.items()}
        folders = [id_ for id_, one in views.items() if one["zabbix"]["folder"]]
        assert folders == [node or "N0"]
    found = wanted(storage_class="fast", node="N3")
    assert found["volume"] is None
    assert found["claim"]["spec"]["storageClassName"] == "fast"
    assert not any(
        zabbix.view(cluster(storage_class="fast"), one)["zabbix"]["folder"]
        for one in HOSTS.values()
    )


def test_no_view_holds_a_password():
    declared = cluster()
    for host in HOSTS.values():
        text = str(zabbix.view(declared, host)) + str(addons.view(declared, host))
        assert "DBPassword=" not in text.replace('DBPassword=$DATABASE_PASSWORD"', "")
    assert wanted()["passwords"]["zabbix"]["keys"] == ["database", "admin"]


def test_what_the_server_is_told_restarts_no_database(monkeypatch):
    before = wanted()["digest"]
    assert before == wanted(size="1Gi")["digest"]
    monkeypatch.setattr(zabbix, "server_conf", lambda _: "StartPollers=1")
    after = wanted()["digest"]
    assert after["database"] == before["database"] and after["server"] != before["server"]


def test_a_quarter_of_the_memory_is_for_buffers():
    assert wanted()["buffers"] == "256MB" and wanted(memory="512Mi")["buffers"] == "128MB"


def test_it_is_part_of_the_whole_view():
    assert zabbix in derive.LAYERS


# --- its check -----------------------------------------------------------------------------------


class Api:
    """Zabbix' API with what a test says; notes what it was asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, hosts: dict[str, float], pods: int = 2):
        self.hosts, self.asked = list(hosts), []
        self.ages = hosts
        self.refuses = ""
        addresses = [f"10.0.0.{n}" for n in range(pods)]
        monkeypatch.setattr(module, "_addresses", lambda *_: addresses)
        monkeypatch.setattr(module, "_server", lambda: "https://x")
        data = {"admin": base64.b64encode(b"s3cret").decode()}
        salt = {"indigo_kube.get": lambda *_, **__: {"data": data}}
        monkeypatch.setattr(module, "__salt__", salt, raising=False)
        monkeypatch.setattr(module, "_asked", self)

    def __call__(self, url: str, key: Any, *, body: bytes, **_: Any) -> Any:
        call = module.json.loads(body)
        method = call["method"]
        self.asked.append(method)
        if method == self.refuses:
            return {"error": {"data": "No permissions"}}
        if method == "user.login":
            assert call["params"] == {"username": "Admin", "password": "s3cret"}
            return {"result": "session"}
        assert (call.get("auth") == "session") == (method != "apiinfo.version")
        ids = {str(n): host for n, host in enumerate(self.hosts)}
        return {
            "result": {
                "apiinfo.version": "6.0.14",
                "host.get": [{"hostid": id_, "host": host} for id_, host in ids.items()],
                "item.get": [
                    {"hostid": id_, "lastclock": str(int(time.time() - self.ages[host]))}
                    for id_, host in ids.items()
                ],
                "user.logout": True,
            }[method]
        }


def check(hosts: list[str]) -> str:
    return module._hosts_heard({"replicas": 2, "ports": {"web": 8080}, "hosts": hosts})


def test_it_works_when_every_host_was_heard_of_lately(monkeypatch):
    api = Api(monkeypatch, {"a": 10, "b": 100})
    assert check(["a", "b"]) == ""
    assert api.asked.count("apiinfo.version") == 2 and api.asked[-1] == "user.logout"


@pytest.mark.parametrize(
    ("heard", "pods", "told"),
    [
        ({"a": 1}, 2, "no agent has registered from b, c, d and 1 more"),
        (dict.fromkeys("abcd", 1) | {"e": 400}, 2, "no agent was heard of in 300 s from e"),
        (dict.fromkeys("abcde", 1), 1, "the service web leads to 1 of 2 replicas"),
    ],
)
def test_what_is_missing_is_told_by_name(monkeypatch, heard, pods, told):
    api = Api(monkeypatch, heard, pods)
    assert told in check(list("abcde"))
    assert api.asked[-1:] in ([], ["user.logout"])


@pytest.mark.parametrize("method", ["user.login", "host.get", "apiinfo.version"])
def test_what_the_api_refuses_is_told(monkeypatch, method):
    Api(monkeypatch, {"a": 1}).refuses = method
    with pytest.raises(module.CommandExecutionError, match=f"{method}: No permissions"):
        check(["a"])


def test_claims_and_volumes_go_after_what_uses_them(monkeypatch):
    gone: list[str] = []
    monkeypatch.setattr(module, "_kubectl", lambda *words, **_: gone.append(words[-2]))
    objects = {
        ("", "PersistentVolume", "", "v"),
        ("", "PersistentVolumeClaim", "n", "c"),
        ("", "Namespace", "", "n"),
        ("apps", "StatefulSet", "n", "s"),
    }
    assert module._delete({"x": objects}) == {}
    assert gone == ["StatefulSet.apps", "PersistentVolumeClaim", "Namespace", "PersistentVolume"]


# --- on hosts ------------------------------------------------------------------------------------


@pytest.fixture
def package(tmp_path, monkeypatch):
    """The state `indigo_package.gone`, on a host that has the package a; what was done there."""
    state, did = load("_states", "indigo_package"), []
    salt = {
        "indigo_package.lacking": lambda names: [name for name in names if name != "a"],
        "pkg.purge": lambda pkgs: did.append(f"purge {pkgs}") or dict.fromkeys(pkgs, "gone"),
    }
    monkeypatch.setattr(state, "__salt__", salt, raising=False)
    unit = tmp_path / "a.service"

    def run(test: bool = False) -> tuple[dict[str, Any], list[str]]:
        monkeypatch.setattr(state, "__opts__", {"test": test}, raising=False)
        return state.gone("it is gone", ["a", "b"], str(unit)), did

    return unit, run


def test_an_agent_of_the_sites_own_stays(package):
    _, run = package
    ret, did = run()
    assert (ret["result"], ret["changes"], did) == (True, {}, [])


def test_ours_is_purged_but_not_in_a_preview(package):
    unit, run = package
    unit.touch()
    ret, did = run(test=True)
    assert (ret["result"], list(ret["changes"]), did) == (None, ["a"], [])
    ret, did = run()
    assert (ret["result"], ret["changes"]) == (True, {"a": "gone"})
    assert did == ["purge ['a']"]


def test_a_unit_is_stopped_only_where_our_file_is(tmp_path, monkeypatch):
    state, did = load("_states", "indigo_service"), []
    salt = {
        "indigo_service.show": lambda _: {"ActiveState": "active", "SubState": "running"},
        "indigo_service.stop": did.append,
    }
    monkeypatch.setattr(state, "__salt__", salt, raising=False)
    monkeypatch.setattr(state, "__opts__", {"test": False}, raising=False)
    unit = tmp_path / "a.service"
    assert state.stopped("a", str(unit))["changes"] == {} and did == []
    unit.touch()
    assert set(state.stopped("a", str(unit))["changes"]) == {"stopped"} and did == ["a"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The state `indigo_node.folder_absent` over a folder that some pods have for some looks."""
    state, path = load("_states", "indigo_node"), tmp_path / "data"
    path.mkdir()
    (path / "file").touch()

    def run(held: int = 0, test: bool = False, timeout: float = 60) -> dict[str, Any]:
        looks = iter([["/pods/x"]] * held)
        salt = {"indigo_node.users": lambda _: next(looks, [])}
        monkeypatch.setattr(state, "__salt__", salt, raising=False)
        monkeypatch.setattr(state, "__opts__", {"test": test}, raising=False)
        monkeypatch.setattr(state.time, "sleep", lambda _: None)
        return state.folder_absent(str(path), timeout)

    return path, run


def test_a_volume_goes_when_the_last_pod_has_let_go(folder):
    path, run = folder
    assert run(test=True)["result"] is None and path.exists()
    ret = run(held=3, timeout=-1)
    assert ret["result"] is False and "/pods/x is still mounted" in ret["comment"]
    assert path.exists() and not ret["changes"]
    ret = run(held=3)
    assert (ret["result"], ret["changes"]) == (True, {str(path): "removed"})
    assert not path.exists()
    assert run()["changes"] == {}


def test_who_uses_a_folder_is_seen_by_what_it_is(tmp_path, monkeypatch):
    node = load("_modules", "indigo_node")
    here, other = tmp_path / "here", tmp_path / "other"
    here.mkdir()
    other.mkdir()
    link = tmp_path / "pod"
    link.symlink_to(here)
    points = [str(link), str(other), str(tmp_path / "gone")]
    monkeypatch.setattr(node, "mounted", lambda _: points)
    assert node.users(str(here)) == [str(link)]
    assert node.users(str(tmp_path / "never")) == []


# --- the lab -------------------------------------------------------------------------------------


def test_an_image_has_folders_files_and_links_of_its_root(tmp_path):
    (tmp_path / "usr/bin").mkdir(parents=True)
    (tmp_path / "usr/bin/a").write_text("x")
    (tmp_path / "bin").symlink_to("usr/bin")
    found = images_of_lab._members(tmp_path)
    assert found == {
        "bin": "usr/bin",
        "usr/": b"",
        "usr/bin/": b"",
        "usr/bin/a": tmp_path / "usr/bin/a",
    }


def test_the_lab_stands_in_for_every_image_of_the_table():
    names = {one.name for one in images_of_lab.ROOTS}
    assert names == set(wanted()["images"])
