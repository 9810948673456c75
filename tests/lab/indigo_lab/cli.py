"""The command line of the lab."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from .base import LabError
from .lab import Lab, Options, from_environment
from .topology import PROFILES

USAGE = """\
lab up [options]          start the hosts (repeated: start what does not run; --nodes may grow)
lab down                  remove them and all that up made; the cache stays
lab status                hosts, power, addresses, roles; then the cluster's own status
lab deploy [ARG…]         salt-run state.orchestrate indigo.deploy ARG…
lab exec HOST -- CMD…     run a command in a host
lab kill HOST | start HOST | rebuild HOST     power off, on; replace by a bare one
lab cut HOST [--silent] | heal HOST           pull its cable (or part it silently), plug it in
lab kubectl … | salt … | salt-run …           the cluster's and Salt's own commands
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lab", usage=USAGE, description="A cluster's hosts on one machine."
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    up = verbs.add_parser("up", help="start the lab")
    up.add_argument("--profile", choices=PROFILES, help="ha (default), compact or single")
    up.add_argument("--nodes", type=int, metavar="N", help="nodes of the profile ha (default 3)")
    up.add_argument("--prepared", action="store_true", default=None,
                    help="hosts that have the cluster's packages")  # fmt: skip
    up.add_argument("--kubernetes", metavar="DIR_OR_URL", help="the six Kubernetes binaries")
    up.add_argument(
        "--containerd",
        metavar="DIR_OR_SUITE",
        help="containerd, its shim, ctr (and runc)",
    )
    up.add_argument("--etcd", metavar="DIR_OR_SUITE", help="etcd, etcdctl (and etcdutl)")
    up.add_argument("--images", metavar="DIR", help="more images: docker archives *.tar")
    verbs.add_parser("down", help="remove the lab")
    verbs.add_parser("status", help="show hosts and cluster")
    for verb in ("kill", "start", "heal", "rebuild"):
        verbs.add_parser(verb).add_argument("host", metavar="HOST")
    cut = verbs.add_parser("cut", help="pull a host's cable")
    cut.add_argument("host", metavar="HOST")
    cut.add_argument("--silent", action="store_true", help="its carrier stays up")
    return parser


def status(lab: Lab) -> int:
    """Print the hosts, then what the tree's own status runner says."""
    if not lab.running:
        print("the lab is down")
        return 1
    powered = lab.powered()
    for host in lab.hosts():
        power = "up" if powered[host.name] else "off"
        print(f"{host.name:<9} {power:<4} {host.address:<12} {' '.join(host.roles)}")
    if not powered["salt"]:
        return 1
    print(flush=True)
    return lab.attach("salt", ["salt-run", "indigo.status"])


def _pass_on(lab: Lab, verb: str, rest: list[str]) -> int:
    if verb == "exec":
        host, command = (rest[0], rest[1:]) if rest else ("", [])
        if command[:1] == ["--"]:
            command = command[1:]
        if not host or not command:
            raise LabError("exec: expected HOST -- CMD…")
        return lab.attach(host, command)
    if verb == "deploy":
        return lab.attach("salt", ["salt-run", "state.orchestrate", "indigo.deploy", *rest])
    if verb == "kubectl":
        return lab.attach(*lab.kubectl_command(rest))
    return lab.attach("salt", [verb, *rest])


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    lab = Lab()
    try:
        if os.geteuid() != 0:
            raise LabError("the lab makes networks and mounts: run it as root")
        # These hand every word on, also what looks like an option of ours.
        if words[:1] and words[0] in ("exec", "deploy", "kubectl", "salt", "salt-run"):
            return _pass_on(lab, words[0], words[1:])
        given = _parser().parse_args(words)
        if given.verb == "up":
            keys = ("profile", "nodes", "prepared", "kubernetes", "containerd", "etcd", "images")
            options = Options(**{key: getattr(given, key) for key in keys})
            lab.up(options.over(from_environment()))
        elif given.verb == "down":
            lab.down()
        elif given.verb == "status":
            return status(lab)
        elif given.verb == "cut":
            lab.cut(given.host, silent=given.silent)
        else:
            getattr(lab, given.verb)(given.host)
    except LabError as exc:
        print(f"lab: {exc}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("lab: interrupted; run the same command again to go on", file=sys.stderr)
        return 130
    return 0
