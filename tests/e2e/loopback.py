"""etcd members on loopback that stand for hosts, each with a unit of its own, and no systemd.

A member is a folder: its unit file, its process id, its log. So any process can stop, start and
look at it: the test, and the programs that play a host's ``state.apply`` (``rolling_host.py``).
"""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import json
import os
import random
import signal
import socket
import subprocess
import time
import uuid
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from indigo_lab import artifacts, debian
from support import load

#: Where the etcd lies that the tests use, as the lab's `--etcd` takes it: Debian's 3.4, which the
#: lab runs, and 3.5, which comes with etcdutl; or what INDIGO_ETCD names.
GIVEN = os.environ.get("INDIGO_ETCD")
PLACES = (GIVEN,) if GIVEN else (f"debian:{debian.release()}", "debian:trixie")


def etcd_programs(place: str) -> dict[str, str]:
    """Paths of the programs of etcd that a place has, by name."""
    folder = artifacts.folder_of("etcd", place)
    found = {name: artifacts.find(folder, name) for name in ("etcd", "etcdctl", "etcdutl")}
    return {name: str(path) for name, path in found.items() if path}


def await_serving(members: Members) -> None:
    """Wait until every member says that it is healthy."""
    check = load("_modules", "indigo_health").check
    end = time.monotonic() + 60
    while not all(
        check(f"{members.url(name)}/health", **members.tier(name)["check"])["ok"]
        for name in members.NAMES
    ):
        assert time.monotonic() < end, "etcd does not come up"
        time.sleep(0.1)


def free_port() -> int:
    """A port of loopback that nobody uses now, and no connection to elsewhere takes meanwhile."""
    for port in random.sample(range(20000, 32000), 100):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise OSError("no port between 20000 and 32000 is free on loopback")


def authority(folder: Path) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    """An authority of its own, ``ca.crt`` in the folder."""
    return _signed(folder, "ca", None)


def certificate(
    folder: Path, name: str, issuer: tuple[x509.Certificate, ec.EllipticCurvePrivateKey]
) -> None:
    """A certificate for loopback, to serve and to be a client with, as etcd's members have."""
    _signed(folder, name, issuer)


def _signed(
    folder: Path, name: str, issuer: tuple[x509.Certificate, ec.EllipticCurvePrivateKey] | None
) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.timezone.utc)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer[0].subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
    )
    if issuer:
        names = [x509.IPAddress(ipaddress.ip_address("127.0.0.1")), x509.DNSName("localhost")]
        usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
    made = builder.sign(issuer[1] if issuer else key, hashes.SHA256())
    pem = serialization.Encoding.PEM
    (folder / f"{name}.crt").write_bytes(made.public_bytes(pem))
    (folder / f"{name}.key").write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return made, key


