"""Certificates as declared: present, valid for a while to come, owned by those who read them.

.. code-block:: yaml

    Host certificates are valid:
      indigo_pki.certificates_managed:
        - ca: salt
        - authorities: [{name: etcd, path: /etc/etcd/pki/ca.crt}]
        - certificates: [{name: etcd-member, policy: etcd1.etcd-member, ...}]

The checks and the work are in the execution module ``indigo_pki``.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from salt.exceptions import CommandExecutionError

if TYPE_CHECKING:
    __salt__: dict[str, Any]
    __opts__: dict[str, Any]

#: A second round is due only if the authority itself turned out to be another one.
ROUNDS = 2


def __virtual__() -> bool | tuple[bool, str]:
    if "indigo_pki.issue" not in __salt__:
        return False, "indigo_pki needs the execution module of that name"
    return True


def certificates_managed(
    name: str,
    ca: str,
    authorities: list[dict[str, str]] | None = None,
    certificates: list[dict[str, Any]] | None = None,
    timeout: int = 120,
) -> dict[str, Any]:
    """Keep this host's certificates and those of the authorities it trusts.

    All is checked on this host; the CA minion is asked, once, only if something must be issued.
    A key that is there is kept.

    Args:
        name: Any sentence.
        ca: Minion id of the CA host.
        authorities: ``[{"name", "path"}, ...]``: authorities this host must know.
        certificates: ``[{"name", "policy", "authority", "path", "key", "user", "group",
            "common_name", "organization", "sans", "usages", "days", "renew_before"}, ...]``,
            the last two in days.
        timeout: Seconds to wait for the CA minion.

    Returns:
        The state's result; ``changes`` maps each path to ``{"old", "new"}``.

    Example:
        See the head of this module.
    """
    authorities, certificates = authorities or [], certificates or []
    ret: dict[str, Any] = {"name": name, "changes": {}, "result": True, "comment": ""}
    changes = ret["changes"]
    if senseless := _senseless(certificates):
        return _failed(ret, senseless)
    try:
        for _round in range(ROUNDS):
            reasons, wanted = _due(authorities, certificates)
            ownership = _misowned([*authorities, *certificates], reasons)
            if __opts__["test"]:
                return _previewed(ret, {**reasons, **ownership}, certificates)
            for row in [*authorities, *certificates]:
                if row["path"] in ownership:
                    changes.update(__salt__["indigo_pki.mend_ownership"](row))
            if not reasons:
                return _done(ret, certificates)
            done = __salt__["indigo_pki.issue"](ca, wanted, authorities, timeout)
            _merge(changes, done["changes"])
            if done["errors"]:
                return _failed(ret, "; ".join(done["errors"]))
    except CommandExecutionError as err:
        return _failed(ret, str(err))
    reasons, _wanted = _due(authorities, certificates)
    if reasons:
        return _failed(ret, f"issued, and still not in order: {_list(reasons)}")
    return _done(ret, certificates)


def certificates_absent(
    name: str,
    authorities: list[dict[str, str]] | None = None,
    certificates: list[dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """Remove certificates, their keys, and the authorities' certificates from this host.

    Args:
        name: Any sentence.
        authorities: As in :func:`certificates_managed`.
        certificates: As in :func:`certificates_managed`.

    Returns:
        The state's result; ``changes`` maps each removed path to ``{"old", "new"}``.

    Example:
        .. code-block:: yaml

            Host certificates are gone:
              indigo_pki.certificates_absent:
                - certificates: [{path: /etc/etcd/pki/member.crt, key: /etc/etcd/pki/member.key}]
    """
    paths = [row[kind] for row in certificates or [] for kind in ("key", "path")]
    paths += [row["path"] for row in authorities or []]
    return _removed(name, paths)


def authorities_managed(name: str, held: list[dict[str, Any]]) -> dict[str, Any]:
    """Keep the authorities on the CA host.

    A missing authority is made, an authority near its end signs itself anew with the key it
    has, so that what it issued stays valid. A damaged one is left alone and the state fails.

    Args:
        name: Any sentence.
        held: ``[{"name", "key", "certificate", "common_name", "days", "renew_before"}, ...]``.

    Returns:
        The state's result; ``changes`` maps each path to ``{"old", "new"}``.

    Example:
        .. code-block:: yaml

            Certificate authorities are present:
              indigo_pki.authorities_managed:
                - held: {{ pillar.indigo.pki.held | json }}
    """
    ret: dict[str, Any] = {"name": name, "changes": {}, "result": True, "comment": ""}
    try:
        reasons = {
            row["certificate"]: problem
            for row in held
            if (problem := __salt__["indigo_pki.held_problem"](row))
        }
        if __opts__["test"] and reasons:
            ret["result"] = None
            ret["comment"] = f"Would be made or mended: {_list(reasons)}"
            return ret
        for row in held:
            if row["certificate"] in reasons:
                _merge(ret["changes"], __salt__["indigo_pki.establish"](row))
    except CommandExecutionError as err:
        return _failed(ret, str(err))
    names = ", ".join(row["name"] for row in held)
    ret["comment"] = f"Authorities are in order: {names or 'none'}"
    return ret


def authorities_absent(name: str, held: list[dict[str, Any]], confirm: str = "") -> dict[str, Any]:
    """Remove the authorities from the CA host, if told to by name.

    Without its authorities a cluster cannot renew a certificate or take in a host.

    Args:
        name: Any sentence.
        held: As in :func:`authorities_managed`.
        confirm: The authorities' common names without `` <name> CA``: the cluster's name.

    Returns:
        The state's result; ``changes`` maps each removed path to ``{"old", "new"}``.

    Example:
        .. code-block:: yaml

            Certificate authorities are gone:
              indigo_pki.authorities_absent:
                - held: {{ pillar.indigo.pki.held | json }}
                - confirm: lab
    """
    there = [row for row in held if os.path.lexists(row["key"])]
    spared = [row["key"] for row in there if row["common_name"] != f"{confirm} {row['name']} CA"]
    if spared:
        ret = {"name": name, "changes": {}, "result": False, "comment": ""}
        return _failed(
            ret,
            f"{', '.join(spared)} cannot be made again, and without them no certificate of the "
            f"cluster can be renewed. confirm is {confirm!r}; it must be the cluster's name, "
            "see docs/operations/certificates.md",
        )
    return _removed(name, [row[kind] for row in held for kind in ("key", "certificate")])


def _senseless(certificates: list[dict[str, Any]]) -> str | None:
    """A declaration that would have every run issue the certificate again."""
    for row in certificates:
        if row["renew_before"] >= row["days"]:
            return (
                f"certificates.renew_before is {row['renew_before']} days and certificates.days "
                f"{row['days']}: it must be less, or {row['path']} would be renewed by every run"
            )
    return None


def _due(
    authorities: list[dict[str, str]], certificates: list[dict[str, Any]]
) -> tuple[dict[str, str], list[dict[str, Any]]]:
    """Why the CA minion must be asked, by path, and which certificates it must issue."""
    reasons, wanted = {}, []
    for row in authorities:
        problem = __salt__["indigo_pki.authority_problem"](row)
        if problem:
            reasons[row["path"]] = problem
    for row in certificates:
        problem = __salt__["indigo_pki.certificate_problem"](row, authorities)
        if problem:
            reasons[row["path"]] = problem
            wanted.append(row)
    return reasons, wanted


def _misowned(rows: list[dict[str, Any]], reasons: dict[str, str]) -> dict[str, str]:
    """What is wrong with the owners and modes of files that are there."""
    found = {}
    for row in rows:
        problem = __salt__["indigo_pki.ownership_problem"](row)
        # A certificate that will be issued gets its owner then; its account may not exist yet.
        if problem and row["path"] not in reasons:
            found[row["path"]] = problem
    return found


def _previewed(
    ret: dict[str, Any], reasons: dict[str, str], certificates: list[dict[str, Any]]
) -> dict[str, Any]:
    if not reasons:
        return _done(ret, certificates)
    ret["result"] = None
    ret["comment"] = f"Would be issued or mended: {_list(reasons)}"
    return ret


def _done(ret: dict[str, Any], certificates: list[dict[str, Any]]) -> dict[str, Any]:
    ret["comment"] = f"{len(certificates)} certificates are valid"
    return ret


def _failed(ret: dict[str, Any], comment: str) -> dict[str, Any]:
    ret["result"] = False
    ret["comment"] = comment
    return ret


def _removed(name: str, paths: list[str]) -> dict[str, Any]:
    ret: dict[str, Any] = {"name": name, "changes": {}, "result": True}
    there = [path for path in dict.fromkeys(paths) if os.path.lexists(path)]
    if not there:
        ret["comment"] = "Nothing is there"
        return ret
    if __opts__["test"]:
        ret["result"] = None
        ret["comment"] = f"Would be removed: {', '.join(there)}"
        return ret
    for path in there:
        os.unlink(path)
        ret["changes"][path] = {"old": "present", "new": None}
    ret["comment"] = f"Removed {len(there)} files"
    return ret


def _merge(changes: dict[str, Any], more: dict[str, Any]) -> None:
    """Add a round's changes: what was there before the first round stays the old value."""
    for path, change in more.items():
        old = changes.get(path, change)["old"]
        changes[path] = {"old": old, "new": change["new"]}


def _list(reasons: dict[str, str]) -> str:
    return "; ".join(
        reason if reason.startswith(path) else f"{path}: {reason}"
        for path, reason in reasons.items()
    )
