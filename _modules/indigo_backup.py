"""Backups of etcd that are proven: made, really restored aside, read back, kept and copied.

A *set* is a folder named after the time and the host that made it:

``snapshot.db``
    What ``etcdctl snapshot save`` wrote.
``secrets.json``
    The authorities, and the masters' tokens and keys, sealed to the operator's public key
    (``backup.recipient``). Each host seals its own and hands over ciphertext.
``manifest.json``
    What the set holds, with checksums, and how it was proven.

It is built under a name that nobody takes for a set, and renamed when everything in it is on disk
and proven: a snapshot that was never restored is a hope. What does not restore is kept aside as
``suspect-…`` and told as an event.

Other etcd hosts fetch a copy over TLS with the certificates that they have as members; so whoever
can read a set could read etcd anyway, and no new secret is needed.

Sources: etcd's guides "Disaster recovery" and "Maintenance"; ``etcdctl snapshot --help`` of 3.4,
``etcdutl --help`` of 3.5 and 3.6; systemd.resource-control(5).
"""

from __future__ import annotations

import base64
import calendar
import contextlib
import datetime
import fcntl
import hashlib
import http.client
import http.server
import json
import logging
import os
import random
import re
import shutil
import socket
import ssl
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from salt.exceptions import CommandExecutionError

log = logging.getLogger(__name__)

FORMAT = 1
NAME = re.compile(r"(\d{8}T\d{6}Z)-([A-Za-z0-9.-]+)")
SNAPSHOT, SECRETS, MANIFEST = "snapshot.db", "secrets.json", "manifest.json"

#: Names of what is no set: one that is being built, and one that did not restore.
PARTIAL, SUSPECT = ".partial-", "suspect-"

#: How many snapshots that did not restore are kept for a look at them.
SUSPECTS = 2

#: Key in etcd that names the newest proven set, so that no host makes another beside it.
NEWEST = "indigo/backup/newest"

#: Room that is left on the disk, in bytes: a backup must never be what fills it.
RESERVE = 512 * 2**20

#: Bytes that a proof may use of memory at least; more for a large database.
MEMORY = 256 * 2**20

#: Where memory serves as a disk, and up to which size of a database it is used for a proof.
MEMORY_FOLDER, WORK, SMALL = "/run", "indigo-backup", 64 * 2**20

#: Bytes that etcd takes for its log in any case, twice, and some to spare.
LOGS = 192 * 2**20

#: Seconds that one step of a proof may take at most.
PATIENCE = 1800

#: Percent of one processor that etcd's tools get for a backup, and its proof. What shares the
#: processors with etcd delays it even at the least priority: as long as it runs at a time.
SHARE = 15

#: Bytes that are written at once, and how many times as long as that took nothing is written then:
#: each write to etcd waits for the disk, behind what others have put into its queue.
STEP, REST = 2**18, 8

#: Seconds of such a rest at most, so that what is large is done some time.
SLOWEST = 0.06

#: Ports of loopback for a proof: below those of outgoing connections and of Kubernetes' Services.
PORTS = range(23000, 29000)

#: The unit in which a snapshot is started for its proof.
PROOF = "indigo-backup-proof"

#: How messages name the operator's key, and where one comes from.
WHOSE = "backup.recipient"
REMEDY = "make a pair with salt-run indigo_backup.keypair"

#: Prefix of the events for the Salt master's reactors and monitoring.
EVENTS = "indigo/backup"


def __virtual__() -> str:
    return "indigo_backup"


class Suspect(CommandExecutionError):
    """A snapshot that does not restore to what it should hold."""


# --- pure -------------------------------------------------------------------------------------


def stamp(moment: float) -> str:
    """The time part of a set's name, in UTC.

    >>> stamp(0)
    '19700101T000000Z'
    """
    return time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(moment))


def made_at(name: str) -> int | None:
    """When a set was made, in seconds of the epoch, from its name; None for what is no set.

    >>> made_at("19700101T000100Z-etcd1"), made_at("suspect-19700101T000100Z-etcd1")
    (60, None)
    """
    found = NAME.fullmatch(name)
    return calendar.timegm(time.strptime(found[1], "%Y%m%dT%H%M%SZ")) if found else None


def slot(now: float, every: int, at: str) -> float:
    """The last time at which a backup was due.

    Args:
        now: Seconds of the epoch.
        every: Hours between two backups.
        at: ``hh:mm``, UTC, from which they are counted.

    Returns:
        Seconds of the epoch, at most ``now``.

    Example:
        >>> stamp(slot(86400 * 3 + 7200, 24, "01:30")), stamp(slot(86400 * 3 + 60, 24, "01:30"))
        ('19700104T013000Z', '19700103T013000Z')
    """
    hours, minutes = at.split(":")
    first = int(hours) * 3600 + int(minutes) * 60
    return first + (now - first) // (every * 3600) * (every * 3600)


def due(now: float, newest: float | None, every: int, at: str) -> bool:
    """Whether a backup is to be made: the newest proven one is older than the last slot.

    >>> due(86400 * 3, None, 24, "01:30"), due(86400 * 3, 86400 * 2.5, 24, "01:30")
    (True, False)
    """
    return bool(every) and (newest is None or newest < slot(now, every, at))


def kept(names: Iterable[str], keep: Mapping[str, int]) -> set[str]:
    """Which sets are kept: the newest, and the last of each of the last days, weeks and months.

    Only days, weeks and months that have a set are counted, so that a cluster that was off for a
    year loses nothing.

    Args:
        names: Names of sets.
        keep: How many of ``daily``, ``weekly`` and ``monthly``.

    Example:
        >>> sorted(kept(["20260101T010000Z-a", "20260101T020000Z-a", "20260102T010000Z-b"],
        ...             {"daily": 2, "weekly": 0, "monthly": 0}))
        ['20260101T020000Z-a', '20260102T010000Z-b']
    """
    newest_first = sorted((name for name in names if made_at(name) is not None), reverse=True)
    result = set(newest_first[:1])
    for kind, form in (("daily", "%Y-%m-%d"), ("weekly", "%G-%V"), ("monthly", "%Y-%m")):
        spans: dict[str, str] = {}
        for name in newest_first:
            moment = datetime.datetime.fromtimestamp(made_at(name) or 0, datetime.timezone.utc)
            spans.setdefault(moment.strftime(form), name)
        result |= set(list(spans.values())[: keep.get(kind, 0)])
    return result


