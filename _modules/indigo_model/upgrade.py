"""The rules of an upgrade: which version may follow on which, what it takes away, who comes when.

Pure: from what runs now, as hosts tell it, and what is declared, to sentences and lists. Sources:
Kubernetes' "Version Skew Policy" and "Deprecated API Migration Guide"; etcd's guides "Upgrade etcd
from 3.4 to 3.5" and "from v3.5 to v3.6", and its announcement of 3.5.3 about lost consistency.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from .versions import parse

#: Programs of Kubernetes, each with what it is to the API servers.
API_SERVER = "kube-apiserver"
CONTROLLERS = ("kube-controller-manager", "kube-scheduler")
NODE_PARTS = ("kubelet", "kube-proxy")


@dataclass(frozen=True)
class Stage:
    """One layer of an upgrade, whose hosts come one after the other or in batches.

    Attributes:
        name: Of the stage, as steps of the orchestration give it.
        title: For a person.
        role: Of its hosts.
        sls: What is applied on each.
        prefixes: Beginnings of names of SLS: who has something to do in one of these takes part.
        units: Their running versions must be the declared ones afterwards.
    """

    name: str
    title: str
    role: str
    sls: tuple[str, ...]
    prefixes: tuple[str, ...]
    units: tuple[str, ...] = ()


#: In the order of an upgrade. The API servers all come before any controller: those speak to
#: whichever API server the virtual address leads to, and must not be newer than it.
STAGES: Mapping[str, Stage] = {
    stage.name: stage
    for stage in (
        Stage("etcd", "etcd members", "etcd", ("etcd",), ("etcd.",), ("etcd",)),
        Stage("lb", "load balancers", "lb", ("lb",), ("lb.",)),
        Stage(
            "api",
            "API servers",
            "master",
            ("master.started",),
            ("master.installed", "master.exchanged", "master.configured", "master.started"),
            (API_SERVER,),
        ),
        Stage(
            "controllers", "controllers", "master", ("master",), ("master.running",), CONTROLLERS
        ),
        Stage("node", "nodes", "node", ("node",), ("node.",), ("containerd", *NODE_PARTS)),
    )
}

#: Units of a node that end or disturb pods when they restart.
DISTURBING = ("containerd", "kubelet")

#: Releases of etcd that nobody should come to, and why.
BAD_ETCD = {
    (3, 5, 0): "it may lose the consistency of its data",
    (3, 5, 1): "it may lose the consistency of its data",
    (3, 5, 2): "it may lose the consistency of its data",
}

#: By a minor of etcd, the release of the one before that all members must have reached.
LEAST_ETCD = {(3, 6): (3, 5, 26)}


@dataclass(frozen=True)
class Removal:
    """An API that a release of Kubernetes serves no more.

    Attributes:
        minor: First minor of Kubernetes 1 without it.
        group, version: Of the API.
        resources: Plural names.
        instead: Version that has them still, with its group; empty when nothing has.
        stored: Whether it has objects that people make; questions and events have none.
    """

    minor: int
    group: str
    version: str
    resources: tuple[str, ...]
    instead: str
    stored: bool = True


#: Source: Kubernetes' "Deprecated API Migration Guide".
REMOVALS: tuple[Removal, ...] = (
    Removal(
        22,
        "admissionregistration.k8s.io",
        "v1beta1",
        ("mutatingwebhookconfigurations", "validatingwebhookconfigurations"),
        "admissionregistration.k8s.io/v1",
    ),
    Removal(
        22,
        "apiextensions.k8s.io",
        "v1beta1",
        ("customresourcedefinitions",),
        "apiextensions.k8s.io/v1",
    ),
    Removal(22, "apiregistration.k8s.io", "v1beta1", ("apiservices",), "apiregistration.k8s.io/v1"),
    Removal(
        22,
        "authentication.k8s.io",
        "v1beta1",
        ("tokenreviews",),
        "authentication.k8s.io/v1",
        stored=False,
    ),
    Removal(
        22,
        "authorization.k8s.io",
        "v1beta1",
        (
            "localsubjectaccessreviews",
            "selfsubjectaccessreviews",
            "selfsubjectrulesreviews",
            "subjectaccessreviews",
        ),
        "authorization.k8s.io/v1",
        stored=False,
    ),
    Removal(
        22,
        "certificates.k8s.io",
        "v1beta1",
        ("certificatesigningrequests",),
        "certificates.k8s.io/v1",
    ),
    Removal(
        22, "coordination.k8s.io", "v1beta1", ("leases",), "coordination.k8s.io/v1", stored=False
    ),
    Removal(22, "extensions", "v1beta1", ("ingresses",), "networking.k8s.io/v1"),
    Removal(
        22,
        "networking.k8s.io",
        "v1beta1",
        ("ingresses", "ingressclasses"),
        "networking.k8s.io/v1",
    ),
    *(
        Removal(
            22,
            "rbac.authorization.k8s.io",
            version,
            ("clusterroles", "clusterrolebindings", "roles", "rolebindings"),
            "rbac.authorization.k8s.io/v1",
        )
        for version in ("v1alpha1", "v1beta1")
    ),
    Removal(22, "scheduling.k8s.io", "v1beta1", ("priorityclasses",), "scheduling.k8s.io/v1"),
    Removal(
        22,
        "storage.k8s.io",
        "v1beta1",
        ("csidrivers", "csinodes", "storageclasses", "volumeattachments"),
        "storage.k8s.io/v1",
    ),
    Removal(25, "autoscaling", "v2beta1", ("horizontalpodautoscalers",), "autoscaling/v2"),
    Removal(25, "batch", "v1beta1", ("cronjobs",), "batch/v1"),
    Removal(
        25, "discovery.k8s.io", "v1beta1", ("endpointslices",), "discovery.k8s.io/v1", stored=False
    ),
    Removal(25, "events.k8s.io", "v1beta1", ("events",), "events.k8s.io/v1", stored=False),
    Removal(25, "node.k8s.io", "v1beta1", ("runtimeclasses",), "node.k8s.io/v1"),
    Removal(25, "policy", "v1beta1", ("poddisruptionbudgets",), "policy/v1"),
    Removal(25, "policy", "v1beta1", ("podsecuritypolicies",), ""),
    Removal(26, "autoscaling", "v2beta2", ("horizontalpodautoscalers",), "autoscaling/v2"),
    Removal(
        26,
        "flowcontrol.apiserver.k8s.io",
        "v1beta1",
        ("flowschemas", "prioritylevelconfigurations"),
        "flowcontrol.apiserver.k8s.io/v1beta2",
    ),
    Removal(27, "storage.k8s.io", "v1beta1", ("csistoragecapacities",), "storage.k8s.io/v1"),
    Removal(
        29,
        "flowcontrol.apiserver.k8s.io",
        "v1beta2",
        ("flowschemas", "prioritylevelconfigurations"),
        "flowcontrol.apiserver.k8s.io/v1beta3",
    ),
    Removal(
        32,
        "flowcontrol.apiserver.k8s.io",
        "v1beta3",
        ("flowschemas", "prioritylevelconfigurations"),
        "flowcontrol.apiserver.k8s.io/v1",
    ),
)

Running = Mapping[str, Mapping[str, str]]


def removals(now: int, then: int) -> list[Removal]:
    """What goes on the way from one minor of Kubernetes to another.

    Example:
        >>> [one.resources for one in removals(26, 27)]
        [('csistoragecapacities',)]
        >>> removals(27, 27)
        []
    """
    return [one for one in REMOVALS if now < one.minor <= then]


# --- skew --------------------------------------------------------------------------------------


def skew(target: Mapping[str, str], running: Running, agreed: str | None = None) -> list[str]:
    """Why the declared versions must not follow on those that run.

    Args:
        target: ``versions`` as declared, with ``kubernetes`` and ``etcd``.
        running: Unit (``etcd``, ``kube-apiserver``, ``kubelet`` …) to host to the version of the
            process that runs there; hosts whose unit does not run are missing.
        agreed: The version that etcd's members agree on (their ``etcdcluster``).

    Returns:
        One sentence a problem, with host, what runs, what is declared, and what to do.

    Example:
        >>> skew({"kubernetes": "1.22.0", "etcd": "3.4.23"}, {"kube-apiserver": {"m": "1.20.2"}})
        ['versions.kubernetes: m runs kube-apiserver 1.20.2, declared is 1.22.0; one minor at a \
time: declare a release of 1.21 first']
        >>> skew({"kubernetes": "1.21.4", "etcd": "3.4.23"}, {"kube-apiserver": {"m": "1.20.2"}})
        []
    """
    return [*_etcd(target["etcd"], running, agreed), *_kubernetes(target["kubernetes"], running)]


def _minor(version: str) -> tuple[int, int]:
    return parse(version)[:2]


def _ends(found: Mapping[str, str]) -> tuple[str, str]:
    """Hosts with the oldest and the newest version."""
    order = sorted(found, key=lambda host: parse(found[host]))
    return order[0], order[-1]


def _etcd(target: str, running: Running, agreed: str | None) -> list[str]:
    found = running.get("etcd", {})
    if not found:
        return []
    wanted, minor = parse(target), _minor(target)
    first, last = _ends(found)
    oldest, newest = _minor(found[first]), _minor(found[last])
    problems = []
    if any(wanted != parse(version) for version in found.values()) and wanted in BAD_ETCD:
        problems.append(
            f"versions.etcd: {target} is not to be used: {BAD_ETCD[wanted]}; declare a newer patch"
        )
    if minor[0] != oldest[0] or minor[1] > oldest[1] + 1:
        problems.append(
            f"versions.etcd: {first} runs etcd {found[first]}, declared is {target}; one minor at "
            f"a time: declare a release of {oldest[0]}.{oldest[1] + 1} first"
        )
    elif minor > oldest and parse(found[first]) < LEAST_ETCD.get(minor, (0, 0, 0)):
        least = ".".join(map(str, LEAST_ETCD[minor]))
        problems.append(
            f"versions.etcd: {first} runs etcd {found[first]}, declared is {target}; that wants "
            f"{least} or newer on every member: declare such a release first"
        )
    # Until the last member has the new minor they agree on the old one, and data stays readable.
    elif minor < newest and (oldest > minor or (agreed and _minor(agreed) > minor)):
        problems.append(
            f"versions.etcd: {last} runs etcd {found[last]}, declared is {target}; no way leads "
            "back once every member has the newer minor: declare that one again, or restore the "
            "backup from before (docs/operations/restore.md)"
        )
    return problems


def _kubernetes(target: str, running: Running) -> list[str]:
    found, kubelets = running.get(API_SERVER, {}), running.get("kubelet", {})
    minor = _minor(target)
    key, declared = "versions.kubernetes", f"declared is {target}"
    problems = []
    if found:
        first, last = _ends(found)
        oldest, newest = _minor(found[first]), _minor(found[last])
        if minor[0] != oldest[0] or minor[1] > oldest[1] + 1:
            problems.append(
                f"{key}: {first} runs {API_SERVER} {found[first]}, {declared}; one minor at a "
                f"time: declare a release of {oldest[0]}.{oldest[1] + 1} first"
            )
        elif minor < newest and oldest > minor:
            problems.append(
                f"{key}: {last} runs {API_SERVER} {found[last]}, {declared}; never back by a "
                f"minor once all API servers have it: declare a release of "
                f"{newest[0]}.{newest[1]} or {newest[0]}.{newest[1] + 1}"
            )
    for unit in NODE_PARTS:
        for host, version in sorted(running.get(unit, {}).items()):
            if _minor(version) > minor:
                problems.append(
                    f"{key}: {host} runs {unit} {version}, {declared}; nothing on a node may be "
                    f"newer than the API servers: declare {version} or newer"
                )
    if problems:
        return problems
    for host, version in sorted(kubelets.items()):
        # Kubelets from 1.25 on may be three minors behind.
        behind = 3 if _minor(version) >= (1, 25) else 2
        if minor[1] - _minor(version)[1] > behind:
            reach = _minor(version)[1] + behind
            problems.append(
                f"{key}: {host} runs kubelet {version}, {declared}; it may be {behind} minors "
                f"older than the API servers at most: declare a release of 1.{reach}, and finish "
                "that upgrade first"
            )
    for unit in CONTROLLERS:
        for host, version in sorted(running.get(unit, {}).items()):
            if minor[1] - _minor(version)[1] > 1:
                problems.append(
                    f"{key}: {host} runs {unit} {version}, {declared}; it may be one minor older "
                    "than the API servers at most: finish the upgrade before this one first"
                )
    return problems


def way_back(stage: str, old: Mapping[str, str]) -> str:
    """How one comes back from a stage that stopped, for a person.

    Args:
        stage: Name of the stage.
        old: Key below ``versions`` to the version from before, of what changes.

    Example:
        >>> way_back("lb", {})
        'Back: undo your change in cluster.yaml and run this again.'
    """
    if not old:
        return "Back: undo your change in cluster.yaml and run this again."
    lines = ", ".join(f"{key}: {version}" for key, version in sorted(old.items()))
    text = f"Back: declare {lines} again, and run this again."
    if stage != "etcd" and "etcd" in old:
        text += " For etcd that holds within a minor only."
    if stage in ("controllers", "node") and "kubernetes" in old:
        text += " For Kubernetes that holds within a minor only."
    return text


# --- who comes when ----------------------------------------------------------------------------


def due(host: Mapping[str, Mapping[str, Any]]) -> dict[str, list[str]]:
    """The stages in which a host has something to do.

    Args:
        host: What ``state.apply indigo.host test=True`` returned there, states by their tag.

    Returns:
        Stage to the units that would restart or start (an empty list when only files change).

    Example:
        >>> due({"indigo_service_|-a_|-etcd_|-running": {"result": None, "__sls__": "etcd.running"},
        ...      "file_|-b_|-/x_|-managed": {"result": True, "__sls__": "lb.configured"}})
        {'etcd': ['etcd']}
    """
    found: dict[str, list[str]] = {}
    for tag, state in host.items():
        if not isinstance(state, Mapping) or state.get("result") is True:
            continue
        sls = str(state.get("__sls__", ""))
        for stage in STAGES.values():
            if not sls.startswith(stage.prefixes):
                continue
            units = found.setdefault(stage.name, [])
            parts = tag.split("_|-")
            if parts[0] == "indigo_service" and parts[-1] == "running":
                units.append(parts[2])
    return found


def order(hosts: Iterable[str], sick: Iterable[str], last: Iterable[str] = ()) -> list[str]:
    """The hosts of a stage in their order: the sick first, whoever leads last.

    Example:
        >>> order(["a", "b", "c"], sick=["c"], last=["a"])
        ['c', 'b', 'a']
    """
    sick, last = set(sick), set(last)
    return sorted(hosts, key=lambda id_: (id_ not in sick, id_ in last))


def batches(hosts: Sequence[str], size: int, sick: Iterable[str] = ()) -> list[list[str]]:
    """The hosts in batches; sick ones come alone.

    Example:
        >>> batches(["a", "b", "c", "d"], 2, sick=["a"])
        [['a'], ['b', 'c'], ['d']]
    """
    sick = set(sick)
    alone = [[id_] for id_ in hosts if id_ in sick]
    rest = [id_ for id_ in hosts if id_ not in sick]
    return alone + [rest[at : at + size] for at in range(0, len(rest), size)]


def ailing(facts: Mapping[str, Mapping[str, Any]], nodes: Mapping[str, Any]) -> dict[str, Any]:
    """What is not well before anything is touched, by stage and host.

    Args:
        facts: By minion id, of ``indigo_upgrade.facts``.
        nodes: By minion id, ``ready`` and ``reason`` of its node, as the API tells.

    Returns:
        Stage to host to why.

    Example:
        >>> ailing({"a": {"units": {"etcd": False}, "problems": {}}}, {})
        {'etcd': {'a': 'etcd does not run'}}
    """
    of_unit = {unit: stage.name for stage in STAGES.values() for unit in stage.units}
    of_unit |= {"haproxy": "lb", "keepalived": "lb", "etcd-proxy": "api"}
    found: dict[str, dict[str, str]] = {}
    for id_, fact in facts.items():
        for unit, active in fact["units"].items():
            if not active and unit in of_unit:
                found.setdefault(of_unit[unit], {}).setdefault(id_, f"{unit} does not run")
        for unit, why in fact["problems"].items():
            found.setdefault(of_unit[unit], {}).setdefault(id_, f"{unit}: {why}")
    for id_, node in nodes.items():
        if not node["ready"]:
            found.setdefault("node", {}).setdefault(id_, f"the node is not ready: {node['reason']}")
    return found


def in_the_way(
    sick: Mapping[str, Mapping[str, str]], pending: Mapping[str, Mapping[str, Any]]
) -> list[str]:
    """Which sick hosts stop an upgrade before it begins.

    Those of the first stage that is not finished do not where that stage has something to do on
    them: that is where the run before this one stopped, and they come first.

    Args:
        sick: Stage to host to why.
        pending: Stage to the hosts that have something to do in it.

    Example:
        >>> in_the_way({"etcd": {"a": "etcd does not run"}}, {"etcd": {"a": ["etcd"]}})
        []
        >>> in_the_way({"node": {"n": "kubelet does not run"}}, {"etcd": {"a": ["etcd"]}})
        ['n: kubelet does not run; mend it first: salt n state.apply node']
    """
    first = next((name for name in STAGES if pending.get(name)), None)
    found = []
    for name, hosts in sick.items():
        for id_, why in sorted(hosts.items()):
            if name == first and id_ in pending[name]:
                continue
            sls = ",".join(STAGES[name].sls)
            advice = f"mend it first: salt {id_} state.apply {sls}"
            # Applied there it would get the new version before its turn.
            if name != first and id_ in pending.get(name, {}):
                advice = "mend it with the old versions declared, then declare the new ones"
            found.append(f"{id_}: {why}; {advice}")
    return found


# --- the whole ---------------------------------------------------------------------------------

#: Keys below ``versions`` of the programs whose version counts.
PARTS = {
    "etcd": "etcd",
    **dict.fromkeys((API_SERVER, *CONTROLLERS, *NODE_PARTS), "kubernetes"),
    "containerd": "containerd",
}


def course(
    plan: Mapping[str, Any],
    facts: Mapping[str, Mapping[str, Any]],
    nodes: Mapping[str, Mapping[str, Any]],
    previews: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """What an upgrade would do, host by host, and why it must not.

    Args:
        plan: ``indigo_model.plan()``.
        facts: By minion id, of ``indigo_upgrade.facts``.
        nodes: By name in Kubernetes, of ``indigo_upgrade.nodes``.
        previews: By minion id, what ``state.apply indigo.host test=True`` returned where something
            differs from the last deploy.

    Returns:
        ``problems`` (sentences); ``stages`` (each with ``name``, ``title``, ``sls``, ``units`` with
        their declared versions, ``batches`` of minion ids, and ``disturbed``: those whose pods
        must go first); ``old`` (keys below ``versions`` to what runs, where that is another than
        declared); ``removals`` and ``until`` (the minor that they are for).
    """
    target = plan["versions"]
    running: dict[str, dict[str, str]] = {}
    for id_, fact in facts.items():
        for unit, version in fact["versions"].items():
            running.setdefault(unit, {})[id_] = version
    agreed = [str(fact["agreed"]) for fact in facts.values() if fact["agreed"]]
    found = {id_: due(previews[id_]) for id_ in plan["hosts"] if id_ in previews}
    pending = {
        name: {id_: stages[name] for id_, stages in found.items() if name in stages}
        for name in STAGES
    }
    by_id = {
        id_: nodes.get(plan["hosts"][id_]["name"], {"ready": False, "reason": "not registered"})
        for id_ in plan["roles"]["node"]
    }
    sick = ailing(facts, by_id)
    problems = ["nothing runs on any host: run indigo.deploy"] if not running else []
    problems = problems or [
        *skew(target, running, max(agreed, key=parse, default=None)),
        *in_the_way(sick, pending),
    ]
    stages = []
    for name, stage in STAGES.items():
        last = [id_ for id_, fact in facts.items() if name in fact["leads"]]
        ill = [id_ for id_ in pending[name] if id_ in sick.get(name, {})]
        size = plan["upgrade"]["batch"] if name == "node" else 1
        stages.append(
            {
                "name": name,
                "title": stage.title,
                "sls": list(stage.sls),
                "units": {unit: target[PARTS[unit]] for unit in stage.units},
                "batches": batches(order(pending[name], ill, last), size, ill),
                "disturbed": [
                    id_ for id_, units in pending[name].items() if {*units} & {*DISTURBING}
                ]
                if name == "node"
                else [],
            }
        )
    old: dict[str, str] = {}
    for unit, hosts in running.items():
        for version in hosts.values():
            key = PARTS[unit]
            if parse(version) != parse(target[key]):
                old[key] = min(old.get(key, version), version, key=parse)
    now = min((parse(v)[1] for v in running.get(API_SERVER, {}).values()), default=0)
    until = parse(target["kubernetes"])[1]
    return {
        "problems": problems,
        "stages": stages,
        "old": old,
        "removals": [
            {**asdict(one), "resources": list(one.resources)} for one in removals(now, until)
        ]
        if now
        else [],
        "until": until,
    }


def wrong_versions(
    wanted: Mapping[str, str], facts: Mapping[str, Mapping[str, Any]]
) -> dict[str, str]:
    """Hosts of a stage whose processes are not of the declared versions, and why.

    Example:
        >>> wrong_versions({"etcd": "3.5.1"}, {"a": {"versions": {"etcd": "3.4.2"}}})
        {'a': 'etcd 3.4.2 runs, declared is 3.5.1'}
    """
    found = {}
    for id_, fact in facts.items():
        for unit, version in wanted.items():
            runs = fact["versions"].get(unit)
            if runs is None:
                found[id_] = f"{unit} does not run"
            elif parse(runs) != parse(version):
                found[id_] = f"{unit} {runs} runs, declared is {version}"
    return found
