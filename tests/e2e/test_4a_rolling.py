"""``salt '*' state.apply`` on all hosts at once with something to restart in every tier.

Meanwhile clients write, read and watch through the VIP. Three applies: one that changes every tier;
one in which the host that holds etcd's lock loses its minion and the API servers get a flag that
breaks them; one that puts everything right again, and has the load balancers reload.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml
from cluster import answering, apply_all, ready_nodes, status, until, well
from indigo_lab import engine
from journals import Span, stops, taken_in, together, told
from traffic import Report, Traffic

# `make test` has an upgrade under load (test_5e_upgrade.py) and the lock (test_8_rolling_lock.py).
pytestmark = pytest.mark.slow

#: Tier to its role and its units.
TIERS = {
    "etcd": ("etcd", ["etcd"]),
    "kube-apiserver": ("master", ["kube-apiserver"]),
    "kube-controller-manager": ("master", ["kube-controller-manager"]),
    "kube-scheduler": ("master", ["kube-scheduler"]),
    "lb": ("lb", ["haproxy", "keepalived"]),
}
ROLLED, GIVEN = "one may go", "was given to another host before"

#: Seconds after which a holder of a lock that died is out.
LEASE = 15
#: First tries that may fail while everything restarts once.
FIRST_TRIES = 3

CHANGED = {
    "etcd": {"flags": {"max-snapshots": 6}},
    "kube-apiserver": {"flags": {"event-ttl": "2h"}},
    "kube-controller-manager": {"flags": {"concurrent-deployment-syncs": 6}},
    "kube-scheduler": {"flags": {"kube-api-burst": 101}},
}
#: A value that only the API server itself finds wrong.
BROKEN = {"kube-apiserver": {"flags": {"event-ttl": "nonsense"}}}
#: Takes a reload, not a restart.
RELOADED = {"haproxy": {"config": {"maxconn": 7000}}}


class Site:
    """What the person who runs the cluster edits."""

    def __init__(self, lab) -> None:
        self.lab, self.declared = lab, lab.cluster_file.read_text()

    def override(self, wanted: dict[str, Any], **keys: Any) -> None:
        """Merge overrides into what was declared at first, and set other keys."""
        document = yaml.safe_load(self.declared)
        overrides = document.setdefault("overrides", {})
        for component, kinds in wanted.items():
            for kind, values in kinds.items():
                overrides.setdefault(component, {}).setdefault(kind, {}).update(values)
        self.lab.cluster_file.write_text(yaml.safe_dump(document | keys, sort_keys=False))

    def put_back(self) -> None:
        """As it was declared at first."""
        self.lab.cluster_file.write_text(self.declared)

    def drop_in(self, text: str | None) -> None:
        """Change the units of all load balancers, which restarts them; None takes it away."""
        for host in self.lab.with_role("lb"):
            for unit in ("haproxy", "keepalived"):
                folder = f"/etc/systemd/system/{unit}.service.d"
                script = f"rm -r {folder}"
                if text is not None:
                    script = f"mkdir -p {folder} && cat > {folder}/rolling.conf"
                script += " && systemctl daemon-reload"
                self.lab.exec(host.name, ["sh", "-c", script], stdin=text or "", check=True)


@pytest.fixture(scope="module", autouse=True)
def _deployed(lab, first_deploy):
    assert first_deploy.code == 0
    well(lab)


@pytest.fixture(scope="module")
def site(lab) -> Site:
    return Site(lab)


@pytest.fixture
def traffic(lab) -> Iterator[Traffic]:
    with Traffic(lab) as found:
        yield found


def restarts(lab, since: float) -> dict[str, list[Span]]:
    """For each tier, when its members were away."""
    return {
        tier: [span for host in lab.with_role(role) for span in stops(lab, host.name, units, since)]
        for tier, (role, units) in TIERS.items()
    }


def one_at_a_time(lab, spans: dict[str, list[Span]], since: float) -> None:
    """No two members of a tier were away at once, nor did a load balancer ever see it so."""
    for tier, found in spans.items():
        assert not together(found), f"{tier}: {found}"
    for host in lab.with_role("lb"):
        seen = taken_in(lab, host.name, spans["kube-apiserver"], since)
        assert not together(seen), f"{host.name} had no master: {seen}"


def returned(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The hosts that told what they did; of others there is a text."""
    return {host: states for host, states in found.items() if isinstance(states, dict)}


def comments(found: dict[str, Any], unit: str) -> dict[str, str]:
    """What each host says of the unit that it was to keep running."""
    return {
        host: state["comment"]
        for host, states in returned(found).items()
        for key, state in states.items()
        if key.startswith("indigo_service_|-")
        and key.endswith("_|-running")
        and state.get("name") == unit
    }


def failed(found: dict[str, Any]) -> list[str]:
    """What states that failed say."""
    return [
        f"{host}: {state.get('name')}: {state.get('comment')}"
        for host, states in returned(found).items()
        for state in states.values()
        if state.get("result") is False
    ]


def went_on(report: Report, allowed: int = FIRST_TRIES) -> None:
    """Clients that try once more noticed nothing, and nothing is lost."""
    assert not report.failed_twice, report.details()
    assert len(report.failed_first) <= allowed, report.details()
    assert (report.lost, report.unseen) == ([], [])


