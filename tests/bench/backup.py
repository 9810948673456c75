"""What a backup costs those who write, and a restore compared with the same steps typed by hand.

Both on the profile compact: three hosts that share all roles, and one machine's processors.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from indigo_lab import engine
from indigo_lab.lab import Lab, Options

FOLDER = "/var/lib/indigo-backup"
TLS = "--cacert=/etc/etcd/pki/ca.crt --cert=/etc/etcd/pki/member.crt --key=/etc/etcd/pki/member.key"

#: Objects that a restore brings back.
OBJECTS = 10_000

#: Backups under load, and as many stretches of the same length without one.
ROUNDS = 8

#: Seconds between two stretches that count for neither.
GAP = 1.0

# Writes to a member of etcd with two connections until its input ends; a line a write: when it
# began, in seconds of the epoch, and what it took, in milliseconds.
_LOAD = r"""
import base64, http.client, json, os, ssl, sys, threading, time
context = ssl.create_default_context(cafile="/etc/etcd/pki/ca.crt")
context.load_cert_chain("/etc/etcd/pki/member.crt", "/etc/etcd/pki/member.key")
over = threading.Event()
rows = []
def work(number):
    connection = http.client.HTTPSConnection("127.0.0.1", 2379, timeout=30, context=context)
    n = 0
    while not over.is_set():
        key = base64.b64encode(f"bench/{number}/{n % 2000}".encode()).decode()
        value = base64.b64encode(os.urandom(256)).decode()
        begun, start = time.time(), time.perf_counter()
        connection.request("POST", "/v3/kv/put", json.dumps({"key": key, "value": value}))
        connection.getresponse().read()
        rows.append((begun, (time.perf_counter() - start) * 1000))
        n += 1
threads = [threading.Thread(target=work, args=(n,)) for n in range(2)]
[t.start() for t in threads]
sys.stdin.read()
over.set()
[t.join() for t in threads]
for begun, took in rows:
    print(f"{begun:.3f} {took:.3f}")
"""

# On the Salt master: for each line, a host, a job of the host that makes a backup, as the schedule
# does; no program starts for it. Prints when it began and ended, and what the host said.
_ASK = r"""
import json, sys, time
import salt.client
client = salt.client.LocalClient("/etc/salt/master")
for line in sys.stdin:
    begun = time.time()
    said = client.cmd(line.strip(), "indigo_backup.run", kwarg={"force": True}, timeout=300)
    print(json.dumps([begun, time.time(), said.get(line.strip())]), flush=True)
"""

# Writes ConfigMaps through the VIP; prints how many were acknowledged.
_OBJECTS = r"""
import http.client, json, ssl, sys, threading
count, workers, made = int(sys.argv[1]), 8, []
token = open("/etc/kubernetes/tokens/admin").read().strip()
context = ssl.create_default_context(cafile="/etc/kubernetes/pki/ca.crt")
def work(number):
    connection = http.client.HTTPSConnection("10.77.0.10", 8443, timeout=60, context=context)
    for n in range(number, count, workers):
        body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": f"bench-{n}"},
                "data": {"n": "x" * 200}}
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        path = "/api/v1/namespaces/default/configmaps"
        connection.request("POST", path, json.dumps(body), headers)
        answer = connection.getresponse()
        answer.read()
        if answer.status in (201, 409):
            made.append(n)
