"""Faults on purpose: what breaks, how long clients notice, and that nothing acknowledged is lost.

``make chaos`` runs the cases that are not marked ``chaos_full``, ``make chaos-full`` runs all, and
``make test`` those that are not marked ``slow`` either. Writers, readers and a watch go through
the VIP all the while (traffic.py), with a connection for each request and with one that is kept.
A case ends when the cluster is whole by itself. docs/operations/chaos.md has the targets and the
figures.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from typing import Any

import charts
import pytest
import yaml
from cluster import answering, apply_all, changes, deploy, deployment, kubectl, status, until
from faults import (
    DAMAGES,
    HOSTS,
    KILLS,
    LB,
    NOTHING,
    OFF,
    SILENT,
    Case,
    Damage,
    damage,
    found,
    garbage,
    own_disk,
    processes,
    strike,
    undo,
    whole,
)
from indigo_lab.lab import Lab
from indigo_model.cluster import TIMERS
from moments import Run
from traffic import Report, Traffic

pytestmark = pytest.mark.chaos

#: Seconds that are looked at after a fault at least; and without a failed try at the end of them.
LOOK, CALM = 4.0, 2.0
CONNECTIONS = 5000

HEADER = (
    f"{'case':<44} {'hosts':<16} {'no writes':>9} {'no reads':>9} {'failed':>9} {'twice':>5} "
    f"{'writes':>6} {'lost':>4} {'whole after':>11}"
)
_said: set[str] = set()
_measured: list[dict[str, Any]] = []


@pytest.fixture(scope="module", autouse=True)
def _deployed(lab, first_deploy):
    assert first_deploy.code == 0
    # Default settings: the lab's file sets no timers.
    assert "timers" not in yaml.safe_load(lab.cluster_file.read_bytes())
    whole(lab)
    yield
    if os.environ.get("INDIGO_CHARTS"):  # as make chaos says; make test leaves the pages alone
        charts.keep("chaos", _measured)
    whole(lab)


@pytest.fixture
def row(figure) -> Callable[..., None]:
    """Adds a line to the table of all cases, and to the chart if it is to be drawn."""

    def add(
        case: object, hosts: str, seen: Report, seconds: float | None = None, limit: float = NOTHING
    ) -> None:
        _measured.append({"name": str(case), "values": [round(seen.without_writes, 2)],
                          "target": getattr(case, "limit", limit)})  # fmt: skip
        if HEADER not in _said:
            _said.add(HEADER)
            figure(HEADER)
        failed = f"{len(seen.failed_first)}/{seen.requests}"
        ended = "" if seconds is None else f"{seconds:.1f} s"
        figure(
            f"{case!s:<44} {hosts:<16} {seen.without_writes:>7.2f} s {seen.without_reads:>7.2f} s "
            f"{failed:>9} {len(seen.failed_twice):>5} {seen.acknowledged or 0:>6} "
            f"{len(seen.lost):>4} {ended:>11}"
        )

    return add


def observe(traffic: Traffic, since: float, seconds: float = 40) -> None:
    """Look on until no try fails any more."""
    until(lambda: time.time() - since > LOOK and not _failing(traffic), seconds, 0.2)


def _failing(traffic: Traffic) -> bool:
    now = time.time()
    recent = traffic.report(now - CALM, now)
    return any(one.wrong for one in recent.tries if one.kind != "watch") or not recent.tries


def sound(seen: Report, limit: float) -> None:
    """Nothing acknowledged is lost or untold, and the API took writes but for so many seconds."""
    assert seen.acknowledged, seen.details()
    assert not seen.lost, seen.lost
    assert not seen.unseen, seen.unseen
    assert seen.without_writes < limit, f"{seen}\n{seen.details()}"


#: Of the cases of `make chaos`, those that `make test` has time for.
QUICK = (
    "silent partition of VIP holder",
    "SIGKILL etcd of etcd leader",
    "SIGKILL kube-apiserver of master1",
)


def _cases(cases: tuple[Case, ...]) -> list[object]:
    def marks(case: Case) -> list[pytest.MarkDecorator]:
        if case.full:
            return [pytest.mark.chaos_full]
        return [] if str(case) in QUICK else [pytest.mark.slow]

    return [pytest.param(case, id=str(case), marks=marks(case)) for case in cases]


# Hosts -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", _cases(HOSTS))
def test_hosts_are_lost_and_come_back(lab: Lab, row, case: Case):
    hosts = found(lab, case.who)
    with Traffic(lab, "salt" if "salt" not in hosts else "node3") as traffic:
        since = traffic.flows()
        strike(lab, case.how, hosts)
        try:
            observe(traffic, since)
            if case.how == SILENT and case.who == ("VIP holder",):
                assert len(holders(lab)) == 2  # each side believes that it is alone
        finally:
            undo(lab, case.how, hosts)
        back = time.time()
        whole(lab)
        seconds = time.time() - back
        observe(traffic, back)
        seen = traffic.stop(since)
    row(case, " ".join(hosts), seen, seconds)
    assert len(holders(lab)) == 1
    sound(seen, case.limit)


def holders(lab: Lab) -> list[str]:
    """Load balancers that have the VIP, asked on the hosts and not over the network."""
    command = ["sh", "-c", "ip -o address show to 10.77.0.10"]
    balancers = [host.name for host in lab.with_role("lb") if lab.powered()[host.name]]
    return [name for name in balancers if lab.exec(name, command).stdout.strip()]


# Services ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", _cases(KILLS))
def test_services_are_killed_and_come_back(lab: Lab, row, case: Case):
    (host,) = hosts = found(lab, case.who)
    unit = case.how.removeprefix("SIGKILL ")
    containers = _containers(lab, host)
    with Traffic(lab) as traffic:
        since = traffic.flows()
        before = _invocation(lab, host, unit)
        strike(lab, case.how, hosts)
        # Up again under systemd, not merely still up.
        assert until(lambda: _invocation(lab, host, unit) not in ("", before), 30, 0.2)
        observe(traffic, since)
        back = time.time()
        whole(lab)
        seconds = time.time() - back
        seen = traffic.stop(since)
    row(case, host, seen, seconds)
    assert _containers(lab, host) == containers  # pods know nothing of it
    sound(seen, case.limit)


def _invocation(lab: Lab, host: str, unit: str) -> str:
    """systemd's name for this run of a unit; empty while it is not active."""
    show = ["systemctl", "show", "-p", "ActiveState,InvocationID", unit]
    found = dict(line.split("=", 1) for line in lab.exec(host, show).stdout.splitlines())
    return found.get("InvocationID", "") if found.get("ActiveState") == "active" else ""


