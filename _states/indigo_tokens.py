"""Tokens as declared: on each host, and across them from the Salt master.

:func:`present` and :func:`absent` are for a host's own state; :func:`replicated` is a step of
an orchestration and runs on the Salt master. No secret appears in a comment or in changes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import salt.loader
from salt.exceptions import CommandExecutionError

__virtualname__ = "indigo_tokens"

DEPLOY = "run salt-run state.orchestrate indigo.deploy on the Salt master"


def __virtual__() -> str:
    """Usable everywhere: the functions it needs are looked up when they are called."""
    return __virtualname__


def _result(name: str) -> dict[str, Any]:
    return {"name": name, "result": True, "changes": {}, "comment": ""}


def _lines(found: Mapping[str, str]) -> str:
    return "; ".join(f"{path}: {what}" for path, what in found.items())


def _own_set(wanted: bool | Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The set's path and files: as given, or for True those of the pillar."""
    if isinstance(wanted, Mapping):
        return wanted
    if not wanted:
        return None
    token_set = __pillar__.get("indigo", {}).get("token_set")
    if not token_set:
        raise CommandExecutionError(
            "set: true was given and pillar indigo:token_set is not there; "
            "only a host with the role master holds the token set"
        )
    return token_set


def present(
    name: str,
    tokens: Sequence[Mapping[str, Any]],
    set: bool | Mapping[str, Any] = False,
) -> dict[str, Any]:
    """The token files of this host are there, complete, and readable by their readers alone.

    Args:
        name: A plain English sentence.
        tokens: Token files: ``identity``, ``path``, ``user`` (``pillar.indigo.tokens``).
        set: On a master true, or ``pillar.indigo.token_set``: the shared set must be there, and
            the files that the services read must be what it says.

    Returns:
        Mends owners and modes, and on a master every file that follows from the set. What only
        another host can supply is an error that names the remedy (None in test mode, where the
        orchestration that supplies it may be still to come).

    Example:

    .. code-block:: yaml

        The tokens of this host are in place:
          indigo_tokens.present:
            - tokens: {{ indigo.tokens | json }}
            - set: {{ 'master' in indigo.roles }}
    """
    ret = _result(name)
    try:
        token_set = _own_set(set)
        found = __salt__["indigo_tokens.inspect"](tokens, token_set)
        if found["lost"]:
            ret["result"] = None if __opts__["test"] else False
            ret["comment"] = f"{_lines(found['lost'])}. Tokens come from another host: {DEPLOY}"
            if __opts__["test"] or not found["mendable"]:
                return ret
        if not found["mendable"]:
            ret["comment"] = "All token files are in place"
            return ret
        if __opts__["test"]:
            ret["result"] = None
            ret["comment"] = "Token files would be put right"
            ret["changes"] = dict(found["mendable"])
            return ret
        ret["changes"] = __salt__["indigo_tokens.mend"](tokens, token_set)
    except CommandExecutionError as error:
        ret.update(result=False, comment=str(error))
        return ret
    if ret["result"]:
        ret["comment"] = "Token files were put right"
    return ret


def absent(
    name: str,
    tokens: Sequence[Mapping[str, Any]] = (),
    set: bool | Mapping[str, Any] = False,
) -> dict[str, Any]:
    """None of these token files is on this host; on a master the shared set neither.

    The last master's set cannot be made again: back it up first if its Secrets matter.

    Args:
        name: A plain English sentence.
        tokens: Token files: ``identity``, ``path``, ``user``.
        set: True, or ``pillar.indigo.token_set``: remove the set and what follows from it too.

    Example:

    .. code-block:: yaml

        No token is left on this host:
          indigo_tokens.absent:
            - tokens: {{ indigo.tokens | json }}
    """
    ret = _result(name)
    try:
        token_set = _own_set(set)
        test = bool(__opts__["test"])
        gone = __salt__["indigo_tokens.remove"](list(tokens), token_set, test=test)
    except CommandExecutionError as error:
        ret.update(result=False, comment=str(error))
        return ret
    if not gone:
        ret["comment"] = "No token file is here"
        return ret
    ret["changes"] = dict.fromkeys(gone, "removed")
    ret["result"] = None if test else True
    ret["comment"] = "Token files would be removed" if test else "Token files were removed"
    return ret


def replicated(name: str, force: bool = False, holder: str | None = None) -> dict[str, Any]:
    """Every master holds the same token set and every node its own tokens. On the Salt master.

    Args:
        name: A plain English sentence.
        force: Make a set although a master that may hold one does not answer.
        holder: Minion id of the master whose set is to win, when sets differ.

    Returns:
        ``changes`` by minion id. In test mode the hosts that would receive something.

    Example:

    .. code-block:: yaml

        Masters and nodes have their tokens:
          indigo_tokens.replicated: []
    """
    ret = _result(name)
    test = bool(__opts__["test"])
    try:
        # Not through saltutil.runner: that turns an exception into a traceback in a string.
        runners = salt.loader.runner(__opts__, context=__context__)
        if "indigo_tokens.replicate" not in runners:
            raise CommandExecutionError(
                "the runner indigo_tokens is not there: runner_dirs in the Salt master's "
                "configuration must name this tree's _runners folder with its absolute path"
            )
        done = runners["indigo_tokens.replicate"](test=test, force=force, holder=holder)
    except CommandExecutionError as error:
        ret.update(result=False, comment=str(error))
        return ret
    ret["changes"] = done["changes"]
    # For indigo_cluster.hosts_run: what reads these files must read them again.
    __context__["indigo_tokens.changed"] = list(done["changes"])
    if not done["changes"]:
        ret["comment"] = f"All tokens are in step with {done['holder']}"
    elif test:
        ret["result"] = None
        ret["comment"] = f"{', '.join(done['changes'])} would receive tokens from {done['holder']}"
    else:
        ret["comment"] = f"Tokens were brought in step with {done['holder']}"
    if done["unreachable"]:
        ret["comment"] += f"; not reached: {', '.join(done['unreachable'])}"
    return ret
