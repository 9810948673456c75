"""The service `im`: what a site may say of it, its files, and its check."""

from __future__ import annotations

import base64
import configparser
import json
import os
import re
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import pytest
from indigo_model import accounting, addons, cluster, images, infrastructures, validate, zabbix
from salt.exceptions import CommandExecutionError
from support import load

module = load("_modules", "indigo_addon")

PINNED = "ghcr.io/grycap/im:2.0.0@sha256:" + "0" * 64
DOCUMENT = validate.load(validate.EXAMPLE, "example")


def told(given, use=None):
    """Problems of a file with this service, that it has beside the example's."""
    return validate.problems(DOCUMENT | {"services": {"im": given}, "images": {"use": use or {}}})


def wanted(**given):
    """What the first master brings, with these settings."""
    found = cluster.parse(
        DOCUMENT | {"services": {"im": given, "wiki": {"source": "salt://wiki"}}, "images": {}}
    )
    view = addons.view(found, found.hosts["master1"])["addons"]
    assert set(view["services"]) == {"service-wiki"}
    assert set(view["wanted"]) == {"im"}
    return view["wanted"]["im"]


# --- the cluster file ----------------------------------------------------------------------------


def test_its_key_is_enough_once_the_site_has_named_the_image():
    assert told({}, {"im": PINNED}) == []
    (problem,) = told({})
    assert problem.startswith("images.use.im: found no such key, and services.im; expected")
    assert "such as ghcr.io/grycap/im:2.0.0@sha256:…" in problem
    assert validate.problems(DOCUMENT) == []


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"memory": "1GB"}, "services.im.memory: found '1GB'"),
        ({"source": "salt://im"}, "services.im.source: found an unknown key"),
        ({"config": {"MAX_VM_FAIL": 1}}, "services.im.config.MAX_VM_FAIL: found the key"),
        ({"config": {"OIDC_CLIENT_SECRET": "x"}}, "services.im.config.OIDC_CLIENT_SECRET: found"),
        ({"config": {"DATA_DB": "x"}}, "services.im.config.DATA_DB: found the key"),
        ({"config": {"VAULT_URL": "a\nDATA_DB = b"}}, "services.im.config.VAULT_URL: found"),
        ({"config": {"OIDC_ISSUERS": []}}, "services.im.config.OIDC_ISSUERS: found"),
        ({"config": {"OIDC_ISSUERS": [1]}}, "services.im.config.OIDC_ISSUERS: found"),
        ({"config": {"VAULT_URL": None}}, "services.im.config.VAULT_URL: found"),
    ],
)
def test_mistakes_are_told(given, expected):
    (problem,) = told(given, {"im": PINNED})
    assert problem.startswith(expected)


def test_options_may_be_text_numbers_booleans_and_lists():
    config = {
        "DEFAULT_DOMAIN": "x",
        "MAX_VM_FAILS": 2,
        "VERIFI_SSL": True,
        "OIDC_ISSUERS": ["https://a/", "https://b/"],
    }
    assert told({"config": config}, {"im": PINNED}) == []


# --- its files -----------------------------------------------------------------------------------


def test_its_file_has_the_sites_options_as_its_own_parser_reads_them():
    config = {"OIDC_ISSUERS": ["https://a/", "https://b/"], "VERIFI_SSL": True, "VAULT_PATH": "%a"}
    text = wanted(config=config)["files"]["im.cfg"]
    read = configparser.ConfigParser()
    read.read_string(text)
    assert dict(read["im"]) == {
        "data_db": "sqlite:///data/inf.dat",
        "rest_address": "0.0.0.0",
        "rest_port": "8800",
        "user_db": "/run/im/users.json",
        "max_simultaneous_launches": "5",
        "playbook_retries": "3",
        "ansible_install_timeout": "900",
        "oidc_issuers": "https://a/,https://b/",
        "verifi_ssl": "true",
        "vault_path": "%a",
    }


def test_a_changed_option_restarts_it_and_its_log_goes_to_the_pods(tmp_path):
    assert wanted()["digest"] == wanted()["digest"] != wanted(config={"BOOT_MODE": 1})["digest"]
    (tmp_path / "logging.conf").write_text(wanted()["files"]["logging.conf"])
    script = (
        "import logging, logging.config as c, sys; c.fileConfig(sys.argv[1]); "
        "logging.getLogger('InfrastructureManager').info('hello')"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "logging.conf")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.endswith("InfrastructureManager - INFO - hello\n")