def _containers(lab: Lab, host: str) -> list[str]:
    """The containers that run on a host."""
    if "node" not in lab.host(host).roles:
        return []
    command = "/opt/indigo/containerd-*/ctr -n k8s.io tasks list 2>/dev/null | grep RUNNING"
    return sorted(lab.exec(host, ["sh", "-c", command]).stdout.split("\n"))


# Pods --------------------------------------------------------------------------------------------

PODS = deployment("chaos", 4)


@pytest.mark.chaos_full
@pytest.mark.parametrize("how", [OFF, SILENT])
def test_pods_of_a_dead_node_run_elsewhere_in_time(lab: Lab, row, figure, how: str):
    assert lab.kubectl("apply", "-f", "-", stdin=PODS).returncode == 0
    try:
        assert until(lambda: len(_running(lab)) == 4, 60)
        node = sorted(_running(lab).values())[0]
        lost = {name for name, where in _running(lab).items() if where == node}
        allowed = TIMERS["node_grace"] + TIMERS["pod_eviction"]
        with Traffic(lab) as traffic:
            since = traffic.flows()
            strike(lab, how, [node])
            try:
                moved = until(
                    lambda: sum(where != node for where in _running(lab).values()) == 4,
                    allowed + 60,
                    1,
                )
                seconds = time.time() - since
            finally:
                undo(lab, how, [node])
            assert moved
            back = time.time()
            whole(lab)
            again = time.time() - back
            seen = traffic.stop(since)
        row(f"{how} of a node with pods", node, seen, again)
        figure(
            f"{len(lost)} pods of {node} ran elsewhere {seconds:.1f} s after its {how} "
            f"(node_grace {TIMERS['node_grace']} s and pod_eviction {TIMERS['pod_eviction']} s)"
        )
        # Noticed at a look ten times in the grace period; a pod needs seconds to start.
        assert seconds < allowed + 15
        sound(seen, NOTHING)
    finally:
        lab.kubectl("delete", "deployment", "chaos", "--wait=false")


def _running(lab: Lab) -> dict[str, str]:
    """Pods that are ready and not about to go, with their nodes."""
    return {
        pod["metadata"]["name"]: pod["spec"]["nodeName"]
        for pod in kubectl(lab, "get", "pods", "-l", "app=chaos")["items"]
        if "deletionTimestamp" not in pod["metadata"]
        and any(
            condition["type"] == "Ready" and condition["status"] == "True"
            for condition in pod["status"].get("conditions", ())
        )
    }


# Everything --------------------------------------------------------------------------------------


