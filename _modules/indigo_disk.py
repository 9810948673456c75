"""Disks of add-ons: what becomes of them when their size, class or node is declared anew.

A StatefulSet's ``volumeClaimTemplates`` cannot be changed, and a disk can only grow. So for a
larger size each claim grows where it is, and the StatefulSet is replaced without its pods, which
the new one takes over: no pod has to start again for it, and replicas to come have the new size.
What would lose data, or leave it behind, is refused before anything is changed. Where no data is on
a disk yet, it lies with the pods by declaration, and they go with their StatefulSet.

Source: kubernetes.io "Persistent Volumes", "Expanding Persistent Volumes Claims";
https://prometheus-operator.dev/docs/platform/storage/ "Resizing volumes", whose way this is;
kubernetes/enhancements KEP-4650, by which Kubernetes would do it itself, and KEP-1790, by which a
claim may ask for less again than its driver could not bring.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any

from salt.exceptions import CommandExecutionError

#: An object's kind, namespace and name.
Object = tuple[str, str, str]

CLAIM, SET = "PersistentVolumeClaim", "StatefulSet"

#: Where the API has objects of a kind in a namespace.
PATHS = {
    CLAIM: "/api/v1/namespaces/{}/persistentvolumeclaims",
    SET: "/apis/apps/v1/namespaces/{}/statefulsets",
}
CLASSES = "/apis/storage.k8s.io/v1/storageclasses"

#: Seconds to wait at most until what was deleted is gone, and between two looks.
TIMEOUT, PAUSE = 60.0, 0.5

_UNITS = {
    "": Decimal(1),
    "m": Decimal("0.001"),
    "k": Decimal(1000),
    **{unit: Decimal(1000) ** n for n, unit in enumerate("MGTPE", 2)},
    **{f"{unit}i": Decimal(1024) ** n for n, unit in enumerate("KMGTPE", 1)},
}


def __virtual__() -> str:
    return "indigo_disk"


# --- decisions (pure) ----------------------------------------------------------------------------


def octets(quantity: str) -> Decimal:
    """A quantity of Kubernetes as a number: the API writes 1024Mi as 1Gi.

    Raises:
        ValueError: It is none.

    Example:
        >>> octets("1024Mi") == octets("1Gi"), octets("1e3") == octets("1k")
        (True, True)
    """
    found = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)((?:[eE][+-]?\d+)?)([A-Za-z]*)", str(quantity))
    if not found or found[3] not in _UNITS:
        raise ValueError(f"{quantity!r} is no quantity of Kubernetes")
    return Decimal(found[1] + found[2]) * _UNITS[found[3]]


def _size(spec: Mapping[str, Any]) -> str:
    return str(spec["resources"]["requests"]["storage"])


def _class(spec: Mapping[str, Any]) -> str:
    return str(spec.get("storageClassName") or "")


def _where(manifest: Mapping[str, Any]) -> Object:
    metadata = manifest["metadata"]
    return str(manifest["kind"]), str(metadata["namespace"]), str(metadata["name"])


def _templates(manifest: Mapping[str, Any] | None) -> dict[str, Mapping[str, Any]]:
    """Specs of the claims that a StatefulSet makes for each of its pods, by their names."""
    found = (manifest or {}).get("spec", {}).get("volumeClaimTemplates") or ()
    return {one["metadata"]["name"]: one["spec"] for one in found}


def _holds(claim: Mapping[str, Any]) -> bool:
    """Whether a claim has had a disk: one that still waits for it holds nothing."""
    return bool(claim.get("status", {}).get("phase", "Pending") != "Pending")


def _has(claim: Mapping[str, Any]) -> str:
    """The size below which a claim cannot go: what its driver could not bring does not count."""
    asked = _size(claim["spec"])
    there = claim.get("status", {}).get("capacity", {}).get("storage", asked)
    return str(min(asked, there, key=octets))


def _differs(one: Mapping[str, Any], other: Mapping[str, Any] | None) -> bool:
    if other is None or _class(one) != _class(other):
        return True
    return octets(_size(one)) != octets(_size(other))


def decide(
    key: str,
    wanted: Iterable[Mapping[str, Any]],
    before: Iterable[Object],
    live: Mapping[Object, Mapping[str, Any]],
    classes: Mapping[str, bool],
) -> dict[str, list[Any]]:
    """What has to be done for an add-on's disks, or why it is not.

    Args:
        key: Where ``cluster.yaml`` has its settings, such as ``addons.prometheus``.
        wanted: The objects that it is to have.
        before: Kind, namespace and name of those that it has.
        live: StatefulSets and claims as they are in its namespaces.
        classes: By StorageClass whether its disks may grow.

    Returns:
        ``refused`` (in words; then nothing else is to be done), ``grown`` (claims, as namespace,
        name, size), ``kept`` and ``anew`` (StatefulSets, as namespace and name, to be replaced
        without and with their pods) and ``dropped`` (claims that wait for a disk of another class
        or size).

    Example:
        >>> decide("addons.x", [], [], {}, {})["refused"]
        []
    """
    plan: dict[str, list[Any]] = {
        name: [] for name in ("refused", "grown", "kept", "anew", "dropped")
    }
    objects = {_where(one): one for one in wanted if one["kind"] in PATHS}
    specs = {where: one["spec"] for where, one in objects.items() if where[0] == CLAIM}
    for where, manifest in objects.items():
        if where[0] == SET:
            _replace(plan, key, where, _templates(manifest), live, classes)
    for where in sorted({one for one in before if one[0] == CLAIM} | set(specs)):
        if where not in live:
            continue
        if where in specs:
            _settle(plan, key, [live[where]], specs[where], classes)
        elif _holds(live[where]):
            plan["refused"].append(_left(key, live[where], list(specs.values())))
    return plan


def _replace(
    plan: dict[str, list[Any]],
    key: str,
    where: Object,
    new: Mapping[str, Mapping[str, Any]],
    live: Mapping[Object, Mapping[str, Any]],
    classes: Mapping[str, bool],
) -> None:
    """The same for one StatefulSet and the claims that it has made."""
    _, namespace, name = where
    old = _templates(live.get(where))
    waiting = len(plan["dropped"])
    for template in sorted({*old, *new}):
        pattern = re.compile(rf"{re.escape(template)}-{re.escape(name)}-\d+")
        claims = [
            one
            for (kind, there, called), one in sorted(live.items())
            if (kind, there) == (CLAIM, namespace) and pattern.fullmatch(called)
        ]
        # Who has made a claim larger by hand, and declares what was declared, may keep it.
        larger = template not in old or not _differs(old[template], new.get(template))
        _settle(plan, key, claims, new.get(template), classes, larger)
    if where not in live:
        return  # A run that was ended in the middle: it is made as it should be.
    moved = set(old) != set(new) or any(_class(old[one]) != _class(new[one]) for one in new)
    if moved or len(plan["dropped"]) > waiting:
        plan["anew"].append((namespace, name))
    elif any(_differs(old[one], new[one]) for one in new):
        plan["kept"].append((namespace, name))


def _settle(
    plan: dict[str, list[Any]],
    key: str,
    claims: Iterable[Mapping[str, Any]],
    spec: Mapping[str, Any] | None,
    classes: Mapping[str, bool],
    larger: bool = False,
) -> None:
    """The same for claims that are to be alike; ``larger`` ones may stay so."""
    claims = list(claims)
    held = any(_holds(one) for one in claims)
    for claim in claims:
        _, *where = _where(claim)
        if not _differs(claim["spec"], spec):
            continue
        if not held:
            plan["dropped"].append(tuple(where))
        elif spec is None or _class(claim["spec"]) != _class(spec):
            if _holds(claim):
                plan["refused"].append(_left(key, claim, [spec] if spec else []))
        elif larger and octets(_size(claim["spec"])) > octets(_size(spec)):
            continue
        elif problem := _problem(key, claim, spec, classes):
            plan["refused"].append(problem)
        else:
            plan["grown"].append((*where, _size(spec)))


def _problem(
    key: str,
    claim: Mapping[str, Any],
    spec: Mapping[str, Any],
    classes: Mapping[str, bool],
) -> str:
    """Why a claim cannot get another size, as declared: empty, or in words."""
    now, size, asked = _class(claim["spec"]), _has(claim), _size(spec)
    found = f"{key}.size: found {asked}, but {_title(claim)} has {size}"
    if not now:
        return (
            f"{found} on a disk of a node, where the room of its file system is all there is: set "
            f"it to {size}"
        )
    if octets(asked) < octets(size):
        return f"{found}, and a disk gets no smaller: set it to {size} or more, {_away(key)}"
    if not _holds(claim):
        # Others of its StatefulSet have theirs.
        return (
            f"{found} and still waits for a disk: see kubectl -n {claim['metadata']['namespace']} "
            f"describe pvc {claim['metadata']['name']}, and try again when it has one, or set it "
            f"to {size}"
        )
    if now not in classes:
        return f"{found} of class {now}, which is not there any more: bring it, or set it to {size}"
    if not classes[now]:
        return (
            f"{found} of class {now}, which lets no disk grow: if its driver can, kubectl patch "
            f"storageclass {now} -p '{{\"allowVolumeExpansion\":true}}' and try again; or set it "
            f"to {size}, {_away(key)}"
        )
    return ""


def _left(key: str, claim: Mapping[str, Any], specs: Iterable[Mapping[str, Any]]) -> str:
    """That a claim's data would be left behind, by what is declared in its place."""
    now, asked = _class(claim["spec"]), [_class(one) for one in specs]
    what = f"{_title(claim)} has its data on a disk of {f'class {now}' if now else 'a node'}"
    if now in asked:
        return (
            f"{key}.node: found another node, but {what}, which would stay there: set it to the "
            f"node of before, {_away(key)}"
        )
    back = f"set it to {now}" if now else "leave it away"
    found = ", ".join(one for one in asked if one) or "none"
    return (
        f"{key}.storage_class: found {found}, but {what}, which would stay behind: {back}, "
        f"{_away(key)}"
    )