class Unit:
    """One unit ``etcd`` on a host of its own: as much of systemd as ``indigo_service`` asks.

    Args:
        folder: Of the host. ``etcd.service`` in it holds the command line, a word a line.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / "etcd.service"

    def __call__(self, *arguments: str, timeout: float = 0) -> tuple[int, str, str]:
        """In place of ``indigo_service._systemctl``."""
        verb = next(word for word in arguments if not word.startswith("--"))
        if verb == "show":
            return 0, "".join(f"{key}={value}\n" for key, value in self.properties().items()), ""
        if verb in ("stop", "restart"):
            self.stop()
        if verb in ("start", "restart"):
            self.start()
        return 0, "", ""

    @property
    def now(self) -> dict[str, Any]:
        """Of the last start: ``pid``, ``invocation``, ``started`` in monotonic seconds."""
        try:
            return json.loads((self.folder / "now.json").read_text())
        except FileNotFoundError:
            return {"pid": 0, "invocation": "", "started": 0.0}

    def properties(self) -> dict[str, str]:
        """What ``systemctl show`` prints."""
        now, alive = self.now, self.alive()
        return {
            "LoadState": "loaded",
            "ActiveState": "active" if alive else "inactive",
            "SubState": "running" if alive else "dead",
            "UnitFileState": "enabled",
            "MainPID": str(now["pid"] if alive else 0),
            "InvocationID": now["invocation"],
            "ExecMainStartTimestampMonotonic": str(int(now["started"] * 1e6)),
            "FragmentPath": str(self.file),
            "DropInPaths": "",
            "NeedDaemonReload": "no",
            "Result": "success",
        }

    def alive(self) -> bool:
        """Whether the process runs; a zombie does not."""
        try:
            stat = Path(f"/proc/{self.now['pid']}/stat").read_text()
        except OSError:
            return False
        return stat.rpartition(")")[2].split()[0] not in "ZX"

    def start(self) -> None:
        """Start a process of its own session, which outlives whoever started it."""
        with (self.folder / "log").open("ab") as log:
            process = subprocess.Popen(
                self.file.read_text().splitlines(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        now = {
            "pid": process.pid,
            "invocation": uuid.uuid4().hex,
            "started": time.monotonic(),
        }
        partial = self.folder / "now.partial"
        partial.write_text(json.dumps(now))
        partial.replace(self.folder / "now.json")

    def stop(self, how: int = signal.SIGTERM, seconds: float = 20) -> None:
        """Stop it and wait for its end."""
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            if self.alive():
                os.kill(self.now["pid"], how)
        end = time.monotonic() + seconds
        while self.alive():
            assert time.monotonic() < end, f"{self.folder.name} does not stop"
            time.sleep(0.02)
        with contextlib.suppress(ChildProcessError, OSError):
            os.waitpid(self.now["pid"], os.WNOHANG)


class Members:
    """Three members of etcd on loopback, over TLS with client certificates.

    Args:
        folder: For all that they need.
        program: etcd.
    """

    NAMES = ("etcd1", "etcd2", "etcd3")

    def __init__(self, folder: Path, program: Path) -> None:
        self.folder, self.program = folder, program
        issuer = authority(folder)
        for name in (*self.NAMES, "master"):
            certificate(folder, name, issuer)
        self.ports = {name: (free_port(), free_port()) for name in self.NAMES}
        self.units = {}
        for name in self.NAMES:
            (folder / name).mkdir()
            self.units[name] = Unit(folder / name)
            self.write(name)

    def write(self, name: str, *extra: str) -> None:
        """Write a member's unit: what a changed flag in ``cluster.yaml`` does."""
        client, peer = self.ports[name]
        own = self.folder / name
        members = ",".join(f"{n}=https://127.0.0.1:{p}" for n, (_, p) in self.ports.items())
        files = {
            "cert-file": f"{own}.crt",
            "key-file": f"{own}.key",
            "trusted-ca-file": self.folder / "ca.crt",
        }
        flags = {
            "name": name,
            "data-dir": own / "data",
            "listen-client-urls": f"https://127.0.0.1:{client}",
            "advertise-client-urls": f"https://127.0.0.1:{client}",
            "listen-peer-urls": f"https://127.0.0.1:{peer}",
            "initial-advertise-peer-urls": f"https://127.0.0.1:{peer}",
            "initial-cluster": members,
            "client-cert-auth": "true",
            "peer-client-cert-auth": "true",
            "heartbeat-interval": "100",
            "election-timeout": "1000",
            **files,
            **{f"peer-{flag}": value for flag, value in files.items()},
        }
        words = [str(self.program), *(f"--{flag}={value}" for flag, value in flags.items())]
        text = "\n".join([*words, *extra]) + "\n"
        self.units[name].file.write_text(text)

    def url(self, name: str) -> str:
        """Client URL of a member."""
        return f"https://127.0.0.1:{self.ports[name][0]}"

    def settings(self, first: str = "etcd1", who: str = "master") -> dict[str, Any]:
        """How a host reaches etcd: pillar ``indigo:lock``."""
        order = sorted(self.NAMES, key=lambda name: name != first)
        return {
            "endpoints": [self.url(name) for name in order],
            "ca": str(self.folder / "ca.crt"),
            "cert": str(self.folder / f"{who}.crt"),
            "key": str(self.folder / f"{who}.key"),
        }

    def tier(self, own: str) -> dict[str, Any]:
        """The tier as a member's pillar declares it."""
        return {
            "name": "etcd",
            "own": own,
            "members": {name: f"{self.url(name)}/health" for name in self.NAMES},
            "need": "majority",
            "url": f"{self.url(own)}/health",
            "check": {
                **{k: v for k, v in self.settings(who=own).items() if k != "endpoints"},
                "expect": '"health":"true"',
            },
            "settle": 0.5,
            "timeout": 8,
        }

    def start(self) -> None:
        """Start all members that do not run."""
        for unit in self.units.values():
            if not unit.alive():
                unit.start()

    def stop(self) -> None:
        """End every process."""
        for unit in self.units.values():
            unit.stop(signal.SIGKILL)
