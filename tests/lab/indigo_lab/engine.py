"""Guests under podman: booted systemd hosts with their own disk, network and cgroups."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .base import LabError, run, state, write
from .topology import GATEWAY, NETWORK, PODS, SERVICES

NAME = "indigo-lab"  # of the podman network; guests are indigo-lab-<host>
RULE = "7710"  # preference of the routing rule that keeps guests in
LABEL = "indigo.lab=1"

CONFIG = """\
[containers]
pids_limit = 0
log_driver = "k8s-file"
log_size_max = 10000000
default_sysctls = []
[engine]
cgroup_manager = "cgroupfs"
runtime = "runc"
events_logger = "file"
[network]
network_backend = "netavark"
"""


def cgroup_v1() -> bool:
    """Whether the machine's controllers are on cgroup v1 (hybrid or whole)."""
    return not Path("/sys/fs/cgroup/cgroup.controllers").exists()


def _environment() -> dict[str, str]:
    return {"CONTAINERS_CONF": str(state("containers.conf")), "TMPDIR": "/var/tmp"}


def podman(
    *words: str | Path, step: str = "", check: bool = True, timeout: float | None = 120
) -> subprocess.CompletedProcess[str]:
    """Run podman with the lab's configuration."""
    if not state("containers.conf").exists():
        write(state("containers.conf"), CONFIG)
    return run(
        ["podman", *words],
        step=step or f"podman {' '.join(map(str, words[:2]))}",
        env=_environment(),
        check=check,
        timeout=timeout,
    )


def container(host: str) -> str:
    """The podman name of a guest."""
    return f"{NAME}-{host}"


def guests() -> dict[str, bool]:
    """Every guest of the lab that exists -> whether it runs."""
    out = podman("ps", "--all", "--filter", f"label={LABEL}", "--format", "json").stdout
    return {
        item["Names"][0].removeprefix(f"{NAME}-"): item["State"] == "running"
        for item in json.loads(out or "[]")
    }


# ---------------------------------------------------------------- network


def network_up() -> None:
    """Make the internal network, and see to it that nothing in it gets out."""
    if podman("network", "exists", NAME, check=False).returncode:
        podman(
            "network", "create", "--internal", "--disable-dns", "--subnet", NETWORK,
            "--gateway", GATEWAY, "--label", LABEL, NAME,
            step="network: create",
        )  # fmt: skip
    for net in (SERVICES, PODS):
        run(["ip", "route", "replace", "blackhole", net], step=f"network: blackhole for {net}")
    # Guests have a default route, as real hosts do; the machine answers "unreachable" at once.
    _no_rule()
    run(
        ["ip", "rule", "add", "pref", RULE, "iif", bridge(), "unreachable"],
        step="network: keep the guests in",
    )


def _no_rule() -> None:
    while run(["ip", "rule", "del", "pref", RULE], check=False).returncode == 0:
        pass


def network_down() -> None:
    """Undo `network_up`."""
    _no_rule()
    for net in (SERVICES, PODS):
        run(["ip", "route", "del", "blackhole", net], check=False)
    if podman("network", "exists", NAME, check=False).returncode == 0:
        podman("network", "rm", "--force", NAME, step="network: remove")


def bridge() -> str:
    """The name of the machine's bridge for the lab's network."""
    found: Any = json.loads(podman("network", "inspect", NAME).stdout)
    return str(found[0]["network_interface"])


def veth(host: str) -> str:
    """The machine's end of a running guest's cable."""
    pid = podman("inspect", "--format", "{{.State.Pid}}", container(host)).stdout.strip()
    if pid in ("", "0"):
        raise LabError(f"{host}: it is powered off, so it has no cable; run: lab start {host}")
    inside = json.loads(
        run(["nsenter", "-t", pid, "-n", "ip", "-j", "link", "show", "eth0"]).stdout
    )
    for link in json.loads(run(["ip", "-j", "link"]).stdout):
        if link["ifindex"] == inside[0].get("link_index"):
            return str(link["ifname"])
    raise LabError(f"{host}: the other end of its eth0 is not on this machine; run: lab up")