def test_a_power_cut_of_all_hosts(lab: Lab, figure):
    names = [host.name for host in lab.hosts()]
    with Traffic(lab) as traffic:
        traffic.flows()
        time.sleep(2)
        strike(lab, OFF, names)
    written = traffic.written
    began = time.time()
    undo(lab, OFF, names)
    powered = time.time() - began
    assert until(lambda: _writes(lab), 120, 0.3)
    serves = time.time() - began
    whole(lab, 180)
    seconds = time.time() - began
    chosen = f"traffic={traffic.run}"
    items = kubectl(lab, "get", "configmaps", "-l", chosen)["items"]
    missing = written - {item["metadata"]["name"] for item in items}
    lab.kubectl("delete", "configmaps", "-l", chosen)
    figure(
        f"power cut of all {len(names)} hosts: power back on all after {powered:.1f} s, the API "
        f"takes writes after {serves:.1f} s, whole after {seconds:.1f} s; "
        f"{len(missing)} of {len(written)} acknowledged writes lost"
    )
    assert written
    assert not missing


def _writes(lab: Lab) -> bool:
    name = f"cut-{time.time_ns()}"
    made = lab.kubectl("create", "configmap", name, "--request-timeout=2s", timeout=30)
    if made.returncode == 0:
        lab.kubectl("delete", "configmap", name, "--wait=false", timeout=30)
    return made.returncode == 0


# Files -------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_damaged_files_are_mended_by_the_next_apply(lab: Lab, row):
    hosts = sorted({one.host for one in DAMAGES})
    with Traffic(lab) as traffic:
        since = traffic.flows()
        for one in DAMAGES:
            damage(lab, one)
        # They bite when the hosts start with them.
        strike(lab, OFF, hosts)
        # keepalived without a configuration is in its start for as long as systemd lets it.
        undo(lab, OFF, hosts, wait=0)
        for host in hosts:
            answering(lab, host)
        assert status(lab)["problems"]
        began = time.time()
        code, result = apply_all(lab)
        seconds = time.time() - began
        bad = {host: changes(states) for host, states in result.items()}
        assert code == 0, {
            host: {
                name: state
                for name, state in states.items()
                if result[host][name]["result"] is not True
            }
            for host, states in bad.items()
        }
        whole(lab)
        seen = traffic.stop(since)
    row(f"{len(DAMAGES)} damaged files, then state.apply", " ".join(hosts), seen, seconds, 5)
    _, again = apply_all(lab)
    assert {host: found for host, states in again.items() if (found := changes(states))} == {}
    # The lb, the etcd member and the master of it at once.
    sound(seen, 5)


@pytest.mark.chaos_full
def test_a_lost_token_takes_one_command(lab: Lab, figure):
    damage(lab, Damage("node1", "/etc/kubernetes/tokens/kubelet"))
    damage(lab, Damage("master2", "/etc/kubernetes/tokens.set"))
    code, result = apply_all(lab)
    said = json.dumps(result)
    assert code != 0
    assert "salt-run state.orchestrate indigo.deploy" in said
    done = deploy(lab)
    figure(f"lost tokens of a node and a master: indigo.deploy mends them in {done.seconds:.1f} s")
    assert done.code == 0, done.told
    whole(lab)


# Disks -------------------------------------------------------------------------------------------


@pytest.mark.chaos_full
@pytest.mark.parametrize("kind", ["full", "read-only"])
def test_the_disk_of_an_etcd_member_fails(lab: Lab, row, kind: str):
    (member,) = found(lab, ["etcd follower"])
    with own_disk(lab, member):
        whole(lab)
        with Traffic(lab) as traffic:
            since = traffic.flows()
            if kind == "full":
                lab.exec(member, ["sh", "-c", _FILL])
                _write_much(lab)
            else:
                lab.exec(member, ["sh", "-c", _READ_ONLY], check=True)
            # The member falls out and says so; the others go on.
            assert until(lambda: not _healthy(lab, member), 60, 0.5)
            observe(traffic, since)
            # It may try again and again, so that not every look finds it down.
            assert until(lambda: any(member in problem for problem in _problems(lab)), 30)
            lab.exec(member, ["sh", "-c", _ROOM if kind == "full" else _WRITABLE], check=True)
            back = time.time()
            whole(lab)
            seconds = time.time() - back
            seen = traffic.stop(since)
    whole(lab)
    row(f"{kind} disk of an etcd follower", member, seen, seconds)
    sound(seen, NOTHING)


