"""A host's part in an upgrade: what runs on it, and how a node leaves and comes back.

Versions are asked of the running processes, not read from files: what is on disk may be newer. A
node that an upgrade cordons carries an annotation, so that a later run, or a person, can tell it
from one that somebody cordoned for reasons of his own.
"""

from __future__ import annotations

import contextlib
import re
import ssl
import subprocess
import urllib.request
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from salt.exceptions import CommandExecutionError

#: Programs whose version counts, by their units.
UNITS = (
    "etcd",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "containerd",
    "kubelet",
    "kube-proxy",
)

#: Put on a node that an upgrade cordons.
MARK = "indigo/cordoned-by"
OURS = "indigo.upgrade"

#: The cluster's own programs, as ``managedFields`` names them: they come with the release. So do
#: add-ons, which are declared in the newest version that a release has: one that is as declared is
#: not applied again, and keeps the name of the version that it was applied in.
OWN = (
    "api-priority-and-fairness-config-",
    "indigo",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-proxy",
    "kube-scheduler",
    "kubelet",
)

#: Never called by anyone who chose to: kube-controller-manager watches every kind of object under
#: each group that has it, and these it has in no other version.
UNAVOIDABLE = (
    ("extensions", "v1beta1", "ingresses"),
    ("policy", "v1beta1", "podsecuritypolicies"),
)

#: Counter of an API server, since 1.19.
REQUESTED = "apiserver_requested_deprecated_apis"

#: Objects listed with one request.
PAGE = 500

MERGE = "application/merge-patch+json"


def __virtual__() -> str:
    return "indigo_upgrade"


# --- pure -------------------------------------------------------------------------------------


def version_in(text: str) -> str | None:
    """The version in what a program says of itself.

    Example:
        >>> version_in("etcd Version: 3.4.23\\nGit SHA: Not provided")
        '3.4.23'
        >>> version_in("containerd github.com/containerd/containerd 1.6.20~ds1 1.6.20~ds1-1+b1")
        '1.6.20'
        >>> version_in("Kubernetes v1.36.0-rc.1")
        '1.36.0-rc.1'
    """
    found = re.search(r"(?<![\d.])(\d+\.\d+\.\d+(?:-[0-9A-Za-z.]+)?)", text)
    return found.group(1) if found else None


def requested(metrics: str) -> list[dict[str, str]]:
    """The deprecated APIs that were asked for since an API server started.

    Args:
        metrics: What it says at ``/metrics``.

    Returns:
        ``group``, ``version``, ``resource`` and ``removed_release`` of each.

    Example:
        >>> requested('apiserver_requested_deprecated_apis{group="batch",removed_release="1.25",'
        ...           'resource="cronjobs",subresource="",version="v1beta1"} 1')
        [{'group': 'batch', 'removed_release': '1.25', 'resource': 'cronjobs', 'subresource': '', \
'version': 'v1beta1'}]
    """
    return [
        dict(re.findall(r'(\w+)="([^"]*)"', line))
        for line in metrics.splitlines()
        if line.startswith(REQUESTED + "{") and line.rsplit(" ", 1)[-1] not in ("0", "")
    ]


def written_with(items: Iterable[Mapping[str, Any]], api: str) -> dict[str, list[str]]:
    """Objects that somebody last wrote through an API, and who.

    Args:
        items: Objects as the API lists them.
        api: Group and version, such as ``batch/v1beta1``.

    Returns:
        ``namespace/name`` to the field managers; the cluster's own programs do not count.

    Example:
        >>> written_with([{"metadata": {"name": "a", "managedFields": [
        ...     {"manager": "helm", "apiVersion": "batch/v1beta1"}]}}], "batch/v1beta1")
        {'a': ['helm']}
    """
    found: dict[str, list[str]] = {}
    for item in items:
        meta = item["metadata"]
        managers = sorted(
            {
                str(one.get("manager", "?"))
                for one in meta.get("managedFields", [])
                if one.get("apiVersion") == api and not str(one.get("manager", "")).startswith(OWN)
            }
        )
        if managers:
            space = meta.get("namespace")
            found[f"{space}/{meta['name']}" if space else meta["name"]] = managers
    return found


# --- what runs --------------------------------------------------------------------------------


