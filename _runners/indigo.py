"""Look at the cluster from the Salt master, and change which hosts it has.

Deploying is an orchestration (``salt-run state.orchestrate indigo.deploy``); this runner shows
what is there, takes hosts out and puts new machines in the place of old ones.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import salt.client
import salt.loader
from salt.exceptions import CommandExecutionError

#: Days before expiry from which a certificate is a problem. State.apply renews it well before.
EXPIRY = 14

#: Hours after which an exchange of keys that has not moved on was forgotten.
EXCHANGE = 2

#: Seconds after which a leader that has not renewed its lease counts as lost.
LEASE = 30


def __virtual__() -> str:
    return "indigo"


def status(timeout: float = 15) -> dict[str, Any]:
    """Show the cluster on one screen.

    Asks every declared host once. Exits non-zero when something is wrong.

    Args:
        timeout: Seconds to wait for a host's answer.

    Returns:
        ``{"outputter": "indigo_status", "data": {...}}``; see :func:`assess` for the data, which
        ``--out json`` prints as it is.

    CLI Example:

    .. code-block:: bash

        salt-run indigo.status
        salt-run indigo.status --out json
    """
    plan = _model("indigo_model.plan")
    with salt.client.get_local_client(mopts=__opts__) as client:
        answers = client.cmd(
            list(plan["hosts"]),
            "indigo_status.report",
            kwarg={"kubernetes": True},
            tgt_type="list",
            timeout=timeout,
            full_return=True,
        )
    # Salt reports silence as a return of its own making.
    reports = {id_: one["ret"] for id_, one in answers.items() if one.get("out") != "no_return"}
    data = assess(plan, reports)
    told = {
        id_: one["backup"]
        for id_, one in reports.items()
        if isinstance(one, Mapping) and "backup" in one
    }
    found = __salt__["indigo_backup.overview"](plan, told, time.time())
    data["backup"] = {"newest": next(iter(found["sets"]), None), "age": found["age"]}
    data["problems"] += found["problems"]
    data["retcode"] = int(bool(data["problems"]))
    return {"outputter": "indigo_status", "data": data}


def check(timeout: float = 15) -> dict[str, Any]:
    """The same as a check of Nagios, Icinga or Zabbix: one line, then the problems; exit 0 to 3.

    CLI Example:

    .. code-block:: bash

        salt-run indigo.check
    """
    return __salt__["indigo_check.check"](timeout=timeout)


def metrics(path: str | None = None, timeout: float = 15) -> Any:
    """The same as metrics of Prometheus: text, or a file for node_exporter's textfile collector.

    Args:
        path: Of the file, which is replaced in one move; printed where there is none.
        timeout: Seconds to wait for a host's answer.

    CLI Example:

    .. code-block:: bash

        salt-run indigo.metrics
        salt-run indigo.metrics path=/var/lib/prometheus/node-exporter/indigo.prom
    """
    return __salt__["indigo_check.metrics"](path=path, timeout=timeout)


def backups() -> dict[str, Any]:
    """Every proven backup with its size, what it took, and where it lies: ``indigo_backup.list``.

    CLI Example:

    .. code-block:: bash

        salt-run indigo.backups
    """
    return __salt__["indigo_backup.list"]()


def backup_keypair(folder: str = "/root/indigo-backup-key") -> dict[str, str]:
    """Make the operator's key pair for backups: ``indigo_backup.keypair``.

    CLI Example:

    .. code-block:: bash

        salt-run indigo.backup_keypair
    """
    return __salt__["indigo_backup.keypair"](folder)


def preflight(timeout: float = 15) -> dict[str, Any]:
    """Is everything there for a deploy? Changes nothing; see ``indigo_preflight.run``.

    CLI Example:

    .. code-block:: bash

        salt-run indigo.preflight
        salt-run indigo.preflight --out json
    """
    return __salt__["indigo_preflight.run"](timeout=timeout)


def report(
    path: str | None = None, hosts: str | None = None, timeout: float = 60
) -> dict[str, Any]:
    """Write an archive for whoever is asked for help, without secrets; see ``indigo_report.write``.

    CLI Example:

    .. code-block:: bash

        salt-run indigo.report
        salt-run indigo.report hosts=etcd1,etcd2 path=/root/etcd.tar.gz
    """
    return __salt__["indigo_report.write"](path=path, hosts=hosts, timeout=timeout)


def setup(
    conf: str,
    more: str | None = None,
    force: bool = False,
    test: bool = False,
    deploy: bool = True,
) -> dict[str, Any]:
    """From a ``setup.conf`` and hosts that have ssh to a cluster.

    Writes ``cluster.yaml``, makes the hosts minions where they are none, and deploys. Killed, it is
    finished by running it again.

    Args:
        conf: Path of the file, with lines such as ``LB1=192.0.2.11 name=lb1``.
        more: Path of a file with further keys of ``cluster.yaml``, such as ``versions``.
        force: Write ``cluster.yaml`` although it was edited; the old one is kept beside.
        test: Only say what would be done.
        deploy: Whether to deploy in the end.

    Returns:
        ``done`` (in test mode ``would``, and ``cluster``), and ``next``.

    Raises:
        CommandExecutionError: Lines are wrong (all are named), hosts did not become minions, or
            the deploy failed.

    CLI Example:

    .. code-block:: bash

        salt-run indigo.setup conf=setup.conf test=True
        salt-run indigo.setup conf=setup.conf
    """
    return __salt__["indigo_setup.run"](conf, more=more, force=force, test=test, deploy=deploy)


def images(
    save: str | None = None, load: str | None = None, node: str | None = None
) -> dict[str, Any]:
    """Images of the wanted add-ons: list them, or carry them to a cluster without a registry.

    Args:
        save: Folder of a node into which archives of all of them are written.
        load: Folder of the Salt master with such archives, for the Salt master to serve.
        node: Minion id of the node that saves; by default the first.

    Returns:
        See ``indigo_images.list``, ``indigo_images.save`` and ``indigo_images.load``.

    CLI Example:

    .. code-block:: bash

        salt-run indigo.images
        salt-run indigo.images save=/mnt/disk node=node1
        salt-run indigo.images load=/mnt/disk
    """
    if save:
        return __salt__["indigo_images.save"](save, node=node)
    if load:
        return __salt__["indigo_images.load"](load)
    return __salt__["indigo_images.list"]()


def remove(
    host: str | list[str],
    force: bool = False,
    test: bool = False,
    cancel: bool = False,
    deadline: float = 300,
) -> dict[str, Any]:
    """Take hosts out of the cluster: drain, leave, revoke, forget.

    Run it while ``cluster.yaml`` still names them; it ends by telling which lines to delete. From
    its first change on they count as gone: neither ``state.apply`` nor ``indigo.deploy`` brings
    them back. Killed, it is finished by running it again.

    Args:
        host: Minion id, or several with commas between them.
        force: A host that does not answer is off for good. Also evict pods that nothing would
            bring back elsewhere. What would break etcd's quorum or lose the last copy of something
            stays refused.
        test: Only say what would be done.
        cancel: Take a host in again whose removal was begun.
        deadline: Seconds for the drain of each node.

    Returns:
        ``hosts``, ``done`` (in test mode ``would``) in words, and ``next``: what is left to do.

    Raises:
        CommandExecutionError: It is not safe now, with what to do first; or a step failed.

    CLI Example:

    .. code-block:: bash

        salt-run indigo.remove host=node3 test=True
        salt-run indigo.remove host=node3
    """
    return __salt__["indigo_hosts.remove"](
        host, force=force, test=test, cancel=cancel, deadline=deadline
    )


def replace(host: str, test: bool = False) -> dict[str, Any]:
    """Put a new machine in the place of a host that died or was wiped, under the same id.

    Run it when the old machine is off: it deletes that one's Salt key and stops. Accept the new
    machine's key and run it again: it brings the new machine in. If the new one's key is accepted
    already, one run does all.

    Args:
        host: Minion id.
        test: Only say what would be done.

    Returns:
        ``host``, ``done`` (in test mode ``would``) in words, and ``next``.

    Raises:
        CommandExecutionError: It is not safe now, with what to do first; the new machine's key is
            not accepted yet; or the deploy failed.

    CLI Example:

    .. code-block:: bash

        salt-run indigo.replace host=etcd1
    """
    return __salt__["indigo_hosts.replace"](host, test=test)


def drain(host: str, deadline: float = 300, force: bool = False) -> dict[str, Any]:
    """Cordon a node and evict its pods, as their disruption budgets allow.

    A drain that fails leaves the node as it was; one that succeeds leaves it cordoned.

    Args:
        host: Minion id of a node, or several with commas between them.
        deadline: Seconds until the last pod must be gone.
        force: Also evict pods that nothing would bring back elsewhere.

    Returns:
        By minion id ``evicted`` (pods) and ``cordoned`` (whether that is new).

    CLI Example:

    .. code-block:: bash

        salt-run indigo.drain host=node3 deadline=120
    """
    return __salt__["indigo_hosts.drain"](host, deadline=deadline, force=force)


def uncordon(host: str) -> dict[str, Any]:
    """Give a node pods again. Returns, by minion id, whether it was cordoned.

    CLI Example:

    .. code-block:: bash

        salt-run indigo.uncordon host=node3
    """
    return __salt__["indigo_hosts.uncordon"](host)


def pause() -> str:
    """Hold an upgrade that runs, or the next one, before its next host or batch.

    What is being restarted is finished first. It waits until :func:`resume`.

    CLI Example:

    .. code-block:: bash

        salt-run indigo.pause
    """
    path = _pause_file()
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.touch(mode=0o600)
    return "indigo.upgrade waits before its next host; go on with: salt-run indigo.resume"


def resume() -> str:
    """Let an upgrade go on that :func:`pause` holds.

    CLI Example:

    .. code-block:: bash

        salt-run indigo.resume
    """
    path = _pause_file()
    if not path.exists():
        return "indigo.upgrade is not held"
    path.unlink(missing_ok=True)
    return "indigo.upgrade goes on"


def _pause_file() -> Path:
    # As the states of indigo_upgrade look for it.
    return Path(__opts__["cachedir"]) / "indigo" / "upgrade.paused"


def removed_apis(to: str, since: str | None = None) -> dict[str, Any]:
    """Which APIs are in use that a release of Kubernetes does not serve any more.

    Args:
        to: The release, such as ``1.25.0``.
        since: Look at what went since this release; by default, since the declared one.

    Returns:
        By master ``requested`` (since its API server started) and ``objects`` (last written through
        such an API, with who did).

    Raises:
        CommandExecutionError: A master does not answer.

    CLI Example:

    .. code-block:: bash

        salt-run indigo.removed_apis 1.25.0
    """
    if not isinstance(to, str) or isinstance(since, float):
        # A command line's 1.30 arrives as the number 1.3.
        raise CommandExecutionError("found a number, expected a release in full, such as 1.30.0")
    plan = _model("indigo_model.plan")
    since = since or plan["versions"]["kubernetes"]
    wanted = _model("indigo_model.upgrade_removals", since, to)
    masters = plan["roles"]["master"]
    kwarg = {"rows": wanted["removals"], "until": wanted["until"]}
    with salt.client.get_local_client(mopts=__opts__) as client:
        found = client.cmd(
            masters, "indigo_upgrade.removed", kwarg=kwarg, tgt_type="list", timeout=30
        )
    bad = {
        id_: found.get(id_, "no answer")
        for id_ in masters
        if not isinstance(found.get(id_), Mapping)
    }
    if bad:
        raise CommandExecutionError("; ".join(f"{id_}: {why}" for id_, why in bad.items()))
    return found


def assess(plan: Mapping[str, Any], reports: Mapping[str, Any]) -> dict[str, Any]:
    """Turn the hosts' reports into what an operator wants to see, and into problems.

    Args:
        plan: ``indigo_model.plan()``.
        reports: By minion id, the answers of ``indigo_status.report``. A host that did not answer
            is missing; one that failed has text in place of a mapping.

    Returns:
        ``cluster``, ``versions``, ``hosts`` (id to address, roles, answers, units), ``vip``
        (address, holders), ``etcd`` (members, leader), ``api`` (master to ``ok`` or the problem),
        ``nodes``, ``leaders``, ``certificates`` (count, the one that expires first), ``tokens``
        (in step or not), ``exchange`` (keys that are being exchanged for new ones), ``addons``
        (name to ``ok`` or the problem), ``problems`` (sentences) and ``retcode`` (0 without
        problems, else 1).

    Example:
        >>> plan = {"cluster": "x", "versions": {}, "vip": {"address": "10.0.0.9"},
        ...         "roles": {"lb": [], "etcd": [], "master": [], "node": []},
        ...         "hosts": {"a": {"address": "10.0.0.1", "roles": ["lb"]}}}
        >>> assess(plan, {})["problems"]
        ['a (10.0.0.1) does not answer: see that it is up and that salt-minion runs there']
    """
    problems: list[str] = []
    hosts: dict[str, Any] = {}
    answered: dict[str, Mapping[str, Any]] = {}
    for id_, host in plan["hosts"].items():
        found = reports.get(id_)
        hosts[id_] = {"address": host["address"], "roles": host["roles"], "answers": False}
        if isinstance(found, Mapping):
            answered[id_] = found
            hosts[id_].update(answers=True, units=found["units"])
            problems += [
                f"{id_}: {unit} does not run: look at `journalctl -u {unit}` there, "
                f"or run `salt {id_} state.apply`"
                for unit, active in found["units"].items()
                if not active
            ]
        elif found:
            problems.append(f"{id_}: {' '.join(str(found).split())}")
        else:
            problems.append(
                f"{id_} ({host['address']}) does not answer: "
                "see that it is up and that salt-minion runs there"
            )
    data: dict[str, Any] = {
        "cluster": plan["cluster"],
        "versions": plan["versions"],
        "hosts": hosts,
    }
    for part, judge in (
        ("vip", _vip),
        ("etcd", _etcd),
        ("api", _api),
        ("kubernetes", _kubernetes),
        ("certificates", _certificates),
        ("tokens", _tokens),
        ("exchange", _exchange),
        ("addons", _addons),
    ):
        data[part], found = judge(plan, answered)
        problems += found
    data["problems"] = problems
    data["retcode"] = int(bool(problems))
    return data


Judged = tuple[dict[str, Any], list[str]]


def _vip(plan: Mapping[str, Any], reports: Mapping[str, Mapping[str, Any]]) -> Judged:
    balancers = [id_ for id_ in plan["roles"]["lb"] if id_ in reports]
    holders = [id_ for id_ in balancers if reports[id_].get("vip") is True]
    address = plan["vip"]["address"]
    problems = []
    if plan["roles"]["lb"] and not holders:
        problems.append(f"vip: no load balancer holds {address}: see keepalived on the lb hosts")
    if len(holders) > 1:
        problems.append(
            f"vip: {', '.join(holders)} hold {address} at once: the lb hosts do not hear each "
            "other; open IP protocol 112 (VRRP) between them"
        )
    return {"address": address, "holders": holders}, problems


def _etcd(plan: Mapping[str, Any], reports: Mapping[str, Mapping[str, Any]]) -> Judged:
    members: dict[str, Any] = {}
    problems = []
    best: Mapping[str, Any] = {}
    for id_ in plan["roles"]["etcd"]:
        said = reports.get(id_, {}).get("etcd")
        if isinstance(said, Mapping) and "members" in said:
            best = said
            break
        if isinstance(said, Mapping):
            problems.append(f"etcd on {id_}: {said.get('problem', said)}")
    for member in best.get("members", []):
        members[member["name"]] = {
            "healthy": member["healthy"],
            "leader": member["leader"],
            "db_bytes": member.get("db_size"),
            "answer_ms": member.get("answer_ms"),
            "version": member.get("version"),
        }
        if not member["healthy"]:
            problems.append(f"etcd member {member['name']} is not healthy: see etcd there")
    leader = next((name for name, member in members.items() if member["leader"]), None)
    if best and leader is None:
        problems.append("etcd has no leader: bring back members until a majority runs")
    if not best and plan["roles"]["etcd"]:
        problems.append("etcd: no member could be asked")
    return {"members": members, "leader": leader}, problems


def _api(plan: Mapping[str, Any], reports: Mapping[str, Mapping[str, Any]]) -> Judged:
    data: dict[str, Any] = {}
    problems = []
    for id_ in plan["roles"]["master"]:
        said = reports.get(id_, {}).get("api")
        if said is None:
            data[id_] = "not asked"
        elif said.get("ok"):
            data[id_] = "ok"
        else:
            data[id_] = said.get("problem") or "not ready"
            problems.append(f"API server on {id_}: {data[id_]}")
    return data, problems


def _kubernetes(plan: Mapping[str, Any], reports: Mapping[str, Mapping[str, Any]]) -> Judged:
    said: Mapping[str, Any] = {}
    for id_ in plan["roles"]["master"]:
        answer = reports.get(id_, {}).get("kubernetes")
        if isinstance(answer, Mapping):
            said = answer
            if "nodes" in answer:
                break
    if "nodes" not in said:
        return {"nodes": {}, "leaders": {}}, [
            f"Kubernetes through the VIP: {said.get('problem', 'no master could be asked')}"
        ]
    problems = []
    for id_ in plan["roles"]["node"]:
        name = plan["hosts"][id_]["name"]
        node = said["nodes"].get(name)
        if node is None:
            problems.append(f"node {name} is not registered: see kubelet on {id_}")
        elif not node["ready"]:
            problems.append(f"node {name} is not ready ({node['reason']}): see kubelet on {id_}")
    for component, leader in said["leaders"].items():
        age = leader.get("renewed_seconds_ago")
        if not leader.get("holder") or age is None or age > LEASE:
            problems.append(f"{component}: nobody leads: see it on the masters")
    return {"nodes": said["nodes"], "leaders": said["leaders"]}, problems


def _certificates(plan: Mapping[str, Any], reports: Mapping[str, Mapping[str, Any]]) -> Judged:
    problems = []
    rows = []
    for id_, found in reports.items():
        said = found.get("certificates")
        if isinstance(said, Mapping):
            problems.append(f"certificates on {id_}: {said.get('problem')}")
            continue
        for row in said or []:
            rows.append((row["days_left"], id_, row))
            if row["problem"]:
                problems.append(f"{id_} {row['path']}: {row['problem']}: run state.apply there")
            elif row["days_left"] is not None and row["days_left"] < EXPIRY:
                problems.append(
                    f"{id_} {row['path']} expires in {row['days_left']} days: run state.apply there"
                )
    dated = sorted((days, id_, row["path"]) for days, id_, row in rows if days is not None)
    first = None
    if dated:
        first = {"days_left": dated[0][0], "host": dated[0][1], "path": dated[0][2]}
    return {"count": len(rows), "first": first}, problems


def _tokens(plan: Mapping[str, Any], reports: Mapping[str, Mapping[str, Any]]) -> Judged:
    problems = []
    sets: dict[str, list[str]] = {}
    issued: Mapping[str, str] = {}
    states = {id_: found["tokens"] for id_, found in reports.items() if "tokens" in found}
    for id_ in plan["roles"]["master"]:
        said = states.get(id_)
        if said is None:
            continue
        if said.get("set"):
            sets.setdefault(said["set"]["fingerprint"], []).append(id_)
            issued = said["set"].get("tokens", issued)
        else:
            problems.append(
                f"{id_} has no usable token set ({said.get('damaged') or said.get('problem')}): "
                "run indigo.deploy"
            )
    if len(sets) > 1:
        groups = " / ".join(", ".join(ids) for ids in sets.values())
        problems.append(f"masters hold different tokens ({groups}): run indigo.deploy")
    for id_, said in states.items():
        problems += [f"{id_}: {problem}" for problem in said.get("problems", [])]
        problems += [
            f"{id_}: its token for {identity} is not the masters': run indigo.deploy"
            for identity, fingerprint in said.get("tokens", {}).items()
            if issued and issued.get(identity) != fingerprint
        ]
    return {"in_step": not problems, "masters": sum(map(len, sets.values()))}, problems


def _exchange(plan: Mapping[str, Any], reports: Mapping[str, Mapping[str, Any]]) -> Judged:
    """Keys that are being exchanged for new ones; long after it was begun it was forgotten."""
    data: dict[str, Any] = {}
    problems = []
    for id_ in plan["roles"].get("ca", []):
        said = reports.get(id_, {}).get("exchange")
        if isinstance(said, Mapping) and "problem" in said:
            problems.append(f"{id_}: {said['problem']}")
        elif said:
            data[said["what"]] = said
    for id_ in plan["roles"]["master"]:
        said = reports.get(id_, {}).get("tokens", {}).get("set") or {}
        # The furthest: another master may have an older set.
        if (found := said.get("rotation")) and found["since"] >= data.get(found["what"], found)[
            "since"
        ]:
            data[found["what"]] = found
    problems += [
        f"the exchange of {what} stands at {found['phase']} for {hours:.0f} h: run "
        f"salt-run state.orchestrate indigo.rotate.{what} to its end"
        for what, found in data.items()
        if (hours := (time.time() - found["since"]) / 3600) > EXCHANGE
    ]
    return data, problems


def _addons(plan: Mapping[str, Any], reports: Mapping[str, Mapping[str, Any]]) -> Judged:
    wanted = plan.get("addons", [])
    if not wanted:
        return {}, []
    master = plan["roles"]["master"][0]
    said = reports.get(master, {}).get("addons")
    if not isinstance(said, Mapping) or "problem" in said:
        why = said["problem"] if isinstance(said, Mapping) else "it could not be asked"
        return dict.fromkeys(wanted, "unknown"), [f"add-ons: {master}: {why}"]
    data = {name: said.get(name, "not brought into the cluster yet") or "ok" for name in wanted}
    problems = [f"add-on {name}: {found}" for name, found in data.items() if found != "ok"]
    return data, problems


def _model(function: str, *arguments: Any) -> Any:
    # Runners have runner functions in __salt__; the model is an execution module.
    functions = salt.loader.minion_mods(__opts__)
    return functions[function](*arguments)
