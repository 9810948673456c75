"""What ``make chaos`` breaks: the cases as data, who is meant, and how it is broken and mended."""

from __future__ import annotations

import contextlib
import csv
import json
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from cluster import kubectl, on_all, status, until
from indigo_lab.base import LabError
from indigo_lab.lab import Lab

#: Seconds that the API may be without writes, by what was hit: the targets.
LB, ETCD_LEADER, MASTER = 1.5, 3.0, 3.0
#: "0 s": no gap longer than a client waits for one answer. Some requests are on their way to what
#: just died; the others go on meanwhile.
NOTHING = 1.0


@dataclass(frozen=True)
class Case:
    """A fault.

    Attributes:
        how: what happens: ``power-off``, ``cable pulled``, ``silent partition``, ``SIGKILL unit``.
        who: whom it happens to, a host's name or one of :data:`WHO`.
        limit: seconds that the API may be without writes.
        full: whether it is left to ``make chaos-full``.
    """

    how: str
    who: tuple[str, ...]
    limit: float
    full: bool = False

    def __str__(self) -> str:
        return f"{self.how} of {' and '.join(self.who)}"


def _of(how: str, who: str, limit: float, full: bool = False) -> Case:
    return Case(how, tuple(who.split(" + ")), limit, full)


OFF, CABLE, SILENT = "power-off", "cable pulled", "silent partition"

#: Hosts that are lost for a while. All of them come back, and the cluster is whole by itself.
HOSTS = (
    _of(OFF, "VIP holder", LB),
    _of(OFF, "etcd leader", ETCD_LEADER),
    _of(OFF, "etcd follower", NOTHING),
    _of(OFF, "master1", MASTER),
    _of(OFF, "master2", MASTER, full=True),
    _of(OFF, "other lb", NOTHING, full=True),
    _of(OFF, "Salt master", NOTHING, full=True),
    _of(SILENT, "VIP holder", LB),
    _of(SILENT, "etcd leader", ETCD_LEADER),
    _of(SILENT, "etcd follower", NOTHING, full=True),
    _of(SILENT, "master1", MASTER),
    _of(SILENT, "master2", MASTER, full=True),
    _of(SILENT, "other lb", NOTHING, full=True),
    _of(SILENT, "node1", NOTHING, full=True),
    _of(CABLE, "VIP holder", LB),
    _of(CABLE, "etcd leader", ETCD_LEADER, full=True),
    _of(CABLE, "etcd follower", NOTHING, full=True),
    _of(CABLE, "master1", MASTER, full=True),
    _of(CABLE, "master2", MASTER, full=True),
    _of(CABLE, "other lb", NOTHING, full=True),
    _of(CABLE, "node1", NOTHING, full=True),
    _of(OFF, "VIP holder + etcd leader", ETCD_LEADER),
    _of(OFF, "VIP holder + master1", MASTER, full=True),
    _of(OFF, "master2 + etcd leader", MASTER, full=True),
    _of(OFF, "master1 + node1", MASTER, full=True),
    _of(SILENT, "VIP holder + etcd follower", LB, full=True),
    _of(SILENT, "master1 + etcd leader", MASTER, full=True),
)

#: Services that are killed; systemd starts them again.
KILLS = (
    _of("SIGKILL haproxy", "VIP holder", LB),
    _of("SIGKILL keepalived", "VIP holder", LB),
    _of("SIGKILL etcd", "etcd leader", ETCD_LEADER),
    _of("SIGKILL etcd", "etcd follower", NOTHING, full=True),
    _of("SIGKILL etcd-proxy", "master1", MASTER),
    _of("SIGKILL kube-apiserver", "master1", MASTER),
    _of("SIGKILL kube-controller-manager", "controller leader", NOTHING),
    _of("SIGKILL kube-scheduler", "scheduler leader", NOTHING, full=True),
    _of("SIGKILL containerd", "node1", NOTHING),
    _of("SIGKILL kubelet", "node1", NOTHING, full=True),
    _of("SIGKILL kube-proxy", "node1", NOTHING, full=True),
)


# Who -----------------------------------------------------------------------------------------


def found(lab: Lab, who: Iterable[str]) -> list[str]:
    """The hosts that are meant now."""
    now = status(lab)
    return [_found(lab, one, now) for one in who]


def _found(lab: Lab, who: str, now: Mapping[str, Any]) -> str:
    balancers = [host.name for host in lab.with_role("lb")]
    members = [host.name for host in lab.with_role("etcd")]
    if who == "VIP holder":
        (holder,) = now["vip"]["holders"]
        return str(holder)
    if who == "other lb":
        return next(name for name in balancers if name not in now["vip"]["holders"])
    if who == "etcd leader":
        return str(now["etcd"]["leader"])
    if who == "etcd follower":
        return next(name for name in reversed(members) if name != now["etcd"]["leader"])
    if who in ("controller leader", "scheduler leader"):
        lease = "kube-controller-manager" if who.startswith("controller") else "kube-scheduler"
        spec = kubectl(lab, "get", "lease", "-n", "kube-system", lease)["spec"]
        return str(spec["holderIdentity"].split("_")[0])
    if who == "Salt master":
        return "salt"
    return lab.host(who).name


