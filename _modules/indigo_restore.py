"""A host's part in a restore of etcd: stop, put the data in place, start, forget what was cached.

The orchestrations ``indigo.restore`` and ``indigo.recover`` call these, each on all hosts at once.
Every step can be repeated: a journal on each member says how far it has come with which restore,
and the data that was there before is moved aside, once, and never touched again.

Everything of a member lies below its data directory, which may be a disk of its own:
``replaced-<id>`` holds the old data, ``restoring-<id>`` what is being built.

Sources: etcd's guide "Disaster recovery"; ``etcdctl snapshot restore --help`` of 3.4,
``etcdutl snapshot restore --help`` of 3.5 and 3.6, and on ``--bump-revision``
https://github.com/etcd-io/etcd/issues/16028; kubernetes/kubernetes#91073.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import pwd
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from salt.exceptions import CommandExecutionError

#: How far a member has come: with which set, under which id.
JOURNAL = "/var/lib/indigo-restore.json"

#: Units of the control plane in the order in which they start.
CONTROL = ("kube-apiserver", "kube-controller-manager", "kube-scheduler")

#: What on a node watches the API.
WATCHERS = ("kubelet", "kube-proxy")

#: By how much the revision is raised, so that no watcher takes the restored past for the future.
BUMP = 1_000_000_000

#: Seconds for one step of etcd's tools.
PATIENCE = 1800


def __virtual__() -> str:
    return "indigo_restore"


# --- pure -------------------------------------------------------------------------------------


def stages() -> tuple[str, ...]:
    """What the journal of a member may say, in order."""
    return ("begun", "restored", "started", "done")


def reached(journal: Mapping[str, Any] | None, id_: str, stage: str) -> bool:
    """Whether a member has come as far as a stage of a restore.

    >>> reached({"id": "x", "stage": "restored"}, "x", "begun"), reached(None, "x", "begun")
    (True, False)
    """
    if not journal or journal.get("id") != id_:
        return False
    order = stages()
    return order.index(journal["stage"]) >= order.index(stage)


def restore_command(
    program: str,
    snapshot: str,
    folder: str,
    name: str,
    members: Mapping[str, str],
    token: str,
    bump: bool,
) -> list[str]:
    """Command that turns a snapshot into a member's data.

    Args:
        program: etcdctl of 3.4, etcdutl of later ones.
        snapshot: File.
        folder: The new data directory.
        name: Of the member.
        members: Name to peer URL of all of them.
        token: That no other cluster has: members of the old one cannot join by accident.
        bump: Whether the program can raise the revision and mark all before it as compacted.

    Example:
        >>> restore_command("etcdctl", "s", "d", "a", {"a": "https://a:2380"}, "t", False)[3:5]
        ['s', '--name=a']
    """
    command = [
        program,
        "snapshot",
        "restore",
        snapshot,
        f"--name={name}",
        f"--data-dir={folder}",
        "--initial-cluster=" + ",".join(f"{one}={url}" for one, url in sorted(members.items())),
        f"--initial-cluster-token={token}",
        f"--initial-advertise-peer-urls={members[name]}",
    ]
    if bump:
        command += [f"--bump-revision={BUMP}", "--mark-compacted"]
    return command


# --- this host --------------------------------------------------------------------------------


def _view() -> Mapping[str, Any]:
    view = __pillar__.get("indigo")
    if not view:
        raise CommandExecutionError("this host is not declared: run saltutil.refresh_pillar on it")
    return view


def _etcd() -> Mapping[str, Any] | None:
    return _view().get("components", {}).get("etcd")


def _await_serving(etcd: Mapping[str, Any], timeout: float, kept: str) -> None:
    """Wait until this host's member serves; raises with where its old data is kept."""
    found = __salt__["indigo_health.wait_unit"](
        "etcd", f"{etcd['url']}/health", expect='"health":"true"', successes=2,
        timeout=timeout, **_tls(etcd),
    )  # fmt: skip
    if not found["ok"]:
        raise CommandExecutionError(
            f"etcd does not serve after {timeout:g} s: {found['last']['problem']}; look at: "
            f"journalctl -u etcd -n 50. {kept}"
        )


def _tls(etcd: Mapping[str, Any]) -> dict[str, str]:
    return {key: etcd[key] for key in ("ca", "cert", "key")}


