"""Grafana and Headlamp: what they are given, what they may, and their checks."""

from __future__ import annotations

import base64
import configparser
import inspect
import json
import re
from typing import Any

import pytest
from indigo_model import addons, dashboards, master, monitoring, validate, versions
from indigo_model.cluster import Cluster, Host, Vip
from salt.exceptions import CommandExecutionError
from support import Pod, load

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
    assert {*found["paths"].values(), *found["models"]} == set(found["files"])
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


@pytest.fixture
def pod():
    with Pod() as found:
        yield found


SEARCH, HEALTH = "/api/search?tag=indigo", "/api/datasources/uid/prometheus/health"


@pytest.fixture
def grafana(monkeypatch, pod):
    """A Grafana that is well; its check."""
    password = base64.b64encode(b"s3cret").decode()
    salt = {"indigo_kube.get": lambda *_, **__: {"data": {"password": password}}}
    monkeypatch.setattr(module, "__salt__", salt, raising=False)
    monkeypatch.setattr(module, "__context__", {}, raising=False)
    monkeypatch.setattr(module, "_server", lambda: "https://x")
    monkeypatch.setattr(module, "_addresses", lambda *_: ["127.0.0.1"])
    pod.answers = {SEARCH: (200, [{"uid": "a"}, {"uid": "b"}]), HEALTH: (200, {"status": "OK"})}
    return lambda: module._dashboards({"port": pod.port, "dashboards": ["a", "b"]})


def test_grafana_works_when_it_has_all_and_prometheus_answers_it(monkeypatch, pod, grafana):
    assert grafana() == ""
    sent = "Basic " + base64.b64encode(b"admin:s3cret").decode()
    assert pod.asked == [(SEARCH, sent), (HEALTH, sent)]
    # It says so with an error of its own.
    pod.answers[HEALTH] = (400, {"status": "ERROR", "message": "connection refused"})
    assert grafana() == "127.0.0.1 gets no answers from Prometheus: connection refused"
    pod.answers[SEARCH] = (200, [{"uid": "a"}])
    assert grafana() == "127.0.0.1 has no dashboard b"
    monkeypatch.setattr(module, "_addresses", lambda *_: [])
    assert grafana() == "the service grafana leads to no pod"


def test_a_wrong_password_is_tried_once_in_a_job(pod, grafana):
    pod.answers[SEARCH] = (401, {"message": "Invalid username or password"})
    with pytest.raises(CommandExecutionError, match="401"):
        grafana()
    assert "401" in grafana() and len(pod.asked) == 1
    # Another error is asked again.
    module.__context__.clear()
    pod.answers[SEARCH] = (503, "")
    for _ in range(2):
        with pytest.raises(CommandExecutionError, match="503"):
            grafana()


def test_links_of_grafana_lead_to_its_host():
    assert "root_url" not in wanted()["grafana"]["files"]["grafana.ini"]
    found = wanted(grafana={"host": "graphs.example.org"})["grafana"]["files"]["grafana.ini"]
    told = configparser.RawConfigParser()
    told.read_string(found)
    assert told["server"]["root_url"] == "https://graphs.example.org/"


def test_headlamp_works_when_the_api_answers_through_all_of_it(monkeypatch):
    monkeypatch.setattr(module, "_addresses", lambda *_: ["10.0.0.1", "10.0.0.2"])
    monkeypatch.setattr(module, "_text", lambda url: "ok")
    assert module._browser({"replicas": 2}) == ""
    assert "leads to 2 of 3 replicas" in module._browser({"replicas": 3})
    monkeypatch.setattr(module, "_text", lambda url: "<html>")
    assert "10.0.0.1 got '<html>'" in module._browser({"replicas": 2})

    def refused(url):
        raise OSError("connection refused")

    monkeypatch.setattr(module, "_text", refused)
    assert "10.0.0.1:4466/clusters/main/livez does not answer" in module._browser({"replicas": 2})


def test_what_headlamp_is_asked_any_api_server_answers_to_anybody():
    """From 1.32 it knows nobody without a token anywhere else."""
    (path,) = re.findall(r"clusters/main(/\w+)", inspect.getsource(module._browser))
    assert path in master.HEALTH_PATHS


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
