"""What answers Prometheus for keepalived: the script itself, with a keepalived to be signalled."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import salt.utils.templates
from indigo_model import lb
from indigo_model.cluster import Cluster, Host, Vip
from support import ROOT, program

ASK = "GET /metrics HTTP/1.1\r\nHost: x\r\nAccept: */*\r\n\r\n"

#: What keepalived 2.2 writes on SIGUSR1 and SIGUSR2, and another instance, which is not ours.
DATA = """\
 VRRP Instance = other
   State = FAULT
 VRRP Instance = kubernetes_api
   VRRP Version = 3
   State = {state}
   Wantstate = BACKUP
 VRRP Script = x
   State = idle
"""
STATS = """\
VRRP Instance: other
  Became master: 99
  Priority Zero:
    Sent: 99
VRRP Instance: kubernetes_api
  Advertisements:
    Received: 11
    Sent: 12
  Became master: 3
  Released master: 2
  Packet Errors:
    Length: 4
    TTL: 5
    Invalid Type: 6
    Advertisement Interval: 7
    Address List: 8
  Authentication Errors:
    Invalid Type: 9
    Type Mismatch: 10
    Failure: 13
  Authentication Extension Errors:
    Missing: 77
  Priority Zero:
    Received: 14
    Sent: 15
"""

#: Writes that as keepalived does: a file is there at once and whole later.
KEEPALIVED = f"""
import os, signal, sys, time
told = sys.argv[1]
def write(name, text):
    with open(f"{{told}}/{{name}}.new", "w") as file:
        os.rename(f"{{told}}/{{name}}.new", f"{{told}}/{{name}}")
        for part in text.splitlines(True):
            time.sleep(0.001)
            file.write(part)
            file.flush()
def data(*_):
    with open(f"{{told}}/signals", "a") as file:
        file.write("1")
    write("keepalived.data", {DATA!r}.format(state=open(f"{{told}}/state").read()))
signal.signal(signal.SIGUSR1, data)
signal.signal(signal.SIGUSR2, lambda *_: write("keepalived.stats", {STATS!r}))
print("ready", flush=True)
while True:
    signal.pause()