def room_problem(free: int, size: int, factor: int, where: str) -> str:
    """Why there is too little room; empty where there is enough.

    Args:
        free: Bytes that are free.
        size: Bytes of the database.
        factor: How many times that is needed.
        where: The folder, to be told.

    Example:
        >>> room_problem(2**30, 1000, 4, "/x")
        ''
        >>> room_problem(2**29, 2**20, 4, "/x")
        '/x: 512 MiB are free, expected 516: make room there, or set backup.folder'
    """
    needed = RESERVE + factor * size
    if free >= needed:
        return ""
    return (
        f"{where}: {free >> 20} MiB are free, expected {needed >> 20}: make room there, or set "
        "backup.folder"
    )


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


# --- this host --------------------------------------------------------------------------------


def _view() -> Mapping[str, Any]:
    return __pillar__.get("indigo", {})


def _settings() -> dict[str, Any]:
    """All that an etcd host needs: its part in backups, and how it reaches its member."""
    view = _view()
    backup, etcd = view.get("backup", {}), view.get("components", {}).get("etcd")
    if "folder" not in backup or not etcd:
        raise CommandExecutionError(
            "This host makes no backups: it has no role etcd in pillar/cluster.yaml, or its pillar "
            "is old (saltutil.refresh_pillar)"
        )
    binaries = view["binaries"]
    return {
        **backup,
        "id": view["id"],
        "cluster": view["cluster"]["name"],
        "version": view["versions"]["etcd"],
        "etcd": etcd,
        "etcdctl": binaries["etcdctl"],
        # Since 3.5 what works on files has a program of its own; 3.6 has it nowhere else.
        "etcdutl": binaries.get("etcdutl", binaries["etcdctl"]),
        "server": binaries["etcd"],
    }


def _run(
    settings: Mapping[str, Any], endpoint: str, command: Sequence[str], timeout: float = PATIENCE
) -> dict[str, Any]:
    """Run one of etcd's tools, with this member's certificate."""
    environment = __salt__["indigo_tool.environment"](settings["etcd"], endpoint)
    return __salt__["indigo_tool.run"](command, environment, timeout)


def _etcdctl(
    settings: Mapping[str, Any], *arguments: str, endpoint: str = "", timeout: int = 10
) -> Any:
    """The JSON that etcdctl prints."""
    endpoint = endpoint or settings["etcd"]["url"]
    command = [settings["etcdctl"], "--write-out=json", f"--command-timeout={timeout}s", *arguments]
    done = _run(settings, endpoint, command, 2 * timeout)
    if done["retcode"]:
        raise CommandExecutionError(f"etcdctl {' '.join(arguments[:2])}: {done['told']}")
    return json.loads(done["stdout"] or "null")


def _gateway(
    settings: Mapping[str, Any], endpoint: str, path: str, body: Mapping[str, Any]
) -> dict[str, Any]:
    """One question to a member's JSON gateway."""
    etcd = settings["etcd"]
    context = ssl.create_default_context(cafile=etcd["ca"])
    context.load_cert_chain(etcd["cert"], etcd["key"])
    host, port = endpoint.removeprefix("https://").rsplit(":", 1)
    connection = http.client.HTTPSConnection(host, int(port), timeout=120, context=context)
    try:
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        text = answer.read().decode("utf-8", "replace")
        if answer.status != 200:
            raise CommandExecutionError(f"etcd at {endpoint} answers {answer.status}: {text[:200]}")
        return json.loads(text)
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise CommandExecutionError(f"etcd at {endpoint} does not answer: {error}") from error
    finally:
        connection.close()


def _all_keys(settings: Mapping[str, Any], endpoint: str, revision: int = 0) -> tuple[int, int]:
    """Revision of a member, and the number of its keys: at a revision, or now."""
    everything = base64.b64encode(b"\0").decode()
    body = {"key": everything, "range_end": everything, "count_only": True}
    body |= {"revision": str(revision)} if revision else {}
    said = _gateway(settings, endpoint, "/v3/kv/range", body)
    return int(said["header"]["revision"]), int(said.get("count", 0))


def _hash(settings: Mapping[str, Any], endpoint: str, revision: int) -> tuple[int, int]:
    """Hash over all keys up to a revision, and the revision of the last compaction."""
    command = ("endpoint", "hashkv", f"--rev={revision}")
    said = _etcdctl(settings, *command, endpoint=endpoint, timeout=600)
    found = said[0]["HashKV"]
    return int(found.get("hash", 0)), int(found.get("compact_revision", -1))


def _event(what: str, data: Mapping[str, Any]) -> None:
    """Tell the Salt master; a backup does not fail for want of one."""
    with contextlib.suppress(Exception):
        __salt__["event.send"](f"{EVENTS}/{what}", {"host": _view().get("id"), **data})


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One change of the sets on this host at a time; it ends with the process that has it."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with open(folder / ".lock", "w", encoding="ascii") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _write(path: Path, content: bytes) -> None:
    """A file, whole and on disk, for root alone."""
    partial = path.with_name(f".{path.name}.new")
    handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    _sync(path.parent)


def _digest(path: Path) -> str:
    total = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            total.update(block)
    return total.hexdigest()


def _manifest(folder: Path) -> dict[str, Any] | None:
    try:
        found = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    fits = isinstance(found, dict) and found.get("format") == FORMAT and found.get("proven")
    return found if fits else None


def sets(folder: str | None = None) -> list[dict[str, Any]]:
    """The proven sets that lie here, the newest first.

    Args:
        folder: Where to look; this host's own and the shared one (``backup.target``) by default.

    Returns:
        Their manifests, each with its ``path``. Names in both are told once.

    CLI Example:

    .. code-block:: bash

        salt 'etcd*' indigo_backup.sets
    """
    settings = _settings()
    folders = [folder] if folder else [settings["folder"], settings["target"]]
    found: dict[str, dict[str, Any]] = {}
    for root in filter(None, folders):
        if not os.path.isdir(root):
            continue
        for name in os.listdir(root):
            path = Path(root, name)
            if made_at(name) is None or name in found:
                continue
            manifest = _manifest(path)
            if manifest and manifest["cluster"] == settings["cluster"]:
                found[name] = {**manifest, "path": str(path)}
    return sorted(found.values(), key=lambda one: one["made"], reverse=True)


def status() -> dict[str, Any]:
    """What this host knows of backups; changes nothing.

    Returns:
        ``sets`` (name, made, bytes, revision, keys, seconds, copies, and whether it holds keys),
        ``suspects`` (names), ``since`` (when backups were set up here) and ``problem`` (why the
        last one failed, or None).

    CLI Example:

    .. code-block:: bash

        salt 'etcd*' indigo_backup.status
    """
    settings = _settings()
    folder = Path(settings["folder"])
    wanted = ("name", "made", "host", "bytes", "revision", "keys", "seconds", "copies")
    failed = _remembered(folder)
    return {
        "sets": [
            {**{key: one.get(key) for key in wanted}, "complete": bool(one.get("secrets"))}
            for one in sets()
        ],
        "suspects": sorted(path.name for path in folder.glob(f"{SUSPECT}*")),
        "since": _since(folder),
        "problem": failed,
    }