threads = [threading.Thread(target=work, args=(n,)) for n in range(workers)]
[t.start() for t in threads]
[t.join() for t in threads]
print(len(made))
"""


def take(lab: Lab) -> None:
    """A deployed lab of the profile compact."""
    if lab.running and "host1" not in {host.name for host in lab.hosts()}:
        lab.down()
    if not lab.running:
        lab.up(Options(profile="compact", prepared=True))
    done = lab.deploy(timeout=900)
    if done.returncode:
        raise SystemExit(f"deploy failed:\n{done.stdout[-3000:]}")


def _run(lab: Lab, *arguments: str) -> Any:
    done = lab.salt_run(*arguments, "--out", "json", timeout=900)
    if done.returncode:
        raise SystemExit(f"salt-run {arguments[0]} failed:\n{done.stdout[-3000:]}{done.stderr}")
    return json.loads(done.stdout)


def _leader(lab: Lab) -> str:
    done = lab.salt("host1", "indigo_etcd.status", "--out", "json", timeout=60)
    return json.loads(done.stdout)["host1"]["leader"]


def p99(values: list[float]) -> float:
    """The value that one in a hundred exceeds.

    >>> p99([float(n) for n in range(1, 1001)])
    990.01
    """
    return round(statistics.quantiles(values, n=100, method="inclusive")[98], 3)


def _piped(host: str, program: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        ["podman", "exec", "-i", engine.container(host), *program],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


def _bind(name: str, to: set[int]) -> None:
    """Let every process of a guest, and what it starts from now on, run on these processors."""
    shown = subprocess.run(
        ["podman", "inspect", "--format", "{{.State.Pid}}", engine.container(name)],
        check=True, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    guest = os.readlink(f"/proc/{int(shown.stdout)}/ns/pid")
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it may be gone by now
            if os.readlink(process / "ns/pid") == guest:
                for thread in (process / "task").iterdir():
                    with contextlib.suppress(OSError):
                        os.sched_setaffinity(int(thread.name), to)


@contextlib.contextmanager
def _apart(names: list[str], one: str) -> Iterator[None]:
    """Give one guest processors of its own, as a host has them; the others share the rest."""
    every = sorted(os.sched_getaffinity(0))
    if len(every) < 2:
        raise SystemExit("one processor is too few: the host that makes the backup wants its own")
    half = len(every) // 2
    try:
        for name in names:
            _bind(name, set(every[half:] if name == one else every[:half]))
        yield
    finally:
        for name in names:
            _bind(name, set(every))


Rows = list[tuple[float, float]]
Span = tuple[float, float]


class Measured:
    """Milliseconds of writes, by member, and the stretches of time that are compared."""

    def __init__(self, rows: dict[str, Rows], beside: list[Span], apart: list[Span]) -> None:
        self.rows, self.beside, self.apart = rows, beside, apart

    def within(self, spans: list[Span], member: str = "") -> list[float]:
        """Of the writes that began in one of the spans, through one member or all."""
        rows = [self.rows[member]] if member else list(self.rows.values())
        return [
            took for some in rows for when, took in some if any(a <= when <= b for a, b in spans)
        ]


def latencies(lab: Lab) -> tuple[tuple[Measured, dict[str, list[Span]]], str]:
    """Writes through all members while backups are made, and as long without.

    Stretches with and without take turns, and turns about which comes first, so that what changes
    on the machine hits both. A stretch with one begins with the job of Salt and ends with its
    answer: the copies on the other hosts are made by then. The host that makes them has processors
    of its own: with shared ones the leader would pay for another host's work, which no site has.

    Returns:
        The writes with the stretches by step of a backup, and the host that made them.
    """
    leader = _leader(lab)
    hosts = ("host1", "host2", "host3")
    maker = next(host for host in hosts if host != leader)
    with _apart([*hosts, "salt"], maker):
        return _stretches(hosts, maker), maker


def _stretches(hosts: tuple[str, ...], maker: str) -> tuple[Measured, dict[str, list[Span]]]:
    # Writers stand for clients on hosts of their own: what else runs here delays etcd, not them.
    writers = {host: _piped(host, ["nice", "-n", "-15", "python3", "-c", _LOAD]) for host in hosts}
    asker = _piped("salt", ["/opt/salt/bin/python3", "-c", _ASK])

    def backup() -> tuple[float, float, dict[str, Any]]:
        assert asker.stdin and asker.stdout
        asker.stdin.write(f"{maker}\n")
        asker.stdin.flush()
        begun, end, said = json.loads(asker.stdout.readline())
        if not isinstance(said, dict) or not said.get("made"):
            raise SystemExit(f"no backup was made: {said}")
        if set(said["copies"].values()) != {"ok"}:
            raise SystemExit(f"a copy was not made: {said['copies']}")
        return begun, end, said

    def rest(length: float) -> Span:
        begun = time.time()
        time.sleep(length)
        return begun, time.time()

    time.sleep(3)
    begun, end, _ = backup()  # the first loads what the others find loaded
    length = end - begun
    beside: list[Span] = []
    apart: list[Span] = []
    steps: dict[str, list[Span]] = {}
    for number in range(ROUNDS):
        time.sleep(GAP)
        if number % 2:
            apart.append(rest(length))
            time.sleep(GAP)
        begun, end, said = backup()
        length = end - begun
        if not number % 2:
            time.sleep(GAP)
            apart.append(rest(length))
        beside.append((begun, end))
        made = dict(said["seconds"])
        moment = end - said["copying"] - made.pop("total")
        steps.setdefault("start", []).append((begun, moment))
        for step, took in made.items():
            steps.setdefault(step, []).append((moment, moment + took))
            moment += took
        steps.setdefault("copies", []).append((end - said["copying"], end))
    rows: dict[str, Rows] = {}
    for host, writer in writers.items():
        said, _ = writer.communicate("", timeout=60)
        rows[host] = [(float(a), float(b)) for a, b in map(str.split, said.splitlines())]
    asker.communicate("", timeout=60)
    return Measured(rows, beside, apart), steps


# By hand ------------------------------------------------------------------------------------------

_STOP = "systemctl stop kube-scheduler kube-controller-manager kube-apiserver"
_RESTORE = """
set -e
systemctl stop etcd
mv /var/lib/etcd/member /var/lib/etcd/by-hand-$$
rm -rf /var/lib/etcd/new
tool=$(ls -d /opt/indigo/etcd-*)/etcdctl
[ -x $(dirname $tool)/etcdutl ] && tool=$(dirname $tool)/etcdutl
ETCDCTL_API=3 $tool snapshot restore {snapshot} --name {name} --data-dir /var/lib/etcd/new \
    --initial-cluster {members} --initial-cluster-token by-hand-{token} \
    --initial-advertise-peer-urls https://{address}:2380
