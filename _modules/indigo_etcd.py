"""A member of etcd: how it comes into the cluster, and how the cluster is.

A member without data must know whether it forms a new cluster with the others or joins one that
lives. Guessing wrong makes a second, empty cluster beside the first. So the decision is taken on
the host, at the time, from what the other members answer; a new cluster is formed only where the
orchestration left a *grant*: a file that names the cluster and its members, written when every
declared member answered and none had data.

Sources: etcd's guides "Clustering", "Runtime reconfiguration" and "Learner"; ``etcdctl --help``.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

try:
    from salt.exceptions import CommandExecutionError
except ImportError:  # the pure functions are of use without Salt
    CommandExecutionError = RuntimeError  # type: ignore[assignment,misc]


#: What a member answers at /health when it takes part in a quorum.
HEALTHY = '"health":"true"'

#: Refusals of a change of membership that pass: another change is under way, a member that was
#: just added has not started yet, or ("member not found") an id, made of the URL and the second,
#: is that of a member removed in the same second (etcd's membership/member.go).
PASSING = (
    "member not found",
    "unhealthy cluster",
    "too many learner members",
    "can only promote a learner member which is in sync",
    "re-configuration failed",
    "request timed out",
    "leader changed",
    "no leader",
    "rpc not supported for learner",
)


def __virtual__() -> str:
    return "indigo_etcd"


def _settings() -> Mapping[str, Any]:
    try:
        return __pillar__["indigo"]["components"]["etcd"]
    except KeyError:
        raise CommandExecutionError(
            "This host has no role etcd in pillar/cluster.yaml; expected `roles: [etcd]` for it"
        ) from None


def _tls(settings: Mapping[str, Any]) -> dict[str, str]:
    return {name: settings[name] for name in ("ca", "cert", "key")}


# --- pure -------------------------------------------------------------------------------------


def decide(
    data: bool,
    granted: bool,
    own: Mapping[str, str],
    members: Sequence[Mapping[str, Any]] | None,
) -> dict[str, Any]:
    """How a member comes into its cluster.

    Args:
        data: Whether it has data already.
        granted: Whether it holds a grant for the declared cluster.
        own: Its ``name`` and ``peer`` URL.
        members: Members of the living cluster as ``etcdctl member list`` tells; None when no
            other member answers as part of a quorum.

    Returns:
        ``{"action": …}``: ``none`` (it has data), ``new`` (form the cluster), ``start`` (it is a
        member that never started), ``join`` (to be added, after ``remove``: ids of entries whose
        data is lost), or ``refuse``.

    Example:
        >>> decide(False, True, {"name": "a", "peer": "https://a:2380"}, None)
        {'action': 'new'}
        >>> decide(False, True, {"name": "a", "peer": "https://a:2380"}, [])
        {'action': 'join', 'remove': []}
    """
    if data:
        return {"action": "none"}
    if members is None:
        return {"action": "new" if granted else "refuse"}
    mine = [
        one
        for one in members
        if own["peer"] in one.get("peerURLs", []) or one.get("name") == own["name"]
    ]
    # A member announces its client URLs when it first starts: without any, it never had data.
    if (
        len(mine) == 1
        and not mine[0].get("clientURLs")
        and mine[0].get("peerURLs") == [own["peer"]]
    ):
        return {"action": "start"}
    return {"action": "join", "remove": [one["ID"] for one in mine]}


def initial_cluster(own: Mapping[str, str], members: Iterable[Mapping[str, Any]]) -> str:
    """Value of ``--initial-cluster`` for a member that joins.

    Args:
        own: ``name`` and ``peer`` URL of the member; its own entry has no name yet.
        members: The cluster's members, itself among them.

    Example:
        >>> initial_cluster({"name": "b", "peer": "https://b:2380"},
        ...                 [{"name": "a", "peerURLs": ["https://a:2380"]},
        ...                  {"name": "", "peerURLs": ["https://b:2380"]}])
        'a=https://a:2380,b=https://b:2380'
    """
    pairs = []
    for one in members:
        for url in one.get("peerURLs", []):
            # A name is needed for each; of a member that never started nobody knows it.
            name = own["name"] if url == own["peer"] else one.get("name") or f"{one['ID']:x}"
            pairs.append(f"{name}={url}")
    return ",".join(sorted(pairs))


def environment(state: str, cluster: str, members: str) -> str:
    """Text of the environment file with which etcd starts without data.

    >>> environment("new", "lab", "a=https://a:2380").splitlines()[1]
    'ETCD_INITIAL_CLUSTER_STATE=new'
    """
    return (
        "# Managed by Salt; removed once the member has data.\n"
        f"ETCD_INITIAL_CLUSTER_STATE={state}\n"
        f"ETCD_INITIAL_CLUSTER_TOKEN={cluster}\n"
        f"ETCD_INITIAL_CLUSTER={members}\n"
    )


def grant_fits(grant: Any, cluster: str, members: Iterable[str]) -> bool:
    """Whether a grant is for this cluster with these members (minion ids).

    >>> grant_fits({"cluster": "x", "members": ["b", "a"]}, "x", ["a", "b"])
    True
    """
    if not isinstance(grant, Mapping):
        return False
    return grant.get("cluster") == cluster and sorted(grant.get("members", [])) == sorted(members)


def loss(members: Iterable[Mapping[str, Any]], name: str) -> str | None:
    """Why a member must not leave now: the arithmetic of the quorum over the living.

    Args:
        members: Rows of :func:`status`.
        name: Who would leave.

    Returns:
        A sentence with the sum and what to do first; None where the member may leave, has no vote
        or is no member.

    Example:
        >>> rows = [{"name": n, "healthy": n != "c", "learner": False} for n in "abc"]
        >>> loss(rows, "c") is None
        True
        >>> loss(rows, "a")
        'a must not leave etcd: of the 2 members left 1 is healthy, a quorum takes 2. Mend c first'
    """
    voters = [one for one in members if not one["learner"]]
    left = [one for one in voters if one["name"] != name]
    if len(left) == len(voters):
        return None
    if not left:
        return f"{name} is etcd's only member: all that the API knows would go with it"
    healthy = [one for one in left if one["healthy"]]
    need = len(left) // 2 + 1
    sick = ", ".join(one["name"] for one in left if not one["healthy"])
    count = f"{len(left)} member{'s' if len(left) > 1 else ''} left {len(healthy)} "
    count += "is" if len(healthy) == 1 else "are"
    if len(healthy) < need:
        return (
            f"{name} must not leave etcd: of the {count} healthy, a quorum takes {need}. "
            f"Mend {sick} first"
        )
    # The removal itself is a write: those who are there now must agree to it.
    living = len(healthy) + sum(bool(one["healthy"]) for one in voters if one["name"] == name)
    if living < len(voters) // 2 + 1:
        return (
            f"{name} cannot leave etcd: {living} of {len(voters)} members are healthy, which is no "
            f"quorum, so nothing can be written. Mend {sick or 'the others'} first"
        )
    return None


# --- this host --------------------------------------------------------------------------------


def has_data() -> bool:
    """Whether this member has ever taken part in a cluster: its write-ahead log exists.

    Example:
        ``salt 'etcd*' indigo_etcd.has_data``
    """
    return any(Path(_settings()["data"], "member", "wal").glob("*.wal"))


def _granted(settings: Mapping[str, Any]) -> bool:
    try:
        grant = json.loads(Path(settings["grant"]).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    ids = [one["id"] for one in settings["members"].values()]
    return grant_fits(grant, __pillar__["indigo"]["cluster"]["name"], ids)


def facts() -> dict[str, Any]:
    """What an orchestration must know before it allows a new cluster.

    Returns:
        ``{"name": member, "data": bool, "grant": bool, "running": bool}``; ``grant`` is true only
        for a grant that names the declared cluster and members.

    Example:
        ``salt 'etcd*' indigo_etcd.facts``
    """
    settings = _settings()
    return {
        "name": settings["name"],
        "data": has_data(),
        "grant": _granted(settings),
        "running": __salt__["indigo_service.active"]("etcd"),
    }


def grant_bootstrap(cluster: str, members: Sequence[str]) -> bool:
    """Allow this member to form a new cluster with the others.

    Only an orchestration that saw every declared member without data may call this.

    Args:
        cluster: Name of the cluster.
        members: Minion ids of all its members.

    Returns:
        True when the grant is there.

    Raises:
        CommandExecutionError: The cluster or its members are not those of this host's pillar, or
            this member has data.

    Example:
        ``salt 'etcd*' indigo_etcd.grant_bootstrap lab '[etcd1, etcd2, etcd3]'``
    """
    settings = _settings()
    declared = sorted(one["id"] for one in settings["members"].values())
    name = __pillar__["indigo"]["cluster"]["name"]
    if not grant_fits({"cluster": cluster, "members": list(members)}, name, declared):
        raise CommandExecutionError(
            f"etcd bootstrap of {cluster} with {', '.join(sorted(members))} refused: this host's "
            f"pillar declares {name} with {', '.join(declared)}. Run saltutil.refresh_pillar"
        )
    if has_data():
        raise CommandExecutionError(
            f"etcd bootstrap refused: {settings['data']} holds data of a member. Join, or restore; "
            "remove the data only if the cluster is to be lost"
        )
    _write(Path(settings["grant"]), json.dumps({"cluster": cluster, "members": sorted(members)}))
    return True


def withdraw_bootstrap() -> bool:
    """Remove the grant and the file of the first start. Returns whether one was there.

    Example:
        ``salt 'etcd*' indigo_etcd.withdraw_bootstrap``
    """
    settings = _settings()
    found = False
    for path in (Path(settings["grant"]), Path(settings["initial"])):
        if path.exists():
            path.unlink()
            found = True
    return found


def leftovers() -> list[str]:
    """Files of the first start that still exist: to be removed once the member has data.

    Example:
        ``salt 'etcd*' indigo_etcd.leftovers``
    """
    settings = _settings()
    return [settings[name] for name in ("grant", "initial") if Path(settings[name]).exists()]


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    partial.replace(path)


# --- the others -------------------------------------------------------------------------------


def _healthy_peers(settings: Mapping[str, Any]) -> list[str]:
    """Client URLs of other declared members that are part of a quorum now."""
    urls = [one["client"] for name, one in settings["members"].items() if name != settings["name"]]
    answers = (
        __salt__["indigo_health.check"](
            f"{url}/health", expect=HEALTHY, timeout=2, **_tls(settings)
        )
        for url in urls
    )
    return [url for url, answer in zip(urls, answers, strict=True) if answer["ok"]]


def _etcdctl(
    settings: Mapping[str, Any],
    endpoints: Iterable[str],
    *arguments: str,
    strict: bool = True,
    answer: bool = True,
) -> Any:
    """Run etcdctl with the member's certificate; its JSON, or None where no answer is wanted."""
    binary = __pillar__["indigo"]["binaries"]["etcdctl"]
    done = __salt__["indigo_tool.run"](
        [binary, *(["--write-out=json"] if answer else []), *arguments],
        __salt__["indigo_tool.environment"](settings, ",".join(endpoints)),
        60,
    )
    if done["retcode"] and strict:
        raise CommandExecutionError(
            f"etcdctl {' '.join(arguments[:2])} failed ({done['retcode']}): {done['told']}"
        )
    if not answer:
        return None
    try:
        return json.loads(done["stdout"] or "null")
    except ValueError as error:
        raise CommandExecutionError(
            f"etcdctl {' '.join(arguments[:2])} answered no JSON: {done['stdout'][:200]!r}"
        ) from error


