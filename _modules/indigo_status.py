"""What one host reports to ``salt-run indigo.status``: its units, and what only it can see."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from salt.exceptions import CommandExecutionError

#: Units that a role's host runs.
UNITS: Mapping[str, tuple[str, ...]] = {
    "ca": (),
    "lb": ("haproxy", "keepalived"),
    "etcd": ("etcd",),
    "master": ("etcd-proxy", "kube-apiserver", "kube-controller-manager", "kube-scheduler"),
    "node": ("containerd", "kubelet", "kube-proxy"),
}

#: Units that each kind of firewall runs.
FIREWALLS: Mapping[str, tuple[str, ...]] = {
    "none": (),
    "nftables": ("indigo-firewall",),
    "firewalld": ("firewalld",),
}


def __virtual__() -> str:
    return "indigo_status"


def units(roles: Iterable[str]) -> list[str]:
    """Units that a host of these roles runs.

    CLI Example:

    .. code-block:: bash

        salt lb1 indigo_status.units '[lb]'
    """
    return [unit for role in roles for unit in UNITS.get(role, ())]


def report(kubernetes: bool = False) -> dict[str, Any]:
    """Everything this host knows of its own health; changes nothing.

    Args:
        kubernetes: Ask the API through the VIP for nodes and leaders as well. One master is
            enough for that.

    Returns:
        ``units`` (name to active or not), ``certificates`` (rows of ``indigo_pki.status``),
        ``tokens`` (``indigo_tokens.state``), ``exchange`` (the CA host: ``indigo_pki.exchanged``),
        ``vip`` (load balancers: whether the address is
        here), ``etcd`` (``indigo_etcd.status``), ``backup`` (``indigo_backup.status``), ``api``
        (masters: own API server's answer), ``kubernetes`` (``indigo_kube.status``) and ``addons``
        (the first master: ``indigo_addon.works``). What could not be asked is
        ``{"problem": why}``.

    CLI Example:

    .. code-block:: bash

        salt '*' indigo_status.report
    """
    view = __pillar__.get("indigo", {})
    roles = view.get("roles", [])
    kind = view.get("firewall", {}).get("kind", "none")
    expected = [*units(roles), *FIREWALLS[kind]]
    found: dict[str, Any] = {
        "units": {unit: __salt__["indigo_service.active"](unit) for unit in expected},
        "certificates": _tried(__salt__["indigo_pki.status"]),
    }
    if "ca" in roles:
        found["exchange"] = _tried(__salt__["indigo_pki.exchanged"])
    if "lb" in roles:
        found["vip"] = _tried(lambda: __salt__["indigo_host.holds"](view["vip"]["address"]))
    if "etcd" in roles:
        found["etcd"] = _tried(__salt__["indigo_etcd.status"])
        found["backup"] = _tried(lambda: __salt__["indigo_backup.status"]())
    if "master" in roles or "node" in roles:
        found["tokens"] = _tried(__salt__["indigo_tokens.state"])
    if "master" in roles:
        found["api"] = _tried(
            lambda: __salt__["indigo_health.check"](
                f"https://{view['address']}:6443/readyz", ca=view["paths"]["pki"] + "/ca.crt"
            )
        )
        if kubernetes:
            found["kubernetes"] = _tried(__salt__["indigo_kube.status"])
    if view.get("addons", {}).get("wanted") or view.get("addons", {}).get("services"):
        found["addons"] = _tried(__salt__["indigo_addon.works"])
    return found


def _tried(question: Callable[[], Any]) -> Any:
    """An answer, or why there is none: one dead part must not hide the others."""
    try:
        return question()
    except (CommandExecutionError, OSError, KeyError) as err:
        return {
            "problem": f"{type(err).__name__}: {err}" if isinstance(err, KeyError) else str(err)
        }
