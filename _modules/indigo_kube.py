"""The Kubernetes API as a master's own admin sees it, reduced to what operators ask for.

Runs on masters: the admin token lies there, 0600, and stays there. Answers carry no secret.
"""

from __future__ import annotations

import calendar
import http.client
import json
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from salt.exceptions import CommandExecutionError

#: Objects whose holders say who leads, in kube-system.
LEADERS = ("kube-controller-manager", "kube-scheduler")


def __virtual__() -> str:
    return "indigo_kube"


def get(path: str, server: str | None = None, timeout: float = 5) -> dict[str, Any]:
    """One GET of the API as admin, over verified TLS.

    Args:
        path: Path and query, such as ``/api/v1/nodes``.
        server: Base URL; the VIP's by default.
        timeout: Seconds.

    Returns:
        The parsed JSON answer.

    Raises:
        CommandExecutionError: No answer, or an error status; both are named with the URL.

    CLI Example:

    .. code-block:: bash

        salt master1 indigo_kube.get /api/v1/nodes
    """
    url = (server or _view()["vip"]["url"]) + path
    answer = request("GET", path, server=server, timeout=timeout)
    if answer["status"] >= 400:
        told = json.dumps(answer["body"])[:300]
        raise CommandExecutionError(f"{url} answered {answer['status']}: {told}")
    return dict(answer["body"])


def request(
    method: str,
    path: str,
    body: Mapping[str, Any] | None = None,
    content: str = "application/json",
    server: str | None = None,
    timeout: float = 10,
) -> dict[str, Any]:
    """One request to the API as admin, over verified TLS.

    Args:
        method: ``GET``, ``POST``, ``PATCH``, ``DELETE``.
        path: Path and query, such as ``/api/v1/nodes``.
        body: What to send, as JSON.
        content: Its media type.
        server: Base URL; the VIP's by default.
        timeout: Seconds.

    Returns:
        ``status`` (of HTTP) and ``body``, the parsed JSON answer.

    Raises:
        CommandExecutionError: No answer, or one that is no JSON; the URL is named.

    CLI Example:

    .. code-block:: bash

        salt master1 indigo_kube.request GET /version
    """
    answer = _ask(method, path, body, content, server, timeout)
    if answer["status"] >= 400:
        return {"status": answer["status"], "body": _error(answer["text"])}
    try:
        return {"status": answer["status"], "body": json.loads(answer["text"])}
    except ValueError as err:
        raise CommandExecutionError(f"{answer['url']} does not answer: {err}") from err


def text(path: str, server: str | None = None, timeout: float = 10) -> str:
    """What the API says at a path that is no JSON, such as ``/metrics``.

    Args:
        path: Path and query.
        server: Base URL; the VIP's by default.
        timeout: Seconds.

    Raises:
        CommandExecutionError: No answer, or an error status; both are named with the URL.

    CLI Example:

    .. code-block:: bash

        salt master1 indigo_kube.text /metrics
    """
    answer = _ask("GET", path, None, "", server, timeout, accept="text/plain")
    if answer["status"] >= 400:
        raise CommandExecutionError(
            f"{answer['url']} answered {answer['status']}: {_error(answer['text'])}"
        )
    return str(answer["text"].decode(errors="replace"))


def _ask(
    method: str,
    path: str,
    body: Mapping[str, Any] | None,
    content: str,
    server: str | None,
    timeout: float,
    accept: str = "application/json",
) -> dict[str, Any]:
    """One request as admin: ``url``, ``status`` and ``text`` (bytes; of errors the beginning)."""
    url = (server or _view()["vip"]["url"]) + path
    try:
        token = Path(_token_file()).read_text(encoding="utf-8").strip()
    except OSError as err:
        raise CommandExecutionError(
            f"{url} cannot be asked: {err.strerror}: {err.filename}; "
            "run salt-run state.orchestrate indigo.deploy to bring the tokens"
        ) from err
    headers = {"Authorization": f"Bearer {token}", "Accept": accept}
    data = None
    if body is not None:
        data = json.dumps(body).encode()
        headers["Content-Type"] = content
    asked = urllib.request.Request(url, data, headers, method=method)  # noqa: S310 - always https
    try:
        context = ssl.create_default_context(cafile=_authority())
        try:
            with urllib.request.urlopen(asked, timeout=timeout, context=context) as answer:  # noqa: S310
                return {"url": url, "status": answer.status, "text": answer.read()}
        except urllib.error.HTTPError as err:
            return {"url": url, "status": err.code, "text": err.read(65536)}
    except (OSError, ValueError, http.client.HTTPException) as err:
        raise CommandExecutionError(f"{url} does not answer: {err}") from err