def _since(folder: Path) -> int | None:
    try:
        return int((folder / ".since").stat().st_mtime)
    except OSError:
        return None


def _remembered(folder: Path) -> str | None:
    try:
        return (folder / ".problem").read_text(encoding="utf-8") or None
    except OSError:
        return None


# --- making one -------------------------------------------------------------------------------


def run(force: bool = False) -> dict[str, Any]:
    """Make a backup if one is due, and prove it. What Salt's schedule calls on every etcd host.

    Whoever gets the cluster's lock makes it; so the next host takes over from one that is down.
    The leader leaves it to the others while it is only just due.

    Args:
        force: Also when none is due.

    Returns:
        ``made`` (name of the new set, or None), ``why`` where none was made, and of a new one
        ``bytes``, ``revision``, ``keys`` and ``seconds`` (by step); ``copies`` (place to ``ok`` or
        a problem) and ``copying``, the seconds that those took.

    Raises:
        CommandExecutionError: It failed; the reason is told as the event ``indigo/backup/failed``
            too, and a snapshot that does not restore as ``indigo/backup/alarm``.

    CLI Example:

    .. code-block:: bash

        salt etcd2 indigo_backup.run
        salt etcd2 indigo_backup.run force=True
    """
    settings = _settings()
    folder = Path(settings["folder"])
    _yield()
    with _alone(folder):
        try:
            result = _run_alone(settings, folder, force)
        except CommandExecutionError as error:
            _write(folder / ".problem", str(error).encode())
            if not isinstance(error, Suspect):  # that one has been told
                _event("failed", {"problem": str(error)})
            raise
        if result["made"] or "due" in result["why"]:
            (folder / ".problem").unlink(missing_ok=True)
    # Outside: another host that has a set for this one at the same time must not wait for it.
    own = [one for one in sets(settings["folder"]) if one["host"] == settings["id"]][:1]
    if own and (result["made"] or _lacks_copies(settings, own[0])):
        begun = time.monotonic()
        result["copies"] = _copies(settings, Path(own[0]["path"]), own[0])
        result["copying"] = round(time.monotonic() - begun, 1)
    if result["made"]:
        _event("made", result)
    return result


def _yield() -> None:
    """A job of Salt is a process of its own, and what it does itself must yield to etcd as well."""
    if __opts__.get("multiprocessing", True):
        os.nice(19 - os.nice(0))
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


def _lacks_copies(settings: Mapping[str, Any], manifest: Mapping[str, Any]) -> bool:
    """Whether a copy could not be made at the time: its host may be back."""
    wanted = [settings["target"]] if settings["target"] else []
    if settings["copies"]:
        wanted += [host for host in settings["hosts"] if host != settings["id"]]
    return any((manifest.get("copies") or {}).get(place) != "ok" for place in wanted)


def _run_alone(settings: dict[str, Any], folder: Path, force: bool) -> dict[str, Any]:
    now = time.time()
    newest = _newest(settings)
    if not force and not due(now, newest, settings["every"], settings["at"]):
        age = int(now - (newest or now))
        _event("age", {"seconds": age})
        return {"made": None, "why": f"none is due: the newest is {age} s old"}
    try:
        said = _etcdctl(settings, "endpoint", "status")[0]["Status"]
        if not said.get("leader") or not _healthy(settings):
            raise CommandExecutionError(
                f"etcd on {settings['id']} is no part of a quorum: a snapshot of it could be old. "
                "Another host makes the backup; see salt-run indigo.status"
            )
    except CommandExecutionError as error:
        if force:
            raise
        # No failure of the backup: another host makes it, and what ails etcd is told elsewhere.
        return {"made": None, "why": f"this member does not serve: {error}"}
    leads = said["leader"] == said["header"]["member_id"] and len(settings["etcd"]["members"]) > 1
    if leads and not force and _just_due(settings, now):
        return {"made": None, "why": "it is left to the others first: this member leads"}
    lock = __salt__["indigo_rolling.lock"](_lock(settings), "backup", settings["id"])
    try:
        try:
            lock.acquire(timeout=3, grace=3)
        except CommandExecutionError as error:
            return {"made": None, "why": f"another host makes it: {error}"}
        if not force and not due(now, _newest(settings), settings["every"], settings["at"]):
            return {"made": None, "why": "none is due: another host has just made it"}
        manifest = _make(settings, folder, now, int(said["dbSize"]))
        with contextlib.suppress(CommandExecutionError):
            value = json.dumps({key: manifest[key] for key in ("name", "made", "host")})
            _etcdctl(settings, "put", NEWEST, value)
    finally:
        lock.release()
    _expire(settings, folder)
    told = {key: manifest[key] for key in ("bytes", "revision", "keys", "seconds", "lacking")}
    return {"made": manifest["name"], **told}


def _just_due(settings: Mapping[str, Any], now: float) -> bool:
    """Whether the others have not had time to look, each of them, since it is due."""
    job = settings["schedule"].get("etcd_backup", {})
    looks = 2 * (job.get("seconds", 0) + job.get("splay", 0))
    since = _since(Path(settings["folder"])) or 0
    return now - max(slot(now, settings["every"] or 24, settings["at"]), since) < looks


def _lock(settings: Mapping[str, Any]) -> dict[str, Any]:
    etcd = settings["etcd"]
    others = [one["client"] for one in etcd["members"].values() if one["client"] != etcd["url"]]
    return {
        "endpoints": [etcd["url"], *others],
        **{key: etcd[key] for key in ("ca", "cert", "key")},
    }


def _healthy(settings: Mapping[str, Any]) -> bool:
    etcd = settings["etcd"]
    tls = {key: etcd[key] for key in ("ca", "cert", "key")}
    answer = __salt__["indigo_health.check"](
        f"{etcd['url']}/health", expect='"health":"true"', timeout=3, **tls
    )
    return bool(answer["ok"])


def _newest(settings: Mapping[str, Any]) -> float | None:
    """When the newest proven set was made, here or anywhere."""
    moments = [float(one["made"]) for one in sets()]
    with contextlib.suppress(CommandExecutionError, ValueError, KeyError):
        found = _etcdctl(settings, "get", NEWEST).get("kvs", [])
        if found:
            moments.append(float(json.loads(base64.b64decode(found[0]["value"]))["made"]))
    return max(moments, default=None)