def journal() -> dict[str, Any] | None:
    """What this member noted of the last restore, or None.

    CLI Example:

    .. code-block:: bash

        salt 'etcd*' indigo_restore.journal
    """
    try:
        found = json.loads(Path(JOURNAL).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and found.get("stage") in stages() else None


def _note(**entry: Any) -> None:
    path = Path(JOURNAL)
    partial = path.with_name(f".{path.name}.new")
    handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(json.dumps({**entry, "at": int(time.time())}))
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """One step at a time here: what an orchestration asked for goes on when that is killed."""
    with open(f"{JOURNAL}.lock", "w", encoding="ascii") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _installed(unit: str) -> bool:
    return __salt__["indigo_service.show"](unit).get("LoadState") == "loaded"


def report() -> dict[str, Any]:
    """What a restore must know of this host; changes nothing.

    Returns:
        ``bare`` (units of its roles that are not installed), and on an etcd host ``sets``,
        ``prepared`` (binaries and certificate are there), ``data``, ``running``, ``healthy``,
        ``term``, ``index``, ``revision`` (None where it cannot be told) and ``journal``; on a
        master ``tokens`` (None, or its token set's lineage, generation, and the generation since
        when it has no older key of encryption); on the CA host
        ``authorities`` (name to fingerprint of those that are there).

    CLI Example:

    .. code-block:: bash

        salt '*' indigo_restore.report
    """
    view = _view()
    roles = view["roles"]
    units = {
        "etcd": ("etcd",),
        "master": CONTROL,
        "node": ("containerd", *WATCHERS),
        "lb": ("haproxy",),
    }
    wanted = [unit for role in roles for unit in units.get(role, ())]
    found: dict[str, Any] = {
        "roles": list(roles),
        "bare": [unit for unit in wanted if not _installed(unit)],
    }
    if "etcd" in roles:
        found |= _member_report(view)
    if "master" in roles:
        token_set = __salt__["indigo_tokens.state"]()["set"]
        told = ("lineage", "generation", "encryption_since")
        found["tokens"] = token_set and {key: token_set[key] for key in told}
    if "ca" in roles:
        found["authorities"] = _authorities(view)
    return found


def _authorities(view: Mapping[str, Any]) -> dict[str, str]:
    found = {}
    for row in view["pki"]["held"]:
        try:
            text = Path(row["certificate"]).read_bytes()
            Path(row["key"]).stat()
        except OSError:
            continue
        found[row["name"]] = hashlib.sha256(text).hexdigest()[:16]
    return found


def _member_report(view: Mapping[str, Any]) -> dict[str, Any]:
    etcd = view["components"]["etcd"]
    files = [view["binaries"]["etcd"], etcd["cert"], etcd["key"], etcd["ca"]]
    wanted = ("name", "made", "revision", "keys", "bytes", "sha256", "host", "secrets", "path")
    active = __salt__["indigo_service.show"]("etcd").get("ActiveState")
    found: dict[str, Any] = {
        "sets": [{key: one.get(key) for key in wanted} for one in __salt__["indigo_backup.sets"]()],
        "prepared": all(os.path.isfile(path) for path in files),
        "data": __salt__["indigo_etcd.has_data"](),
        "running": active in ("active", "activating", "reloading"),
        "healthy": False,
        "term": None,
        "index": None,
        "revision": None,
        "journal": journal(),
    }
    if found["running"] and found["prepared"]:
        url = f"{etcd['url']}/health"
        expect = '"health":"true"'
        answer = __salt__["indigo_health.check"](url, expect=expect, timeout=3, **_tls(etcd))
        found["healthy"] = answer["ok"]
        found |= _position(view)
    return found


def _position(view: Mapping[str, Any]) -> dict[str, Any]:
    """How far a running member is, also one without a quorum."""
    done = _tool(view, [view["binaries"]["etcdctl"], "--write-out=json", "endpoint", "status"], 20)
    try:
        said = json.loads(done["stdout"])[0]["Status"]
        return {
            "term": int(said.get("raftTerm", 0)),
            "index": int(said.get("raftAppliedIndex", said.get("raftIndex", 0))),
            "revision": int(said["header"]["revision"]),
        }
    except (ValueError, KeyError, IndexError, TypeError):
        return {}


def _tool(
    view: Mapping[str, Any], command: Sequence[str], timeout: float = PATIENCE
) -> dict[str, Any]:
    etcd = view["components"]["etcd"]
    environment = __salt__["indigo_tool.environment"](etcd, etcd["url"])
    environment.pop("GOMAXPROCS")  # nothing is to be spared while all wait for the restore
    return __salt__["indigo_tool.run"](command, environment, timeout)


# --- the steps --------------------------------------------------------------------------------


def restore(id_: str, backup: str, cluster: str) -> dict[str, Any]:
    """Stop what serves and writes here, and put a set's data in place of the member's.

    On a master the control plane is stopped: an API server must not see a member before all of
    them hold the restored data. Nothing is started again.

    Args:
        id_: Of this restore, the same on all hosts.
        backup: Name of the set.
        cluster: Name of the cluster, as a last look at who is meant.

    Returns:
        ``stopped`` (units), and on a member ``aside`` (where its old data is, or None) and
        ``bumped`` (whether the revision was raised).

    Raises:
        CommandExecutionError: The set is not here or damaged, or there is no room; nothing but the
            units' stop has happened then.
    """
    with _alone():
        return _restore(id_, backup, cluster)


def _restore(id_: str, backup: str, cluster: str) -> dict[str, Any]:
    view = _view()
    if cluster != view["cluster"]["name"]:
        raise CommandExecutionError(f"this host is of {view['cluster']['name']}, not of {cluster}")
    etcd = _etcd()
    found: Mapping[str, Any] = {}
    if etcd and not reached(journal(), id_, "restored"):
        found = _checked(view, backup)  # before anything is stopped
    result: dict[str, Any] = {"stopped": _halt(view)}
    if not etcd:
        return result
    noted = journal()
    if reached(noted, id_, "restored"):
        return {**result, "aside": noted["aside"], "bumped": noted["bumped"]}
    __salt__["indigo_service.pause"]("etcd")
    data = Path(etcd["data"])
    aside = data / f"replaced-{id_}"
    bump = "--bump-revision" in _help(view)
    entry = {"id": id_, "backup": backup, "bumped": bump, "aside": None}
    if not reached(noted, id_, "begun"):
        _note(**entry, stage="begun")
    building = data / f"restoring-{id_}"
    shutil.rmtree(building, ignore_errors=True)
    members = {name: one["peer"] for name, one in etcd["members"].items()}
    token = f"{cluster}-{id_}"
    snapshot = str(Path(found["path"], "snapshot.db"))
    done = _tool(
        view,
        restore_command(
            _restorer(view), snapshot, str(building), etcd["name"], members, token, bump
        ),
    )
    if done["retcode"]:
        shutil.rmtree(building, ignore_errors=True)
        raise CommandExecutionError(f"{backup} cannot be restored here: {done['told']}")
    _give(building, etcd["user"])
    if (data / "member").exists():
        if (aside / "member").exists():
            # The old data is safe already: this is what an attempt before this one left.
            shutil.rmtree(data / "member")
        else:
            aside.mkdir(mode=0o700, exist_ok=True)
            (data / "member").replace(aside / "member")
    (building / "member").replace(data / "member")
    shutil.rmtree(building, ignore_errors=True)
    __salt__["indigo_etcd.withdraw_bootstrap"]()
    entry["aside"] = str(aside) if aside.exists() else None
    os.sync()
    _note(**entry, stage="restored")
    return {**result, "aside": entry["aside"], "bumped": bump}


def _checked(view: Mapping[str, Any], backup: str) -> Mapping[str, Any]:
    """The set on this host, found whole, with room to restore it."""
    for one in __salt__["indigo_backup.sets"]():
        if one["name"] != backup:
            continue
        problem = __salt__["indigo_backup.content_problem"](Path(one["path"]), one)
        if problem:
            raise CommandExecutionError(f"{problem}: nothing was stopped or changed here")
        data = Path(_etcd()["data"])  # type: ignore[index]
        data.mkdir(mode=0o700, parents=True, exist_ok=True)
        free = shutil.disk_usage(data).free
        if free < 2 * one["bytes"] + 2**28:
            raise CommandExecutionError(
                f"{data}: {free >> 20} MiB are free, expected {(2 * one['bytes'] + 2**28) >> 20}: "
                f"make room there, for the old data is kept. See {data}/replaced-*"
            )
        return one
    raise CommandExecutionError(f"{backup}: no such set on {view['id']}")


def _restorer(view: Mapping[str, Any]) -> str:
    binaries = view["binaries"]
    return binaries.get("etcdutl", binaries["etcdctl"])


def _help(view: Mapping[str, Any]) -> str:
    done = _tool(view, [_restorer(view), "snapshot", "restore", "--help"], 20)
    return done["stdout"] + done["stderr"]


def _give(folder: Path, user: str) -> None:
    entry = pwd.getpwnam(user)
    for root, _, files in os.walk(folder):
        for path in (root, *(os.path.join(root, file) for file in files)):
            os.chown(path, entry.pw_uid, entry.pw_gid)


def _halt(view: Mapping[str, Any]) -> list[str]:
    stopped = []
    if "master" in view["roles"]:
        for unit in CONTROL:
            if _installed(unit):
                __salt__["indigo_service.pause"](unit)
                stopped.append(unit)
    return stopped


def start(id_: str, revision: int, keys: int, timeout: float = 120) -> dict[str, Any]:
    """Start the restored member and see that it holds what the set held.

    Args:
        id_: Of this restore.
        revision: Of the set.
        keys: Number of keys in it.
        timeout: Seconds until all of them serve.

    Returns:
        ``revision`` and ``keys`` that it serves.

    Raises:
        CommandExecutionError: This member was not restored, does not serve in time, or holds
            something else.
    """
    with _alone():
        return _start(id_, revision, keys, timeout)


def _start(id_: str, revision: int, keys: int, timeout: float) -> dict[str, Any]:
    view = _view()
    etcd = view["components"]["etcd"]
    noted = journal()
    if not noted or not reached(noted, id_, "restored"):
        raise CommandExecutionError(
            f"this member is not restored as {id_}: run indigo.restore again"
        )
    __salt__["indigo_service.resume"]("etcd")
    _await_serving(etcd, timeout, f"The data from before is in {noted['aside']}")
    now = __salt__["indigo_backup.contents"]()
    wanted = revision + (BUMP if noted["bumped"] else 0)
    if now["revision"] < wanted or (now["revision"] == wanted and now["keys"] != keys):
        raise CommandExecutionError(
            f"etcd serves revision {now['revision']} with {now['keys']} keys, expected {wanted} "
            f"with {keys}; the data from before is in {noted['aside']}"
        )
    _note(**{**noted, "stage": "started"})
    return now


def refresh(watchers: bool, timeout: float = 180) -> dict[str, Any]:
    """Start the control plane on the restored data, and restart what holds older data in memory.

    Args:
        watchers: Also kubelet and kube-proxy: a watch that goes on at a revision which the
            restored past has not reached yet would miss what happens until then.
        timeout: Seconds to wait for the API server.

    Returns:
        ``restarted``: units.

    Raises:
        CommandExecutionError: One does not serve again; it is named.
    """
    view = _view()
    restarted: list[str] = []
    if watchers and "node" in view["roles"]:
        for unit in WATCHERS:
            if _installed(unit):
                __salt__["indigo_service.pause"](unit)
                __salt__["indigo_service.resume"](unit)
                restarted.append(unit)
    if "master" in view["roles"] and _installed(CONTROL[0]):
        components = view["components"]
        for unit, path in zip(CONTROL, ("/readyz", "/healthz", "/healthz"), strict=True):
            # One that was running all the time, in a recovery, has what is no longer so.
            __salt__["indigo_service.pause"](unit)
            __salt__["indigo_service.resume"](unit)
            if unit == CONTROL[0]:
                _wait(unit, components[unit]["url"] + path, view, timeout)
            restarted.append(unit)
        for unit in CONTROL[1:]:
            _wait(unit, components[unit]["url"] + "/healthz", view, timeout)
    return {"restarted": restarted}


def _wait(unit: str, url: str, view: Mapping[str, Any], timeout: float) -> None:
    found = __salt__["indigo_health.wait_unit"](
        unit, url, ca=f"{view['paths']['pki']}/ca.crt", successes=2, timeout=timeout
    )
    if not found["ok"]:
        raise CommandExecutionError(
            f"{unit} does not serve after {timeout:g} s: {found['last']['problem']}; look at: "
            f"journalctl -u {unit} -n 50"
        )


# --- recovery ---------------------------------------------------------------------------------


def position() -> dict[str, Any]:
    """How far this member's data goes when there is no quorum.

    A member that was restarted without a quorum answers nobody. It is stopped then, which takes
    nothing away, and its database is read as it lies on the disk.

    Returns:
        ``data`` (whether there is any), ``revision`` and ``source`` (``member`` or ``disk``).

    Raises:
        CommandExecutionError: The database cannot be read.

    CLI Example:

    .. code-block:: bash

        salt 'etcd*' indigo_restore.position
    """
    view = _view()
    etcd = view["components"]["etcd"]
    if not __salt__["indigo_etcd.has_data"]():
        return {"data": False, "revision": None, "source": None}
    found = _position(view)
    if found:
        return {"data": True, "revision": found["revision"], "source": "member"}
    __salt__["indigo_service.pause"]("etcd")
    database = Path(etcd["data"], "member", "snap", "db")
    done = _tool(view, [_restorer(view), "--write-out=json", "snapshot", "status", str(database)])
    try:
        revision = int(json.loads(done["stdout"])["revision"])
    except (ValueError, KeyError, TypeError):
        raise CommandExecutionError(f"{database} cannot be read: {done['told']}") from None
    return {"data": True, "revision": revision, "source": "disk"}


def survive(id_: str, timeout: float = 120) -> dict[str, Any]:
    """Make this member a cluster of one, with the data that it has.

    etcd is started once with ``force-new-cluster``. The setting is in the file of a first start,
    which goes as soon as the member serves: with it every later start would throw the others out.

    Args:
        id_: Of this recovery.
        timeout: Seconds until it serves.

    Returns:
        ``aside`` (a copy of the data from before), ``revision`` and ``keys``.

    Raises:
        CommandExecutionError: No data, no room for the copy, or it does not serve.
    """
    with _alone():
        return _survive(id_, timeout)


def _survive(id_: str, timeout: float) -> dict[str, Any]:
    view = _view()
    etcd = view["components"]["etcd"]
    data, initial = Path(etcd["data"]), Path(etcd["initial"])
    aside = data / f"replaced-{id_}"
    if not reached(journal(), id_, "started"):
        if not __salt__["indigo_etcd.has_data"]():
            raise CommandExecutionError(f"{data} holds no data: nothing can be recovered from here")
        __salt__["indigo_service.pause"]("etcd")
        if not reached(journal(), id_, "restored"):
            _copy_aside(data, aside)
            _note(id=id_, backup="", bumped=False, aside=str(aside), stage="restored")
        text = "# Until etcd serves: see indigo.recover\nETCD_FORCE_NEW_CLUSTER=true\n"
        _replace_text(initial, text)
        __salt__["indigo_service.resume"]("etcd")
        _await_serving(etcd, timeout, f"A copy of its data is in {aside}")
        initial.unlink(missing_ok=True)
        _note(id=id_, backup="", bumped=False, aside=str(aside), stage="started")
    initial.unlink(missing_ok=True)
    return {"aside": str(aside), **__salt__["indigo_backup.contents"]()}


def _copy_aside(data: Path, aside: Path) -> None:
    size = sum(file.stat().st_size for file in (data / "member").rglob("*") if file.is_file())
    free = shutil.disk_usage(data).free
    if free < size + 2**28:
        raise CommandExecutionError(
            f"{data}: {free >> 20} MiB are free, expected {(size + 2**28) >> 20} for a copy of the "
            "data: make room there"
        )
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(mode=0o700)
    shutil.copytree(data / "member", aside / "member")
    os.sync()


def _replace_text(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.new")
    handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def give_way(id_: str) -> dict[str, Any]:
    """Stop this member and put its data aside: it is to join the cluster of the survivor.

    Args:
        id_: Of this recovery.

    Returns:
        ``aside``: where its data is, or None where there was none.
    """
    with _alone():
        return _give_way(id_)


def _give_way(id_: str) -> dict[str, Any]:
    etcd = _view()["components"]["etcd"]
    data = Path(etcd["data"])
    aside = data / f"replaced-{id_}"
    if reached(journal(), id_, "restored"):
        return {"aside": str(aside) if aside.exists() else None}
    __salt__["indigo_service.pause"]("etcd")
    if (data / "member").exists():
        aside.mkdir(mode=0o700, exist_ok=True)
        (data / "member").replace(aside / "member")
    __salt__["indigo_etcd.withdraw_bootstrap"]()
    kept = str(aside) if aside.exists() else None
    _note(id=id_, backup="", bumped=False, aside=kept, stage="restored")
    return {"aside": kept}


def finish(id_: str) -> bool:
    """Note that a restore is over. Returns whether it was this one."""
    noted = journal()
    if not noted or noted["id"] != id_:
        return False
    _note(**{**noted, "stage": "done"})
    return True