def facts() -> dict[str, Any]:
    """What runs here, and whether it is well; changes nothing.

    Returns:
        ``versions`` (unit to the version of its running process), ``units`` (unit to whether it
        is active), ``problems`` (unit to why it does not serve), ``agreed`` (on etcd's hosts the
        version that the members agree on) and ``leads`` (stages in which this host comes last:
        etcd's leader, the holder of the virtual address).

    CLI Example:

    .. code-block:: bash

        salt '*' indigo_upgrade.facts
    """
    view = __pillar__.get("indigo", {})
    expected = __salt__["indigo_status.units"](view.get("roles", []))
    units = {unit: __salt__["indigo_service.active"](unit) for unit in expected}
    found: dict[str, Any] = {
        "units": units,
        "versions": {
            unit: version
            for unit in expected
            if unit in UNITS and units[unit] and (version := running(unit))
        },
        "problems": {},
        "agreed": None,
        "leads": [],
    }
    for unit, (url, files) in _endpoints(view).items():
        if units.get(unit):
            said = __salt__["indigo_health.check"](url, **files)
            if not said["ok"]:
                found["problems"][unit] = __salt__["indigo_health.told"](said)
    if units.get("etcd"):
        found |= {key: value for key, value in _member(view).items() if value}
    if "lb" in view.get("roles", []) and __salt__["indigo_host.holds"](view["vip"]["address"]):
        found["leads"] = [*found["leads"], "lb"]
    return found


