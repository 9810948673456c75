"""The lab as a whole: what the command line and the tests call."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from . import artifacts, debian, engine, rootfs, saltenv, site, topology
from .base import REPO, LabError, cache, locked, remove_tree, run, say, state, write
from .rootfs import VENV
from .topology import MIRROR, Host

# What kubelets (the first three), podman's networks and the lab itself write on the machine.
SYSCTLS = (
    "kernel.panic",
    "kernel.panic_on_oops",
    "vm.overcommit_memory",
    "net.ipv4.ip_forward",
    "fs.inotify.max_user_instances",
)
_MIRROR = "mirror"
_AT_ONCE = 4  # guests created or started at the same time: podman keeps two cores busy


@dataclass(frozen=True)
class Options:
    """What `lab up` was asked for; None means the default.

    Attributes:
        profile: one of topology.PROFILES.
        nodes: number of nodes of the profile `ha`.
        prepared: whether the hosts have the cluster's packages.
        kubernetes: a folder or URL with the binaries.
        containerd, etcd: folders, or `debian:SUITE`.
        images: a folder.
    """

    profile: str | None = None
    nodes: int | None = None
    prepared: bool | None = None
    kubernetes: str | None = None
    containerd: str | None = None
    etcd: str | None = None
    images: str | None = None

    def over(self, saved: Options) -> Options:
        """These options, with what they leave open taken from the saved ones."""
        given = {key: value for key, value in asdict(self).items() if value is not None}
        return replace(saved, **given)


def from_environment() -> Options:
    """What INDIGO_KUBERNETES, INDIGO_CONTAINERD, INDIGO_ETCD and INDIGO_IMAGES name, if they do.

    The values are those of the options. So whatever starts a lab, tests too, runs with them.
    """
    names = ("kubernetes", "containerd", "etcd", "images")
    return Options(**{name: os.environ.get(f"INDIGO_{name.upper()}") or None for name in names})


@dataclass
class _State:
    options: Options
    hosts: list[Host]
    sysctls: dict[str, str] = field(default_factory=dict)
    rootfs: str = ""
    venv: str = ""
    site: str = ""  # digest of the cluster.yaml that we wrote

    @classmethod
    def load(cls) -> _State | None:
        """The saved state, or None when the lab is down."""
        try:
            data: dict[str, Any] = json.loads(state("lab.json").read_text())
        except FileNotFoundError:
            return None
        data["options"] = Options(**data["options"])
        data["hosts"] = [Host(h["name"], h["address"], tuple(h["roles"])) for h in data["hosts"]]
        return cls(**data)

    def save(self) -> None:
        """Write the state."""
        write(state("lab.json"), json.dumps(asdict(self), indent=1))


class Lab:
    """A lab on this machine. All methods act on what runs now; there is one lab a machine.

    Example:
        lab = Lab()
        lab.up(Options(profile="ha", nodes=3))
        lab.exec("node1", ["systemctl", "is-active", "kubelet"]).stdout
        lab.kill("lb1"); lab.start("lb1")
    """

    # ------------------------------------------------------------ questions

    @property
    def running(self) -> bool:
        """Whether `up` has been run and `down` has not."""
        return _State.load() is not None

    def _state(self) -> _State:
        found = _State.load()
        if found is None:
            raise LabError("the lab is down; run: tests/lab/lab up")
        return found

    def hosts(self) -> list[Host]:
        """Every host of the lab, also those that are powered off, the Salt master's first."""
        return self._state().hosts

    def host(self, name: str) -> Host:
        """One host by its name."""
        for found in self.hosts():
            if found.name == name:
                return found
        names = " ".join(h.name for h in self.hosts())
        raise LabError(f"host {name!r}: the lab has no such host; expected one of: {names}")

    def with_role(self, role: str) -> list[Host]:
        """The hosts that had a role when the lab wrote cluster.yaml."""
        return [host for host in self.hosts() if role in host.roles]

    def powered(self) -> dict[str, bool]:
        """Host -> whether it runs."""
        found = engine.guests()
        return {host.name: found.get(host.name, False) for host in self.hosts()}

    @property
    def cluster_file(self) -> Path:
        """The cluster.yaml that the Salt master in the lab reads; tests may edit it."""
        return state("site", "pillar", "cluster.yaml")

    # ------------------------------------------------------------ actions on a host

    def exec(
        self,
        host: str,
        argv: Sequence[str],
        *,
        stdin: str | None = None,
        timeout: float | None = None,
        check: bool = False,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in a host.

        Args:
            host: its name.
            argv: the command, no shell in between.
            stdin: text for its standard input; none by default.
            timeout: seconds, then LabError (the command in the host goes on).
            check: raise LabError on a non-zero exit.

        Returns:
            returncode, stdout and stderr.
        """
        done = engine.execute(host, argv, stdin=stdin, timeout=timeout)
        if check and done.returncode:
            raise LabError(
                f"{host}: exit {done.returncode} from: {' '.join(argv)}\n"
                f"{(done.stderr + done.stdout).strip()[-2000:]}"
            )
        return done

    def attach(self, host: str, argv: Sequence[str]) -> int:
        """Run a command in a host on this process's own terminal or pipes; its exit code."""
        self._on(host)
        return engine.attach(host, argv)

    def _on(self, name: str) -> Host:
        host = self.host(name)
        if not self.powered()[name]:
            raise LabError(f"{name}: it is powered off; run: tests/lab/lab start {name}")
        return host

    def kill(self, host: str) -> None:
        """Power a host off, without a warning to anything in it. Harmless when it is off."""
        self.host(host)
        if self.powered()[host]:
            engine.kill(host)

    def start(self, host: str, *, wait: float = 60) -> None:
        """Power a host on, with the disk and the address it had. Harmless when it is on.

        Args:
            wait: seconds to wait for its systemd to be up; 0 for not at all.
        """
        self.host(host)
        if not self.powered()[host]:
            engine.start(host)
        if wait:
            self._booted([host], wait)

    def cut(self, host: str, *, silent: bool = False) -> None:
        """Pull a host's cable, or (silent) part it from the others while its carrier stays up."""
        self._on(host)
        engine.cut(host, silent=silent)

    def heal(self, host: str) -> None:
        """Undo `cut`. Harmless when nothing is cut."""
        self._on(host)
        engine.heal(host)

    def rebuild(self, host: str) -> None:
        """Replace a host by a bare one of the same name and address, with a new Salt key."""
        found, now = self.host(host), self._state()
        engine.remove(host)
        remove_tree(state("hosts", host))
        self._provision([found])
        self._create(found, now)
        self._booted([host], 60)
        self._answering([host], 120)

    def add(self, host: Host) -> None:
        """Start one more bare host; cluster.yaml is left to the caller.

        Example:
            lab.add(Host("node9", "10.77.0.49", ("node",)))
        """
        now = self._state()
        if any(h.name == host.name or h.address == host.address for h in now.hosts):
            raise LabError(f"host {host.name} ({host.address}): the lab has that name or address")
        now.hosts.append(host)
        now.save()
        self._provision([host])
        self._create(host, now)
        self._booted([host.name], 60)
        self._answering([host.name], 60)

    def remove(self, host: str) -> None:
        """Take a host out of the lab for good, with its disk and its accepted key."""
        now = self._state()
        self.host(host)
        engine.remove(host)
        remove_tree(state("hosts", host))
        saltenv.forget(self._etc("salt"), host)
        now.hosts = [h for h in now.hosts if h.name != host]
        now.save()

    # ------------------------------------------------------------ Salt and Kubernetes

    def salt(self, *argv: str, timeout: float | None = None) -> subprocess.CompletedProcess[str]:
        """Run `salt …` on the Salt master."""
        return self.exec("salt", ["salt", *argv], timeout=timeout)

    def salt_run(
        self, *argv: str, timeout: float | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run `salt-run …` on the Salt master."""
        return self.exec("salt", ["salt-run", *argv], timeout=timeout)

    def deploy(self, *argv: str, timeout: float | None = None) -> subprocess.CompletedProcess[str]:
        """Run the orchestration that deploys the cluster."""
        return self.salt_run("state.orchestrate", "indigo.deploy", *argv, timeout=timeout)

    def kubectl_command(self, argv: Iterable[str]) -> tuple[str, list[str]]:
        """The host and the command that run kubectl as the cluster's admin, through the VIP."""
        powered = self.powered()
        masters = self.with_role("master")
        for host in masters:
            if powered[host.name]:
                return host.name, ["sh", "-c", _KUBECTL, "kubectl", *argv]
        names = " ".join(h.name for h in masters)
        raise LabError(f"kubectl: no master runs ({names}); run: tests/lab/lab start HOST")

    def kubectl(
        self, *argv: str, stdin: str | None = None, timeout: float | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run kubectl as the cluster's admin, through the VIP."""
        host, command = self.kubectl_command(argv)
        return self.exec(host, command, stdin=stdin, timeout=timeout)

    # ------------------------------------------------------------ up and down

    def up(self, options: Options | None = None) -> None:
        """Start the lab, or what of it does not run, and wait until every minion answers.

        Args:
            options: what to start; what they leave open stays as it was, or is the default.

        Raises:
            LabError: the options contradict the lab that runs, or a step failed.
        """
        with locked():
            self._up(options or Options())

    def _up(self, options: Options) -> None:
        before = _State.load()
        wanted = options.over(before.options if before else Options(profile="ha"))
        hosts = topology.hosts(wanted.profile or "ha", wanted.nodes)
        if before:
            hosts = _grown(before, hosts, wanted)
        debian.ensure(debian.MACHINE)
        arch = debian.architecture()
        disk = rootfs.bare(arch)
        packages = self._repository(disk)
        keep = {disk, rootfs.prepared_path(disk, packages)}
        if wanted.prepared:
            disk = rootfs.prepared(disk, packages)
        venv = saltenv.environment()
        docroot = artifacts.publish(
            arch,
            kubernetes_from=wanted.kubernetes,
            etcd_from=wanted.etcd,
            containerd_from=wanted.containerd,
            images_from=wanted.images,
        )
        say(
            "artifacts: "
            + ", ".join(f"{name} {v}" for name, v in sorted(docroot.published.versions.items()))
        )
        now = _State(options=wanted, hosts=hosts)
        now.sysctls = before.sysctls if before else _sysctls()
        now.rootfs = before.rootfs if before else str(disk)
        now.venv = before.venv if before else str(venv)
        now.site = before.site if before else ""
        now.save()
        # All guests share root's count of inotify instances, and every systemd, containerd, kubelet
        # and kube-proxy takes some: with the usual 128 the ninth node or so has none left.
        Path("/proc/sys/fs/inotify/max_user_instances").write_text("8192")
        rootfs.prune({*keep, Path(now.rootfs)})
        self._write_site(now, docroot.published)
        new_config = saltenv.master_files(self._etc("salt"))
        self._provision(hosts)
        engine.network_up()
        found = engine.guests()
        self._mirror(found, now)
        self._boot(found, now)
        if new_config and found.get("salt"):
            say("salt: new master configuration, restart the master")
            self.exec("salt", ["systemctl", "restart", "salt-master"], check=True)
        self._booted([h.name for h in hosts], 120)
        say(f"{len(hosts)} hosts are up; wait for their minions")
        self._answering([h.name for h in hosts], 120)
        say(f"lab up: {len(hosts)} minions answer (next: tests/lab/lab deploy)")

    def _repository(self, disk: Path) -> list[Path]:
        """Make the guests' package repository; the packages that a prepared host has of it."""
        folder = cache("www", "debian")
        stamp = cache("www", ".debian-for")
        wanted = f"2 {disk.name} {' '.join((*debian.CLUSTER, *debian.OPTIONAL))}"
        lines = stamp.read_text().splitlines() if stamp.exists() else [""]
        if lines[0] != wanted:
            say("packages: download what the hosts install")
            apt = debian.Apt(status=disk / "var/lib/dpkg/status")
            apt.update()
            usual = apt.packages(debian.CLUSTER)
            debian.repository(apt.packages((*debian.CLUSTER, *debian.OPTIONAL)), folder)
            lines = [wanted, *(path.name.replace("%3a", "_") for path in usual)]
            write(stamp, "\n".join(lines))
        return sorted(folder / name for name in lines[1:])

    def _write_site(self, now: _State, published: artifacts.Published) -> None:
        document = site.cluster(now.hosts, published, cgroup_v1=engine.cgroup_v1())
        text = f"# Written by tests/lab/lab; an edited copy is left alone.\n{site.yaml(document)}"
        file = self.cluster_file
        if file.exists() and hashlib.sha256(file.read_bytes()).hexdigest() != now.site:
            say(f"{file} was edited: left as it is")
            return
        write(file, text)
        now.site = hashlib.sha256(text.encode()).hexdigest()
        now.save()

    def _etc(self, host: str) -> Path:
        return state("hosts", host, "salt")

    def _provision(self, hosts: Sequence[Host]) -> None:
        """Give hosts their Salt keys and configuration, and the master theirs to accept."""
        master = self._etc("salt")
        public = saltenv.seed_master(master)
        with ThreadPoolExecutor(2) as pool:
            keys = pool.map(lambda h: saltenv.seed_minion(self._etc(h.name), h.name), hosts)
            for host, key in zip(hosts, keys, strict=True):
                saltenv.accept(master, host.name, key)
                saltenv.trust_master(self._etc(host.name), public)
        for host in hosts:
            for folder in ("containerd", "kubelet"):
                state("hosts", host.name, folder).mkdir(parents=True, exist_ok=True)

    def _mirror(self, found: dict[str, bool], now: _State) -> None:
        if found.get(_MIRROR):
            return
        if _MIRROR in found:
            engine.start(_MIRROR)
            return
        say(f"mirror: http://{MIRROR}")
        engine.create(
            _MIRROR,
            address=MIRROR,
            mac=Host(_MIRROR, MIRROR, ()).mac,
            rootfs=Path(now.rootfs),
            mounts={
                "/srv/www": f"{cache('www')}:ro",
                "/srv/indigo": f"{Path(__file__).with_name('mirror.py').parent}:ro",
            },
            command=["/usr/bin/python3", "/srv/indigo/mirror.py", MIRROR, "80", "/srv/www"],
        )

    def _create(self, host: Host, now: _State) -> None:
        mounts = {
            VENV: f"{now.venv}:ro",
            "/etc/salt": str(self._etc(host.name)),
            # Overlay on overlay fails, and the kubelet wants a file system that it can measure.
            "/var/lib/containerd": str(state("hosts", host.name, "containerd")),
            "/var/lib/kubelet": str(state("hosts", host.name, "kubelet")),
        }
        if Path("/lib/modules").is_dir():
            mounts["/lib/modules"] = "/lib/modules:ro"
        if host.name == "salt":
            mounts["/srv/indigo"] = f"{REPO}:ro"
            mounts["/srv/indigo-site"] = str(state("site"))
        engine.create(
            host.name,
            address=host.address,
            mac=host.mac,
            rootfs=Path(now.rootfs),
            mounts=mounts,
        )

    def _boot(self, found: dict[str, bool], now: _State) -> None:
        """Create or start every host that does not run, the Salt master's first."""

        def bring(host: Host) -> None:
            if host.name not in found:
                self._create(host, now)
            elif not found[host.name]:
                engine.start(host.name)

        absent = [host for host in now.hosts if not found.get(host.name)]
        if not absent:
            return
        say(f"hosts: start {' '.join(h.name for h in absent)}")
        if absent[0].name == "salt":
            bring(absent.pop(0))
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            list(pool.map(bring, absent))

    def _booted(self, names: Sequence[str], seconds: float) -> None:
        """Wait until systemd in every host has reached its target."""
        deadline = time.monotonic() + seconds
        for name in names:
            while True:
                said = self.exec(name, ["systemctl", "is-system-running"]).stdout.strip()
                if said in ("running", "degraded"):
                    break
                if time.monotonic() > deadline:
                    raise LabError(
                        f"{name}: not booted after {seconds:.0f} s, systemd says {said!r}; "
                        f"look at: tests/lab/lab exec {name} -- systemctl list-jobs"
                    )
                time.sleep(0.3)

    def _answering(self, names: Sequence[str], seconds: float) -> None:
        """Wait until the minions answer test.ping."""
        deadline = time.monotonic() + seconds
        missing = set(names)
        # A published job waits long for a minion that is not there yet: look for them first.
        wanted = {self.host(name).address for name in names}
        while time.monotonic() < deadline and not wanted <= self._subscribed():
            time.sleep(0.3)
        while missing:
            done = self.exec(
                "salt",
                ["salt", "--static", "--out=json", "--timeout=5", "--hide-timeout",
                 "-L", ",".join(sorted(missing)), "test.ping"],
                timeout=60,
            )  # fmt: skip
            # No JSON: the master is not there yet.
            with contextlib.suppress(ValueError, AttributeError):
                missing -= {name for name, ok in json.loads(done.stdout).items() if ok is True}
            if missing and time.monotonic() > deadline:
                first = sorted(missing)[0]
                raise LabError(
                    f"minions {' '.join(sorted(missing))}: no answer to test.ping after "
                    f"{seconds:.0f} s; look at: tests/lab/lab exec {first} -- "
                    f"journalctl -u salt-minion\n{done.stderr.strip()[-500:]}"
                )
            if missing:
                time.sleep(0.5)

    def _subscribed(self) -> set[str]:
        """The addresses of the minions that listen to the master."""
        out = self.exec("salt", ["ss", "-Htn", "state", "established", "sport = :4505"]).stdout
        return {line.split()[-1].rsplit(":", 1)[0].strip("[]") for line in out.splitlines()}

    def down(self) -> None:
        """Remove everything that `up` made on the machine; the cache stays."""
        with locked():
            before = _State.load()
            if not shutil.which("podman"):  # then nothing of a lab can be here
                return
            found = engine.guests()
            if found:
                say(f"remove {len(found)} guests")
                with ThreadPoolExecutor(_AT_ONCE) as pool:
                    list(pool.map(engine.remove, found))
            engine.network_down()
            for key, value in (before.sysctls if before else {}).items():
                Path("/proc/sys", *key.split(".")).write_text(value)
            remove_tree(state())
            say("lab down")


def _sysctls() -> dict[str, str]:
    return {key: Path("/proc/sys", *key.split(".")).read_text().strip() for key in SYSCTLS}


def _grown(before: _State, hosts: list[Host], wanted: Options) -> list[Host]:
    """The hosts of a running lab after `up` with these options: it may grow, nothing else."""
    for key in ("profile", "prepared"):
        was, now = getattr(before.options, key), getattr(wanted, key)
        if was != now:
            raise LabError(
                f"--{key}: found {now}, the lab runs with {was}; run `tests/lab/lab down` first"
            )
    have = {host.name for host in before.hosts}
    names = {host.name for host in hosts}
    grown = before.options.nodes != wanted.nodes
    if grown and not {n for n in have if n.startswith("node")} <= names:
        raise LabError(
            f"--nodes: found {wanted.nodes}, the lab has more; run `tests/lab/lab down` first"
        )
    if not grown:  # a test may have added or removed hosts: they stay as they are
        return before.hosts
    return before.hosts + [host for host in hosts if host.name not in have]


_KUBECTL = """\
program=$(command -v kubectl || ls /opt/indigo/kubectl*/kubectl 2>/dev/null | sort -V | tail -n1)
if [ -z "$program" ] || [ ! -e /etc/kubernetes/admin.kubeconfig ]; then
    echo "kubectl: $(hostname) has no admin.kubeconfig yet; run: tests/lab/lab deploy" >&2
    exit 1
fi
exec "$program" --kubeconfig /etc/kubernetes/admin.kubeconfig "$@"
"""


def machine_is_clean() -> list[str]:
    """What of a lab is left on the machine; empty after `down`."""
    left = [str(state())] if state().exists() else []
    left += [f"guest {name}" for name in engine.guests()]
    if not left:
        remove_tree(state())  # podman's configuration, which the question itself needs
    for net in (topology.SERVICES, topology.PODS):
        if run(["ip", "route", "show", "type", "blackhole", net]).stdout.strip():
            left.append(f"route {net}")
    return left