def _title(claim: Mapping[str, Any]) -> str:
    return f"claim {claim['metadata']['namespace']}/{claim['metadata']['name']}"


def _away(key: str) -> str:
    return (
        f"or take {key} away, deploy, and bring it again, which loses its data "
        '(docs/operations/addons.md, "A bigger disk")'
    )


def changes(plan: Mapping[str, Iterable[Any]]) -> dict[str, str]:
    """A plan as a state tells it.

    Example:
        >>> changes({"grown": [], "kept": [("n", "x")], "anew": [], "dropped": []})
        {'StatefulSet n/x': 'replaced, its pods stay'}
    """
    return {
        **{f"{CLAIM} {there}/{one}": f"grown to {size}" for there, one, size in plan["grown"]},
        **{f"{SET} {there}/{one}": "replaced, its pods stay" for there, one in plan["kept"]},
        **{f"{SET} {there}/{one}": "replaced with its pods" for there, one in plan["anew"]},
        **{f"{CLAIM} {there}/{one}": "made anew" for there, one in plan["dropped"]},
    }


# --- in the cluster ------------------------------------------------------------------------------


def plan(key: str, manifests: str, before: Iterable[Iterable[str]] | None) -> dict[str, list[Any]]:
    """What has to be done for the disks of an add-on, or why it is not; the API was asked.

    Args:
        key: Where ``cluster.yaml`` has its settings.
        manifests: Path of the file with its objects.
        before: Identities of what it has brought (``indigo_addon.installed``); None when it is not
            installed.

    Returns:
        As :func:`decide`.

    Raises:
        CommandExecutionError: The API does not answer, or the file cannot be read.

    CLI Example:

    .. code-block:: bash

        salt master1 indigo_disk.plan addons.x /etc/kubernetes/addons/x.yaml '[]'
    """
    known = [(kind, namespace, name) for _, kind, namespace, name in before or ()]
    wanted = __salt__["indigo_addon.read"](manifests)
    there = sorted({namespace for kind, namespace, _ in known if kind in PATHS})
    live = {}
    for namespace in there:
        for kind, path in PATHS.items():
            for one in _get(path.format(namespace))["items"]:
                live[kind, namespace, one["metadata"]["name"]] = {**one, "kind": kind}
    claims = any(kind == CLAIM for kind, _, _ in live)
    classes = {
        one["metadata"]["name"]: bool(one.get("allowVolumeExpansion"))
        for one in (_get(CLASSES)["items"] if claims else ())
    }
    found = decide(key, wanted, known, live, classes)
    if not found["refused"]:
        # The API may have reasons of its own: all are asked before one is changed.
        for namespace, name, size in found["grown"]:
            if problem := _grow(namespace, name, size, "?dryRun=All"):
                found["refused"].append(
                    f"{key}.size: found {size}, but claim {namespace}/{name} cannot grow: {problem}"
                )
    return found


