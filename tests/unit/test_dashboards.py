"""Grafana and Headlamp: what they are given, what they may, and their checks."""

from __future__ import annotations

import base64
import json
import re
from typing import Any

import pytest
from indigo_model import addons, dashboards, monitoring, validate, versions
from indigo_model.cluster import Cluster, Host, Vip
from support import load

module = load("_modules", "indigo_addon")
state = load("_states", "indigo_addon")


def wanted(**more: Any) -> dict[str, dict[str, Any]]:
    hosts = {
        "m": Host("m", "10.0.0.3", ("lb", "etcd", "master")),
        **{f"n{i}": Host(f"n{i}", f"10.0.1.{i}", ("node",)) for i in (1, 2)},
    }
    found = Cluster(
        "x",
        hosts,
        Vip("10.0.0.9", "eth0"),
        "10.96.0.0/16",
        "10.244.0.0/16",
        versions=versions.resolve({}),
        addons={"prometheus": {}, "grafana": {}, "headlamp": {}} | more,
    )
    return addons.wanted(found)


def test_every_layer_has_a_dashboard_whose_panels_have_a_place_and_a_name():
    assert {"hosts", "load-balancers", "etcd", "masters", "nodes", "pods"} <= set(dashboards.TABLE)
    for name in dashboards.TABLE:
        found = dashboards.dashboard(name)
        places = [tuple(panel["gridPos"].values()) for panel in found["panels"]]
        assert len(set(places)) == len(places)
        titles = [panel["title"] for panel in found["panels"]]
        assert len(set(titles)) == len(titles) and all(titles)
        for panel in found["panels"]:
            (target,) = panel["targets"]
            assert target["datasource"]["uid"] == dashboards.SOURCE
            # What a line is named by is among what the answer has.
            for label in re.findall(r"{{(\w+)}}", target["legendFormat"]):
                by = re.search(r"by \(([^)]*)\)", target["expr"])
                assert by is None or label in by[1].replace(" ", "").split(","), panel["title"]


def test_panels_ask_only_jobs_that_are_scraped():
    jobs = set(monitoring._FILES)
    for _, panels in dashboards.TABLE.values():
        for panel in panels:
            for job in re.findall(r'job="([^"]+)"', panel.expression):
                assert job in jobs, panel


def test_grafana_finds_all_its_files_and_knows_no_password():
    found = wanted()["grafana"]
    assert set(found["paths"]) == set(found["files"])
    assert all(re.fullmatch(r"[-._a-zA-Z0-9]+", key) for key in found["files"])
    assert "admin_password = $__file{/etc/grafana-admin/password}" in found["files"]["grafana.ini"]
    for name in dashboards.TABLE:
        assert json.loads(found["files"][f"{name}.json"]) == dashboards.dashboard(name)
    source = json.loads(found["files"]["sources.yaml"])["datasources"][0]
    assert source["url"] == f"http://{found['prometheus']}:9090" == "http://10.96.0.16:9090"


def test_what_shows_prometheus_needs_it():
    document = {"addons": {"grafana": {}, "alertmanager": {}}}
    found = [one for one in validate.problems(document) if one.startswith("addons")]
    assert len(found) == 2 and all("add `prometheus: {}`" in one for one in found)
    document["addons"]["prometheus"] = {}
    assert not [one for one in validate.problems(document) if one.startswith("addons")]


@pytest.mark.parametrize(
    ("pods", "there", "health", "why"),
    [
        (["10.0.0.1"], ["a", "b"], {"status": "OK"}, ""),
        ([], ["a", "b"], {"status": "OK"}, "leads to no pod"),
        (["10.0.0.1"], ["a"], {"status": "OK"}, "has no dashboard b"),
        (["10.0.0.1"], ["a", "b"], {"status": "ERROR", "message": "refused"}, "refused"),
    ],
)
def test_grafana_works_when_it_has_all_and_prometheus_answers_it(
    monkeypatch, pods, there, health, why
):
    password = base64.b64encode(b"s3cret").decode()
    salt = {"indigo_kube.get": lambda *_, **__: {"data": {"password": password}}}
    monkeypatch.setattr(module, "__salt__", salt, raising=False)
    monkeypatch.setattr(module, "_server", lambda: "https://x")
    monkeypatch.setattr(module, "_addresses", lambda *_: pods)

    def asked(url, key, headers, **_):
        assert headers["Authorization"] == "Basic " + base64.b64encode(b"admin:s3cret").decode()
        return health if url.endswith("/health") else [{"uid": one} for one in there]

    monkeypatch.setattr(module, "_asked", asked)
    found = module._dashboards({"port": 3000, "dashboards": ["a", "b"]})
    assert why in found and bool(found) == bool(why)


def test_headlamp_works_when_the_api_answers_through_all_of_it(monkeypatch):
    monkeypatch.setattr(module, "_addresses", lambda *_: ["10.0.0.1", "10.0.0.2"])
    monkeypatch.setattr(module, "_asked", lambda *_: "v1.36.2")
    assert module._browser({"replicas": 2}) == ""
    assert "leads to 2 of 3 replicas" in module._browser({"replicas": 3})
    monkeypatch.setattr(module, "_asked", lambda *_: None)
    assert "10.0.0.1 got None" in module._browser({"replicas": 2})


# --- a Secret that is made up once ---------------------------------------------------------------


@pytest.fixture
def api(monkeypatch):
    """An API with Secrets; notes what was made."""
    made: list[dict[str, Any]] = []

    def request(method, path, body=None, **_):
        if method == "GET":
            return {"status": 200 if made else 404, "body": {}}
        made.append(body)
        return {"status": 201, "body": body}

    monkeypatch.setattr(module, "__salt__", {"indigo_kube.request": request}, raising=False)
    monkeypatch.setattr(module, "_server", lambda: "https://x")
    functions = {
        "indigo_addon.has_secret": module.has_secret,
        "indigo_addon.make_secret": module.make_secret,
    }
    monkeypatch.setattr(state, "__salt__", functions, raising=False)
    monkeypatch.setattr(state, "__opts__", {"test": False}, raising=False)
    return made


def test_it_is_made_once_and_told_by_its_name_alone(api, monkeypatch):
    monkeypatch.setattr(state, "__opts__", {"test": True}, raising=False)
    found = state.secret("x", "n", ["password"])
    assert (found["result"], found["changes"]) == (None, {"Secret n/x": "created"})
    assert not api
    monkeypatch.setattr(state, "__opts__", {"test": False}, raising=False)
    found = state.secret("x", "n", ["password"])
    assert (found["result"], found["changes"]) == (True, {"Secret n/x": "created"})
    (secret,) = api
    assert re.fullmatch(r"[A-Za-z0-9]{32}", secret["stringData"]["password"])
    assert secret["stringData"]["password"] not in json.dumps(found)
    found = state.secret("x", "n", ["password"])
    assert (found["result"], found["changes"], len(api)) == (True, {}, 1)


def test_an_api_that_refuses_is_told(api, monkeypatch):
    refusal = {"status": 403, "body": {"message": "no"}}
    answer = {"indigo_kube.request": lambda *_, **__: refusal}
    monkeypatch.setattr(module, "__salt__", answer, raising=False)
    assert "answered 403" in state.secret("x", "n", ["password"])["comment"]
    with pytest.raises(module.CommandExecutionError, match="cannot be made: no"):
        module.make_secret("n", "x", ["password"])
