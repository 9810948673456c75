"""Objects of the API: compared with one GET, applied only where they differ."""

from __future__ import annotations

import http.server
import json
import shutil
import ssl
import subprocess
import threading
from pathlib import Path

import pytest
from salt.exceptions import CommandExecutionError
from support import load

ROLE = {
    "apiVersion": "rbac.authorization.k8s.io/v1",
    "kind": "ClusterRole",
    "metadata": {"name": "indigo:x"},
    "rules": [{"apiGroups": [""], "resources": ["nodes"], "verbs": ["get"]}],
}


class Api(http.server.BaseHTTPRequestHandler):
    objects: dict[str, dict]
    requests: list[tuple[str, str, str]]

    def _seen(self, method: str) -> None:
        self.requests.append((method, self.path, self.headers["Authorization"]))

    def do_GET(self):
        self._seen("GET")
        found = self.objects.get(self.path)
        self.send_response(200 if found else 404)
        self.end_headers()
        self.wfile.write(json.dumps(found or {"kind": "Status"}).encode())

    def do_PATCH(self):
        self._seen("PATCH")
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert self.headers["Content-Type"] == "application/apply-patch+yaml"
        path, _, query = self.path.partition("?")
        assert query == "fieldManager=indigo&force=true"
        self.objects[path] = {**body, "metadata": {**body["metadata"], "uid": "1"}}
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def log_message(self, *arguments):
        pass


@pytest.fixture
def api(tmp_path: Path):
    """A server with its own authority on loopback: objects, requests, and how to reach it."""
    openssl = shutil.which("openssl")
    assert openssl, "openssl is needed"
    key, certificate, token = tmp_path / "key", tmp_path / "crt", tmp_path / "token"
    subprocess.run(
        [openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
         "-nodes", "-keyout", str(key), "-out", str(certificate), "-days", "1", "-subj", "/CN=x",
         "-addext", "subjectAltName=IP:127.0.0.1"],
        check=True, capture_output=True,
    )  # fmt: skip
    token.write_text("secret\n")
    handler = type("Handler", (Api,), {"objects": {}, "requests": []})
    server = http.server.HTTPServer(("127.0.0.1", 0), handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    handler.access = (
        f"https://127.0.0.1:{server.server_port}",
        str(certificate),
        str(token),
    )
    yield handler
    server.shutdown()
    thread.join()
    server.server_close()


def present(api, objects, test: bool = False):
    module, state = load("_modules", "indigo_object"), load("_states", "indigo_object")
    state.__opts__ = {"test": test}
    state.__salt__ = {
        "indigo_object.difference": module.difference,
        "indigo_object.apply": module.apply,
    }
    return state.present("x", objects, *api.access)


def test_created_once_then_one_get(api):
    first = present(api, [ROLE])
    assert first["result"] is True
    assert first["changes"] == {"ClusterRole indigo:x": "created"}
    api.requests.clear()
    second = present(api, [ROLE])
    assert (second["result"], second["changes"]) == (True, {})
    path = "/apis/rbac.authorization.k8s.io/v1/clusterroles/indigo%3Ax"
    assert api.requests == [("GET", path, "Bearer secret")]


def test_an_object_that_differs_is_updated(api):
    present(api, [ROLE])
    changed = {**ROLE, "rules": [{"apiGroups": [""], "resources": ["nodes"], "verbs": ["list"]}]}
    assert present(api, [changed])["changes"] == {"ClusterRole indigo:x": "updated"}


def test_test_mode_only_reads(api):
    result = present(api, [ROLE], test=True)
    assert result["result"] is None
    assert result["changes"] == {"ClusterRole indigo:x": "created"}
    assert [method for method, _, _ in api.requests] == ["GET"]
    assert api.objects == {}


def test_no_api_is_an_error_and_in_test_mode_a_guess(api, tmp_path):
    url, authority, _ = api.access
    api.access = (url, authority, str(tmp_path / "absent"))
    failed = present(api, [ROLE])
    assert failed["result"] is False
    assert "indigo.deploy" in failed["comment"]
    guess = present(api, [ROLE], test=True)
    assert (guess["result"], guess["changes"]) == (None, {})


def test_a_server_of_another_authority_is_not_believed(api, tmp_path):
    other = tmp_path / "other"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
         "-nodes", "-keyout", str(tmp_path / "k"), "-out", str(other), "-subj", "/CN=y"],
        check=True, capture_output=True,
    )  # fmt: skip
    url, _, token = api.access
    api.access = (url, str(other), token)
    failed = present(api, [ROLE])
    assert failed["result"] is False
    assert api.requests == []


def test_the_token_is_in_no_error(api, tmp_path):
    module = load("_modules", "indigo_object")
    with pytest.raises(CommandExecutionError) as caught:
        module.difference(ROLE, "https://127.0.0.1:9", *api.access[1:])
    assert "secret" not in str(caught.value)


def test_a_kind_that_is_not_known_is_refused():
    module = load("_modules", "indigo_object")
    with pytest.raises(CommandExecutionError, match="kind 'Pod'"):
        module.path({"kind": "Pod", "apiVersion": "v1", "metadata": {"name": "x"}})
