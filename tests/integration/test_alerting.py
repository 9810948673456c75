"""Prometheus and two Alertmanagers, as the add-ons configure them, tell of an alert once.

They are Debian's programs, on loopback: the service network is 127.0.0.0/24, so the addresses of
the replicas' services are addresses of this machine.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import certifi
import jinja2
import pytest
import yaml
from indigo_model import addons, versions
from indigo_model.cluster import Cluster, Host, Vip
from support import ROOT, load, program

module = load("_modules", "indigo_addon")


@pytest.fixture
def site() -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Shows a member of etcd without a leader, and notes what it is told: address, notes."""
    notes: list[tuple[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.answer(b'etcd_server_has_leader{host="e1"} 0\n')

        def do_POST(self) -> None:
            told = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            for alert in told["alerts"]:
                notes.append((self.path, alert["labels"]["alertname"]))
            self.answer(b"")

        def answer(self, body: bytes) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield f"127.0.0.1:{server.server_address[1]}", notes
    server.shutdown()
    server.server_close()


def until(seen: Callable[[], Any], seconds: float = 120) -> Any:
    end = time.monotonic() + seconds
    while not (found := seen()) and time.monotonic() < end:
        time.sleep(0.2)
    return found


def fetched(url: str) -> Any:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return json.load(answer)
    except OSError:
        return None


def wanted(receiver: str) -> dict[str, dict[str, Any]]:
    """Settings of both add-ons."""
    hosts = {
        "m": Host("m", "127.0.0.200", ("lb", "etcd", "master")),
        **{f"n{i}": Host(f"n{i}", f"127.0.0.20{i}", ("node",)) for i in (1, 2)},
    }
    alarm = {
        "webhooks": [f"http://{receiver}/alerts"],
        "watchdog": f"http://{receiver}/alive",
        "wait": 0,
    }
    settings = {"interval": 4, "pods": False, "targets": [receiver]}
    declared = Cluster(
        "x",
        hosts,
        Vip("127.0.0.250", "lo"),
        "127.0.0.0/24",
        "10.244.0.0/16",
        versions=versions.resolve({}),
        addons={"prometheus": settings, "alertmanager": alarm},
    )
    return addons.wanted(declared)


def arguments(name: str, settings: dict[str, Any]) -> list[str]:
    """The arguments that the add-on's manifest gives its program."""
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(ROOT / "salt" / "addons"))
    text = environment.get_template(f"{name}/manifests.yaml.jinja").render(addon=settings)
    (workload,) = [one for one in yaml.safe_load_all(text) if one["kind"] == "StatefulSet"]
    return list(workload["spec"]["template"]["spec"]["containers"][0]["args"])


def own_files(alertmanager: Path) -> list[str]:
    """What has a program see its own package's files; Debian's Alertmanager reads two of them."""
    share = alertmanager.parents[1] / "share"
    mine = [] if os.getuid() == 0 else ["--map-root-user"]
    script = 'mount --bind "$1" /usr/share && shift && exec "$@"'
    return ["unshare", *mine, "--mount", "sh", "-c", script, "sh", str(share)]


@pytest.fixture
def started(tmp_path: Path, site: tuple[str, Any]) -> Iterator[dict[str, dict[str, Any]]]:
    """Both programs, as declared."""
    found = wanted(site[0])
    commands = []
    alertmanager = program("prometheus-alertmanager", "usr/bin/prometheus-alertmanager")
    for address in found["alertmanager"]["addresses"]:
        folder = tmp_path / address
        folder.mkdir()
        (folder / "alertmanager.yaml").write_text(found["alertmanager"]["config"])
        commands.append(
            [
                *own_files(alertmanager),
                str(alertmanager),
                *(
                    one.replace("$(ADDRESS)", address)
                    .replace("listen-address=:", f"listen-address={address}:")
                    .replace("0.0.0.0", address)
                    .replace("=/data", f"={folder}")
                    .replace("/etc/alertmanager", str(folder))
                    for one in arguments("alertmanager", found["alertmanager"])
                ),
            ]
        )
    folder = tmp_path / "prometheus"
    (folder / "targets").mkdir(parents=True)
    for name, text in found["prometheus"]["targets"].items():
        (folder / "targets" / name).write_text(text)
    # A leader may be missing for half a minute; that long nobody waits here.
    (folder / "rules.yaml").write_text(found["prometheus"]["rules"].replace('"30s"', '"1s"'))
    (folder / "token").touch()
    shutil.copy(certifi.where(), folder / "ca.crt")  # any authority: nobody answers there
    config = (
        found["prometheus"]["config"]
        .replace("/etc/prometheus-targets", str(folder / "targets"))
        .replace("/etc/prometheus/", f"{folder}/")
        .replace("/var/run/secrets/kubernetes.io/serviceaccount", str(folder))
    )
    (folder / "prometheus.yaml").write_text(config)
    commands.append(
        [
            str(program("prometheus", "usr/bin/prometheus")),
            *(
                one.replace("=:9090", "=127.0.0.1:19090")
                .replace("/etc/prometheus", str(folder))
                .replace("=/data", f"={folder}/data")
                for one in arguments("prometheus", found["prometheus"])
            ),
        ]
    )
    running = []
    for number, command in enumerate(commands):
        with (tmp_path / f"{number}.log").open("w") as log:
            running.append(subprocess.Popen(command, stdout=log, stderr=log, cwd=tmp_path))
    yield found
    for process in running:
        process.kill()
    for process in running:
        process.wait(30)


def test_an_alert_arrives_at_both_and_is_told_once(started, site, monkeypatch, tmp_path):
    _, notes = site
    settings = started["alertmanager"]
    logs = lambda: "\n".join(one.read_text()[-2000:] for one in tmp_path.glob("*.log"))  # noqa: E731
    monkeypatch.setattr(module, "_addresses", lambda *_: settings["addresses"])

    def told():
        try:
            return module._alarm(settings)
        except module.CommandExecutionError as err:
            return str(err)

    assert until(lambda: told() == ""), told() + logs()
    wrong = ("/alerts", "EtcdNoLeader")
    assert until(lambda: wrong in notes), logs()
    first, second = (f"http://{one}:9093/api/v2/alerts" for one in settings["addresses"])
    for url in (first, second):
        names = {one["labels"]["alertname"] for one in fetched(url)}
        assert {"EtcdNoLeader", "Watchdog"} <= names
    assert until(lambda: ("/alive", "Watchdog") in notes), notes
    # The second of them waits 15 seconds for the first to have told.
    time.sleep(18)
    assert notes.count(wrong) == 1, notes
    assert ("/alerts", "Watchdog") not in notes
