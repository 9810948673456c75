"""Add-ons in the cluster, as declared."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from salt.exceptions import CommandExecutionError


def __virtual__() -> bool | tuple[bool, str]:
    if "indigo_addon.apply" not in __salt__:
        return False, "indigo_addon states need the execution module indigo_addon"
    return True


def _result(name: str) -> dict[str, Any]:
    return {"name": name, "result": True, "changes": {}, "comment": ""}


def present(
    name: str,
    manifests: str,
    key: str | None = None,
    source: str | None = None,
    context: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """An add-on is in the cluster as a file declares it, without what it had before and no more.

    Args:
        name: The add-on.
        manifests: Path of the file with its objects.
        key: Where ``cluster.yaml`` has its settings. With it disks follow its ``size`` and
            ``storage_class``; a change that they cannot follow fails before anything is changed.
        source: The template of the file, and ``context`` what it is filled with: where given, test
            mode looks at what the file would become.
        context: As said.

    Returns:
        ``changes`` maps ``Kind namespace/name`` to ``created``, ``updated``, ``removed``, or what
        becomes of a disk. What others set in its objects and the file does not name stays.

    Example:

    .. code-block:: yaml

        coredns is in the cluster:
          indigo_addon.present:
            - name: coredns
            - manifests: /etc/kubernetes/addons/coredns.yaml
            - key: addons.coredns
    """
    ret = _result(name)
    test = bool(__opts__["test"])
    if test and not Path(manifests).exists():
        return {**ret, "result": None, "comment": f"{manifests} would be applied"}
    try:
        before = __salt__["indigo_addon.installed"]().get(name)
        with _as_declared(manifests, source if test else None, context) as file:
            disks = __salt__["indigo_disk.plan"](key, file, before) if key and before else {}
            if disks.get("refused"):
                return {**ret, "result": False, "comment": "\n".join(disks["refused"])}
            moved = __salt__["indigo_disk.changes"](disks) if disks else {}
            ret["changes"] = __salt__["indigo_addon.pending"](file, before, list(moved)) | moved
        if ret["changes"] and not test:
            if moved:
                __salt__["indigo_disk.carry_out"](disks)
            __salt__["indigo_addon.apply"](name, manifests, before)
    except CommandExecutionError as err:
        if test:
            return {**ret, "result": None, "changes": {}, "comment": f"Cannot be told yet: {err}"}
        return {**ret, "result": False, "changes": {}, "comment": str(err)}
    return _told(ret, test, "It is as declared")


@contextlib.contextmanager
def _as_declared(path: str, source: str | None, context: Mapping[str, Any] | None) -> Iterator[str]:
    """Path of a file as it will be: of itself, or of what its template gives now."""
    if source is None:
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        made = str(Path(folder, Path(path).name))
        if not __salt__["cp.get_template"](source, made, template="jinja", context=context):
            raise CommandExecutionError(f"{source} cannot be rendered")
        yield made


def secret(name: str, namespace: str, keys: Iterable[str]) -> dict[str, Any]:
    """A Secret with values that nobody has to choose is in the cluster; one that is there stays.

    Args:
        name: Of the Secret.
        namespace: Its namespace.
        keys: What it must hold.

    Returns:
        ``changes`` names the Secret, never a value.

    Example:

    .. code-block:: yaml

        The Secret grafana-admin of grafana is in the cluster:
          indigo_addon.secret:
            - name: grafana-admin
            - namespace: grafana
            - keys: [password]
    """
    ret = _result(name)
    test = bool(__opts__["test"])
    try:
        if not __salt__["indigo_addon.has_secret"](namespace, name):
            ret["changes"] = {f"Secret {namespace}/{name}": "created"}
            if not test:
                __salt__["indigo_addon.make_secret"](namespace, name, list(keys))
    except CommandExecutionError as err:
        if test:
            return {**ret, "result": None, "comment": f"Cannot be told yet: {err}"}
        return {**ret, "result": False, "changes": {}, "comment": str(err)}
    return _told(ret, test, "It is there")


def built(name: str, folder: str, service: Mapping[str, Any]) -> dict[str, Any]:
    """A file has the manifests that a folder of the user's stands for.

    Args:
        name: Path of the file.
        folder: With manifests, a kustomization or a Helm chart.
        service: Its settings: ``name``, ``namespace``, ``values``.

    Returns:
        ``changes`` says that the file was written, and not what is in it: it may hold Secrets.

    Example:

    .. code-block:: yaml

        The manifests of service-wiki are in place:
          indigo_addon.built:
            - name: /etc/kubernetes/addons/service-wiki.yaml
            - folder: /etc/kubernetes/services/service-wiki
            - service: {name: wiki, namespace: default, values: {}}
    """
    ret = _result(name)
    test = bool(__opts__["test"])
    if test and not Path(folder).is_dir():
        return {**ret, "result": None, "comment": f"{name} would be written"}
    try:
        text = __salt__["indigo_addon.build"](folder, service)
    except CommandExecutionError as err:
        if test:
            return {**ret, "result": None, "comment": f"Cannot be told yet: {err}"}
        return {**ret, "result": False, "comment": str(err)}
    path = Path(name)
    if path.exists() and path.read_text(encoding="utf-8") == text:
        return {**ret, "comment": "It is as declared"}
    ret["changes"] = {"file": "written"}
    if not test:
        partial = path.with_name(f".{path.name}.new")
        with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write(text)
        partial.replace(path)
    return _told(ret, test, "")


def only(
    name: str,
    declared: Iterable[str],
    folder: str | None = None,
    sources: str | None = None,
) -> dict[str, Any]:
    """No add-on is in the cluster beside the named ones.

    Args:
        name: A plain English sentence.
        declared: The add-ons that stay.
        folder: Where the manifests of add-ons lie: those of others are removed.
        sources: Where the folders of services lie: those of others are removed.

    Returns:
        ``changes`` maps each add-on that is gone to ``removed``; one that cannot go keeps no other
        from going, and fails the state by name. Objects that nobody's inventory names are
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
    failed: Mapping[str, str] = {}
    try:
        found = __salt__["indigo_addon.installed"]()
        gone = sorted(set(found) - names)
        if not test:
            if gone:
                failed = __salt__["indigo_addon.remove"]({one: found[one] for one in gone})
            names |= set(failed)
            for path in Path(folder).glob("*.yaml") if folder else ():
                if path.stem not in names:
                    path.unlink()
            for path in Path(sources).glob("*") if sources else ():
                if path.name not in names:
                    shutil.rmtree(path)
    except CommandExecutionError as err:
        if test:
            return {**ret, "result": None, "comment": f"Cannot be told yet: {err}"}
        return {**ret, "result": False, "comment": str(err)}
    ret["changes"] = {one: "removed" for one in gone if one not in failed}
    if failed:
        told = "\n".join(f"{one} is not gone: {why}" for one, why in failed.items())
        return {**ret, "result": False, "comment": told}
    return _told(ret, test, "There is no other")


def _told(ret: dict[str, Any], test: bool, same: str) -> dict[str, Any]:
    if not ret["changes"]:
        return {**ret, "comment": same}
    told = ", ".join(f"{what} {how}" for what, how in ret["changes"].items())
    verb = "Would be" if test else "Were"
    return {**ret, "result": None if test else True, "comment": f"{verb}: {told}"}