def test_every_tier_restarts_one_host_after_the_other(lab, site, traffic, figure):
    nodes = ready_nodes(lab)
    site.override(CHANGED)
    site.drop_in("[Service]\nLimitCORE=0\n")
    since = traffic.flows()
    code, found = apply_all(lab)
    seconds = time.time() - since
    report = traffic.stop(since)
    spans = restarts(lab, since)
    figure(f"every tier restarts on all hosts at once: {seconds:.1f} s; {told(spans)}")
    figure(f"meanwhile {report}\n{report.details()}".rstrip())
    assert code == 0, failed(found)
    for tier, (role, units) in TIERS.items():
        hosts = {host.name for host in lab.with_role(role)}
        assert {span.member for span in spans[tier]} == hosts
        for unit in units:
            said = comments(found, unit)
            # Whoever had the address restarted keepalived when it gave it away.
            gave = {h for h, text in comments(found, "haproxy").items() if GIVEN in text}
            rolled = {host for host, text in said.items() if ROLLED in text}
            assert rolled == (hosts - gave if unit == "keepalived" else hosts), said
    assert "3 members, quorum 2: 3 healthy, one may go" in comments(found, "etcd")["etcd1"]
    one_at_a_time(lab, spans, since)
    went_on(report)
    assert ready_nodes(lab) == nodes
    well(lab)


def _restarted(lab) -> str:
    """The first etcd host whose member is another process than now; waits for it."""
    pids = {
        host.name: engine.podman(
            "inspect", "--format", "{{.State.Pid}}", engine.container(host.name)
        ).stdout.strip()
        for host in lab.with_role("etcd")
    }
    units = {
        host: Path("/proc", pid, "root/run/systemd/units/invocation:etcd.service")
        for host, pid in pids.items()
    }

    def runs(host: str) -> str | None:
        return os.readlink(units[host]) if os.path.lexists(units[host]) else None

    before = {host: runs(host) for host in units}
    found = until(
        lambda: next((h for h in units if runs(h) not in (before[h], None)), None), 120, 0.02
    )
    assert found, "no member of etcd restarted"
    return found


def test_a_holder_that_dies_and_a_flag_that_breaks_stop_nobody_else(lab, site, traffic, figure):
    (etcd_hosts, masters) = ([h.name for h in lab.with_role(r)] for r in ("etcd", "master"))
    # etcd's flag as at first, and so another restart there; the schedulers' stay.
    site.override({**CHANGED, "etcd": {}, **BROKEN})
    since = traffic.flows()
    with ThreadPoolExecutor(1) as pool:
        applied = pool.submit(apply_all, lab)
        holder = _restarted(lab)
        killed = time.time()
        lab.exec(holder, ["systemctl", "kill", "--signal=KILL", "salt-minion"], check=True)
        code, found = applied.result()
    report = traffic.stop(since)
    spans = restarts(lab, since)
    figure(f"{holder} loses its minion with the lock, a flag breaks: {time.time() - since:.1f} s")
    figure(f"meanwhile {report}\n{report.details()}".rstrip())
    assert code != 0

    # The others went on when the lease had ended, one after the other.
    others = sorted(set(etcd_hosts) - {holder})
    assert {span.member for span in spans["etcd"]} == set(etcd_hosts)
    next_one = min(span.begin for span in spans["etcd"] if span.member in others)
    figure(f"the next member restarted {next_one - killed:.1f} s after the holder had died")
    assert LEASE * 0.7 < next_one - killed < LEASE + 30

    # One API server took the flag and does not serve; the other was left alone.
    said = comments(found, "kube-apiserver")
    (broken,) = [host for host in masters if "does not serve again" in said[host]]
    (left,) = set(masters) - {broken}
    assert (
        f"kube-apiserver was not restarted, for it serves in the tier {'kube-apiserver'}"
        in (said[left])
    )
    assert f"none may go: {broken}" in said[left]
    assert {span.member for span in spans["kube-apiserver"]} == {broken}
    one_at_a_time(lab, spans, since)
    went_on(report)
    answering(lab, holder)


def test_what_was_wrong_is_put_right_in_one_run(lab, site, traffic, figure):
    site.override(RELOADED, timers={"vip_advert": 0.3})
    (before,) = status(lab)["vip"]["holders"]
    since = traffic.flows()
    code, found = apply_all(lab)
    seconds = time.time() - since
    report = traffic.stop(since)
    spans = restarts(lab, since)
    figure(f"put right, and every load balancer reloads: {seconds:.1f} s; {told(spans)}")
    figure(f"meanwhile {report}\n{report.details()}".rstrip())
    assert code == 0, failed(found)
    one_at_a_time(lab, spans, since)
    went_on(report)
    # A reload takes nothing away: the address stays where it is.
    assert not spans["lb"]
    for unit in ("haproxy", "keepalived"):
        assert all("reloaded" in text for text in comments(found, unit).values())
    assert status(lab)["vip"]["holders"] == [before]
    well(lab)


def test_the_cluster_is_as_it_was(lab, site):
    site.put_back()
    site.drop_in(None)
    code, _ = apply_all(lab)
    assert code == 0
    again, after = apply_all(lab)
    assert again == 0
    assert not [s for states in after.values() for s in states.values() if s["changes"]]
    well(lab)