"""

COUNTERS = {
    "advertisements_received": 11,
    "advertisements_sent": 12,
    "become_master": 3,
    "release_master": 2,
    "packet_length_errors": 4,
    "ip_ttl_errors": 5,
    "invalid_type_received": 6,
    "advertisements_interval_errors": 7,
    "address_list_errors": 8,
    "authentication_invalid": 9,
    "authentication_mismatch": 10,
    "authentication_failure": 13,
    "priority_zero_received": 14,
    "priority_zero_sent": 15,
}


def rendered(told: Path, path: Path) -> str:
    """The script as a load balancer has it, but for where keepalived writes and programs lie."""
    hosts = {"lb1": Host("lb1", "10.0.0.1", ("lb",))}
    cluster = Cluster(
        "x",
        hosts,
        Vip("10.0.0.9", "eth0"),
        "10.96.0.0/16",
        "10.244.0.0/16",
        addons={"prometheus": {}},
    )
    found = lb.view(cluster, hosts["lb1"])["components"]
    assert found["keepalived"]["metrics"] == ["10.0.0.1:9165"]
    found["keepalived"]["told"] = str(told)
    result = salt.utils.templates.JINJA(
        str(ROOT / "salt/lb/files/keepalived-metrics.jinja"),
        to_str=True,
        opts={"cachedir": "/nonexistent", "file_roots": {"base": [str(ROOT / "salt")]}},
        saltenv="base",
        grains={},
        pillar={"indigo": {"components": found, "vip": {"address": "10.0.0.9"}}},
        salt={},
        context={},
        tmplpath="lb/files/keepalived-metrics.jinja",
    )
    assert result["result"], result["data"]
    text = result["data"].replace("\nPATH=", f"\nPATH={path}:")
    assert f"\nPATH={path}:" in text
    return text


class Balancer:
    """A host with the script, and a keepalived that can be stopped, started and held up."""

    def __init__(self, folder: Path) -> None:
        self.told, self.path = folder / "told", folder / "bin"
        self.told.mkdir()
        self.path.mkdir()
        self.script = folder / "keepalived-metrics"
        self.script.write_text(rendered(self.told, self.path), encoding="utf-8")
        self.script.chmod(0o755)
        self.process: subprocess.Popen | None = None
        self.states("BACKUP")
        self.start()

    def states(self, state: str) -> None:
        (self.told / "state").write_text(state, encoding="utf-8")
        self.answers("ip", "7: eth0 inet 10.0.0.9/32" if state == "MASTER" else "")

    def answers(self, name: str, text: str) -> None:
        (self.path / name).write_text(f"#!/bin/sh\necho '{text}'\n", encoding="utf-8")
        (self.path / name).chmod(0o755)

    def start(self) -> None:
        command = [sys.executable, "-c", KEEPALIVED, str(self.told)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert self.process.stdout and self.process.stdout.readline()
        self.answers("systemctl", str(self.process.pid))

    def stop(self) -> None:
        if self.process:
            self.process.kill()
            self.process.communicate()
        self.process = None
        self.answers("systemctl", "0")

    def signals(self) -> int:
        noted = self.told / "signals"
        return len(noted.read_text(encoding="utf-8")) if noted.exists() else 0

    def begin(self) -> subprocess.Popen:
        return subprocess.Popen(
            [self.script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={}
        )

    def ask(self, request: str = ASK) -> tuple[str, str]:
        return answered(self.begin(), request)


def answered(asked: subprocess.Popen, request: str = ASK) -> tuple[str, str]:
    """The first line of an answer, and its body, of which the length is as it was said."""
    out, _ = asked.communicate(request, timeout=20)
    head, _, body = out.partition("\n\n")  # subprocess makes one character of the ends of lines
    (length,) = re.findall(r"(?m)^Content-Length: (\d+)$", head)
    assert int(length) == len(body)
    return head.splitlines()[0], body


def values(body: str) -> dict[str, int]:
    lines = [line.split() for line in body.splitlines() if not line.startswith("#")]
    return {name: int(value) for name, value in lines}


@pytest.fixture
def balancer(tmp_path: Path) -> Iterator[Balancer]:
    found = Balancer(tmp_path)
    yield found
    found.stop()


def test_prometheus_is_told_the_state_and_every_counter_by_the_names_of_the_exporters(balancer):
    balancer.states("MASTER")
    status, body = balancer.ask()
    labels = 'iname="kubernetes_api",intf="eth0",vrid="51"'
    assert status == "HTTP/1.1 200 OK"
    assert values(body) == {
        "keepalived_up": 1,
        f'keepalived_vrrp_state{{{labels},ip_address="10.0.0.9"}}': 2,
        **{f"keepalived_{name}_total{{{labels}}}": count for name, count in COUNTERS.items()},
    }


def test_prometheus_own_judge_finds_nothing_wrong_with_it(balancer):
    _, body = balancer.ask()
    done = subprocess.run(
        [program("prometheus", "usr/bin/promtool"), "check", "metrics"],
        input=body,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@pytest.mark.parametrize(("state", "number"), [("INIT", 0), ("BACKUP", 1), ("FAULT", 3)])
def test_other_states_have_the_exporters_numbers(balancer, state, number):
    balancer.states(state)
    found = values(balancer.ask()[1])
    assert [value for name, value in found.items() if "vrrp_state" in name] == [number]


def test_keepalived_is_asked_again_only_when_something_may_have_changed(balancer):
    first = balancer.ask()
    assert balancer.ask() == first
    assert balancer.signals() == 1
    balancer.states("MASTER")  # the address has come
    assert values(balancer.ask()[1]) != values(first[1])
    assert balancer.signals() == 2
    balancer.stop()
    balancer.start()
    balancer.ask()
    assert balancer.signals() == 3
    old = time.time() - 31
    os.utime(balancer.told / "keepalived.stats", (old, old))
    balancer.ask()
    assert balancer.signals() == 4


def test_one_that_cannot_have_the_address_is_asked_each_time(balancer):
    """It starts so, and is well a moment later."""
    for state in ("FAULT", "INIT", "BACKUP"):
        balancer.states(state)
        balancer.ask()
    assert balancer.signals() == 3
    balancer.ask()
    assert balancer.signals() == 3


def test_many_who_ask_at_once_get_the_same_answer_of_one_question(balancer):
    found = [answered(asked) for asked in [balancer.begin() for _ in range(6)]]
    assert len(set(found)) == 1 and values(found[0][1])["keepalived_up"] == 1
    assert balancer.signals() == 1


def test_a_keepalived_that_does_not_run_is_told_as_down(balancer):
    assert values(balancer.ask()[1])["keepalived_up"] == 1
    balancer.stop()
    status, body = balancer.ask()
    assert status == "HTTP/1.1 200 OK"
    assert values(body) == {"keepalived_up": 0}


def test_without_the_folder_of_its_unit_it_is_down_too(balancer):
    for path in balancer.told.iterdir():
        path.unlink()
    balancer.told.rmdir()
    assert values(balancer.ask()[1]) == {"keepalived_up": 0}


def test_one_that_hangs_is_down_soon_and_up_again_when_it_goes_on(balancer):
    balancer.process.send_signal(signal.SIGSTOP)
    started = time.monotonic()
    found = [answered(asked) for asked in [balancer.begin() for _ in range(2)]]
    assert time.monotonic() - started < 10  # about two; this machine may be busy
    assert [values(body) for _, body in found] == [{"keepalived_up": 0}] * 2
    balancer.process.send_signal(signal.SIGCONT)
    # It has several questions to answer first.
    found = [values(balancer.ask()[1])["keepalived_up"] for _ in range(5)]
    assert 1 in found


def test_an_old_answer_is_not_given_for_one_that_hangs(balancer):
    balancer.states("MASTER")
    assert 2 in values(balancer.ask()[1]).values()
    balancer.process.send_signal(signal.SIGSTOP)
    balancer.states("BACKUP")  # the address was taken away from it
    assert values(balancer.ask()[1]) == {"keepalived_up": 0}
    balancer.process.send_signal(signal.SIGCONT)


@pytest.mark.parametrize("request_", ["GET / HTTP/1.1\r\n\r\n", "POST /metrics HTTP/1.1\r\n\r\n"])
def test_nothing_else_is_answered_and_keepalived_not_asked(balancer, request_):
    status, _ = balancer.ask(request_)
    assert status == "HTTP/1.1 404 Not Found"
    assert balancer.signals() == 0


def test_who_says_nothing_is_left_after_two_seconds(balancer):
    silent = balancer.begin()
    started = time.monotonic()
    assert silent.wait(timeout=20) == 0
    assert 1.5 < time.monotonic() - started < 6
    assert silent.communicate()[0] == ""
    assert balancer.signals() == 0
