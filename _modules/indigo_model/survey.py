"""What ``salt-run indigo.preflight`` makes of what hosts say of themselves and of each other."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from . import ports, preflight
from .cluster import ROLES, Cluster

#: MiB of memory without which a role does not work, as measured in the lab, with some room.
MEMORY = {"ca": 0, "lb": 64, "etcd": 256, "master": 768, "node": 384}
SYSTEM = 256

Check = dict[str, Any]


def ways(cluster: Cluster) -> dict[str, list[tuple[str, str, int, str]]]:
    """Which host must reach which, by the table of ports.

    Returns:
        By the id of who comes: id, address and port of where to, and the service there. Each
        load balancer's own address stands for the virtual one, which nobody may have yet.

    Example:
        >>> from .cluster import Host, Vip
        >>> hosts = {"e": Host("e", "10.0.0.1", ("etcd",)), "m": Host("m", "10.0.0.2", ("master",))}
        >>> c = Cluster("x", hosts, Vip("10.0.0.9", "eth0"), "10.96.0.0/16", "10.244.0.0/16")
        >>> ways(c)["m"]
        [('e', '10.0.0.1', 2379, 'etcd')]
    """
    found: dict[str, list[tuple[str, str, int, str]]] = {id_: [] for id_ in cluster.hosts}
    for id_, host in cluster.hosts.items():
        for row in ports.of_host(cluster, host):
            if row.protocol != "tcp" or not row.port.isdigit() or row.at == ports.LOOPBACK:
                continue
            if row.open:
                comers = [*cluster.hosts] if row.at == ports.VIRTUAL else []
            else:
                # Not every node to every other one: there are too many, and few ever go.
                roles = {*row.sources} & {*ROLES} - ({"node"} if row.role == "node" else set())
                comers = [one.id for role in sorted(roles) for one in cluster.with_role(role)]
            for other in dict.fromkeys(comers):
                if other != id_:
                    found[other].append((id_, host.address, int(row.port), row.service))
    return found


def checks(
    cluster: Cluster,
    plan: Mapping[str, Any],
    facts: Mapping[str, Any],
    surveys: Mapping[str, Any],
    reached: Mapping[str, Iterable[Any]],
) -> list[Check]:
    """Every check of hosts, in the order in which a person wants to read them.

    Args:
        cluster: The declared cluster.
        plan: ``indigo_model.plan()``.
        facts: By id, ``indigo_preflight.facts()``, or text where that failed.
        surveys: By id, ``indigo_survey.survey()``.
        reached: By id, ``indigo_survey.reach()`` of what :func:`ways` says.

    Returns:
        ``{"check", "result", "found", "problems"}`` each; ``result`` is ``ok``, ``warning`` or
        ``problem``, ``problems`` are sentences with host and remedy.
    """
    known = {id_: one for id_, one in surveys.items() if isinstance(one, Mapping)}
    good = {id_: fact for id_, fact in facts.items() if isinstance(fact, Mapping)}
    failed = {id_: str(fact) for id_, fact in facts.items() if id_ not in good}
    failed |= {id_: str(surveys.get(id_, "no answer")) for id_ in good if id_ not in known}
    times = sorted(fact["time"] for fact in good.values())
    spread = times[-1] - times[0] if times else 0
    return [
        _check(
            "hosts",
            f"{len(good)} of {len(plan['hosts'])} answer and are as declared; "
            f"clocks within {spread:.1f} s",
            [
                *(
                    problem
                    for problem in preflight.host_problems(plan, good)
                    # A host that answered with an error is named once, with that error.
                    if not any(problem.startswith(f"{id_} (") for id_ in failed)
                ),
                *(f"{id_}: {why}; see /var/log/salt/minion there" for id_, why in failed.items()),
            ],
        ),
        _memory(cluster, known),
        _kernel(known),
        _rivals(cluster, known),
        _swap(cluster, known),
        _selinux(cluster, known),
        _names(known),
        _sources(known),
        _reach(cluster, reached),
    ]


def _check(name: str, found: str, problems: list[str], grave: bool = True) -> Check:
    result = "ok" if not problems else "problem" if grave else "warning"
    return {"check": name, "result": result, "found": found, "problems": problems}


def _memory(cluster: Cluster, surveys: Mapping[str, Any]) -> Check:
    problems = []
    for id_, one in surveys.items():
        needed = SYSTEM + sum(MEMORY[role] for role in cluster.hosts[id_].roles)
        if one["memory_mb"] < needed:
            problems.append(
                f"{id_}: {one['memory_mb']} MiB of memory; its roles need {needed} MiB: give it "
                "more, or move a role to another host"
            )
    least = min((one["memory_mb"] for one in surveys.values()), default=0)
    return _check("memory", f"at least {least} MiB", problems)


def _kernel(surveys: Mapping[str, Any]) -> Check:
    releases = sorted({one["kernel"] for one in surveys.values()})
    problems = []
    for id_, one in surveys.items():
        if one["lacks"]:
            problems.append(
                f"{id_}: kernel {one['kernel']} has no {', '.join(one['lacks'])}: install the "
                "distribution's full kernel, or its package of extra modules"
            )
        problems += [
            f"{id_}: the kernel's setting {path.replace('/', '.')} cannot be written: a host that "
            "is a container needs a writable /proc/sys/net"
            for path in one["fixed"]
        ]
    return _check("kernel", ", ".join(releases), problems)


def _rivals(cluster: Cluster, surveys: Mapping[str, Any]) -> Check:
    problems = []
    for id_, one in surveys.items():
        for unit in one["running"]:
            if unit == cluster.firewall:
                continue
            if unit in ("firewalld", "ufw"):
                remedy = (
                    "open what docs/operations/ports.md says"
                    + (", set `firewall: firewalld`" if unit == "firewalld" else "")
                    + f", or `systemctl disable --now {unit}`"
                )
                problems.append(f"{id_}: the packet filter {unit} runs: {remedy}")
            else:
                problems.append(
                    f"{id_}: {unit} runs, which does a job of its roles: "
                    f"`systemctl disable --now {unit}`, or take the host out of `hosts`"
                )
    return _check("other services", f"none in the way on {len(surveys)} hosts", problems, False)


def _swap(cluster: Cluster, surveys: Mapping[str, Any]) -> Check:
    given = cluster.override("kubelet", "config").get("failSwapOn")
    problems = [
        f"{id_}: swap is on, and kubelet does not start with it: `swapoff -a` and take it out of "
        "/etc/fstab (on Fedora also `dnf remove zram-generator-defaults`), or set "
        "overrides.kubelet.config.failSwapOn: false"
        for id_, one in surveys.items()
        if one["swap"] and "node" in cluster.hosts[id_].roles and given is not False
    ]
    return _check("swap", "off on nodes" if given is not False else "allowed", problems)


def _selinux(cluster: Cluster, surveys: Mapping[str, Any]) -> Check:
    # By its policy a program that is started without a way to more rights keeps the domain of
    # systemd, which may listen at any port and connect to few (fedora-selinux/selinux-policy#2663,
    # #3281), and keepalived may not ask haproxy.
    problems = [
        f"{id_}: SELinux is enforcing, whose policy lets haproxy reach no server and keepalived "
        "ask no haproxy: `setenforce 0`, and SELINUX=permissive in /etc/selinux/config"
        for id_, one in surveys.items()
        if one["enforcing"] and {"lb", "master"} & set(cluster.hosts[id_].roles)
    ]
    return _check("SELinux", "not enforcing on load balancers and masters", problems)


def _names(surveys: Mapping[str, Any]) -> Check:
    problems = [
        f"{id_}: its own host name does not resolve ({one['name']}): add it to /etc/hosts there"
        for id_, one in surveys.items()
        if one["name"]
    ]
    return _check("names", "every host knows its own", problems, False)


def _sources(surveys: Mapping[str, Any]) -> Check:
    places = sorted({place for one in surveys.values() for place in one["sources"]})
    problems = [
        f"{id_}: {place}, from which binaries come, cannot be reached ({why}): see its route and "
        "DNS, or set artifacts.mirror"
        for id_, one in surveys.items()
        for place, why in one["sources"].items()
        if why
    ]
    return _check("sources", ", ".join(places) or "files of the Salt master", problems)


def _reach(cluster: Cluster, reached: Mapping[str, Iterable[Any]]) -> Check:
    problems, tried = [], 0
    for id_, targets in ways(cluster).items():
        states = {(str(one[0]), int(one[1])): str(one[2]) for one in reached.get(id_, ())}
        for other, address, port, service in targets:
            state = states.get((address, port))
            if state is None:
                continue
            tried += 1
            if state != "open":
                problems.append(
                    f"{id_} does not reach {other} ({address}) at port {port}/tcp ({service}): "
                    f"{state}: open it in the packet filters on {other} and on the way"
                )
    return _check("reach", f"{tried} ways from host to port are open", problems)
