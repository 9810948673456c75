"""States that hold until a service really serves."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

try:
    from salt.exceptions import CommandExecutionError
except ImportError:
    CommandExecutionError = RuntimeError  # type: ignore[assignment,misc]


#: A process of this age in seconds has got past the failures of its start.
SETTLED = 5.0


def __virtual__() -> bool | tuple[bool, str]:
    if "indigo_health.check" not in __salt__:
        return False, "indigo_health states need the execution module indigo_health"
    return True


def _age(unit: dict[str, str]) -> float:
    started = int(unit.get("ExecMainStartTimestampMonotonic") or 0) / 1e6
    return time.monotonic() - started if started else 0.0


def serving(
    name: str,
    url: str,
    ca: str | None = None,
    cert: str | None = None,
    key: str | None = None,
    token_file: str | None = None,
    expect: str | None = "ok",
    successes: int = 3,
    interval: float = 0.2,
    timeout: float = 120,
) -> dict[str, Any]:
    """A unit answers at its endpoint, several times in a row, from one process.

    Args:
        name: Unit name, with or without ``.service``.
        url: Endpoint, ``https://host:port/path``.
        ca: File with the authority that signed the server's certificate.
        cert: Client certificate file, with ``key``.
        key: Private key file of ``cert``.
        token_file: File with a bearer token to send.
        expect: Text that the body must hold.
        successes: Answers in a row. A process that is older than a few seconds needs only one.
        interval: Seconds between two questions.
        timeout: Seconds after which the state fails.

    Returns:
        A state result, always without changes: looking changes nothing.

    Example:
        .. code-block:: yaml

            etcd serves:
              indigo_health.serving:
                - name: etcd
                - url: https://10.0.0.1:2379/health
                - ca: /etc/etcd/pki/ca.crt
                - expect: '"health":"true"'
    """
    ret: dict[str, Any] = {"name": name, "result": True, "changes": {}, "comment": ""}
    checks = {
        "ca": ca,
        "cert": cert,
        "key": key,
        "token_file": token_file,
        "expect": expect,
    }
    try:
        unit = __salt__["indigo_service.show"](name)
        first = __salt__["indigo_health.check"](url, **checks)
        alive = unit.get("ActiveState") in ("active", "activating", "reloading")
        if first["ok"] and unit.get("MainPID", "0") != "0" and _age(unit) >= SETTLED:
            return {**ret, "comment": f"{name} serves at {url}"}
        if __opts__.get("test"):
            if first["ok"] and alive:
                return {**ret, "comment": f"{name} serves at {url}"}
            told = __salt__["indigo_health.told"](first)
            return {**ret, "result": None, "comment": f"{name} would be waited for. {told}"}
        found = __salt__["indigo_health.wait_unit"](
            name, url, successes=successes, interval=interval, timeout=timeout, **checks
        )
    except CommandExecutionError as error:
        return {**ret, "result": False, "comment": str(error)}
    if found["ok"]:
        return {**ret, "comment": f"{name} serves at {url}"}
    unit, last = found["unit"], found["last"]
    if last["ok"]:
        said = f"{url} answers, but not from one process {successes} times in a row"
    else:
        said = __salt__["indigo_health.told"](last)
    ret["result"] = False
    ret["comment"] = (
        f"{name} does not serve after {timeout:g} s: the unit is {unit.get('ActiveState')} "
        f"({unit.get('SubState')}). {said}. Look at: journalctl -u {name} -n 50"
    )
    return ret


def answering(
    name: str,
    urls: Iterable[str],
    need: str = "all",
    ca: str | None = None,
    cert: str | None = None,
    key: str | None = None,
    token_file: str | None = None,
    expect: str | None = "ok",
    interval: float = 0.2,
    timeout: float = 120,
) -> dict[str, Any]:
    """Enough of several endpoints answer well, on whatever hosts they are.

    Args:
        name: What they are together, for a person: ``the etcd quorum``.
        urls: Endpoints.
        need: ``all``, ``any`` or ``majority`` of them.
        ca: See :func:`serving`, as for the arguments that follow.

    Returns:
        A state result, always without changes.

    Example:
        .. code-block:: yaml

            The API answers through the virtual address:
              indigo_health.answering:
                - urls: ['https://10.0.0.10:8443/readyz']
                - ca: /etc/kubernetes/pki/ca.crt
    """
    ret: dict[str, Any] = {"name": name, "result": True, "changes": {}, "comment": ""}
    urls = list(urls)
    test = bool(__opts__.get("test"))
    try:
        found = __salt__["indigo_health.wait_all"](
            urls,
            need=need,
            interval=interval,
            timeout=0 if test else timeout,
            ca=ca,
            cert=cert,
            key=key,
            token_file=token_file,
            expect=expect,
        )
    except CommandExecutionError as error:
        return {**ret, "result": False, "comment": str(error)}
    if found["ok"]:
        return {**ret, "comment": f"{name}: {found['healthy']} of {len(urls)} answer"}
    bad = [__salt__["indigo_health.told"](one) for one in found["answers"] if not one["ok"]]
    said = f"{found['healthy']} of {len(urls)} answer, expected {need}. {'. '.join(bad)}"
    if test:
        return {**ret, "result": None, "comment": f"{name} would be waited for. {said}"}
    return {**ret, "result": False, "comment": f"{name} after {timeout:g} s: {said}"}