# How -----------------------------------------------------------------------------------------


def strike(lab: Lab, how: str, hosts: Iterable[str]) -> None:
    """Let a fault happen to hosts, to all at once."""
    acts: dict[str, Callable[[str], object]] = {
        OFF: lab.kill,
        CABLE: lab.cut,
        SILENT: lambda host: lab.cut(host, silent=True),
    }
    unit = how.removeprefix("SIGKILL ")
    act = acts.get(how, lambda host: sigkill(lab, host, unit))
    with ThreadPoolExecutor(12) as pool:
        list(pool.map(act, hosts))


def undo(lab: Lab, how: str, hosts: Iterable[str], wait: float = 60) -> None:
    """Give hosts their power or their cable back; nothing else is done for them.

    Args:
        wait: seconds for systemd to have tried everything; 0 for not at all.
    """

    def start(host: str) -> None:
        lab.start(host, wait=wait)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(start if how == OFF else lab.heal, hosts))


def sigkill(lab: Lab, host: str, unit: str) -> None:
    """Kill a unit's main process."""
    lab.exec(host, ["systemctl", "kill", "--kill-who=main", "--signal=KILL", unit], check=True)


# Whole again ---------------------------------------------------------------------------------


def ways_down(lab: Lab) -> list[str]:
    """What the load balancers and the masters' ways to etcd hold for dead."""
    sockets = {
        **{host.name: "/run/indigo-haproxy/admin.sock" for host in lab.with_role("lb")},
        **{host.name: "/run/indigo-etcd-proxy/admin.sock" for host in lab.with_role("master")},
    }

    def ask(host: str) -> list[str]:
        done = lab.exec(host, ["python3", "-c", _STATES, sockets[host]])
        if done.returncode:
            return [f"{host}: haproxy does not answer"]
        rows = csv.DictReader(done.stdout.lstrip("# ").splitlines())
        return [
            f"{host}: {row['svname']} {row['status']}"
            for row in rows
            if row["svname"] not in ("FRONTEND", "BACKEND") and not row["status"].startswith("UP")
        ]

    with ThreadPoolExecutor(5) as pool:
        return [line for lines in pool.map(ask, sockets) for line in lines]


_STATES = """
import socket, sys
with socket.socket(socket.AF_UNIX) as s:
    s.settimeout(3)
    s.connect(sys.argv[1])
    s.sendall(b"show stat\\n")
    text = b""
    while part := s.recv(65536):
        text += part
print(text.decode())
"""


def whole(lab: Lab, seconds: float = 120) -> None:
    """Wait until nothing is missing: no problem in the status, every way open."""
    deadline = time.monotonic() + seconds
    # Cheap questions first: while they are not answered the screen cannot be clean either.
    left = until(lambda: not ways_down(lab), seconds, 0.3)
    assert left, ways_down(lab)
    while problems := _problems(lab):
        assert time.monotonic() < deadline, problems
        time.sleep(0.5)


def _problems(lab: Lab) -> list[str]:
    """What the status complains of; that there is none, while the Salt master is not up yet."""
    try:
        return list(status(lab)["problems"])
    except (ValueError, LabError) as err:
        return [f"no status: {err}"]


# Files ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Damage:
    """A file that is damaged; ``foreign`` content, else cut off in the middle."""

    host: str
    path: str
    foreign: bool = False


#: One host of each tier: the others carry the cluster until the next state.apply.
DAMAGES = (
    Damage("lb1", "/etc/haproxy/haproxy.cfg"),
    Damage("lb1", "/etc/systemd/system/haproxy.service", foreign=True),
    Damage("lb1", "/etc/keepalived/keepalived.conf", foreign=True),
    Damage("lb1", "/usr/local/lib/indigo/haproxy-serves"),
    Damage("etcd1", "/etc/systemd/system/etcd.service"),
    Damage("etcd1", "/etc/etcd/pki/member.crt", foreign=True),
    Damage("etcd1", "/etc/etcd/pki/ca.crt"),
    Damage("master2", "/etc/systemd/system/kube-apiserver.service"),
    Damage("master2", "/etc/systemd/system/kube-scheduler.service", foreign=True),
    Damage("master2", "/etc/kubernetes/etcd-proxy.cfg"),
    Damage("master2", "/etc/kubernetes/tokens.csv"),
    Damage("master2", "/etc/kubernetes/encryption.yaml", foreign=True),
    Damage("master2", "/etc/kubernetes/tokens/kube-controller-manager", foreign=True),
    Damage("master2", "/etc/kubernetes/pki/apiserver.crt", foreign=True),
    Damage("master2", "/etc/kubernetes/pki/apiserver-etcd-client.key"),
    Damage("master2", "/etc/kubernetes/pki/sa.key"),
    Damage("node1", "/etc/systemd/system/kubelet.service", foreign=True),
    Damage("node1", "/etc/kubernetes/kubelet.yaml"),
    Damage("node1", "/etc/kubernetes/kubelet.kubeconfig", foreign=True),
    Damage("node1", "/etc/kubernetes/pki/kubelet.crt"),
    Damage("node1", "/etc/containerd/config.toml", foreign=True),
    Damage("node1", "/opt/indigo/kube-proxy-*/kube-proxy"),
)

