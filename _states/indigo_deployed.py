"""The end of a host's deploy: what the next one may take for granted."""

from __future__ import annotations

from typing import Any

from salt.exceptions import CommandExecutionError


def __virtual__() -> str:
    return "indigo_deployed"


def recorded(name: str) -> dict[str, Any]:
    """Note that every state of this run succeeded, so that a deploy may leave this host alone.

    Comes last in ``indigo.host``. The note is about the run, and no change of the host: ``changes``
    stays empty. After a failure nothing is noted, and the next deploy runs everything again.

    Args:
        name: A plain English sentence.

    Example:

    .. code-block:: yaml

        A deploy may leave this host alone until something differs:
          indigo_deployed.recorded:
            - order: last
    """
    ret: dict[str, Any] = {"name": name, "result": True, "changes": {}, "comment": ""}
    if __opts__["test"]:
        ret["comment"] = "Nothing is noted in test mode"
        return ret
    failed = sorted(
        str(state.get("name", "?"))
        for state in __running__.values()
        if state.get("result") is not True
    )
    if failed:
        ret["comment"] = f"Nothing is noted, {len(failed)} states did not succeed: {failed[0]}"
        return ret
    try:
        __salt__["indigo_deployed.record"]()
    except CommandExecutionError as err:
        ret.update(result=False, comment=str(err))
        return ret
    ret["comment"] = "The next deploy leaves this host alone unless something differs"
    return ret
