"""Measure on the lab what docs/benchmarks.md explains, all in one run.

    make bench            # everything; all but the backups take 13 minutes
    tests/bench/run.py deploy noop nodes master backup restore     # or some parts

Figures are seconds of wall-clock time unless they say CPU. What counts are the ratios: both sides
of each are measured here, on the same machine, in the same run.
"""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "lab"))
sys.path.insert(0, str(HERE.parent))
sys.path.insert(0, str(HERE))

import backup  # noqa: E402
import charts  # noqa: E402
from indigo_lab.lab import Lab, Options  # noqa: E402
from indigo_lab.topology import Host  # noqa: E402

RUNS = 3

#: What the chart of docs/benchmarks.md is drawn from.
RATIOS: list[dict[str, Any]] = []

#: Everything a node or master keeps that a start from nothing would not find.
RESET = """
systemctl stop kubelet kube-proxy containerd kube-scheduler kube-controller-manager kube-apiserver \
    etcd-proxy etcd haproxy keepalived 2>/dev/null
rm -rf /var/lib/etcd/member
find /var/lib/kubelet -mindepth 1 -maxdepth 1 ! -name pki -exec rm -rf {} + 2>/dev/null
ip link del cni0 2>/dev/null
rm -rf /var/lib/cni /etc/cni/net.d/10-containerd-net.conflist
true
"""


def timed(action: Callable[[], Any]) -> float:
    """Seconds of wall-clock time that an action takes."""
    started = time.monotonic()
    action()
    return time.monotonic() - started


def told(name: str, values: list[float]) -> None:
    """Print one figure: the median, and the runs it comes from."""
    runs = " ".join(f"{value:.1f}" for value in values)
    print(f"{name:<58} {statistics.median(values):7.1f} s   ({runs})", flush=True)


def ratio(name: str, above: float, below: float, target: float, unit: str = "s") -> None:
    """Print a ratio beside its target, and keep it for the chart."""
    measured = {"above": round(above, 1), "below": round(below, 1), "unit": unit}
    RATIOS.append({"name": name, **measured, "ratio": round(above / below, 2), "target": target})
    mark = "" if above / below <= target else "   OVER THE TARGET"
    print(f"{name:<58} {above / below:7.2f}     (target at most {target}){mark}", flush=True)


def succeeded(done: subprocess.CompletedProcess[str], what: str) -> None:
    """Stop the bench when what it times did not work: its time would mean nothing."""
    if done.returncode:
        raise SystemExit(f"{what} failed:\n{done.stdout[-3000:]}\n{done.stderr[-2000:]}")


def deploy(lab: Lab) -> float:
    """Seconds of one `salt-run state.orchestrate indigo.deploy`."""
    return timed(lambda: succeeded(lab.deploy(timeout=900), "deploy"))


def nodes_ready(lab: Lab, count: int) -> bool:
    """Whether the API, through the VIP, shows as many nodes ready."""
    done = lab.kubectl(
        "get", "nodes", "-o", "jsonpath={.items[*].status.conditions[?(@.type=='Ready')].status}"
    )
    return done.returncode == 0 and done.stdout.split() == ["True"] * count


# The floor --------------------------------------------------------------------------------


def _reset(lab: Lab, host: Host, cluster: str) -> None:
    """Stop everything on a host and remove its data; etcd may form a new cluster there."""
    script = RESET
    if "etcd" in host.roles:
        initial = f"ETCD_INITIAL_CLUSTER_STATE=new\\nETCD_INITIAL_CLUSTER={cluster}\\n"
        script += f"printf '{initial}' > /etc/etcd/initial.env\n"
    lab.exec(host.name, ["sh", "-c", script], timeout=120, check=True)


def _start(lab: Lab, host: str, *units: str) -> None:
    lab.exec(host, ["systemctl", "start", "--no-block", *units], check=True)


def _poll(question: Callable[[], bool], seconds: float = 180) -> None:
    deadline = time.monotonic() + seconds
    while not question():
        if time.monotonic() > deadline:
            raise SystemExit("the floor's services did not come up; see them in the lab")
        time.sleep(0.2)