def _members(settings: Mapping[str, Any], endpoints: Iterable[str]) -> list[dict[str, Any]]:
    return _etcdctl(settings, endpoints, "member", "list").get("members", [])


def _persistently(
    settings: Mapping[str, Any],
    endpoints: Sequence[str],
    *arguments: str,
    timeout: float,
    answer: bool = True,
) -> Any:
    """Change the membership; wait while etcd refuses for a reason that passes."""
    end = time.monotonic() + timeout
    while True:
        try:
            return _etcdctl(settings, endpoints, *arguments, answer=answer)
        except CommandExecutionError as error:
            passing = any(reason in str(error) for reason in PASSING)
            if not passing or time.monotonic() >= end:
                raise
        time.sleep(0.5)


def _add(
    settings: Mapping[str, Any], peers: Sequence[str], own: Mapping[str, str], timeout: float
) -> list[dict[str, Any]]:
    """Add this member as a learner; the members afterwards."""
    command = ("member", "add", own["name"], f"--peer-urls={own['peer']}", "--learner")
    try:
        return _persistently(settings, peers, *command, timeout=timeout)["members"]
    except CommandExecutionError as error:
        # An earlier attempt was carried out although its answer was lost.
        if "Peer URLs already exists" not in str(error):
            raise
    return _members(settings, peers)


