"""Empty a node of its pods before it goes, as its pods' disruption budgets allow.

Runs on a master and speaks to the API through the virtual address, as admin. Pods are evicted, so
that every PodDisruptionBudget is kept; what it holds back is tried again until the deadline. Pods
of DaemonSets and of files on the node stay, for they belong to it. Data in emptyDir is lost.

Sources: kubernetes.io "Safely Drain a Node" and "API-initiated Eviction".
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import quote

from salt.exceptions import CommandExecutionError

#: Seconds between two looks at the pods that are still there.
LOOK = 1.0

#: First minor of Kubernetes that takes evictions of the version policy/v1.
POLICY_V1 = 22

#: Put there by kubelet on pods of its own files.
MIRROR = "kubernetes.io/config.mirror"

#: Annotation of nodes that something of this project cordoned for a while, see indigo_upgrade.
MARK = "indigo/cordoned-by"

MERGE = "application/merge-patch+json"


def __virtual__() -> str:
    return "indigo_drain"


# --- pure -------------------------------------------------------------------------------------


def sorted_out(pods: Iterable[Mapping[str, Any]]) -> dict[str, list[str]]:
    """What is to become of a node's pods.

    Args:
        pods: Items of a list of pods from the API.

    Returns:
        Names ``namespace/name`` by fate: ``stay`` (DaemonSets, kubelet's own), ``ended`` (they
        run no more), ``alone`` (nothing would bring them back elsewhere) and ``evict``.

    Example:
        >>> pod = {"metadata": {"namespace": "a", "name": "b", "ownerReferences": [
        ...        {"kind": "DaemonSet", "controller": True}]}, "status": {"phase": "Running"}}
        >>> sorted_out([pod])["stay"]
        ['a/b']
    """
    found: dict[str, list[str]] = {"stay": [], "ended": [], "alone": [], "evict": []}
    for pod in pods:
        meta = pod["metadata"]
        owner = next((one for one in meta.get("ownerReferences", []) if one.get("controller")), {})
        if owner.get("kind") in ("DaemonSet", "Node") or MIRROR in meta.get("annotations", {}):
            fate = "stay"
        elif pod.get("status", {}).get("phase") in ("Succeeded", "Failed"):
            fate = "ended"
        else:
            fate = "evict" if owner else "alone"
        found[fate].append(f"{meta['namespace']}/{meta['name']}")
    return found


def refusal(body: Mapping[str, Any]) -> str:
    """Why the API did not evict a pod, in its own words; they name the budget.

    Example:
        >>> refusal({"message": "Cannot evict pod", "details": {"causes": [
        ...     {"reason": "DisruptionBudget", "message": "The disruption budget web needs 2"}]}})
        'The disruption budget web needs 2'
    """
    causes = (body.get("details") or {}).get("causes") or []
    told = [str(cause["message"]) for cause in causes if cause.get("message")]
    return "; ".join(told) or str(body.get("message") or body)


def held_back(told: str, namespace: str) -> str:
    """A refusal with where its budget is, which the API leaves out.

    Example:
        >>> held_back("The disruption budget web needs 2", "shop")
        'The disruption budget web needs 2 (namespace shop: kubectl -n shop get pdb)'
    """
    if "disruption" not in told.lower():
        return told
    return f"{told} (namespace {namespace}: kubectl -n {namespace} get pdb)"


# --- the node ---------------------------------------------------------------------------------


def cordon(name: str) -> bool:
    """Give a node no more pods. Returns whether that is new.

    Args:
        name: The node's name in Kubernetes.

    Raises:
        CommandExecutionError: There is no such node, or the API does not answer.

    CLI Example:

    .. code-block:: bash

        salt master1 indigo_drain.cordon node3
    """
    return _schedulable(name, False)


def uncordon(name: str) -> bool:
    """Give a node pods again. Returns whether that is new.

    CLI Example:

    .. code-block:: bash

        salt master1 indigo_drain.uncordon node3
    """
    return _schedulable(name, True)


def drain(name: str, deadline: float = 300, force: bool = False) -> dict[str, Any]:
    """Cordon a node and evict its pods; on failure the node takes pods again as before.

    Args:
        name: The node's name in Kubernetes.
        deadline: Seconds until the last pod must be gone.
        force: Also evict pods that nothing would bring back elsewhere.

    Returns:
        ``evicted`` (names of pods) and ``cordoned`` (whether the node was not before). A node
        that does not exist has nothing to evict.

    Raises:
        CommandExecutionError: A pod is still there at the deadline; it is named with what held it,
            a PodDisruptionBudget for example. Or a pod is alone and ``force`` was not given.

    CLI Example:

    .. code-block:: bash

        salt master1 indigo_drain.drain node3 deadline=120
    """
    end = time.monotonic() + deadline
    if _node(name) is None:
        return {"evicted": [], "cordoned": False}
    alone = sorted_out(_pods(name))["alone"]
    if alone and not force:
        raise CommandExecutionError(
            f"{name} is not drained: nothing would bring {', '.join(alone)} back on another node; "
            "expected pods that a controller makes again. Delete them, or add force=True. Nothing "
            "was changed"
        )
    new = cordon(name)
    drained = False
    try:
        evicted = _emptied(name, end, deadline)
        drained = True
    finally:
        if new and not drained:
            uncordon(name)
    return {"evicted": evicted, "cordoned": new}


def forget(name: str, pods: bool = False) -> bool:
    """Delete a node from the API. Returns whether it was there.

    Args:
        name: The node's name in Kubernetes.
        pods: First delete what was bound to it, without waiting for kubelet to end it: only for a
            node that is off. Otherwise Kubernetes waits minutes before it runs them elsewhere.

    CLI Example:

    .. code-block:: bash

        salt master1 indigo_drain.forget node3
    """
    if pods:
        for pod in _pods(name):
            meta = pod["metadata"]
            _ask(
                "DELETE",
                f"/api/v1/namespaces/{meta['namespace']}/pods/{meta['name']}",
                {"gracePeriodSeconds": 0, "preconditions": {"uid": meta["uid"]}},
                accept=(404, 409),
            )
    return bool(_ask("DELETE", _path(name), accept=(404,))["status"] != 404)


def _emptied(name: str, end: float, deadline: float) -> list[str]:
    """Evict until nothing that must go is left; the names of what was evicted."""
    evicted: set[str] = set()
    while True:
        held: dict[str, str] = {}
        try:
            pods = _pods(name)
            fates = sorted_out(pods)
            going = {*fates["evict"], *fates["alone"], *fates["ended"]}
            for pod in pods:
                title = f"{pod['metadata']['namespace']}/{pod['metadata']['name']}"
                if title not in going:
                    continue
                held[title] = "it is being ended"
                if not pod["metadata"].get("deletionTimestamp"):
                    held[title] = _evicted(pod, title in fates["ended"])
                    if not held[title]:
                        evicted.add(title)
                        held[title] = "it is being ended"
        except CommandExecutionError as error:
            # An API server that restarts; the next look goes to another one.
            held = {"the API": str(error)}
        if not held:
            return sorted(evicted)
        if time.monotonic() >= end:
            told = "; ".join(f"{title}: {why}" for title, why in sorted(held.items()))
            raise CommandExecutionError(
                f"{name} is not empty after {deadline:g} s, it takes pods as before. {told}. Run "
                "more replicas or change the budget that is named, then try again"
            )
        time.sleep(LOOK)


def _evicted(pod: Mapping[str, Any], ended: bool) -> str:
    """Ask for a pod's end; why it was refused, or an empty text."""
    meta = pod["metadata"]
    path = f"/api/v1/namespaces/{meta['namespace']}/pods/{meta['name']}"
    if ended:
        _ask("DELETE", path, accept=(404,))
        return ""
    version = str(__pillar__["indigo"]["versions"]["kubernetes"])
    policy = "policy/v1" if int(version.split(".")[1]) >= POLICY_V1 else "policy/v1beta1"
    body = {
        "apiVersion": policy,
        "kind": "Eviction",
        "metadata": {"name": meta["name"], "namespace": meta["namespace"]},
    }
    # 429: a budget. 500: two budgets for one pod. 409: it changed just now.
    answer = _ask("POST", f"{path}/eviction", body, accept=(404, 409, 429, 500))
    if answer["status"] not in (409, 429, 500):
        return ""
    return held_back(refusal(answer["body"]), meta["namespace"])