def running(unit: str) -> str | None:
    """Version of the program that a unit runs now; None when it does not run or does not say.

    Args:
        unit: Its name.

    CLI Example:

    .. code-block:: bash

        salt node1 indigo_upgrade.running kubelet
    """
    pid = __salt__["indigo_service.show"](unit).get("MainPID", "0")
    if pid == "0":
        return None
    try:
        # Also one whose file was replaced or removed.
        done = subprocess.run(
            [f"/proc/{pid}/exe", "--version"],
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return version_in(done.stdout + done.stderr)


def _endpoints(view: Mapping[str, Any]) -> dict[str, tuple[str, dict[str, Any]]]:
    """Where each unit of this host answers, and what it takes to ask."""
    parts, found = view.get("components", {}), {}
    if etcd := parts.get("etcd"):
        files = {name: etcd[name] for name in ("ca", "cert", "key")}
        found["etcd"] = (f"{etcd['url']}/health", {**files, "expect": '"health":"true"'})
    if server := parts.get("kube-apiserver"):
        ca = {"ca": f"{view['paths']['pki']}/ca.crt"}
        found["kube-apiserver"] = (f"{server['url']}/readyz", ca)
    return found


def _member(view: Mapping[str, Any]) -> dict[str, Any]:
    """What this host's member of etcd says of the cluster and of itself."""
    etcd = view["components"]["etcd"]
    context = ssl.create_default_context(cafile=etcd["ca"])
    context.load_cert_chain(etcd["cert"], etcd["key"])
    text = {}
    for path in ("/version", "/metrics"):
        with contextlib.suppress(OSError):
            url = etcd["url"] + path
            with urllib.request.urlopen(url, timeout=5, context=context) as answer:  # noqa: S310
                text[path] = answer.read().decode(errors="replace")
    agreed = re.search(r'"etcdcluster"\s*:\s*"([\d.]+)"', text.get("/version", ""))
    leads = re.search(r"^etcd_server_is_leader 1$", text.get("/metrics", ""), re.M)
    return {"agreed": agreed and agreed.group(1), "leads": ["etcd"] if leads else []}


# --- removed APIs -----------------------------------------------------------------------------


def removed(rows: Sequence[Mapping[str, Any]], until: int) -> dict[str, Any]:
    """Which APIs that a release takes away are in use.

    Asks this master's own API server who was asked for what since it started, and the API for
    objects that were last written through such an API.

    Args:
        rows: ``group``, ``version``, ``resources``, ``instead`` and ``stored`` of what goes.
        until: Minor of the release.

    Returns:
        ``requested``: texts ``group/version resource``; ``objects``: of such a text, names to who
        wrote them (or who must go, where nothing comes instead).

    Raises:
        CommandExecutionError: The API does not answer.

    CLI Example:

    .. code-block:: bash

        salt-run indigo.removed_apis 1.25.0
    """
    server = __pillar__["indigo"]["components"]["kube-apiserver"]["url"]
    asked = set()
    for one in requested(__salt__["indigo_kube.text"]("/metrics", server)):
        key = (one["group"], one["version"], one["resource"])
        release = one.get("removed_release", "")
        goes = release.startswith("1.") and int(release.split(".")[1]) <= until
        if goes and key not in UNAVOIDABLE:
            asked.add(f"{_api(one['group'], one['version'])} {one['resource']}")
    objects: dict[str, dict[str, list[str]]] = {}
    for row in rows:
        if not row["stored"]:
            continue
        api = _api(row["group"], row["version"])
        for resource in row["resources"]:
            items = _listed(row["instead"] or api, resource)
            if items is None and row["instead"]:
                items = _listed(api, resource)
            if row["instead"]:
                found = written_with(items or [], api)
            else:
                found = {item["metadata"]["name"]: [] for item in items or []}
            if found:
                objects[f"{api} {resource}"] = found
    return {"requested": sorted(asked), "objects": objects}


def _api(group: str, version: str) -> str:
    return f"{group}/{version}" if group else version


def _listed(api: str, resource: str) -> list[dict[str, Any]] | None:
    """All objects of a kind; None where the API does not serve it."""
    items: list[dict[str, Any]] = []
    more = ""
    while True:
        path = f"/apis/{api}/{resource}?limit={PAGE}" + (f"&continue={more}" if more else "")
        answer = __salt__["indigo_kube.request"]("GET", path)
        if answer["status"] == 404:
            return None
        if answer["status"] >= 400:
            raise CommandExecutionError(
                f"GET {path} answered {answer['status']}: {answer['body'].get('message', '')}"
            )
        items += answer["body"]["items"]
        more = answer["body"]["metadata"].get("continue") or ""
        if not more:
            return items


# --- nodes, through the API ---------------------------------------------------------------------


def nodes() -> dict[str, dict[str, Any]]:
    """Every node as an upgrade sees it.

    Returns:
        Name to ``ready``, ``reason``, ``version`` (of its kubelet), ``cordoned`` and ``ours``
        (whether an upgrade cordoned it).

    CLI Example:

    .. code-block:: bash

        salt master1 indigo_upgrade.nodes
    """
    found = {}
    for node in __salt__["indigo_kube.get"]("/api/v1/nodes")["items"]:
        summary = __salt__["indigo_kube.summary"](node)
        marks = node["metadata"].get("annotations") or {}
        ours = summary["cordoned"] and marks.get(MARK) == OURS
        found[node["metadata"]["name"]] = {**summary, "ours": ours}
    return found


def enter(names: Iterable[str], deadline: float = 300, force: bool = False) -> dict[str, Any]:
    """Cordon nodes and evict their pods, all or none: on failure they take pods as before.

    Args:
        names: The nodes' names in Kubernetes; they are emptied at the same time.
        deadline: Seconds for each.
        force: Also evict pods that nothing would bring back elsewhere.

    Returns:
        ``evicted`` (names of pods), ``cordoned`` (nodes that took pods before) and ``held``: the
        node that was not emptied and what held it, empty where all were. It is no error, for
        another master would only wait for the same once more.

    Raises:
        CommandExecutionError: The API does not answer.

    CLI Example:

    .. code-block:: bash

        salt master1 indigo_upgrade.enter '[node1]'
    """
    names = list(names)
    known = nodes()
    new = [name for name in names if name in known and not known[name]["cordoned"]]
    evicted: set[str] = set()
    held, drained = "", False
    try:
        for name in new:
            _patch(name, True)
        if len(names) > 1:
            for name in names:
                # One round of evictions on each, so that all pods end at the same time.
                with contextlib.suppress(CommandExecutionError):
                    evicted |= {*__salt__["indigo_drain.drain"](name, 0, force)["evicted"]}
        try:
            for name in names:
                evicted |= {*__salt__["indigo_drain.drain"](name, deadline, force)["evicted"]}
            drained = True
        except CommandExecutionError as err:
            held = str(err)
    finally:
        if not drained:
            leave(names)
    return {"evicted": sorted(evicted), "cordoned": new, "held": held}


def leave(names: Iterable[str]) -> list[str]:
    """Give nodes pods again that an upgrade cordoned; the names of those.

    Args:
        names: The nodes' names in Kubernetes. Those that somebody else cordoned stay as they are.

    CLI Example:

    .. code-block:: bash

        salt master1 indigo_upgrade.leave '[node1]'
    """
    known = nodes()
    ours = [name for name in names if known.get(name, {}).get("ours")]
    for name in ours:
        _patch(name, False)
    return ours


def _patch(name: str, cordoned: bool) -> None:
    body = {
        "metadata": {"annotations": {MARK: OURS if cordoned else None}},
        "spec": {"unschedulable": True if cordoned else None},
    }
    answer = __salt__["indigo_kube.request"]("PATCH", f"/api/v1/nodes/{name}", body, MERGE)
    if answer["status"] >= 400:
        raise CommandExecutionError(
            f"node {name}: the API answered {answer['status']}: {answer['body'].get('message')}"
        )