def _make(settings: Mapping[str, Any], folder: Path, now: float, size: int) -> dict[str, Any]:
    """A new set, proven; its manifest."""
    for old in folder.glob(f"{PARTIAL}*"):  # of a run that was killed
        shutil.rmtree(old, ignore_errors=True)
    # Twice for the scratch member, once for the snapshot, and one to spare while it grows.
    if problem := room_problem(shutil.disk_usage(folder).free, size, 4, str(folder)):
        raise CommandExecutionError(problem)
    if problem := _memory_problem(size):
        raise CommandExecutionError(problem)
    name = f"{stamp(now)}-{settings['id']}"
    partial = folder / f"{PARTIAL}{name}"
    partial.mkdir(mode=0o700)
    seconds: dict[str, float] = {}
    begun = time.monotonic()
    work = _work(folder, size) or partial
    try:
        snapshot = work / SNAPSHOT
        with _timed(seconds, "snapshot"):
            found = _snapshot(settings, snapshot, size, quick=work != partial)
        try:
            with _timed(seconds, "proof"):
                found |= prove(str(snapshot))
        except Suspect as error:
            aside = folder / f"{SUSPECT}{name}"
            if work != partial:
                _pour(snapshot, partial / SNAPSHOT)
            _write(partial / "problem", str(error).encode())
            partial.replace(aside)
            _forget_suspects(folder)
            _event("alarm", {"set": aside.name, "problem": str(error)})
            raise Suspect(f"{error}. It is kept as {aside}") from error
        if work != partial:
            with _timed(seconds, "disk"):
                written = _pour(snapshot, partial / SNAPSHOT)
            if written != found["sha256"]:
                raise CommandExecutionError(f"{snapshot} changed between its proof and the disk")
        with _timed(seconds, "keys"):
            sealed, lacking = _sealed_parts(settings)
        if sealed:
            _write(partial / SECRETS, _canonical(sealed))
        manifest = {
            "format": FORMAT,
            "name": name,
            "cluster": settings["cluster"],
            "made": int(now),
            "host": settings["id"],
            "etcd": settings["version"],
            "sha256": found.pop("sha256"),
            "bytes": (partial / SNAPSHOT).stat().st_size,
            **found,
            "secrets": {part: one["header"] for part, one in sealed.items()},
            "lacking": lacking,
            "seconds": {**seconds, "total": round(time.monotonic() - begun, 1)},
        }
        _write(partial / MANIFEST, json.dumps(manifest, indent=1).encode())
        partial.replace(folder / name)
        _sync(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(work, ignore_errors=True)
    return manifest


@contextlib.contextmanager
def _timed(seconds: dict[str, float], step: str) -> Iterator[None]:
    begun = time.monotonic()
    yield
    seconds[step] = round(time.monotonic() - begun, 1)


def _work(folder: Path, size: int) -> Path | None:
    """Where a snapshot waits in memory for its proof; None for one that is too large for that.

    What the proof reads it reads from there, and what goes to the disk goes there once, slowly.
    """
    work = Path(MEMORY_FOLDER, WORK)
    shutil.rmtree(work, ignore_errors=True)
    # For the proof beside it as well, see _scratch.
    if not _memory_serves(folder, size, 4 * size + LOGS):
        return None
    work.mkdir(mode=0o700)
    return work


def _memory_serves(folder: Path, size: int, needed: int) -> bool:
    """Whether a database is small, and there is a disk in memory with so much room."""
    try:
        usage = shutil.disk_usage(MEMORY_FOLDER)
        other = os.stat(MEMORY_FOLDER).st_dev != os.stat(folder).st_dev
    except OSError:
        return False
    return other and size <= SMALL and usage.free >= needed


def adopt(path: str) -> dict[str, Any]:
    """Make a set of a snapshot that somebody brought as a file, when it is proven.

    It counts as made when the file was last written, holds no keys, is not compared with what the
    living member holds, and is never expired.

    Args:
        path: A file that ``etcdctl snapshot save`` made, on this host.

    Returns:
        ``name`` of the set, for ``indigo.restore``; ``made``, ``bytes``, ``revision`` and ``keys``.

    Raises:
        CommandExecutionError: It does not restore; or there is no room, no such file, or another
            set of that name.

    CLI Example:

    .. code-block:: bash

        salt etcd1 indigo_backup.adopt /root/before-upgrade.db
    """
    settings = _settings()
    folder, source = Path(settings["folder"]), Path(path)
    _yield()
    try:
        found = source.stat()
    except OSError as error:
        raise CommandExecutionError(f"{path}: {error.strerror} on {settings['id']}") from None
    name = f"{stamp(found.st_mtime)}-{settings['id']}"
    wanted = ("name", "made", "bytes", "revision", "keys")
    with _alone(folder):
        if present := _manifest(folder / name):
            if present["sha256"] == _digest(source):
                return {key: present[key] for key in wanted}
            raise CommandExecutionError(
                f"{name} is there already, and holds something else: touch {path} to give it "
                "another time"
            )
        free = shutil.disk_usage(folder).free
        if problem := room_problem(free, found.st_size, 4, str(folder)):
            raise CommandExecutionError(problem)
        partial = folder / f"{PARTIAL}{name}"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(mode=0o700)
        try:
            digest = _pour(source, partial / SNAPSHOT)
            proof = prove(str(partial / SNAPSHOT), compare=False)
            manifest = {
                "format": FORMAT,
                "name": name,
                "cluster": settings["cluster"],
                "made": int(found.st_mtime),
                "host": settings["id"],
                "etcd": settings["version"],
                "sha256": digest,
                "bytes": found.st_size,
                **proof,
                "secrets": {},
                "lacking": {"secrets": "it was brought as a file"},
                "brought": path,
                "seconds": {"total": proof["proven"]["seconds"]},
            }
            _write(partial / MANIFEST, json.dumps(manifest, indent=1).encode())
            partial.replace(folder / name)
            _sync(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return {key: manifest[key] for key in wanted}


def _memory_problem(size: int) -> str:
    """Why there is too little memory for a proof; empty where there is enough."""
    with open("/proc/meminfo", encoding="ascii") as file:
        rows = dict(line.split(":") for line in file)
    free = int(rows["MemAvailable"].split()[0]) * 1024
    needed = _memory(size)
    if free >= needed + MEMORY:
        return ""
    return (
        f"{free >> 20} MiB of memory are available, expected {(needed + MEMORY) >> 20} to restore "
        "the snapshot for its proof without harm to etcd: free some, or give this host more"
    )


def _memory(size: int) -> int:
    return MEMORY + 5 * size


def _forget_suspects(folder: Path) -> None:
    for old in sorted(folder.glob(f"{SUSPECT}*"))[:-SUSPECTS]:
        shutil.rmtree(old, ignore_errors=True)


def _snapshot(settings: Mapping[str, Any], path: Path, size: int, quick: bool) -> dict[str, Any]:
    """Have the own member write a snapshot; what is in it.

    Args:
        settings: This host's.
        path: The new file.
        size: Bytes of the database.
        quick: Whether it goes to memory, and not to the disk that etcd writes to.
    """
    command = [settings["etcdctl"], "snapshot", "save", str(path)]
    environment = __salt__["indigo_tool.environment"](settings["etcd"], settings["etcd"]["url"])
    with contextlib.nullcontext() if quick else _drained(path.with_name(f"{path.name}.part")):
        done = confined(command, path.parent, size, wait=True, environment=environment)
    if done["retcode"]:
        raise CommandExecutionError(f"etcdctl snapshot save: {done['told']}")
    path.chmod(0o600)
    with path.open("rb") as file:
        os.fsync(file.fileno())
    _sync(path.parent)
    return {"sha256": _digest(path)}


@contextlib.contextmanager
def _drained(path: Path) -> Iterator[None]:
    """Have the disk take what a program writes as it comes: not all of it at the end at once."""
    over = threading.Event()

    def work() -> None:
        while not over.wait(0.1):
            with contextlib.suppress(OSError), path.open("rb") as file:
                os.fdatasync(file.fileno())

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _pour(source: Any, path: Path) -> str:
    """Write a new file, on disk and for root alone, little by little; its SHA-256.

    Args:
        source: A file's path, or what can be read.
        path: Of the new file.
    """
    if isinstance(source, Path):
        with source.open("rb") as file:
            return _pour(file, path)
    total = hashlib.sha256()
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "wb") as file:
        while block := source.read(STEP):
            total.update(block)
            begun = time.monotonic()
            file.write(block)
            file.flush()
            os.fdatasync(file.fileno())
            time.sleep(min(SLOWEST, REST * (time.monotonic() - begun)))
        os.fsync(file.fileno())
    return total.hexdigest()


# --- proving it -------------------------------------------------------------------------------


def prove(path: str, compare: bool = True) -> dict[str, Any]:
    """Restore a snapshot beside the living member, start it, read it, and stop it.

    It runs in a unit of its own with a bound on memory, on one processor and with the least
    priority for processor and disk, on ports of loopback that ask for a certificate of etcd.

    Args:
        path: The snapshot.
        compare: Whether it must hold what the living member held at that revision.

    Returns:
        ``revision``, ``keys``, ``hash`` (over all keys, or None where it could not be compared
        with the living member's), and ``proven`` (how).

    Raises:
        CommandExecutionError: It is corrupt or does not hold what it should; or it could not be
            tried.

    CLI Example:

    .. code-block:: bash

        salt etcd1 indigo_backup.prove /var/lib/indigo-backup/20261124T013000Z-etcd1/snapshot.db
    """
    settings = _settings()
    snapshot = Path(path)
    size = snapshot.stat().st_size
    scratch = _scratch(Path(settings["folder"]), size)
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(mode=0o700, parents=True)
    begun = time.monotonic()
    try:
        said = _snapshot_status(settings, snapshot, scratch, size)
        name, url = "proof", "https://127.0.0.1:1"  # nobody is going to join it
        command = [
            settings["etcdutl"], "snapshot", "restore", str(snapshot), f"--name={name}",
            f"--data-dir={scratch}/data", f"--initial-cluster={name}={url}",
            f"--initial-advertise-peer-urls={url}", "--initial-cluster-token=proof",
        ]  # fmt: skip
        done = confined(command, scratch, size, wait=True)
        if done["retcode"]:
            raise Suspect(f"the snapshot does not restore: {done['told']}")
        for attempt in (1, 2):
            endpoint, url = (f"https://127.0.0.1:{port}" for port in _free_ports(2))
            command = _server(settings, name, scratch, endpoint, url)
            done = confined(command, scratch, size, wait=False)
            if not done["retcode"]:
                break
            # Another may have taken the port meanwhile, and that is no fault of the snapshot.
            if attempt == 2:
                raise Suspect(f"the restored snapshot does not start: {done['told']}")
        # At that revision: leases that end meanwhile take keys with them.
        revision = int(said["revision"])
        reached, keys = _all_keys(settings, endpoint, revision)
        if reached < revision:
            raise Suspect(f"the snapshot is of revision {revision}, restored {reached}")
        if not keys:
            raise Suspect("the restored snapshot holds no keys")
        own = _hash(settings, endpoint, revision)
        compared = compare and _compared(settings, revision, own)
    finally:
        _end_proof()
        shutil.rmtree(scratch, ignore_errors=True)
    return {
        "revision": revision,
        "keys": keys,
        "hash": own[0],
        "proven": {
            "at": int(time.time()),
            "host": settings["id"],
            "compared": compared,
            "seconds": round(time.monotonic() - begun, 1),
        },
    }


def _scratch(folder: Path, size: int) -> Path:
    """Where a snapshot is restored for its proof: in memory where it is small and there is room.

    On the disk the restore's syncs would wait in one queue with those of the living member, and
    each write to etcd waits for one. etcd takes 64 MiB for its log, and as much ahead.
    """
    if _memory_serves(folder, size, 3 * size + LOGS):
        return Path(MEMORY_FOLDER, "indigo-backup-proof")
    return folder / f"{PARTIAL}scratch"


def _compared(settings: Mapping[str, Any], revision: int, own: tuple[int, int]) -> bool:
    """Whether the living member has the same data at that revision; raises where it has other.

    It cannot be said where the member has been compacted since, or does not reach back (a set that
    is older than the last restore).
    """
    try:
        living = _hash(settings, settings["etcd"]["url"], revision)
    except CommandExecutionError:
        return False
    if living[1] != own[1]:
        return False
    if living[0] != own[0]:
        raise Suspect(
            f"at revision {revision} the restored data is not what the member holds: hash {own[0]},"
            f" expected {living[0]}; the member or the snapshot is corrupt. Compare members: "
            "etcdctl endpoint hashkv --cluster"
        )
    return True


def _snapshot_status(
    settings: Mapping[str, Any], snapshot: Path, scratch: Path, size: int
) -> dict[str, Any]:
    command = [settings["etcdutl"], "--write-out=json", "snapshot", "status", str(snapshot)]
    done = confined(command, scratch, size, wait=True)
    try:
        found = json.loads(done["stdout"])
    except ValueError:
        found = None
    if done["retcode"] or not isinstance(found, dict):
        raise Suspect(f"the snapshot cannot be read: {done['told']}")
    return found


def _server(
    settings: Mapping[str, Any], name: str, scratch: Path, endpoint: str, peer: str
) -> list[str]:
    etcd = settings["etcd"]
    files = {"cert-file": etcd["cert"], "key-file": etcd["key"], "trusted-ca-file": etcd["ca"]}
    flags = {
        "name": name,
        "data-dir": f"{scratch}/data",
        "listen-client-urls": endpoint,
        "advertise-client-urls": endpoint,
        "listen-peer-urls": peer,
        "client-cert-auth": "true",
        "peer-client-cert-auth": "true",
        "quota-backend-bytes": etcd["flags"].get("quota-backend-bytes", str(8 * 2**30)),
        # It is thrown away in a moment, and its syncs would wait before those of the living one.
        "unsafe-no-fsync": "true",
        **files,
        **{f"peer-{flag}": value for flag, value in files.items()},
    }
    return [settings["server"], *(f"--{flag}={value}" for flag, value in flags.items())]


def confined(
    command: Sequence[str],
    scratch: Path,
    size: int,
    wait: bool,
    environment: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Run a command in a unit of its own that cannot get in etcd's way.

    Args:
        command: Program and arguments.
        scratch: The one folder that it may write to.
        size: Bytes of the snapshot; the bound on memory follows from it.
        wait: Until it ends; else until it says that it serves.
        environment: What it finds there; no secrets.

    Returns:
        See ``indigo_tool.run``.
    """
    properties = {
        "MemoryMax": _memory(size),
        "Nice": 19,
        "CPUSchedulingPolicy": "idle",
        "IOSchedulingClass": "idle",
        "CPUWeight": 1,
        # In pieces of 1 to 2 ms: in the default period of 100 it would run 15 on end.
        "CPUQuota": f"{SHARE}%",
        "CPUQuotaPeriodSec": "10ms",
        "IOWeight": 1,
        "OOMScoreAdjust": 1000,
        "RuntimeMaxSec": PATIENCE,
        "TimeoutStartSec": PATIENCE,
        "UMask": "0077",
        "NoNewPrivileges": "yes",
        "ProtectSystem": "strict",
        "ReadWritePaths": scratch,
        "CapabilityBoundingSet": "CAP_DAC_OVERRIDE",
    }
    kind = ["--wait", "--pipe"] if wait else [f"--unit={PROOF}", "--property=Type=notify"]
    given = [f"--property={key}={value}" for key, value in properties.items()]
    inside = {"GOMAXPROCS": "1", "ETCDCTL_API": "3", **(environment or {})}
    given += [f"--setenv={key}={value}" for key, value in inside.items()]
    if not wait:
        _end_proof()
    outside = __salt__["indigo_tool.environment"]()
    words = ["systemd-run", "--quiet", "--collect", *kind, *given, *command]
    return __salt__["indigo_tool.run"](words, outside, PATIENCE)


def _end_proof() -> None:
    run_, outside = __salt__["indigo_tool.run"], __salt__["indigo_tool.environment"]()
    with contextlib.suppress(CommandExecutionError):
        run_(["systemctl", "kill", "--signal=SIGKILL", f"{PROOF}.service"], outside, 60)
        run_(["systemctl", "stop", f"{PROOF}.service"], outside, 60)
        run_(["systemctl", "reset-failed", f"{PROOF}.service"], outside, 60)


def _free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody uses now; of those that no outgoing connection gets."""
    found: list[int] = []
    for port in random.sample(PORTS, 200):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            found.append(port)
        if len(found) == count:
            return found
    raise CommandExecutionError(
        f"no {count} ports between {PORTS[0]} and {PORTS[-1]} are free on loopback for a proof"
    )


def check(name: str) -> dict[str, Any]:
    """Look again at a set: its checksums, and whether it still restores.

    One that does not is set aside as ``suspect-…``, and told as an event.

    Args:
        name: Of a set on this host.

    Returns:
        ``{"name", "ok", "problem"}``.

    Raises:
        CommandExecutionError: There is no such set here, or it cannot be tried now.

    CLI Example:

    .. code-block:: bash

        salt 'etcd*' indigo_backup.check 20261124T013000Z-etcd1
    """
    found = _find(name)
    folder = Path(found["path"])
    with _alone(Path(_settings()["folder"])):
        try:
            if problem := content_problem(folder, found):
                raise Suspect(problem)
            said = prove(str(folder / SNAPSHOT), compare=not found.get("brought"))
            for key in ("revision", "keys", "hash"):
                if said[key] != found[key]:
                    raise Suspect(f"{key} is {said[key]}, expected {found[key]}")
        except Suspect as error:
            aside = folder.with_name(f"{SUSPECT}{name}")
            shutil.rmtree(aside, ignore_errors=True)
            folder.replace(aside)
            _event("alarm", {"set": name, "problem": str(error)})
            return {"name": name, "ok": False, "problem": f"{error}. It is kept as {aside}"}
    return {"name": name, "ok": True, "problem": ""}


def content_problem(folder: Path, manifest: Mapping[str, Any]) -> str:
    """What in a set is not as its manifest says; empty where all is."""
    try:
        if _digest(folder / SNAPSHOT) != manifest["sha256"]:
            return f"{folder / SNAPSHOT}: its SHA-256 is not the one in the manifest"
        if manifest["secrets"]:
            sealed = json.loads((folder / SECRETS).read_text(encoding="utf-8"))
            if {part: one["header"] for part, one in sealed.items()} != manifest["secrets"]:
                return f"{folder / SECRETS}: not what the manifest names"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{folder}: {error}"
    return ""


def _find(name: str) -> dict[str, Any]:
    for one in sets():
        if one["name"] == name:
            return one
    raise CommandExecutionError(
        f"{name}: no such proven set on {_settings()['id']}; see salt-run indigo_backup.list"
    )


# --- keeping it -------------------------------------------------------------------------------


def _expire(settings: Mapping[str, Any], folder: Path) -> list[str]:
    """Remove the sets that are not kept, here and in the shared folder; their names."""
    gone = []
    for root in filter(None, [str(folder), settings["target"]]):
        # What somebody brought stays until somebody removes it.
        names = [one["name"] for one in sets(root) if not one.get("brought")]
        for name in sorted(set(names) - kept(names, settings["keep"])):
            # First it ceases to be a set, then it goes.
            doomed = Path(root, f"{PARTIAL}{name}")
            shutil.rmtree(doomed, ignore_errors=True)
            Path(root, name).replace(doomed)
            shutil.rmtree(doomed, ignore_errors=True)
            gone.append(name)
    return gone


def _copies(
    settings: Mapping[str, Any], folder: Path, manifest: Mapping[str, Any]
) -> dict[str, str]:
    """Put the set everywhere where it belongs; place to ``ok`` or the problem."""
    path = folder / MANIFEST
    stored = {key: value for key, value in manifest.items() if key != "path"}
    done = dict(stored.get("copies") or {})
    if settings["target"]:
        done[settings["target"]] = _into_target(Path(settings["target"]), folder)
    if settings["copies"]:
        others = [host for host in settings["hosts"] if host != settings["id"]]
        done |= share(folder.name, [host for host in others if done.get(host) != "ok"])
    _write(path, json.dumps({**stored, "copies": done}, indent=1).encode())
    return done


def _into_target(target: Path, folder: Path) -> str:
    try:
        if not target.is_dir():
            return f"{target} is no folder: mount it, or correct backup.target"
        if (target / folder.name).is_dir():
            return "ok"
        size = sum(file.stat().st_size for file in folder.iterdir())
        if problem := room_problem(shutil.disk_usage(target).free, size, 1, str(target)):
            return problem
        partial = target / f"{PARTIAL}{folder.name}"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(mode=0o700)
        for file in folder.iterdir():
            _pour(file, partial / file.name)
        partial.replace(target / folder.name)
        _sync(target)
    except OSError as error:
        return str(error)
    return "ok"


# --- from host to host ------------------------------------------------------------------------


class _Handler(http.server.BaseHTTPRequestHandler):
    """Serves the files of one set to hosts with a certificate of a member."""

    folder: Path
    members: frozenset[str]

    def do_GET(self) -> None:
        subject = dict(pair for row in self.connection.getpeercert()["subject"] for pair in row)
        path = self.folder / self.path.strip("/")
        if subject.get("commonName") not in self.members or self.path.strip("/") not in (
            SNAPSHOT,
            SECRETS,
            MANIFEST,
        ):
            self.send_error(403)
            return
        try:
            with path.open("rb") as file:
                self.send_response(200)
                self.send_header("Content-Length", str(os.fstat(file.fileno()).st_size))
                self.end_headers()
                shutil.copyfileobj(file, self.wfile, 2**20)
        except FileNotFoundError:
            self.send_error(404)

    def log_message(self, *arguments: Any) -> None:
        log.debug("backup: %s", arguments)


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, address: tuple[str, int], handler: Any, context: ssl.SSLContext) -> None:
        super().__init__(address, handler)
        self._context = context

    def finish_request(self, request: Any, client_address: Any) -> None:
        # Here, in a thread of its own: one that says nothing must not hold up the others.
        request.settimeout(60)
        with self._context.wrap_socket(request, server_side=True) as secure:
            super().finish_request(secure, client_address)


def share(name: str, hosts: Iterable[str] | None = None) -> dict[str, str]:
    """Have other etcd hosts fetch a set from this one.

    For as long as they take it is served, over TLS with this member's certificate, to members
    alone.

    Args:
        name: Of a set on this host.
        hosts: Minion ids; all other etcd hosts by default.

    Returns:
        Minion id to ``ok`` or the problem.

    CLI Example:

    .. code-block:: bash

        salt etcd1 indigo_backup.share 20261124T013000Z-etcd1
    """
    settings = _settings()
    etcd = settings["etcd"]
    wanted = [host for host in settings["hosts"] if host != settings["id"]]
    wanted = wanted if hosts is None else [host for host in wanted if host in set(hosts)]
    if not wanted:
        return {}
    found = _find(name)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(etcd["cert"], etcd["key"])
    context.load_verify_locations(etcd["ca"])
    context.verify_mode = ssl.CERT_REQUIRED
    handler = type(
        "Handler",
        (_Handler,),
        {"folder": Path(found["path"]), "members": frozenset(etcd["members"])},
    )
    address, port = settings["hosts"][settings["id"]].rsplit(":", 1)
    try:
        server = _Server((address, int(port)), handler, context)
    except OSError as error:
        problem = f"{address}:{port} cannot be served at: {error}; see backup.port"
        return dict.fromkeys(wanted, problem)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1})
    thread.start()
    try:
        # As slow as 2 MiB a second may be, and time for a minion that is busy. What is late is made
        # up for at the next look.
        patience = 25 + found["bytes"] // (2 * 2**20)
        said = __salt__["publish.publish"](
            wanted,
            "indigo_backup.fetch",
            arg=[name, found["sha256"], found["bytes"]],
            tgt_type="list",
            timeout=patience,
        )
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    said = said if isinstance(said, Mapping) else {}
    return {host: _copied(said.get(host)) for host in wanted}