def _pods(name: str) -> list[dict[str, Any]]:
    query = f"/api/v1/pods?fieldSelector={quote(f'spec.nodeName={name}')}"
    return list(_ask("GET", query)["body"]["items"])


def _node(name: str) -> dict[str, Any] | None:
    answer = _ask("GET", _path(name), accept=(404,))
    return None if answer["status"] == 404 else dict(answer["body"])


def _schedulable(name: str, wanted: bool) -> bool:
    node = _node(name)
    if node is None:
        raise CommandExecutionError(
            f"node {name} is not known to Kubernetes; `salt-run indigo.status` lists the nodes"
        )
    if bool(node["spec"].get("unschedulable")) is not wanted:
        return False
    body: dict[str, Any] = {"spec": {"unschedulable": None if wanted else True}}
    if wanted:
        body["metadata"] = {"annotations": {MARK: None}}
    _ask("PATCH", _path(name), body, MERGE)
    return True


def _path(name: str) -> str:
    return f"/api/v1/nodes/{quote(name, safe='')}"


def _ask(
    method: str,
    path: str,
    body: Mapping[str, Any] | None = None,
    content: str = "application/json",
    accept: Iterable[int] = (),
) -> dict[str, Any]:
    answer = __salt__["indigo_kube.request"](method, path, body, content)
    if answer["status"] >= 400 and answer["status"] not in accept:
        raise CommandExecutionError(
            f"{method} {path} answered {answer['status']}: {refusal(answer['body'])}"
        )
    return dict(answer)