def _error(text: bytes) -> dict[str, Any]:
    """Body of an error: the API's own JSON, or what a proxy said in its place."""
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    told = text.decode(errors="replace").strip()[:300]
    return found if isinstance(found, dict) else {"message": told}


def status(server: str | None = None) -> dict[str, Any]:
    """Nodes and leaders of the cluster.

    Args:
        server: Base URL; the VIP's by default.

    Returns:
        ``nodes``: name to ``{"ready": bool, "reason": str, "version": str, "cordoned": bool}``;
        ``leaders``: component to the holder of its lease, with the seconds since its renewal.

    CLI Example:

    .. code-block:: bash

        salt master1 indigo_kube.status
    """
    nodes = get("/api/v1/nodes", server)["items"]
    leaders: dict[str, Any] = {}
    for name in LEADERS:
        try:
            lease = get(
                f"/apis/coordination.k8s.io/v1/namespaces/kube-system/leases/{name}", server
            )
        except CommandExecutionError as err:
            leaders[name] = {"holder": None, "problem": str(err)}
        else:
            leaders[name] = leader(lease, time.time())
    return {
        "nodes": {node["metadata"]["name"]: summary(node) for node in nodes},
        "leaders": leaders,
    }


def wait_ready(names: Iterable[str], timeout: float = 120, interval: float = 0.5) -> dict[str, Any]:
    """Wait until the API, through the VIP, shows every named node ready.

    Args:
        names: Kubernetes names of nodes.
        timeout: Seconds to wait at most.
        interval: Seconds between two looks.

    Returns:
        ``ready`` (sorted names), ``missing`` (name to reason), ``waited`` (seconds) and
        ``problem`` (what the API last failed with, or None).

    CLI Example:

    .. code-block:: bash

        salt master1 indigo_kube.wait_ready '[node1, node2]' timeout=60
    """
    wanted = sorted(names)
    started = time.monotonic()
    while True:
        problem = None
        missing = dict.fromkeys(wanted, "not registered")
        try:
            items = get("/api/v1/nodes")["items"]
        except CommandExecutionError as err:
            problem = str(err)
        else:
            missing = not_ready(wanted, items)
        waited = time.monotonic() - started
        if (problem is None and not missing) or waited > timeout:
            ready = [name for name in wanted if name not in missing]
            return {
                "ready": ready,
                "missing": missing,
                "waited": round(waited, 1),
                "problem": problem,
            }
        time.sleep(interval)


def summary(node: Mapping[str, Any]) -> dict[str, Any]:
    """What a status screen shows of a Node object.

    Example:
        >>> summary({"spec": {}, "status": {"conditions": [
        ...     {"type": "Ready", "status": "True", "reason": "KubeletReady"}]}})["ready"]
        True
    """
    conditions = {one["type"]: one for one in node["status"].get("conditions", [])}
    ready = conditions.get("Ready", {})
    return {
        "ready": ready.get("status") == "True",
        "reason": ready.get("reason", "no Ready condition"),
        "version": node["status"].get("nodeInfo", {}).get("kubeletVersion"),
        "cordoned": bool(node.get("spec", {}).get("unschedulable")),
    }


def not_ready(wanted: Iterable[str], items: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Wanted nodes that are not ready, with the reason Kubernetes gives.

    Example:
        >>> not_ready(["node1"], [])
        {'node1': 'not registered'}
    """
    seen = {node["metadata"]["name"]: summary(node) for node in items}
    return {
        name: seen[name]["reason"] if name in seen else "not registered"
        for name in wanted
        if name not in seen or not seen[name]["ready"]
    }


def leader(lease: Mapping[str, Any], now: float) -> dict[str, Any]:
    """Holder of a lease, and the whole seconds since it renewed it."""
    spec = lease.get("spec", {})
    renewed = spec.get("renewTime")
    age = None
    if renewed:
        moment = time.strptime(renewed.split(".")[0].rstrip("Z"), "%Y-%m-%dT%H:%M:%S")
        age = round(now - calendar.timegm(moment))
    return {"holder": spec.get("holderIdentity"), "renewed_seconds_ago": age}


def _view() -> dict[str, Any]:
    # Not pillar.get: it masks values inside custom modules (Salt 3008).
    view = __pillar__.get("indigo")
    if not view:
        raise CommandExecutionError(
            f"{__grains__['id']} has no pillar `indigo`: declare the host in cluster.yaml and run "
            "saltutil.refresh_pillar"
        )
    return view


def _token_file() -> str:
    for one in _view().get("tokens", []):
        if one["identity"] == "admin":
            return one["path"]
    raise CommandExecutionError(f"{__grains__['id']} is not a master: it has no admin token")


def _authority() -> str:
    for one in _view()["pki"]["authorities"]:
        if one["name"] == "kubernetes":
            return one["path"]
    raise CommandExecutionError(f"{__grains__['id']} does not hold the kubernetes authority")
