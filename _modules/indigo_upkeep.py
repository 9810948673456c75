"""Upkeep of etcd: databases that are mostly free space are rewritten, and a full one is emptied.

etcd gives what a compaction frees back to itself, never to the disk; only a defragmentation makes
the file small again. It stops the member for as long as it takes, so it is done where it gains
something (``backup.defragment``), to one member at a time, to the leader last, and with the lock
that keeps restarts of etcd away.

A database that reached its quota raises the alarm NOSPACE, and etcd takes no more writes. Then the
history is compacted, every member is rewritten, and the alarm is cleared if there is room again.

Sources: etcd's guide "Maintenance"; ``etcdctl defrag --help``, ``etcdctl alarm --help``.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterable, Mapping
from typing import Any

from salt.exceptions import CommandExecutionError

#: etcd's quota where none is set, in bytes.
QUOTA = 2 * 2**30

#: Share of the quota below which an alarm is cleared; with less room it would be back at once.
ROOM = 0.9

#: Seconds that the rewriting of one member may take.
PATIENCE = 900


def __virtual__() -> str:
    return "indigo_upkeep"


# --- pure -------------------------------------------------------------------------------------


def wasteful(size: int, used: int, share: int, least: int) -> bool:
    """Whether a database is worth rewriting.

    Args:
        size: Bytes of the file.
        used: Bytes of it that hold something.
        share: Percent that must be free.
        least: MiB that must be free.

    Example:
        >>> wasteful(400 * 2**20, 100 * 2**20, 50, 100), wasteful(4 * 2**20, 2**20, 50, 100)
        (True, False)
    """
    free = size - used
    return free >= least * 2**20 and free * 100 >= share * size


def order(
    statuses: Iterable[Mapping[str, Any]], share: int, least: int, full: bool = False
) -> list[str]:
    """Members to rewrite, the leader last.

    Args:
        statuses: Of ``etcdctl endpoint status``.
        share: See :func:`wasteful`.
        least: See :func:`wasteful`.
        full: All of them, for one has reached its quota.

    Returns:
        Client URLs.

    Example:
        >>> one = {"Endpoint": "a", "Status": {"dbSize": 9, "dbSizeInUse": 1, "leader": 1,
        ...                                    "header": {"member_id": 1}}}
        >>> other = {"Endpoint": "b", "Status": {**one["Status"], "header": {"member_id": 2}}}
        >>> order([one, other], 50, 0)
        ['b', 'a']
    """
    wanted = []
    for one in statuses:
        status = one["Status"]
        size, used = int(status.get("dbSize", 0)), int(status.get("dbSizeInUse", 0))
        if full or wasteful(size, used, share, least):
            leads = status.get("leader") == status["header"]["member_id"]
            wanted.append((leads, one["Endpoint"]))
    return [endpoint for _, endpoint in sorted(wanted)]


# --- this host --------------------------------------------------------------------------------


def _settings() -> Mapping[str, Any]:
    view = __pillar__.get("indigo", {})
    etcd = view.get("components", {}).get("etcd")
    if not etcd or "defragment" not in view.get("backup", {}):
        raise CommandExecutionError(
            "This host has no role etcd in pillar/cluster.yaml, or its pillar is old "
            "(saltutil.refresh_pillar)"
        )
    return {
        "id": view["id"],
        "etcd": etcd,
        "etcdctl": view["binaries"]["etcdctl"],
        **view["backup"]["defragment"],
    }


def _etcdctl(
    settings: Mapping[str, Any], endpoints: Iterable[str], *arguments: str, answer: bool = True
) -> Any:
    environment = __salt__["indigo_tool.environment"](settings["etcd"], ",".join(endpoints))
    # As long as that etcdctl waits for a member that is down, too.
    timeout = PATIENCE if arguments[0] in ("defrag", "compact") else 10
    command = [settings["etcdctl"], f"--command-timeout={timeout}s", *arguments]
    command += ["--write-out=json"] if answer else []
    done = __salt__["indigo_tool.run"](command, environment, timeout + 30)
    if done["retcode"]:
        raise CommandExecutionError(f"etcdctl {' '.join(arguments[:2])}: {done['told']}")
    return json.loads(done["stdout"] or "null") if answer else done["stdout"]


def run(force: bool = False) -> dict[str, Any]:
    """Rewrite what is mostly free space, and clear a full database; what the schedule calls.

    Args:
        force: Rewrite every member, whatever there is to gain.

    Returns:
        ``rewritten`` (client URL to bytes before and after), ``alarms`` (kinds that were cleared)
        and ``why``, where nothing was done.

    Raises:
        CommandExecutionError: A member does not serve, before or after its turn.

    CLI Example:

    .. code-block:: bash

        salt etcd1 indigo_upkeep.run
    """
    settings = _settings()
    etcd = settings["etcd"]
    urls = [one["client"] for one in etcd["members"].values()]
    result: dict[str, Any] = {"rewritten": {}, "alarms": [], "why": ""}
    if not _serves(settings, etcd["url"]):
        return {**result, "why": "this member does not serve"}
    full = _full(settings)
    if not full and not force and not _wanted(settings, urls, False):
        return {**result, "why": "no database is mostly free space"}
    order_ = sorted(urls, key=lambda url: url != etcd["url"])
    tls = {key: etcd[key] for key in ("ca", "cert", "key")}
    lock = __salt__["indigo_rolling.lock"]({"endpoints": order_, **tls}, "etcd", settings["id"])
    try:
        if full:
            # A full etcd gives nobody a lock, for that is a write. There is one leader.
            if not force and not _leads(settings):
                return {**result, "why": "etcd is full: the leader's host sees to it"}
        else:
            try:
                lock.acquire(timeout=3, grace=3)
            except CommandExecutionError as error:
                return {**result, "why": f"etcd's lock is taken: {error}"}
        if full:
            # It may have been compacted that far already.
            with contextlib.suppress(CommandExecutionError):
                words = ("compact", "--physical", str(_revision(settings)))
                _etcdctl(settings, [etcd["url"]], *words, answer=False)
        for url in _wanted(settings, urls, full or force):
            _statuses(settings, urls)
            before = _size(settings, url)
            _etcdctl(settings, [url], "defrag", answer=False)
            _await(settings, url)
            result["rewritten"][url] = [before, _size(settings, url)]
        if full:
            result["alarms"] = _disarmed(settings, urls)
    finally:
        lock.release()
    with contextlib.suppress(Exception):
        __salt__["event.send"]("indigo/upkeep/done", {"host": settings["id"], **result})
    return result


def _serves(settings: Mapping[str, Any], url: str) -> bool:
    """Whether a member answers. Not /health: that is false for all while there is an alarm."""
    try:
        said = _etcdctl(settings, [url], "endpoint", "status")
    except CommandExecutionError:
        return False
    return bool(said and said[0]["Status"].get("leader"))


def _leads(settings: Mapping[str, Any]) -> bool:
    status = _etcdctl(settings, [settings["etcd"]["url"]], "endpoint", "status")[0]["Status"]
    return status.get("leader") == status["header"]["member_id"]


def _await(settings: Mapping[str, Any], url: str, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not _serves(settings, url):
        if time.monotonic() >= end:
            raise CommandExecutionError(
                f"{url} does not serve {seconds:g} s after its defragmentation: look there at "
                "journalctl -u etcd -n 50"
            )
        time.sleep(0.5)


def _full(settings: Mapping[str, Any]) -> bool:
    said = _etcdctl(settings, [settings["etcd"]["url"]], "alarm", "list") or {}
    # NOSPACE is 1, CORRUPT 2: that one is for a person.
    return any(int(one.get("alarm", 0)) == 1 for one in said.get("alarms", []))


def _wanted(settings: Mapping[str, Any], urls: Iterable[str], all_: bool) -> list[str]:
    return order(_statuses(settings, urls), settings["share"], settings["least"], all_)


def _statuses(settings: Mapping[str, Any], urls: Iterable[str]) -> list[dict[str, Any]]:
    """What every member says of itself; raises where one says nothing."""
    found: list[dict[str, Any]] = []
    silent = []
    for url in urls:
        try:
            found += _etcdctl(settings, [url], "endpoint", "status") or []
        except CommandExecutionError:
            silent.append(url)
    if silent:
        raise CommandExecutionError(
            f"{', '.join(silent)} does not serve: no other member may stop for its "
            "defragmentation. See salt-run indigo.status"
        )
    return found


def _size(settings: Mapping[str, Any], url: str) -> int:
    return int(_etcdctl(settings, [url], "endpoint", "status")[0]["Status"]["dbSize"])


def _revision(settings: Mapping[str, Any]) -> int:
    said = _etcdctl(settings, [settings["etcd"]["url"]], "endpoint", "status")
    return int(said[0]["Status"]["header"]["revision"])


def _disarmed(settings: Mapping[str, Any], urls: Iterable[str]) -> list[str]:
    """Clear NOSPACE where every member has room again."""
    quota = int(settings["etcd"]["flags"].get("quota-backend-bytes", QUOTA)) or QUOTA
    largest = max(_size(settings, url) for url in urls)
    if largest > ROOM * quota:
        raise CommandExecutionError(
            f"the database is full: {largest >> 20} MiB of {quota >> 20} after compaction and "
            "defragmentation. Remove objects, or raise overrides.etcd.flags.quota-backend-bytes"
        )
    _etcdctl(settings, [settings["etcd"]["url"]], "alarm", "disarm", answer=False)
    return ["NOSPACE"]