def _answers(lab: Lab, host: str, url: str, *tls: str) -> bool:
    code = (
        "import ssl,sys,urllib.request as u\n"
        "c=ssl.create_default_context(cafile=sys.argv[2])\n"
        "if len(sys.argv)>3: c.load_cert_chain(sys.argv[3],sys.argv[4])\n"
        "print(u.urlopen(sys.argv[1],context=c,timeout=2).status)"
    )
    done = lab.exec(host, ["python3", "-c", code, url, *tls], timeout=10)
    return done.stdout.strip() == "200"


def _control_plane(lab: Lab, master: Host) -> None:
    _start(lab, master.name, "kube-apiserver")
    url = f"https://{master.address}:6443/readyz"
    _poll(lambda: _answers(lab, master.name, url, "/etc/kubernetes/pki/ca.crt"))
    _start(lab, master.name, "kube-controller-manager", "kube-scheduler")


def floor(lab: Lab) -> float:
    """Seconds in which a plain script starts the deployed units, everything being in place.

    Everything is stopped and its data removed. Then at once etcd, load balancers, containerd,
    kubelet and kube-proxy; API servers at etcd's quorum; controllers when their API server is
    ready; done when the API shows every node ready through the VIP.
    """
    with ThreadPoolExecutor() as pool:
        members = lab.with_role("etcd")
        cluster = ",".join(f"{h.name}=https://{h.address}:2380" for h in members)
        list(pool.map(lambda h: _reset(lab, h, cluster), lab.hosts()))
        nodes = lab.with_role("node")
        started = time.monotonic()
        jobs = [pool.submit(_start, lab, h.name, "etcd") for h in lab.with_role("etcd")]
        jobs += [
            pool.submit(_start, lab, h.name, "haproxy", "keepalived") for h in lab.with_role("lb")
        ]
        jobs += [
            pool.submit(_start, lab, h.name, "containerd", "kubelet", "kube-proxy") for h in nodes
        ]
        member = members[0]
        pki = "/etc/etcd/pki"
        _poll(
            lambda: _answers(
                lab,
                member.name,
                f"https://{member.address}:2379/health",
                *(f"{pki}/ca.crt", f"{pki}/member.crt", f"{pki}/member.key"),
            )
        )
        jobs += [pool.submit(_control_plane, lab, h) for h in lab.with_role("master")]
        for job in jobs:
            job.result()
        _poll(lambda: nodes_ready(lab, len(nodes)))
        return time.monotonic() - started


# The parts --------------------------------------------------------------------------------


def fresh(lab: Lab, **options: Any) -> None:
    """A new lab of prepared hosts: packages in place, nothing of the cluster."""
    if lab.running:
        lab.down()
    lab.up(Options(profile="ha", prepared=True, **options))


def bench_deploy(lab: Lab) -> None:
    """Deploy over the floor."""
    deploys = []
    for _ in range(RUNS):
        fresh(lab, nodes=3)
        deploys.append(deploy(lab))
    floors = [floor(lab) for _ in range(RUNS)]
    told("deploy, 11 prepared hosts (packages in place)", deploys)
    told("floor: the same units, started by a script", floors)
    ratio("deploy / floor", statistics.median(deploys), statistics.median(floors), 3)


def bench_noop(lab: Lab) -> None:
    """A deploy that has nothing to do, over the least that Salt does on all hosts."""
    if not lab.running:
        fresh(lab, nodes=3)
    succeeded(lab.deploy(timeout=900), "deploy")
    bare: list[float] = []
    noop: list[float] = []
    for _ in range(RUNS):
        bare.append(
            timed(lambda: succeeded(lab.salt("*", "state.apply", "indigo.bench"), "bare apply"))
        )
        noop.append(deploy(lab))
    told("bare `salt '*' state.apply` of one state", bare)
    told("deploy with nothing to do", noop)
    ratio("no-op deploy / bare apply", statistics.median(noop), statistics.median(bare), 5)