def _copied(answer: Any) -> str:
    if isinstance(answer, Mapping) and answer.get("ok"):
        return "ok"
    if isinstance(answer, Mapping):
        return str(answer.get("problem"))
    return f"its minion says {answer or 'nothing'}"


def fetch(name: str, sha256: str, size: int, **kwargs: Any) -> dict[str, Any]:
    """Get a set from the etcd host that asks for this; published by :func:`share` there.

    Args:
        name: Of the set.
        sha256: Of its snapshot.
        size: Bytes of its snapshot.
        kwargs: What Salt adds to a published job; the master says in it who asks.

    Returns:
        ``{"ok": bool, "problem": str}``.
    """
    settings = _settings()
    _yield()
    source = kwargs.get("__pub_id")
    try:
        if source not in settings["hosts"] or source == settings["id"]:
            raise CommandExecutionError(f"{source!r} is no other etcd host: nothing was fetched")
        if made_at(name) is None:
            raise CommandExecutionError(f"{name!r} is no name of a set")
        folder = Path(settings["folder"])
        with _alone(folder):
            _fetch(settings, folder, str(source), name, sha256, int(size))
            _expire(settings, folder)
    except (CommandExecutionError, OSError) as error:
        return {"ok": False, "problem": str(error)}
    return {"ok": True, "problem": ""}