def plan() -> dict[str, Any]:
    """Decide, without changing anything, how this member comes into its cluster.

    Returns:
        See :func:`decide`; with ``members`` of the living cluster and the ``peers`` that answer
        where there are any.

    Raises:
        CommandExecutionError: A peer that is healthy does not tell its members.

    Example:
        ``salt 'etcd*' indigo_etcd.plan``
    """
    settings = _settings()
    own = {"name": settings["name"], "peer": settings["members"][settings["name"]]["peer"]}
    if has_data():
        return decide(True, False, own, None)
    peers = _healthy_peers(settings)
    members = _members(settings, peers) if peers else None
    return {
        **decide(False, _granted(settings), own, members),
        "peers": peers,
        "members": members or [],
    }


def enter(timeout: float = 120) -> dict[str, Any]:
    """Prepare the first start of this member as :func:`plan` decides.

    A member that is to join is added as a learner: it does not count for the quorum until it has
    caught up (``settle`` promotes it). An entry whose data is lost is removed first.

    Args:
        timeout: Seconds to wait while another change of membership is under way.

    Returns:
        ``{"action": …, "initial": text of the environment file, "removed": [ids], "added": bool}``.

    Raises:
        CommandExecutionError: No quorum answers and there is no grant, or etcd refuses.

    Example:
        ``salt-call indigo_etcd.enter``
    """
    settings = _settings()
    cluster = __pillar__["indigo"]["cluster"]["name"]
    own = {"name": settings["name"], "peer": settings["members"][settings["name"]]["peer"]}
    found = plan()
    action = found["action"]
    result: dict[str, Any] = {"action": action, "initial": "", "removed": [], "added": False}
    if action == "none":
        return result
    if action == "refuse":
        others = [one["client"] for name, one in settings["members"].items() if name != own["name"]]
        raise CommandExecutionError(
            f"etcd member {own['name']} has no data, none of {', '.join(others) or 'no others'} "
            "answers as part of a quorum, and there is no leave to form a new cluster. For the "
            "first deployment run: salt-run state.orchestrate indigo.deploy. Otherwise bring back "
            "a majority of the members, or restore a backup (docs/operations/etcd.md)"
        )
    if action == "new":
        declared = ",".join(
            f"{name}={one['peer']}" for name, one in sorted(settings["members"].items())
        )
        text = environment("new", cluster, declared)
    else:
        members = found["members"]
        if action == "join":
            for id_ in found["remove"]:
                _persistently(
                    settings, found["peers"], "member", "remove", f"{id_:x}", timeout=timeout
                )
                result["removed"].append(f"{id_:x}")
            members = _add(settings, found["peers"], own, timeout)
            result["added"] = True
        text = environment("existing", cluster, initial_cluster(own, members))
    result["initial"] = text
    path = Path(settings["initial"])
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        _write(path, text)
    return result


