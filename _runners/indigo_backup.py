"""Backups of etcd, from the Salt master: make one, see them, make the operator's key pair."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Any

import salt.cache
import salt.client
import salt.loader
from salt.exceptions import CommandExecutionError

try:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    HAS_CRYPTOGRAPHY = True
except ImportError:
    HAS_CRYPTOGRAPHY = False

__func_alias__ = {"list_": "list"}

#: Hours by which the newest proven backup may be late before that is a problem.
LATE = 2

#: Seconds for which a backup may be due before a failure to make one is a problem.
GRACE = 1800


def __virtual__() -> str | tuple[bool, str]:
    if not HAS_CRYPTOGRAPHY:
        return False, "indigo_backup needs the Python package cryptography"
    return "indigo_backup"


def _plan() -> dict[str, Any]:
    return salt.loader.minion_mods(__opts__)["indigo_model.plan"]()


def _ask(hosts: list[str], function: str, **kwarg: Any) -> dict[str, Any]:
    """Answers by minion id. Hosts that say that they are at work are waited for."""
    with salt.client.get_local_client(mopts=__opts__) as client:
        return client.cmd(
            hosts, function, kwarg=kwarg, tgt_type="list", timeout=8, gather_job_timeout=8
        )


def run(host: str | None = None) -> dict[str, Any]:
    """Make and prove a backup now, on one etcd host, with copies on the others.

    Args:
        host: Minion id of the etcd host; by default one that is healthy and does not lead, and the
            next where that one cannot.

    Returns:
        What ``indigo_backup.run`` told, with the ``host``.

    Raises:
        CommandExecutionError: No host made one; each says why.

    CLI Example:

    .. code-block:: bash

        salt-run indigo_backup.run
    """
    members = _plan()["roles"]["etcd"]
    if host is not None and host not in members:
        raise CommandExecutionError(f"{host} is no etcd host; those are: {', '.join(members)}")
    problems = []
    for id_ in [host] if host else _order(members, _ask(members, "indigo_etcd.status")):
        found = _ask([id_], "indigo_backup.run", force=True).get(id_)
        if isinstance(found, Mapping) and found.get("made"):
            return {"host": id_, **found}
        why = found.get("why") if isinstance(found, Mapping) else found
        problems.append(f"{id_}: {why or 'no answer'}")
    raise CommandExecutionError("no backup was made: " + "; ".join(problems))


def _order(members: list[str], answers: Mapping[str, Any]) -> list[str]:
    """Members to be asked: the leader last, for it has the most to do; silent ones not at all.

    >>> _order(["a", "b", "c"], {"a": {"leader": "a"}, "b": {"leader": "a"}})
    ['b', 'a']
    """
    leaders = {one["leader"] for one in answers.values() if isinstance(one, Mapping)}
    up = [id_ for id_ in members if isinstance(answers.get(id_), Mapping)]
    return sorted(up, key=lambda id_: id_.lower() in leaders)


def list_() -> dict[str, Any]:
    """Every proven set, its size and what it took, and where it lies: the newest first.

    Returns:
        ``{"outputter": "indigo_backups", "data": {"sets": [...], "problems": [...]}}``.

    CLI Example:

    .. code-block:: bash

        salt-run indigo.backups
        salt-run indigo.backups --out json
    """
    plan = _plan()
    found = _ask(plan["roles"]["etcd"], "indigo_backup.status")
    return {"outputter": "indigo_backups", "data": overview(plan, found, time.time())}


def overview(plan: Mapping[str, Any], answers: Mapping[str, Any], now: float) -> dict[str, Any]:
    """Put together what etcd's hosts know of backups.

    Args:
        plan: ``indigo_model.plan()``.
        answers: By minion id, of ``indigo_backup.status``.
        now: Seconds of the epoch.

    Returns:
        ``sets`` (each with the ``hosts`` that have it), ``age`` of the newest in seconds or None,
        ``problems`` and ``retcode``.

    Example:
        >>> plan = {"roles": {"etcd": ["a"]}, "backup": {"every": 24}}
        >>> overview(plan, {"a": {"sets": [], "suspects": [], "since": 0, "problem": None}},
        ...          27 * 3600)["problems"][0][:38]
        'backup: none has been made since it was'
    """
    told = {id_: one for id_, one in answers.items() if isinstance(one, Mapping) and "sets" in one}
    merged: dict[str, dict[str, Any]] = {}
    for id_, one in told.items():
        for row in one["sets"]:
            merged.setdefault(row["name"], {**row, "hosts": []})["hosts"].append(id_)
    rows = sorted(merged.values(), key=lambda row: row["made"], reverse=True)
    for row in rows:
        row["hosts"].sort()
    age = int(now - rows[0]["made"]) if rows else None
    problems = [
        f"backup on {id_}: {one.get('problem') if isinstance(one, Mapping) else one}"
        for id_, one in answers.items()
        if id_ not in told
    ]
    every = plan["backup"]["every"]
    since = min((one["since"] for one in told.values() if one["since"]), default=now)
    patience = (every + LATE) * 3600
    if every and told and (age is None or age > patience) and now - since > patience:
        what = (
            "none has been made since it was set up"
            if age is None
            else f"the newest proven one is {age // 3600} h old"
        )
        problems.append(
            f"backup: {what}, expected one every {every} h: run salt-run indigo_backup.run and see "
            "what it says"
        )
    # One that failed is no problem yet while the newest is no older than it should be: the next
    # look, on this host or another, may do better.
    if now - (rows[0]["made"] + every * 3600 if rows else since) > GRACE:
        problems += [
            f"backup on {id_}: {one['problem']}" for id_, one in told.items() if one["problem"]
        ]
    problems += [
        f"backup on {id_}: {name} did not restore: see there, and make another with "
        "salt-run indigo_backup.run"
        for id_, one in told.items()
        for name in one["suspects"]
        if not rows or name.removeprefix("suspect-") > rows[0]["name"]
    ]
    return {
        "sets": rows,
        "age": age,
        "problems": problems,
        "retcode": int(bool(problems)),
    }


def check(name: str | None = None) -> dict[str, Any]:
    """Restore a set again, aside, on every host that has it: does it still hold what it should?

    Args:
        name: Of the set; the newest by default.

    Returns:
        By minion id, ``{"ok": bool, "problem": str}``.

    Raises:
        CommandExecutionError: One is damaged, or cannot be tried.

    CLI Example:

    .. code-block:: bash

        salt-run indigo_backup.check
    """
    plan = _plan()
    answers = _ask(plan["roles"]["etcd"], "indigo_backup.status")
    rows = overview(plan, answers, time.time())["sets"]
    wanted = next((row for row in rows if name in (None, row["name"])), None)
    if wanted is None:
        raise CommandExecutionError(f"no etcd host that answers has the set {name or 'asked for'}")
    found = _ask(wanted["hosts"], "indigo_backup.check", name=wanted["name"])
    bad = {
        id_: one["problem"] if isinstance(one, Mapping) else one
        for id_, one in found.items()
        if not isinstance(one, Mapping) or not one["ok"]
    }
    if bad:
        raise CommandExecutionError("; ".join(f"{id_}: {why}" for id_, why in bad.items()))
    return found


def keypair(folder: str = "/root/indigo-backup-key") -> dict[str, str]:
    """Make the operator's key pair, to which backups seal the cluster's keys.

    Put the public half into ``cluster.yaml`` as ``backup.recipient`` and move the private half away
    from the cluster: whoever has it and a set has the cluster.

    Args:
        folder: Where to write ``private.pem`` (0600) and ``public.pem``.

    Returns:
        Both paths and what to do with them.

    Raises:
        CommandExecutionError: There is a pair already.

    CLI Example:

    .. code-block:: bash

        salt-run indigo_backup.keypair /root/indigo-backup-key
    """
    private, public = os.path.join(folder, "private.pem"), os.path.join(folder, "public.pem")
    if os.path.lexists(private):
        raise CommandExecutionError(f"{private} is there already: it is never replaced")
    os.makedirs(folder, mode=0o700, exist_ok=True)
    key = rsa.generate_private_key(public_exponent=65537, key_size=4096)
    pem = serialization.Encoding.PEM
    texts = {
        private: key.private_bytes(
            pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ),
        public: key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo),
    }
    for path, text in texts.items():
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "wb") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    return {
        "private": private,
        "public": public,
        "next": f"write the text of {public} into cluster.yaml as backup.recipient; move {private} "
        "to a place outside the cluster, and keep it: without it the sealed keys are lost",
    }


def hand_over(name: str, source: str, kind: str, receiver: str, key: str) -> dict[str, Any]:
    """Open a part of a set's sealed secrets with the operator's key, and seal it for a minion.

    It is in the clear in the memory of this process alone.

    Args:
        name: Of the set.
        source: Etcd host that has it.
        kind: ``authorities`` or ``tokens``.
        receiver: Minion id of the host that gets it.
        key: File with the private key, on the Salt master.

    Returns:
        ``changed``: what the receiver put in place.

    Raises:
        CommandExecutionError: The key does not open it, or the receiver refuses.
    """
    modules = salt.loader.minion_mods(__opts__)
    try:
        with open(key, "rb") as file:
            private = file.read()
    except OSError as error:
        raise CommandExecutionError(
            f"{key}: {error.strerror}: give the private key's file"
        ) from None
    sealed = _ask([source], "indigo_backup.sealed", name=name).get(source)
    if not isinstance(sealed, Mapping) or kind not in sealed:
        raise CommandExecutionError(f"{source}: the set {name} has no sealed {kind}: {sealed}")
    problem = (
        "the sealed secrets do not open with this private key: they are for another key, or were "
        "changed; give the key whose public half was backup.recipient at that time"
    )
    payload = modules["indigo_seal.unseal"](sealed[kind], private, problem)
    header = {**sealed[kind]["header"], "recipient": receiver}
    again = modules["indigo_seal.seal"](
        header, payload, _public_key(receiver), f"{receiver}: its Salt public key",
        f"accept its key again (salt-key -a {receiver})",
    )  # fmt: skip
    said = _ask([receiver], "indigo_backup.take", sealed=again).get(receiver)
    if not isinstance(said, Mapping):
        raise CommandExecutionError(f"{receiver}: {said or 'no answer'}")
    return dict(said)


def _public_key(host: str) -> str:
    """The key that the Salt master accepted for a minion."""
    cache = salt.cache.Cache(__opts__, driver=__opts__["keys.cache_driver"])
    entry = cache.fetch("keys", host) or {}
    if entry.get("state") != "accepted" or not entry.get("pub"):
        raise CommandExecutionError(f"{host}: its Salt key is not accepted: run salt-key -a {host}")
    return str(entry["pub"])