def cut(host: str, *, silent: bool = False) -> None:
    """Pull a guest's cable; silently: its carrier stays, but no frame arrives."""
    name = veth(host)
    if silent:
        run(["ip", "link", "set", name, "nomaster"], step=f"{host}: take it off the bridge")
    else:
        run(["ip", "link", "set", name, "down"], step=f"{host}: cut")


def heal(host: str) -> None:
    """Undo either kind of cut."""
    name = veth(host)
    run(["ip", "link", "set", name, "master", bridge()], step=f"{host}: heal")
    run(["ip", "link", "set", name, "up"], step=f"{host}: heal")


# ---------------------------------------------------------------- guests


def create(
    host: str,
    *,
    address: str,
    mac: str,
    rootfs: Path,
    mounts: Mapping[str, str],
    command: Sequence[str] = ("/sbin/init",),
) -> None:
    """Create and start a guest.

    Args:
        host: its name.
        rootfs: the shared disk under its own overlay.
        mounts: path in the guest -> `path on the machine[:options]`.
    """
    nofile = min(resource.getrlimit(resource.RLIMIT_NOFILE)[1], 1048576)
    if nofile < 0:
        nofile = 1048576
    words: list[str | Path] = [
        "run", "--detach", "--name", container(host), "--hostname", host, "--label", LABEL,
        "--privileged", "--cgroupns=private", "--systemd=false", "--stop-signal", "SIGRTMIN+3",
        "--tmpfs", "/run:rw,mode=755,size=256m", "--tmpfs", "/run/lock:rw,mode=1777,size=8m",
        "--tmpfs", "/tmp:rw,mode=1777,size=512m", "--env", "container=podman",
        "--ulimit", f"nofile={nofile}:{nofile}", "--ulimit", "nproc=32768:32768",
        "--no-hosts", "--dns", "none", "--network", NAME, "--ip", address, "--mac-address", mac,
    ]  # fmt: skip
    for target, source in mounts.items():
        path, _, options = source.partition(":")
        words += ["--volume", f"{path}:{target}:{options}" if options else f"{path}:{target}"]
    words += ["--rootfs", f"{rootfs}:O", *command]
    podman(*words, step=f"{host}: create")


def start(host: str) -> None:
    """Power a guest on, with the disk it had."""
    podman("start", container(host), step=f"{host}: start")


def kill(host: str) -> None:
    """Power a guest off, at once.

    The network goes first: the kernel would close the connections of the killed processes for
    all to see, and a host without power says nothing.
    """
    cut(host, silent=True)
    podman("kill", "--signal", "KILL", container(host), step=f"{host}: kill")
    podman("wait", container(host), step=f"{host}: kill")


def remove(host: str) -> None:
    """Remove a guest and its disk."""
    podman("rm", "--force", "--time", "0", "--ignore", container(host), step=f"{host}: remove")


def execute(
    host: str, argv: Sequence[str], *, stdin: str | None = None, timeout: float | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command in a guest and return it with its output; no error on a non-zero exit."""
    words = ["podman", "exec", *(["-i"] if stdin is not None else []), container(host), *argv]
    return run(
        words, step=f"{host}: {argv[0]}", env=_environment(), stdin=stdin, check=False,
        timeout=timeout,
    )  # fmt: skip


def attach(host: str, argv: Sequence[str]) -> int:
    """Run a command in a guest on this terminal (or these pipes); its exit code."""
    tty = sys.stdin.isatty() and sys.stdout.isatty()
    words = ["podman", "exec", "-it" if tty else "-i", container(host), *argv]
    sys.stdout.flush()
    return subprocess.run(words, env={**os.environ, **_environment()}, check=False).returncode
