"""A user's own services: what a folder stands for, how it comes and goes, and its check."""

from __future__ import annotations

from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import yaml
from indigo_model import addons, validate, versions
from indigo_model.cluster import Cluster, Host, Vip
from salt.exceptions import CommandExecutionError
from support import load

module = load("_modules", "indigo_addon")
state = load("_states", "indigo_addon")

WIKI = {"name": "wiki", "namespace": "docs", "values": {"a": 1}, "check": {}}
KINDS = {
    "/api/v1": [("Namespace", False), ("Service", True), ("Secret", True)],
    "/apis/apps/v1": [("Deployment", True)],
    "/apis/apiextensions.k8s.io/v1": [("CustomResourceDefinition", False)],
}


@pytest.fixture(autouse=True)
def _api(monkeypatch):
    def get(path, server):
        if path not in KINDS:
            raise CommandExecutionError(f"{path} answered 404")
        return {"resources": [{"kind": kind, "namespaced": own} for kind, own in KINDS[path]]}

    view = {"components": {"kube-apiserver": {"url": ""}}, "binaries": {"kubectl": "/bin/false"}}
    monkeypatch.setattr(module, "__pillar__", {"indigo": view}, raising=False)
    monkeypatch.setattr(module, "__salt__", {"indigo_kube.get": get}, raising=False)


def manifest(kind: str, name: str = "x", version: str = "v1", **metadata: Any) -> dict[str, Any]:
    return {"apiVersion": version, "kind": kind, "metadata": {"name": name, **metadata}}


def test_the_first_master_has_them_beside_addons():
    hosts = {"m": Host("m", "10.0.0.1", ("master",)), "n": Host("n", "10.0.0.2", ("node",))}
    found = Cluster(
        "x",
        hosts,
        Vip("10.0.0.9", "eth0"),
        "10.96.0.0/16",
        "10.244.0.0/16",
        versions=versions.resolve({}),
        workloads={"wiki": {"source": "salt://services/wiki/", "namespace": "docs"}},
    )
    assert addons.view(found, hosts["m"])["addons"]["services"] == {
        "service-wiki": {
            "name": "wiki",
            "source": "salt://services/wiki",
            "namespace": "docs",
            "values": {},
            "check": {},
        }
    }
    assert addons.view(found, hosts["n"]) == {}
    assert not any(name.startswith(addons.SERVICE) for name in addons.ADDONS)


@pytest.mark.parametrize(
    ("service", "told"),
    [
        ({}, "services.wiki.source: found no such key"),
        ({"source": "/srv/wiki"}, "a folder of the Salt master's file server"),
        ({"source": "salt://x", "check": {"path": "/"}}, "services.wiki.check.service"),
        ({"source": "salt://x", "chart": "y"}, "services.wiki.chart: found an unknown key"),
    ],
)
def test_mistakes_are_told(service, told):
    assert any(told in one for one in validate.problems({"services": {"wiki": service}}))


def test_a_long_name_has_no_room_in_a_label():
    found = validate.problems({"services": {"a" * 41: {"source": "salt://x"}}})
    assert any("at most 40 characters" in one for one in found)


# --- what a folder stands for --------------------------------------------------------------------


def test_plain_manifests_are_taken_and_get_the_namespace(tmp_path: Path):
    definition = manifest("CustomResourceDefinition", version="apiextensions.k8s.io/v1")
    definition["spec"] = {"group": "g.io", "names": {"kind": "Thing"}, "scope": "Namespaced"}
    items = [
        manifest("Deployment", version="apps/v1"),
        manifest("Service", namespace="other"),
        manifest("Thing", version="g.io/v1"),
    ]
    (tmp_path / "a.yaml").write_text(yaml.safe_dump({"kind": "List", "items": items}))
    (tmp_path / "b.yml").write_text(yaml.safe_dump_all([manifest("Namespace"), definition]))
    (tmp_path / "notes.txt").write_text("a: [")
    found = list(yaml.safe_load_all(module.build(str(tmp_path), WIKI)))
    assert [(one["kind"], one["metadata"].get("namespace")) for one in found] == [
        ("Namespace", None),
        ("CustomResourceDefinition", None),
        ("Deployment", "docs"),
        ("Service", "other"),
        ("Thing", "docs"),
    ]


def test_ports_get_the_protocol_without_which_an_old_release_refuses_them(tmp_path):
    port = {"containerPort": 80}
    template = {"spec": {"containers": [{"name": "c", "ports": [dict(port)]}]}}
    service = manifest("Service") | {
        "spec": {"ports": [{"port": 80}, {"port": 1, "protocol": "UDP"}]}
    }
    workload = manifest("Deployment", version="apps/v1") | {"spec": {"template": template}}
    (tmp_path / "a.yaml").write_text(yaml.safe_dump_all([service, workload]))
    one, other = yaml.safe_load_all(module.build(str(tmp_path), WIKI))
    assert [found["protocol"] for found in one["spec"]["ports"]] == ["TCP", "UDP"]
    (container,) = other["spec"]["template"]["spec"]["containers"]
    assert container["ports"] == [port | {"protocol": "TCP"}]


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({}, "has no object of Kubernetes"),
        ({"a.yaml": "a: ["}, r"a\.yaml cannot be read"),
        ({"a.yaml": "a: 1"}, "is no Kubernetes object"),
        ({"a.yaml": yaml.safe_dump(manifest("Servce"))}, "Servce x: this cluster has no Servce"),
        ({"a.yaml": yaml.safe_dump(manifest("X", version="no/v1"))}, "this cluster has no no/v1"),
    ],
)
def test_what_is_wrong_with_a_folder_is_told(tmp_path, files, told):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(CommandExecutionError, match=told):
        module.build(str(tmp_path), WIKI)