def carry_out(plan: Mapping[str, Iterable[Any]]) -> None:
    """Do what a plan says. What it replaces is gone then, and is to be applied again.

    It may be ended anywhere and begun again: claims that have grown stay as they are, and pods
    whose StatefulSet is away run until it is back.

    Raises:
        CommandExecutionError: The API refuses, or what was deleted does not go.

    CLI Example:

    .. code-block:: bash

        salt master1 indigo_disk.carry_out '{grown: [], kept: [[n, x]], anew: [], dropped: []}'
    """
    for namespace, name, size in plan["grown"]:
        if problem := _grow(namespace, name, size):
            raise CommandExecutionError(f"{CLAIM} {namespace}/{name} cannot grow: {problem}")
    _delete(SET, plan["kept"], "Orphan")
    _delete(SET, plan["anew"], "Background")
    _delete(CLAIM, plan["dropped"], "Background")


def _server() -> str:
    return str(__pillar__["indigo"]["components"]["kube-apiserver"]["url"])


def _get(path: str) -> dict[str, Any]:
    return dict(__salt__["indigo_kube.get"](path, server=_server()))


def _grow(namespace: str, name: str, size: str, query: str = "") -> str:
    """Have a claim ask for more: empty, or why the API refuses."""
    path = f"{PATHS[CLAIM].format(namespace)}/{name}{query}"
    body = {"spec": {"resources": {"requests": {"storage": size}}}}
    answer = __salt__["indigo_kube.request"](
        "PATCH", path, body, "application/merge-patch+json", server=_server()
    )
    said = answer["body"].get("message", answer["status"])
    return "" if answer["status"] < 400 else str(said)


def _delete(kind: str, objects: Iterable[Iterable[str]], others: str) -> None:
    """Delete objects, and wait until each is gone; ``others`` says what becomes of its own."""
    for namespace, name in objects:
        path = f"{PATHS[kind].format(namespace)}/{name}"
        body = {"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": others}
        answer = __salt__["indigo_kube.request"]("DELETE", path, body, server=_server())
        if answer["status"] >= 400 and answer["status"] != 404:
            said = answer["body"].get("message", answer["status"])
            raise CommandExecutionError(f"{kind} {namespace}/{name} cannot be deleted: {said}")
        deadline = time.monotonic() + TIMEOUT
        while __salt__["indigo_kube.request"]("GET", path, server=_server())["status"] != 404:
            if time.monotonic() > deadline:
                raise CommandExecutionError(
                    f"{kind} {namespace}/{name} was deleted and is not gone after {TIMEOUT:.0f} s: "
                    "see what holds it, then run state.apply addons again"
                )
            time.sleep(PAUSE)