#: A valid certificate of nobody's authority stands in for a certificate, words for the rest.
_DAMAGE = """
set -eu
for path in $1; do
    if [ "$2" = foreign ]; then
        case $path in
        *.crt) openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=stranger -days 9 \
            -keyout /dev/null -out "$path" 2>/dev/null ;;
        *) printf 'not = "what belongs here"\\n' > "$path" ;;
        esac
    else
        # In place of it, for a program that runs cannot be written to.
        cp -p "$path" "$path.half"
        truncate -s $(( $(stat -c %s "$path") / 2 )) "$path.half"
        mv -f "$path.half" "$path"
    fi
done
"""


def damage(lab: Lab, one: Damage) -> None:
    """Damage a file; owner and mode stay."""
    kind = "foreign" if one.foreign else "truncated"
    lab.exec(one.host, ["sh", "-c", _DAMAGE, "damage", one.path, kind], check=True)


# Noise ---------------------------------------------------------------------------------------

#: In a guest: garbage to every TCP and UDP port that something listens on, in several shapes.
GARBAGE = r"""
import json, os, socket, subprocess
shapes = (
    os.urandom(4096),
    b"\0" * 4096,
    b"GET / HTTP/1.1\r\n" + b"X: " + b"y" * 65536,
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + os.urandom(600),  # a TLS hello, gone wrong
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + os.urandom(2048),
)
sent = {}
for kind, option in ((socket.SOCK_STREAM, "-Hltn"), (socket.SOCK_DGRAM, "-Hlun")):
    for line in subprocess.run(["ss", option], capture_output=True, text=True).stdout.splitlines():
        address, _, port = line.split()[3].rpartition(":")
        address = address.split("%")[0].strip("[]")
        address = {"*": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(address, address)
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        for shape in shapes:
            try:
                with socket.socket(family, kind) as s:
                    s.settimeout(0.5)
                    s.connect((address, int(port)))
                    s.sendall(shape)
                    s.recv(4096)
            except OSError:
                pass
        sent[f"{address}:{port}"] = len(shapes)
print(json.dumps(sent))
"""


def garbage(lab: Lab) -> dict[str, list[str]]:
    """Send garbage to every open port of every host; the ports, by host."""

    def send(host: str) -> list[str]:
        done = lab.exec(host, ["python3", "-c", GARBAGE], check=True, timeout=120)
        return sorted(json.loads(done.stdout))

    return on_all(lab, send)


def processes(lab: Lab) -> dict[str, str]:
    """By host, what systemd says of the main processes of all its units."""
    command = ["sh", "-c", "systemctl show -p Id,MainPID,NRestarts '*.service' | grep -v =0$"]

    def ask(host: str) -> str:
        return "\n".join(sorted(lab.exec(host, command).stdout.split("\n\n")))

    return on_all(lab, ask)


# Disks ---------------------------------------------------------------------------------------

#: A disk of its own for a member's data: a file system that can be full, or fail, by itself.
_DISK = """
set -eu
systemctl stop etcd
fallocate -l 400M /var/lib/etcd-disk
mkfs.ext4 -q -m 0 -F /var/lib/etcd-disk
mkdir -p /mnt/etcd-disk
mount -o loop,errors=remount-ro /var/lib/etcd-disk /mnt/etcd-disk
cp -a /var/lib/etcd/. /mnt/etcd-disk/
rm -rf /mnt/etcd-disk/lost+found
chown etcd:etcd /mnt/etcd-disk
chmod 700 /mnt/etcd-disk
umount /mnt/etcd-disk
mount -o loop,errors=remount-ro /var/lib/etcd-disk /var/lib/etcd
systemctl start etcd
"""

_NO_DISK = """
set -eu
systemctl stop etcd
rm -rf /var/lib/etcd-back
cp -a /var/lib/etcd /var/lib/etcd-back
rm -f /var/lib/etcd-back/fill
umount /var/lib/etcd
rm -rf /var/lib/etcd/* /var/lib/etcd-disk
cp -a /var/lib/etcd-back/. /var/lib/etcd/
rm -rf /var/lib/etcd-back
systemctl start etcd
"""


@contextlib.contextmanager
def own_disk(lab: Lab, host: str) -> Any:
    """A member of etcd has its data on a disk of its own, and on the host's again at the end."""
    lab.exec(host, ["sh", "-c", _DISK], check=True, timeout=120)
    try:
        yield
    finally:
        lab.exec(host, ["sh", "-c", _NO_DISK], check=True, timeout=120)