def _add_node(lab: Lab, number: int) -> float:
    host = Host(f"node{number}", f"10.77.0.{40 + number}", ("node",))
    lab.add(host)
    text = lab.cluster_file.read_text()
    entry = f'  {host.name}:\n    address: "{host.address}"\n    roles: [node]\n'
    lab.cluster_file.write_text(re.sub(r"(?m)^(networks:)", entry + r"\1", text, count=1))
    return deploy(lab)


def bench_nodes(lab: Lab) -> None:
    """Adding one node to a small and to a larger cluster."""
    seconds: dict[int, list[float]] = {}
    for nodes in (3, 12):
        fresh(lab, nodes=nodes)
        succeeded(lab.deploy(timeout=1200), "deploy")
        seconds[nodes] = [_add_node(lab, nodes + 1 + run) for run in range(RUNS)]
    for nodes, values in seconds.items():
        told(f"adding one node to {nodes}", values)
    few, many = (statistics.median(seconds[nodes]) for nodes in (3, 12))
    ratio("adding one node to 12 / to 3", many, few, 1.2)


def bench_master(lab: Lab) -> None:
    """What a minion costs on the Salt master, simulated."""
    done = subprocess.run(
        [sys.executable, str(HERE / "master.py")], stdout=subprocess.PIPE, text=True, check=True
    )
    figures = {int(count): row for count, row in json.loads(done.stdout).items()}
    for count, row in figures.items():
        print(
            f"CPU a minion at {count:>4} minions{'':<32} {row['total'] * 1000:7.1f} ms  "
            f"(pillar {row['pillar'] * 1000:.1f}, states {row['states'] * 1000:.1f})"
        )
    many, few = (figures[count]["total"] * 1000 for count in (1000, 10))
    ratio("CPU a minion at 1000 / at 10", many, few, 1.2, "ms")


def bench_backup(lab: Lab) -> None:
    """What a backup costs writers."""
    backup.take(lab)
    (writes, steps), maker = backup.latencies(lab)
    for one, other in zip(writes.beside, writes.apart, strict=True):
        slow, plain = (backup.p99(writes.within([span])) for span in (one, other))
        print(f"    p99 beside {slow:7.1f} ms   without {plain:7.1f} ms")
    for step, spans in steps.items():
        if len(values := writes.within(spans)) >= 100:
            print(
                f"    in the step {step:<10} {backup.p99(values):7.1f} ms  ({len(values)} writes)"
            )
    for member in writes.rows:
        both = [backup.p99(writes.within(some, member)) for some in (writes.beside, writes.apart)]
        what = f"    through {member}" + (", which makes them" if member == maker else "")
        print(f"{what:<40} beside {both[0]:7.1f} ms   without {both[1]:7.1f} ms")
    beside, apart = writes.within(writes.beside), writes.within(writes.apart)
    slow, plain = backup.p99(beside), backup.p99(apart)
    print(f"{'p99 of a write to etcd beside backups':<58} {slow:7.1f} ms  ({len(beside)} writes)")
    print(f"{'without':<58} {plain:7.1f} ms  ({len(apart)} writes)")
    ratio("p99 beside a backup / without", slow, plain, 1.1, "ms")


def bench_restore(lab: Lab) -> None:
    """A restore over the same steps by hand."""
    backup.take(lab)
    ours, hands = backup.restores(lab)
    told(f"indigo.restore of {backup.OBJECTS} objects on 3 members", ours)
    told("the same steps by hand, on all hosts at once", hands)
    ratio("indigo.restore / by hand", statistics.median(ours), statistics.median(hands), 2)


PARTS = {
    "deploy": bench_deploy,
    "noop": bench_noop,
    "nodes": bench_nodes,
    "master": bench_master,
    "backup": bench_backup,
    "restore": bench_restore,
}


def main(parts: list[str]) -> int:
    """Run the named parts, or all."""
    unknown = [part for part in parts if part not in PARTS]
    if unknown:
        print(f"unknown part {unknown[0]}; there are: {' '.join(PARTS)}", file=sys.stderr)
        return 2
    lab = Lab()
    try:
        for part in parts or PARTS:
            PARTS[part](lab)
    finally:
        if lab.running:
            lab.down()
        charts.keep("benchmarks", RATIOS)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
