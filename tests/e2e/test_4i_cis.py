"""The table of docs/cis.md and what runs: flags of processes, files of hosts, sandboxes of units.

The render tests judge every release by what is rendered; here the same rows judge what hosts have.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "render"))

import cis
from cluster import well
from indigo_model import pki

PROGRAMS = {
    "etcd": ("etcd",),
    "master": (cis.API, cis.KCM, cis.SCHEDULER),
    "node": ("kubelet", "kube-proxy"),
}
ROLES = tuple(PROGRAMS)

STAT = "for path in \"$@\"; do for one in $path; do stat -c '%n %a %U %G' $one; done; done"
#: Flags of the process that systemd runs, a line each.
FLAGS = "tr '\\0' '\\n' < /proc/$(systemctl show -p MainPID --value $0)/cmdline"


@pytest.fixture(scope="module", autouse=True)
def _deployed(lab, first_deploy):
    assert first_deploy.code == 0
    well(lab)


def entries(lab, host, role):
    """Files and folders of a host that the checks of a role are about."""
    paths = sorted({path for check in cis.CHECKS if check.role == role for path in check.paths})
    said = lab.exec(host, ["sh", "-c", STAT, "stat", *paths]).stdout
    rows = [line.split() for line in said.splitlines()]
    return tuple(cis.Entry(path, int(mode, 8), user, group) for path, mode, user, group in rows)


def document(lab, host, path):
    """A YAML file of a host; empty where there is none."""
    return yaml.safe_load(lab.exec(host, ["sh", "-c", f"cat {path} || true"]).stdout) or {}


def facts(lab, host, role):
    """What a host has and runs, as the table judges it."""
    flags = {}
    for name in PROGRAMS[role]:
        words = lab.exec(host, ["sh", "-c", FLAGS, name], check=True).stdout
        flags[name] = dict(re.findall(r"^--([\w-]+)=(.*)$", words, re.M))
        assert flags[name], f"{host}: {name} has no flags: {words}"
    files = entries(lab, host, role)
    keys = [one.user for one in files if one.path.endswith(".key")]
    return cis.Facts(
        flags=flags,
        kubelet=document(lab, host, "/etc/kubernetes/kubelet.yaml"),
        kube_proxy=document(lab, host, "/etc/kubernetes/kube-proxy.yaml"),
        audit=document(lab, host, "/etc/kubernetes/audit-policy.yaml"),
        files=files,
        authorities={row.name: row.authority for row in pki.CERTIFICATES},
        persons=(),
        readers=frozenset(keys),
    )


@pytest.mark.parametrize("role", ROLES)
def test_hosts_are_as_the_table_says(lab, role, figure):
    wrong, judged = [], 0
    for host in lab.with_role(role):
        found = facts(lab, host.name, role)
        for check in (one for one in cis.CHECKS if one.role == role):
            passes = check.judge(found)
            if passes is None:
                # What no look can tell is told by its reason.
                if not check.reason:
                    wrong.append(f"{host.name}: {check.number} ({check.asks}): nothing to look at")
            elif passes == bool(check.reason):
                said = "says why it does not" if passes else "the table says that it does"
                wrong.append(f"{host.name}: {check.number} ({check.asks}): {passes}, and {said}")
            judged += 1
    assert not wrong, "\n".join(wrong)
    assert judged >= 7 * len(lab.with_role(role))
    figure(f"CIS: {judged} checks of {role} hosts are as docs/cis.md says")


@pytest.mark.parametrize("role", [*ROLES, "lb"])
def test_no_unit_is_more_open_than_the_table_says(lab, role):
    host = lab.with_role(role)[0].name
    said = lab.exec(host, ["systemd-analyze", "security", "--no-pager"], timeout=120).stdout
    found = {
        name: float(score)
        for name, score in re.findall(r"^(\S+)\.service\s+([\d.]+) ", said, re.M)
        if name in cis.EXPOSURE
    }
    ours = {*PROGRAMS.get(role, ()), *(("haproxy", "keepalived") if role == "lb" else ())}
    assert ours <= set(found), said
    worse = {name: one for name, one in found.items() if one > cis.EXPOSURE[name][0] + 0.5}
    assert not worse, worse