def settle(timeout: float = 120) -> list[str]:
    """Finish the first start: promote a learner, and remove the leave to form a new cluster.

    Args:
        timeout: Seconds to wait until a learner has caught up.

    Returns:
        What was done: ``promoted`` and the paths of the files removed.

    Raises:
        CommandExecutionError: This member has no data, or cannot be promoted in time.

    Example:
        ``salt-call indigo_etcd.settle``
    """
    settings = _settings()
    if not has_data():
        raise CommandExecutionError(
            f"etcd member {settings['name']} has no data in {settings['data']} yet; "
            "look at: journalctl -u etcd -n 50"
        )
    done = []
    if id_ := learner():
        peers = _healthy_peers(settings)
        # As JSON, etcdctl 3.4 cannot print what this answers and crashes after the promotion.
        _persistently(settings, peers, "member", "promote", id_, timeout=timeout, answer=False)
        # Until it knows itself, the loss of another voter could cost the quorum. Learners refuse
        # the question.
        _persistently(settings, [settings["url"]], "member", "list", timeout=timeout)
        done.append("promoted")
    done += leftovers()
    withdraw_bootstrap()
    return done


def leave(name: str, peer: str | None = None, timeout: float = 60) -> dict[str, Any]:
    """Take another member out of the cluster; called on one that stays.

    A leader hands its office over first, so that writes wait for no election.

    Args:
        name: Name of the member that leaves.
        peer: Its peer URL, to know it by if it never started.
        timeout: Seconds to wait while another change of membership is under way.

    Returns:
        ``{"removed": id or None, "members": names of those who stay}``; nothing is removed where
        it is no member.

    Raises:
        CommandExecutionError: The quorum would be lost, or etcd refuses.

    Example:
        ``salt etcd1 indigo_etcd.leave etcd3``
    """
    settings = _settings()
    if name == settings["name"]:
        raise CommandExecutionError(
            f"{name} was asked to take itself out of etcd; expected another member to be asked"
        )
    found = status()
    rows = found["members"]
    own = [one for one in rows if one["name"] == name or (peer and one["peer"] == peer)]
    stay = [one for one in rows if one not in own]
    names = [one["name"] for one in stay]
    for one in own:
        if why := loss(rows, one["name"]):
            raise CommandExecutionError(why)
        asked = [row["url"] for row in stay if row["healthy"] and row["url"]]
        heir = next((row for row in stay if row["healthy"] and not row["learner"]), None)
        if one["leader"] and one["url"] and heir:
            # Only the leader itself can hand over; where that fails, an election does it.
            with contextlib.suppress(CommandExecutionError):
                _etcdctl(settings, [one["url"]], "move-leader", heir["id"], answer=False)
        _persistently(settings, asked, "member", "remove", one["id"], timeout=timeout)
    return {"removed": own[0]["id"] if own else None, "members": names}


