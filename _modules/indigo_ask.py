"""Ask minions, as the steps of an orchestration do.

Source: ``salt.modules.saltutil.cmd``, which gives each answer as a mapping with ``ret``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from salt.exceptions import CommandExecutionError, SaltClientError

#: Seconds after which Salt asks hosts that have not answered whether they are still at work. Those
#: that say so are waited for; those that say nothing either (gather_job_timeout) are lost.
ANSWER = 5


def __virtual__() -> str:
    return "indigo_ask"


def minions(
    targets: Iterable[str],
    function: str | Iterable[str],
    arg: Iterable[Any] = (),
    kwarg: Mapping[str, Any] | None = None,
    timeout: float = ANSWER,
    wait: float | None = None,
) -> dict[str, Any]:
    """What minions say; whoever is at work is waited for.

    Args:
        targets: Minion ids; nobody is asked where there are none.
        function: One, or several that run as one job, with a list of arguments each in ``arg``.
        arg: Arguments.
        kwarg: Arguments by name.
        timeout: Seconds after which hosts without an answer are asked whether they are at work.
        wait: Seconds that they may take to say so, where it is not to be the Salt master's
            ``gather_job_timeout``.

    Returns:
        By minion id what it returned, or the text of its error. Silent ones are missing.

    Raises:
        CommandExecutionError: The Salt master did not take the job.

    Example:
        ``salt-run salt.cmd indigo_ask.minions '[node1]' test.ping``
    """
    hosts = list(targets)
    if not hosts:
        return {}
    try:
        answers = __salt__["saltutil.cmd"](
            hosts,
            function if isinstance(function, str) else list(function),
            arg=list(arg),
            tgt_type="list",
            timeout=timeout,
            kwarg=dict(kwarg or {}),
            **({"gather_job_timeout": wait} if wait else {}),
        )
    except SaltClientError as err:
        raise CommandExecutionError(
            f"The Salt master did not take {function} for {len(hosts)} hosts: {err}; "
            "see `systemctl status salt-master`, then run this again"
        ) from err
    return {
        id_: answer["ret"]
        for id_, answer in answers.items()
        if isinstance(answer, Mapping) and "ret" in answer
    }


def each(
    targets: Iterable[str], function: str, kwarg: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """What minions say, where every one of them must say something good.

    Args:
        targets: Minion ids.
        function: What each runs.
        kwarg: Arguments by name.

    Returns:
        By minion id what it returned.

    Raises:
        CommandExecutionError: Some did not answer, or answered with an error: their ids, and what
            they said.

    Example:
        ``salt-run salt.cmd indigo_ask.each '[node1]' test.ping``
    """
    hosts = list(targets)
    answers = minions(hosts, function, kwarg=kwarg)
    bad = [
        f"{id_}: {answers.get(id_, 'no answer')}"
        for id_ in hosts
        # Salt gives the error of a function as its text.
        if id_ not in answers or isinstance(answers[id_], str)
    ]
    if bad:
        raise CommandExecutionError("; ".join(bad))
    return answers