def test_a_kustomization_is_built_by_kubectl(tmp_path, monkeypatch):
    calls = []

    def kubectl(*words):
        calls.append(words)
        return yaml.safe_dump(manifest("Service")).encode()

    monkeypatch.setattr(module, "_kubectl", kubectl)
    (tmp_path / "kustomization.yaml").touch()
    (tmp_path / "part.yaml").write_text("a: [")
    assert "namespace: docs" in module.build(str(tmp_path), WIKI)
    assert calls == [("kustomize", str(tmp_path))]


def test_a_chart_is_built_by_helm_and_values_are_not_arguments(tmp_path, monkeypatch):
    chart, tools = tmp_path / "chart", tmp_path / "bin"
    chart.mkdir()
    tools.mkdir()
    (chart / "Chart.yaml").touch()
    monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin")
    monkeypatch.setattr(module.shutil, "which", lambda *_, **__: None)
    with pytest.raises(CommandExecutionError, match="this host has no helm"):
        module.build(str(chart), WIKI)
    helm = tools / "helm"
    monkeypatch.setattr(module.shutil, "which", lambda *_, **__: str(helm))
    helm.write_text(
        f'#!/bin/sh\necho "$@" > {tools}/said; cat > {tools}/values\n'
        "printf 'apiVersion: v1\\nkind: Service\\nmetadata: {name: x}\\n'\n"
    )
    helm.chmod(0o755)
    assert "namespace: docs" in module.build(str(chart), WIKI)
    said = (tools / "said").read_text().split()
    assert said[:4] == ["template", "wiki", str(chart), "--namespace=docs"]
    assert yaml.safe_load((tools / "values").read_text()) == {"a": 1}
    helm.write_text("#!/bin/sh\necho no such value >&2; exit 1\n")
    with pytest.raises(CommandExecutionError, match="no such value"):
        module.build(str(chart), WIKI)


# --- the state -----------------------------------------------------------------------------------


@pytest.fixture
def run(monkeypatch):
    def runner(target: Path, folder: Path, text: str = "a: 1\n", test: bool = False):
        def build(*_):
            if not text:
                raise CommandExecutionError("no object")
            return text

        monkeypatch.setattr(state, "__salt__", {"indigo_addon.build": build}, raising=False)
        monkeypatch.setattr(state, "__opts__", {"test": test}, raising=False)
        return state.built(str(target), str(folder), WIKI)

    return runner


def test_a_file_is_written_once_and_for_root_alone(run, tmp_path):
    target = tmp_path / "x.yaml"
    assert run(target, tmp_path, test=True)["result"] is None
    assert not target.exists()
    assert run(target, tmp_path)["changes"] == {"file": "written"}
    assert (target.read_text(), target.stat().st_mode & 0o777) == ("a: 1\n", 0o600)
    assert run(target, tmp_path)["changes"] == {}
    assert run(target, tmp_path, test=True)["result"] is True


def test_a_folder_that_cannot_be_built_fails_and_lets_a_preview_go_on(run, tmp_path):
    target = tmp_path / "x.yaml"
    found = run(target, tmp_path, text="")
    assert (found["result"], found["comment"]) == (False, "no object")
    assert run(target, tmp_path, text="", test=True)["result"] is None
    assert run(target, tmp_path / "not-there", test=True)["result"] is None


def test_folders_of_services_that_are_gone_go(monkeypatch, tmp_path):
    for name in ("service-a", "service-b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.yaml").touch()
    monkeypatch.setattr(state, "__salt__", {"indigo_addon.installed": dict}, raising=False)
    monkeypatch.setattr(state, "__opts__", {"test": False}, raising=False)
    state.only("n", ["service-a"], sources=str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["service-a"]


# --- the check -----------------------------------------------------------------------------------


@pytest.fixture
def server():
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200 if self.path == "/" else 404)
            self.end_headers()
            self.wfile.write(b"Welcome")

        def log_message(self, *_):
            pass

    found = HTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=found.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield found.server_address[1]
    found.shutdown()
    found.server_close()
    thread.join(5)


@pytest.mark.parametrize(
    ("check", "pods", "told"),
    [
        ({}, 0, ""),
        ({"service": "s"}, 1, ""),
        ({"service": "s", "expect": "Welcome"}, 2, ""),
        ({"service": "s", "expect": "Hello"}, 1, "answers without 'Hello'"),
        ({"service": "s", "path": "/gone"}, 1, "does not answer: HTTP Error 404"),
        ({"service": "s"}, 0, "the service docs/s leads to no pod"),
    ],
)
def test_a_service_works_when_every_pod_gives_the_answer(server, monkeypatch, check, pods, told):
    monkeypatch.setattr(module, "_endpoints", lambda *_: [("127.0.0.1", server)] * pods)
    found = module._serves(WIKI | {"check": check})
    assert told in found and bool(found) == bool(told)