def learner() -> str:
    """Id (hex) of this member if it is a learner still, else an empty text.

    Raises:
        CommandExecutionError: The members cannot be listed.

    Example:
        ``salt 'etcd*' indigo_etcd.learner``
    """
    settings = _settings()
    peers = _healthy_peers(settings) or [settings["url"]]
    for one in _members(settings, peers):
        own = settings["members"][settings["name"]]["peer"] in one.get("peerURLs", [])
        if own and one.get("isLearner"):
            return f"{one['ID']:x}"
    return ""


def status() -> dict[str, Any]:
    """The cluster as this member sees it.

    Returns:
        ``{"members": [{"name", "id", "url", "peer", "healthy", "leader", "learner", "version",
        "db_size", "answer_ms"}, …], "leader": name or None}``. ``db_size`` is in bytes, and
        ``answer_ms`` what a read with the quorum's consent took from here. A member that does not
        answer has ``healthy`` false and no version, size or time.

    Raises:
        CommandExecutionError: No member tells who the members are.

    Example:
        ``salt etcd1 indigo_etcd.status``
    """
    settings = _settings()
    declared = [one["client"] for one in settings["members"].values()]
    order = sorted(declared, key=lambda url: url != settings["url"])
    took: dict[str, float] = {}
    healthy = {url for url in order if _healthy(url, settings, took)}
    asked = [url for url in order if url in healthy]
    if not asked:
        raise CommandExecutionError(
            f"etcd has no quorum: none of {', '.join(order)} answers as healthy; a majority of "
            "the members must run"
        )
    members = _members(settings, asked)
    # Also of members that are not declared any more: they count for the quorum until they left.
    others = {url for one in members for url in one.get("clientURLs", [])} - set(declared)
    healthy |= {url for url in sorted(others) if _healthy(url, settings, took)}
    said = _etcdctl(settings, asked, "endpoint", "status", strict=False) or []
    by_id = {one["Status"]["header"]["member_id"]: one["Status"] for one in said}
    return summary(members, by_id, healthy, took)


def _healthy(url: str, settings: Mapping[str, Any], took: dict[str, float]) -> bool:
    """Whether a member serves with the quorum's consent; notes how long it took to say so."""
    started = time.monotonic()
    found = __salt__["indigo_health.check"](
        f"{url}/health", expect=HEALTHY, timeout=2, **_tls(settings)
    )
    took[url] = time.monotonic() - started
    return bool(found["ok"])


def summary(
    members: Iterable[Mapping[str, Any]],
    statuses: Mapping[int, Mapping[str, Any]],
    healthy: Iterable[str],
    took: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """Put together what members, their status and their health say.

    Args:
        members: Of ``etcdctl member list``.
        statuses: By member id, of ``etcdctl endpoint status``.
        healthy: Client URLs that answered as healthy.
        took: By client URL, the seconds that this took.

    Returns:
        See :func:`status`.
    """
    healthy, took = set(healthy), took or {}
    rows = []
    for one in members:
        said = statuses.get(one["ID"], {})
        urls = one.get("clientURLs", [])
        rows.append(
            {
                "name": one.get("name") or (one.get("peerURLs") or ["?"])[0],
                "id": f"{one['ID']:x}",
                "url": urls[0] if urls else None,
                "peer": (one.get("peerURLs") or [None])[0],
                "healthy": bool(healthy & set(urls)),
                "leader": any(status.get("leader") == one["ID"] for status in statuses.values()),
                "learner": bool(one.get("isLearner")),
                "version": said.get("version"),
                "db_size": said.get("dbSize"),
                "answer_ms": next(
                    (round(took[url] * 1000, 1) for url in urls if url in healthy & set(took)), None
                ),
            }
        )
    leader = next((row["name"] for row in rows if row["leader"]), None)
    return {"members": sorted(rows, key=lambda row: row["name"]), "leader": leader}