def _fetch(
    settings: Mapping[str, Any], folder: Path, source: str, name: str, sha256: str, size: int
) -> None:
    present = _manifest(folder / name)
    if present and present["sha256"] == sha256 and not content_problem(folder / name, present):
        return
    if problem := room_problem(shutil.disk_usage(folder).free, size, 1, str(folder)):
        raise CommandExecutionError(problem)
    partial = folder / f"{PARTIAL}{name}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(mode=0o700)
    try:
        for file in (MANIFEST, SNAPSHOT, SECRETS):
            _download(settings, settings["hosts"][source], partial / file, file == SECRETS)
        found = _manifest(partial)
        if not found or found["name"] != name or found["cluster"] != settings["cluster"]:
            raise CommandExecutionError(f"what {source} serves is not the set {name}")
        if found["sha256"] != sha256 or (problem := content_problem(partial, found)):
            raise CommandExecutionError(f"the copy of {name} is damaged: fetched from {source}")
        shutil.rmtree(folder / name, ignore_errors=True)
        partial.replace(folder / name)
        _sync(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _download(settings: Mapping[str, Any], where: str, path: Path, optional: bool) -> None:
    etcd = settings["etcd"]
    context = ssl.create_default_context(cafile=etcd["ca"])
    context.load_cert_chain(etcd["cert"], etcd["key"])
    host, port = where.rsplit(":", 1)
    connection = http.client.HTTPSConnection(host, int(port), timeout=60, context=context)
    try:
        connection.request("GET", f"/{path.name}")
        answer = connection.getresponse()
        if answer.status == 404 and optional:
            return
        if answer.status != 200:
            raise CommandExecutionError(f"https://{where}/{path.name} answers {answer.status}")
        _pour(answer, path)
    except (OSError, http.client.HTTPException) as error:
        raise CommandExecutionError(
            f"https://{where}/{path.name}: {error}; the port must be open between etcd's hosts"
        ) from error
    finally:
        connection.close()


# --- secrets ----------------------------------------------------------------------------------


def secrets(kind: str, **kwargs: Any) -> dict[str, Any]:
    """Secrets of a kind on this host, sealed for the operator; for the etcd host that asks.

    Args:
        kind: ``authorities`` (the CA host's) or ``tokens`` (a master's).
        kwargs: What Salt adds to a published job; the master says in it who asks.

    Returns:
        ``{"sealed": …}`` as ``indigo_seal.seal`` makes it, or ``{"problem": why}``.
    """
    view = _view()
    backup = view.get("backup", {})
    asks = kwargs.get("__pub_id", view.get("id"))
    try:
        if asks not in backup.get("members", []):
            raise CommandExecutionError(f"{asks!r} is no etcd host: it gets no sealed secrets")
        if not backup.get("recipient"):
            raise CommandExecutionError("backup.recipient is not set: there is nobody to seal for")
        payload, about = _authorities(view) if kind == "authorities" else _tokens(view)
        header = {
            "format": FORMAT,
            "cluster": view["cluster"]["name"],
            "kind": kind,
            "host": view["id"],
            "recipient": __salt__["indigo_seal.fingerprint"](backup["recipient"], WHOSE, REMEDY),
            **about,
        }
        public = backup["recipient"]
        return {"sealed": __salt__["indigo_seal.seal"](header, payload, public, WHOSE, REMEDY)}
    except (CommandExecutionError, OSError) as error:
        return {"problem": str(error)}


def _authorities(view: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    held = view.get("pki", {}).get("held", [])
    if not held:
        raise CommandExecutionError(f"{view['id']} holds no authority")
    payload = {
        row["name"]: {
            "certificate": Path(row["certificate"]).read_text(encoding="ascii"),
            "key": Path(row["key"]).read_text(encoding="ascii"),
        }
        for row in held
    }
    prints = {
        name: hashlib.sha256(pair["certificate"].encode()).hexdigest()[:16]
        for name, pair in payload.items()
    }
    return payload, {"authorities": prints}


def _tokens(view: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    path = view.get("token_set", {}).get("path")
    if not path or not os.path.isfile(path):
        raise CommandExecutionError(f"{view['id']} holds no token set")
    document = json.loads(Path(path).read_bytes())
    return document, {key: document[key] for key in ("lineage", "generation")}


def _sealed_parts(settings: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """The sealed secrets of the CA host and of a master, and what is lacking and why."""
    if not settings["recipient"]:
        return {}, {"secrets": "backup.recipient is not set"}
    sealed: dict[str, Any] = {}
    lacking: dict[str, str] = {}
    for kind, hosts in settings["secrets"].items():
        for host in hosts:
            if host == settings["id"]:
                answer: Any = secrets(kind)
            else:
                said = __salt__["publish.publish"](
                    [host], "indigo_backup.secrets", arg=[kind], tgt_type="list", timeout=15
                )
                answer = said.get(host) if isinstance(said, Mapping) else said
            if isinstance(answer, Mapping) and "sealed" in answer:
                sealed[kind] = answer["sealed"]
                lacking.pop(kind, None)
                break
            why = answer.get("problem") if isinstance(answer, Mapping) else answer
            lacking[kind] = f"{host}: {why or 'no answer'}"
    return sealed, lacking


def sealed(name: str) -> dict[str, Any]:
    """The sealed secrets of a set on this host; empty for one without.

    CLI Example:

    .. code-block:: bash

        salt etcd1 indigo_backup.sealed 20261124T013000Z-etcd1
    """
    path = Path(_find(name)["path"], SECRETS)
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def contents() -> dict[str, int]:
    """Revision of this host's member and the number of its keys, as a quorum knows them.

    CLI Example:

    .. code-block:: bash

        salt etcd1 indigo_backup.contents
    """
    settings = _settings()
    revision, keys = _all_keys(settings, settings["etcd"]["url"])
    return {"revision": revision, "keys": keys}


def take(sealed: Mapping[str, Any]) -> dict[str, Any]:
    """Put back what was sealed for this minion: authorities, or the masters' token set.

    What is here already is kept beside: keys that were in use may be the only way to something.

    Args:
        sealed: Of ``indigo_backup.hand_over`` on the Salt master.

    Returns:
        ``changed``: paths.

    Raises:
        CommandExecutionError: It is for another host, cluster or key; or this host has no use
            for it.
    """
    view = _view()
    header = sealed.get("header", {})
    for key, expected in (("recipient", view.get("id")), ("cluster", view["cluster"]["name"])):
        if header.get(key) != expected:
            raise CommandExecutionError(
                f"the sealed secrets are for {key} {header.get(key)!r}, expected {expected!r}"
            )
    own = Path(__opts__["pki_dir"], "minion.pem").read_bytes()
    problem = (
        "the sealed secrets do not open: they are not for this minion's key, or were changed on "
        "their way; if it has a new key, accept it on the Salt master and run this again"
    )
    payload = __salt__["indigo_seal.unseal"](sealed, own, problem)
    if header.get("kind") == "authorities":
        return {"changed": _take_authorities(view, payload)}
    return {"changed": _take_tokens(view, payload)}


def _take_authorities(view: Mapping[str, Any], payload: Mapping[str, Any]) -> list[str]:
    changed = []
    for row in view.get("pki", {}).get("held", []):
        pair = payload.get(row["name"])
        if not pair:
            continue
        # The certificate last: without it the authority is not there yet.
        for kind, mode in (("key", 0o600), ("certificate", 0o644)):
            path = Path(row[kind])
            if path.exists():
                continue
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            _write(path, pair[kind].encode())
            path.chmod(mode)
            changed.append(str(path))
    return changed


def _take_tokens(view: Mapping[str, Any], payload: Mapping[str, Any]) -> list[str]:
    if "token_set" not in view:
        raise CommandExecutionError(f"{view['id']} is no master: it gets no tokens")
    path = Path(view["token_set"]["path"])
    changed = [str(path)]
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    if path.exists():
        kept_as = path.with_name(f"{path.name}.replaced-{_digest(path)[:16]}")
        if not kept_as.exists():
            os.link(path, kept_as)
            changed.append(str(kept_as))
    _write(path, json.dumps(payload, indent=1, sort_keys=True).encode() + b"\n")
    return [*changed, *__salt__["indigo_tokens.mend"]()]
