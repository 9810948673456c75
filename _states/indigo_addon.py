"""Add-ons in the cluster, as declared."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from salt.exceptions import CommandExecutionError


def __virtual__() -> bool | tuple[bool, str]:
    if "indigo_addon.apply" not in __salt__:
        return False, "indigo_addon states need the execution module indigo_addon"
    return True


def _result(name: str) -> dict[str, Any]:
    return {"name": name, "result": True, "changes": {}, "comment": ""}


def present(name: str, manifests: str) -> dict[str, Any]:
    """An add-on is in the cluster as a file declares it, without what it had before and no more.

    Args:
        name: The add-on.
        manifests: Path of the file with its objects.

    Returns:
        ``changes`` maps ``Kind namespace/name`` to ``created``, ``updated`` or ``removed``. What
        others set in its objects and the file does not name stays.

    Example:

    .. code-block:: yaml

        coredns is in the cluster:
          indigo_addon.present:
            - name: coredns
            - manifests: /etc/kubernetes/addons/coredns.yaml
    """
    ret = _result(name)
    test = bool(__opts__["test"])
    if test and not Path(manifests).exists():
        return {**ret, "result": None, "comment": f"{manifests} would be applied"}
    try:
        before = __salt__["indigo_addon.installed"]().get(name)
        ret["changes"] = __salt__["indigo_addon.pending"](manifests, before)
        if ret["changes"] and not test:
            __salt__["indigo_addon.apply"](name, manifests, before)
    except CommandExecutionError as err:
        if test:
            return {**ret, "result": None, "changes": {}, "comment": f"Cannot be told yet: {err}"}
        return {**ret, "result": False, "changes": {}, "comment": str(err)}
    return _told(ret, test, "It is as declared")


def only(name: str, declared: Iterable[str], folder: str | None = None) -> dict[str, Any]:
    """No add-on is in the cluster beside the named ones.

    Args:
        name: A plain English sentence.
        declared: The add-ons that stay.
        folder: Where the manifests of add-ons lie: those of others are removed.

    Returns:
        ``changes`` maps each add-on to ``removed``. Objects that nobody's inventory names are
        not touched.

    Example:

    .. code-block:: yaml

        No other add-on is in the cluster:
          indigo_addon.only:
            - declared: [coredns]
    """
    ret = _result(name)
    test = bool(__opts__["test"])
    names = set(declared)
    try:
        found = __salt__["indigo_addon.installed"]()
        gone = sorted(set(found) - names)
        if not test:
            for one in gone:
                __salt__["indigo_addon.remove"](one, found[one])
            for path in Path(folder).glob("*.yaml") if folder else ():
                if path.stem not in names:
                    path.unlink()
    except CommandExecutionError as err:
        if test:
            return {**ret, "result": None, "comment": f"Cannot be told yet: {err}"}
        return {**ret, "result": False, "comment": str(err)}
    ret["changes"] = dict.fromkeys(gone, "removed")
    return _told(ret, test, "There is no other")


def _told(ret: dict[str, Any], test: bool, same: str) -> dict[str, Any]:
    if not ret["changes"]:
        return {**ret, "comment": same}
    told = ", ".join(f"{what} {how}" for what, how in ret["changes"].items())
    verb = "Would be" if test else "Were"
    return {**ret, "result": None if test else True, "comment": f"{verb}: {told}"}