def test_users_are_the_keys_of_a_secret_and_nobody_else_can_read_them(tmp_path):
    users, run, modules = (tmp_path / name for name in ("users", "run", "modules"))
    for folder in (users, run, modules / "IM"):
        folder.mkdir(parents=True)
    (users / "ann").write_text("one\n")
    (users / "bob").write_text('t"wo')
    (users / "..data").write_text("kubelet's own")
    (modules / "IM/__init__.py").touch()
    (modules / "IM/im_service.py").write_text("print('started')")
    script = infrastructures.START.replace("/etc/im-users", str(users)).replace("/run/im", str(run))
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"PYTHONPATH": str(modules)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "started\n"
    found = run / "users.json"
    assert found.stat().st_mode & 0o777 == 0o600
    assert {one["username"]: one["password"] for one in json.loads(found.read_text())["users"]} == {
        "ann": "one",
        "bob": 't"wo',
    }


def test_its_own_user_is_made_up_unless_the_site_has_users():
    own, theirs = wanted(), wanted(secret="people")
    assert (own["users"], own["user"]) == ("im-users", "indigo")
    assert own["passwords"] == {"im-users": {"namespace": "im", "keys": ["indigo"]}}
    assert (theirs["users"], theirs["user"], theirs["passwords"]) == ("people", None, {})


def test_its_data_lies_on_the_sites_disk():
    assert wanted()["claims"] == []
    assert wanted(storage_class="fast")["claims"][0]["spec"]["storageClassName"] == "fast"


def test_images_that_nobody_pinned_are_those_of_two_services():
    every = {name: {} for name in addons.ADDONS} | {"accounting": {"publish": {"secret": "x"}}}
    assert [one.name for one in images.unpinned(every)] == ["im", "kapel", "ssm"]
    own = {infrastructures.NAME, zabbix.NAME, accounting.NAME}
    assert set(cluster.SERVICES) == own <= set(addons.ADDONS)


def test_its_disk_goes_after_its_pod_and_before_its_namespace(monkeypatch):
    gone = []
    monkeypatch.setattr(module, "_kubectl", lambda *words: gone.append(words[-2]))
    objects = {
        ("", "Namespace", "", "im"),
        ("", "PersistentVolumeClaim", "im", "im"),
        ("apps", "Deployment", "im", "im"),
    }
    assert module._delete({"x": objects}) == {}
    assert gone == ["Deployment.apps", "PersistentVolumeClaim", "Namespace"]


# --- its check -----------------------------------------------------------------------------------


class Service:
    """Answers as the Infrastructure Manager does, where a test says nothing else."""

    def __init__(self):
        self.without, self.password, self.version = 401, "secret", {"version": "2.0.0"}
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                code, body = outer.answer(self.path, self.headers)
                self.send_response(code)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                """Say nothing."""

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]
        Thread(target=self.server.serve_forever, daemon=True).start()

    def answer(self, path, headers):
        if path == "/version":
            return 200, json.dumps(self.version).encode()
        who = headers.get("Authorization")
        if who is None:
            return self.without, b""
        fields = dict(re.findall(r"(\w+) = ([^;]+)", who))
        return (200 if fields["password"] in (self.password, self.password.upper()) else 401), b""


@pytest.fixture
def service(monkeypatch):
    found = Service()
    view = {"components": {"kube-apiserver": {"url": ""}}}
    data = {"indigo": base64.b64encode(b"secret").decode()}
    monkeypatch.setattr(module, "__pillar__", {"indigo": view}, raising=False)
    monkeypatch.setattr(
        module, "__salt__", {"indigo_kube.get": lambda *_, **__: {"data": data}}, raising=False
    )
    monkeypatch.setattr(module, "_addresses", lambda *_: ["127.0.0.1"])
    yield found
    found.server.shutdown()
    found.server.server_close()


def checked(service, user="indigo"):
    return module._infrastructures({"port": service.port, "user": user, "users": "im-users"})


def test_it_works_when_it_refuses_all_but_its_user(service):
    assert checked(service) == ""
    assert checked(service, None) == ""


def test_it_does_not_work_when_anybody_may_list(service):
    service.without = 200
    assert checked(service).endswith("answers 200 without a user; expected a refusal, 401")


def test_it_does_not_work_when_a_stranger_is_let_in(service, monkeypatch):
    monkeypatch.setattr(module.secrets, "token_hex", lambda _: "secret")
    assert "answers 200 to a user whom nobody made; expected a refusal" in checked(service)


def test_it_does_not_work_when_its_user_is_not_let_in(service):
    service.password = "another"
    assert checked(service).endswith("answers 401 to its own user indigo")


def test_it_does_not_work_without_a_pod_or_an_answer(service, monkeypatch):
    service.version = {}
    with pytest.raises(CommandExecutionError, match="/version does not answer"):
        checked(service)
    monkeypatch.setattr(module, "_addresses", lambda *_: [])
    assert checked(service) == "the service im leads to no pod"