_FILL = "dd if=/dev/zero of=/var/lib/etcd/fill bs=64k 2>/dev/null; true"
_ROOM = "rm /var/lib/etcd/fill"
#: As the kernel does when the disk fails; only a new mount makes it writable again.
_READ_ONLY = """
device=$(findmnt -n -o SOURCE /var/lib/etcd)
echo 1 > "/sys/fs/ext4/${device#/dev/}/trigger_fs_error"
findmnt -n -o OPTIONS /var/lib/etcd | grep -qw ro || mount -o remount,ro /var/lib/etcd
"""
_WRITABLE = """
set -eu
umount -l /var/lib/etcd
systemctl kill --signal=KILL etcd || true
sleep 1
mount -o loop,errors=remount-ro /var/lib/etcd-disk /var/lib/etcd
"""


def _write_much(lab: Lab) -> None:
    """30 MB through the API, more than is left on the full disk."""
    text = "x" * 700_000
    for number in range(40):
        document = {
            "apiVersion": "v1", "kind": "ConfigMap", "data": {"x": text},
            "metadata": {"name": f"much-{number}", "labels": {"chaos": "much"}},
        }  # fmt: skip
        lab.kubectl("create", "-f", "-", stdin=json.dumps(document), timeout=30)
    lab.kubectl("delete", "configmaps", "-l", "chaos=much", timeout=60)


def _healthy(lab: Lab, member: str) -> bool:
    return '"true"' in lab.exec(member, ["python3", "-c", _HEALTH]).stdout


# The guests have no curl.
_HEALTH = """
import ssl, urllib.request
pki = "/etc/etcd/pki/"
context = ssl.create_default_context(cafile=pki + "ca.crt")
context.load_cert_chain(pki + "member.crt", pki + "member.key")
url = "https://127.0.0.1:2379/health"
print(urllib.request.urlopen(url, timeout=3, context=context).read().decode())
"""


def _problems(lab: Lab) -> list[str]:
    return [json.dumps(problem) for problem in status(lab)["problems"]]


# Deploys -----------------------------------------------------------------------------------------


@pytest.mark.chaos_full
@pytest.mark.parametrize("what", ["the Salt master is restarted", "minions are lost"])
def test_a_deploy_is_disturbed_and_the_next_one_converges(lab: Lab, row, what: str):
    with Traffic(lab, "node1") as traffic:
        since = traffic.flows()
        lab.rebuild("node3")
        run = Run(lab)
        assert run.wait_for(lambda now: now.has("node3", "/opt/indigo/kubelet-*")), run.end().told
        if what.startswith("minions"):
            for host in ("node3", "lb3", "etcd3"):
                lab.exec(host, ["systemctl", "kill", "--signal=KILL", "salt-minion"], check=True)
        else:
            lab.exec("salt", ["systemctl", "restart", "salt-master"], check=True)
        run.end()
        began = time.time()
        done = deploy(lab)
        assert done.code == 0, done.told
        whole(lab)
        seconds = time.time() - began
        again = deploy(lab)
        seen = traffic.stop(since)
    row(f"deploy: {what}", "node3", seen, seconds, 3)
    assert again.changes == {}
    # Masters learn node3's tokens anew, one after the other.
    sound(seen, 3)


# Clients -----------------------------------------------------------------------------------------


@contextlib.contextmanager
def crowd(number: int) -> Iterator[list[socket.socket]]:
    """Connections to the VIP that say nothing, every tenth with TLS."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    held: list[socket.socket] = []
    try:
        for one in range(number):
            plain = socket.create_connection(("10.77.0.10", 8443), timeout=10)
            held.append(context.wrap_socket(plain) if one % 10 == 0 else plain)
        yield held
    finally:
        for each in held:
            each.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_five_thousand_connections(lab: Lab, row):
    with Traffic(lab) as traffic:
        since = traffic.flows()
        with crowd(CONNECTIONS) as held:
            time.sleep(2)
            # haproxy takes them all, and none was dropped to make room.
            stat = lab.exec(
                holders(lab)[0], ["sh", "-c", "ss -Htn state established sport = :8443 | wc -l"]
            )
            assert int(stat.stdout) > CONNECTIONS
            assert len(held) == CONNECTIONS
        whole(lab)
        seen = traffic.stop(since)
    row(f"{CONNECTIONS} connections to the VIP", " ".join(holders(lab)), seen, limit=LB)
    sound(seen, LB)


def test_garbage_to_every_open_port(lab: Lab, row):
    before = processes(lab)
    with Traffic(lab) as traffic:
        since = traffic.flows()
        sent = garbage(lab)
        whole(lab)
        seen = traffic.stop(since)
    row(f"garbage to {sum(map(len, sent.values()))} open ports", "all", seen)
    # Every service that listens to others was among them.
    text = " ".join(port for ports in sent.values() for port in ports)
    for port in (8443, 2379, 2380, 6443, 10250, 10257, 10259, 4505, 4506):
        assert f":{port}" in text, sent
    assert processes(lab) == before
    sound(seen, NOTHING)