mv /var/lib/etcd/new/member /var/lib/etcd/member
chown -R etcd:etcd /var/lib/etcd
"""
_START = """
set -e
systemctl start etcd
until ETCDCTL_API=3 ETCDCTL_ENDPOINTS=https://127.0.0.1:2379 \
    $(ls -d /opt/indigo/etcd-*)/etcdctl {tls} endpoint health; do sleep 0.2; done
"""
_API = """
set -e
systemctl restart kubelet kube-proxy
if [ -f /etc/systemd/system/kube-apiserver.service ]; then
    systemctl start kube-apiserver
    until [ "$(python3 -c 'import ssl, sys, urllib.request as u
c = ssl.create_default_context(cafile="/etc/kubernetes/pki/ca.crt")
print(u.urlopen("https://{address}:6443/readyz", context=c, timeout=2).read().decode())' \
        2>/dev/null)" = ok ]; do sleep 0.2; done
    systemctl start kube-controller-manager kube-scheduler
    for port in 10257 10259; do
        until [ "$(python3 -c "import ssl, urllib.request as u
c = ssl.create_default_context(cafile='/etc/kubernetes/pki/ca.crt')
print(u.urlopen('https://{address}:$port/healthz', context=c, timeout=2).read().decode())" \
            2>/dev/null)" = ok ]; do sleep 0.2; done
    done
fi
"""


def by_hand(lab: Lab, name: str) -> float:
    """Seconds in which somebody restores the set with one shell on every host, all at once."""
    members = lab.with_role("etcd")
    listed = ",".join(f"{host.name}=https://{host.address}:2380" for host in members)
    token = str(int(time.time()))

    def step(script: Callable[[Any], str]) -> None:
        def one(host: Any) -> None:
            lab.exec(host.name, ["sh", "-c", script(host)], timeout=300, check=True)

        with ThreadPoolExecutor() as pool:
            list(pool.map(one, members))

    started = time.monotonic()
    step(lambda host: _STOP if "master" in host.roles else "true")
    step(
        lambda host: _RESTORE.format(
            snapshot=f"{FOLDER}/{name}/snapshot.db",
            name=host.name,
            members=listed,
            token=token,
            address=host.address,
        )
    )
    step(lambda _: _START.format(tls=TLS))
    step(lambda host: _API.replace("{address}", host.address))
    return time.monotonic() - started


def restores(lab: Lab, runs: int = 3) -> tuple[list[float], list[float]]:
    """Seconds of the orchestration, and of the same by hand, of the same set; they take turns."""
    done = lab.exec("host1", ["python3", "-c", _OBJECTS, str(OBJECTS)], timeout=900, check=True)
    if int(done.stdout) != OBJECTS:
        raise SystemExit(f"{done.stdout.strip()} of {OBJECTS} objects were written")
    name = _run(lab, "indigo_backup.run")["made"]
    ours: list[float] = []
    hands: list[float] = []
    for _ in range(runs):
        hands.append(by_hand(lab, name))
        started = time.monotonic()
        _run(
            lab, "state.orchestrate", "indigo.restore",
            "pillar=" + json.dumps({"confirm": "lab", "backup": name}),
        )  # fmt: skip
        ours.append(time.monotonic() - started)
    done = lab.kubectl("get", "configmaps", "-o", "name", timeout=120)
    found = sum("/bench-" in line for line in done.stdout.splitlines())
    if found != OBJECTS:
        raise SystemExit(f"{found} of {OBJECTS} objects are there after the restores")
    return ours, hands
