"""The steps of ``indigo.restore`` and ``indigo.recover``, on the Salt master.

Each step asks the hosts what is so, does what is lacking, and says what it did; so an
orchestration that was killed half-way is run again. What the first step found out is kept for the
others in memory, for they run within seconds of it.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import salt.loader
from salt.exceptions import CommandExecutionError

#: What brings a minion this project's modules and its current pillar.
REFRESH = ("saltutil.sync_modules", "saltutil.sync_states", "saltutil.refresh_pillar")

#: Seconds within which a host that has not answered a question must say that it is at work. Some
#: are expected to be dead, and each question would wait for them.
SILENCE = 8

#: Where the plan is kept between the steps of one run.
PLAN = "indigo_restore.plan"


def __virtual__() -> str | tuple[bool, str]:
    if "indigo_model.plan" not in __salt__:
        return False, "indigo_restore runs in orchestrations on the Salt master, with the model"
    return "indigo_restore"


# --- pure -------------------------------------------------------------------------------------


def choose(
    members: Iterable[str], reports: Mapping[str, Mapping[str, Any]], wanted: str | None
) -> tuple[dict[str, Any], list[str]]:
    """The set to restore, and the etcd hosts that have it.

    Args:
        members: Ids of etcd's hosts.
        reports: By id, of ``indigo_restore.report``.
        wanted: Name of a set; the newest by default.

    Raises:
        ValueError: There is none; those that there are, are named.

    Example:
        >>> one = {"name": "20260101T000000Z-a", "made": 1, "sha256": "x"}
        >>> choose(["a", "b"], {"a": {"sets": [one]}, "b": {"sets": []}}, None)[1]
        ['a']
    """
    found: dict[str, tuple[dict[str, Any], list[str]]] = {}
    for id_ in members:
        for one in reports.get(id_, {}).get("sets", []):
            known = found.setdefault(one["name"], (dict(one), []))
            if known[0]["sha256"] == one["sha256"]:
                known[1].append(id_)
    if not found:
        raise ValueError(
            "no etcd host has a proven set: bring one to any of them, as a folder in backup.folder "
            "(docs/operations/restore.md)"
        )
    if wanted is None:
        return max(found.values(), key=lambda pair: pair[0]["made"])
    if wanted not in found:
        raise ValueError(
            f"no etcd host has the set {wanted}; there are: {', '.join(sorted(found)[-10:])}"
        )
    return found[wanted]


def identify(
    backup: str, members: Sequence[str], reports: Mapping[str, Mapping[str, Any]], now: float
) -> str:
    """Id of this restore: that of one with this set which was broken off, or a new one.

    One after which all members were started is over: what was written since would be lost in
    silence if it counted as this one.

    Example:
        >>> identify("s", ["a", "b"], {"a": {"journal": {"id": "7", "backup": "s",
        ...     "stage": "restored"}}, "b": {"journal": None}}, 0)
        '7'
    """
    journals = [reports[id_].get("journal") for id_ in members]
    open_ = [
        one
        for one in journals
        if one and one["backup"] == backup and one["stage"] in ("begun", "restored", "started")
    ]
    # The latest: of an older one that was given up some members may still tell.
    latest = max(open_, key=lambda one: one.get("at", 0), default=None)
    if latest:
        same = [one for one in open_ if one["id"] == latest["id"]]
        if not (len(same) == len(members) and all(one["stage"] == "started" for one in same)):
            return str(latest["id"])
    return time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now))


def keys_wanted(
    backup: Mapping[str, Any], masters: Iterable[str], ca: str, reports: Mapping[str, Any]
) -> tuple[list[str], list[str]]:
    """Which keys of the set must come back, and what is wrong where they are not in it.

    The masters' keys are needed where none of them has the set of that origin: with other keys
    nothing that was encrypted can be read. Authorities only where they are missing.

    Args:
        backup: The set's manifest.
        masters: Ids.
        ca: Id of the CA host.
        reports: By id, of ``indigo_restore.report``.

    Returns:
        Kinds (``tokens``, ``authorities``) and problems.

    Example:
        >>> keys_wanted({"secrets": {"tokens": {"lineage": "x"}}}, ["m"], "c",
        ...             {"m": {"tokens": None}, "c": {"authorities": {"kubernetes": "1"}}})
        (['tokens'], [])
    """
    secrets = backup.get("secrets") or {}
    kinds, problems = [], []
    here = [one for id_ in masters if (one := reports.get(id_, {}).get("tokens"))]
    lineage = secrets.get("tokens", {}).get("lineage")
    if not any(lineage in (None, one["lineage"]) for one in here):
        if lineage:
            kinds.append("tokens")
        elif not here:
            problems.append(
                "no master has the tokens and keys, and the set holds none: Secrets that were "
                "encrypted cannot be read without them. Bring a master back, or its file "
                "/etc/kubernetes/tokens.set from elsewhere"
            )
    elif (made := secrets.get("tokens", {}).get("generation")) is not None and any(
        made < one.get("encryption_since", 0) for one in here if one["lineage"] == lineage
    ):
        problems.append(
            "its Secrets are encrypted by a key that was exchanged since. Take a newer backup; or, "
            "to go back to the keys of this one, too, move /etc/kubernetes/tokens.set away on all "
            "masters and give the operator's private key (docs/operations/rotate.md)"
        )
    declared = secrets.get("authorities", {}).get("authorities", {})
    present = reports.get(ca, {}).get("authorities", {})
    if any(name not in present for name in declared):
        kinds.append("authorities")
    return kinds, problems


def losses(
    backup: Mapping[str, Any], members: Iterable[str], reports: Mapping[str, Any], now: float
) -> str:
    """What a restore throws away, for a person.

    Example:
        >>> losses({"name": "s", "made": 0, "revision": 5}, ["a"],
        ...        {"a": {"revision": 9, "data": True}}, 7200)
        'everything written since s was made, 2.0 h ago: 4 revisions'
    """
    revisions = [reports[id_].get("revision") for id_ in members]
    newest = max((one for one in revisions if one), default=None)
    text = f"everything written since {backup['name']} was made, {_ago(now - backup['made'])} ago"
    if newest is not None:
        return text + f": {max(0, newest - backup['revision'])} revisions"
    if any(reports[id_].get("data") for id_ in members):
        return text + ": etcd does not say how much that is"
    return text + ": the members have no data"


def _ago(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{max(0, seconds) / 60:.0f} min"


# --- asking hosts -----------------------------------------------------------------------------


def _ask(
    targets: Iterable[str],
    function: str | Sequence[str],
    timeout: float = 5,
    arg: Sequence[Any] = (),
    wait: float | None = None,
    **kwarg: Any,
) -> dict[str, Any]:
    """Answers by minion id, as ``indigo_ask.minions`` gives them."""
    answers: dict[str, Any] = __salt__["indigo_ask.minions"](
        targets, function, arg=arg, kwarg=kwarg, timeout=timeout, wait=wait
    )
    return answers


def _reports(hosts: Iterable[str]) -> dict[str, Any]:
    """What every host reports; those that lack our modules or pillar are given them first."""
    hosts = list(hosts)
    found = _ask(hosts, "indigo_restore.report", wait=SILENCE)
    behind = [id_ for id_ in hosts if id_ in found and not isinstance(found[id_], Mapping)]
    if behind:
        _ask(behind, REFRESH, arg=[[], [], [{"__kwarg__": True, "wait": True}]], timeout=15)
        found.update(_ask(behind, "indigo_restore.report"))
    return found


def _all_did(hosts: Iterable[str], answers: Mapping[str, Any], what: str) -> None:
    problems = [
        f"{id_}: {answers.get(id_, 'no answer')}"
        for id_ in hosts
        if not isinstance(answers.get(id_), Mapping)
    ]
    if problems:
        raise CommandExecutionError(f"{what}: " + "; ".join(problems))


def _result(name: str) -> dict[str, Any]:
    return {"name": name, "result": True, "changes": {}, "comment": ""}


def _failed(name: str, told: str) -> dict[str, Any]:
    return {**_result(name), "result": False, "comment": told}


def _plan() -> dict[str, Any]:
    found = __context__.get(PLAN)
    if not found:
        raise CommandExecutionError("the first step, which chooses the set, has not run")
    return found


# --- restore ----------------------------------------------------------------------------------


def chosen(
    name: str, backup: str | None = None, confirm: str | None = None, key: str | None = None
) -> dict[str, Any]:
    """The set is there, what is lost is told, and somebody who knows the cluster's name wants it.

    Args:
        name: What the step says of itself.
        backup: Name of the set; the newest proven one by default.
        confirm: Name of the cluster.
        key: File on the Salt master with the operator's private key, where keys must come back.

    Returns:
        A state's result without changes. It fails, before anything is touched, without the
        confirmation, and with everything that is in the way.
    """
    try:
        plan = __salt__["indigo_model.plan"]()
        reports = _reports(plan["hosts"])
        found, problems = _considered(plan, reports, backup, key)
    except (CommandExecutionError, ValueError) as err:
        return _failed(name, f"{err}. Nothing was changed")
    if problems:
        return _failed(name, "Nothing was changed:\n" + "\n".join(f"- {one}" for one in problems))
    told = f"{found['backup']['name']} would replace the data of etcd. This is lost: "
    told += found["lost"]
    if __opts__["test"]:
        return {**_result(name), "result": None, "comment": told}
    if confirm != plan["cluster"]:
        return _failed(
            name,
            f"{told}. Nothing was changed. To go on, give the cluster's name: salt-run "
            f'state.orchestrate indigo.restore pillar=\'{{"confirm": "{plan["cluster"]}"'
            + (f', "backup": "{backup}"' if backup else "")
            + "}'",
        )
    __context__[PLAN] = found
    return {
        **_result(name),
        "comment": f"{found['backup']['name']} on {', '.join(found['holders'])} is restored as "
        f"{found['id']}. This is lost: {found['lost']}",
    }


def _considered(
    plan: Mapping[str, Any], reports: Mapping[str, Any], backup: str | None, key: str | None
) -> tuple[dict[str, Any], list[str]]:
    members, masters = plan["roles"]["etcd"], plan["roles"]["master"]
    ca = plan["roles"]["ca"][0]
    problems = [
        f"{id_} does not say what it has ({reports.get(id_, 'no answer')}): all of etcd's hosts "
        "and masters must answer, or old data and caches would live on there. Bring it back, put "
        "a bare host in its place, or take it out of `hosts`"
        for id_ in dict.fromkeys([*members, *masters, ca])
        if not isinstance(reports.get(id_), Mapping)
    ]
    if problems:
        return {}, problems
    found, holders = choose(members, reports, backup)
    kinds, problems = keys_wanted(found, masters, ca, reports)
    if kinds and not key:
        problems.append(
            f"the set's {' and '.join(kinds)} must come back, for no host has them: give the "
            'operator\'s private key, a file on the Salt master, as pillar "key": '
            "(docs/operations/restore.md)"
        )
    now = time.time()
    considered = {
        "cluster": plan["cluster"],
        "hosts": list(plan["hosts"]),
        "members": members,
        "masters": masters,
        "nodes": plan["roles"]["node"],
        "ca": ca,
        "backup": found,
        "holders": holders,
        "kinds": kinds,
        "key": key,
        "id": identify(found["name"], members, reports, now),
        "lost": losses(found, members, reports, now),
        "reports": dict(reports),
    }
    return considered, problems


def prepared(name: str) -> dict[str, Any]:
    """Hosts of etcd have what a member needs before its data: binaries, certificates, folders."""
    ret = _result(name)
    if __opts__["test"]:
        return {**ret, "result": None, "comment": "Bare hosts would be prepared"}
    try:
        plan = _plan()
        bare = [id_ for id_ in plan["members"] if not plan["reports"][id_]["prepared"]]
        if not bare:
            return {**ret, "comment": "etcd's hosts are prepared"}
        steps = ["etcd.installed", "etcd.configured"]
        answers = _ask(bare, "state.apply", mods=",".join(steps), queue=True)
        _all_did(bare, answers, "hosts could not be prepared")
        bad = _failures(answers)
        if bad:
            raise CommandExecutionError("hosts could not be prepared: " + "; ".join(bad))
    except CommandExecutionError as err:
        return _failed(name, str(err))
    ret["changes"] = dict.fromkeys(bare, "prepared")
    return {**ret, "comment": f"{', '.join(bare)} have binaries and certificates of etcd"}


def distributed(name: str) -> dict[str, Any]:
    """Every member has the set, fetched from one that had it."""
    ret = _result(name)
    if __opts__["test"]:
        return {**ret, "result": None, "comment": "Hosts without the set would fetch it"}
    try:
        plan = _plan()
        lacking = [id_ for id_ in plan["members"] if id_ not in plan["holders"]]
        problems: dict[str, str] = {}
        for source in plan["holders"]:
            if not lacking:
                break
            said = _ask(
                [source], "indigo_backup.share", name=plan["backup"]["name"], hosts=lacking
            ).get(source)
            if not isinstance(said, Mapping):
                problems[source] = str(said or "no answer")
                continue
            problems |= {id_: why for id_, why in said.items() if why != "ok"}
            ret["changes"] |= {id_: f"from {source}" for id_, why in said.items() if why == "ok"}
            lacking = [id_ for id_ in lacking if said.get(id_) != "ok"]
        if lacking:
            raise CommandExecutionError(
                f"{', '.join(lacking)} did not get the set: "
                + "; ".join(f"{id_}: {why}" for id_, why in problems.items())
            )
    except CommandExecutionError as err:
        return _failed(name, f"{err}. etcd was not touched")
    return {**ret, "comment": "Every member has the set"}


def restored(name: str) -> dict[str, Any]:
    """On all members at once: stopped, old data aside, the set's data in its place."""
    ret = _result(name)
    if __opts__["test"]:
        return {**ret, "result": None, "comment": "The control plane and etcd would be stopped"}
    try:
        plan = _plan()
        hosts = list(dict.fromkeys([*plan["masters"], *plan["members"]]))
        answers = _ask(
            hosts, "indigo_restore.restore",
            id_=plan["id"], backup=plan["backup"]["name"], cluster=plan["cluster"],
        )  # fmt: skip
        _all_did(hosts, answers, "not every member could be restored, none was started")
    except CommandExecutionError as err:
        return _failed(name, f"{err}. Run indigo.restore again when that is mended")
    members = {id_: answers[id_] for id_ in plan["members"]}
    # Without it, watches must be broken off; one that has it must not decide for all.
    plan["bumped"] = all(one["bumped"] for one in members.values())
    ret["changes"] = {id_: f"old data in {one['aside']}" for id_, one in members.items()}
    return {**ret, "comment": f"{len(members)} members hold {plan['backup']['name']}"}


def serving(name: str) -> dict[str, Any]:
    """All members are started at once, and hold what the set held."""
    ret = _result(name)
    if __opts__["test"]:
        return {**ret, "result": None, "comment": "etcd would be started"}
    try:
        plan = _plan()
        backup = plan["backup"]
        answers = _ask(
            plan["members"], "indigo_restore.start",
            id_=plan["id"], revision=backup["revision"], keys=backup["keys"],
        )  # fmt: skip
        _all_did(plan["members"], answers, "etcd does not serve what was restored")
    except CommandExecutionError as err:
        return _failed(name, f"{err}. Run indigo.restore again when that is mended")
    ret["changes"] = {id_: f"revision {answers[id_]['revision']}" for id_ in plan["members"]}
    return {**ret, "comment": f"{backup['keys']} keys, as when {backup['name']} was made"}


def refreshed(name: str, always: bool = False) -> dict[str, Any]:
    """The control plane runs again, and nothing holds on to what it knew of the lost time.

    Args:
        name: What the step says of itself.
        always: Also break off the watches of nodes where the revision was raised.
    """
    ret = _result(name)
    if __opts__["test"]:
        return {**ret, "result": None, "comment": "What caches the API's data would be restarted"}
    if not __context__.get(PLAN):
        return {**ret, "comment": "Nothing is to be refreshed"}
    try:
        plan = _plan()
        watchers = always or not plan.get("bumped")
        hosts = list(plan["masters"])
        if watchers:
            # A node that does not answer is restarted by whoever brings it back.
            hosts += [id_ for id_ in plan["nodes"] if isinstance(plan["reports"].get(id_), Mapping)]
        hosts = list(dict.fromkeys(hosts))
        answers = _ask(hosts, "indigo_restore.refresh", watchers=watchers)
        _all_did(hosts, answers, "not everything serves again; etcd does")
    except CommandExecutionError as err:
        return _failed(name, str(err))
    ret["changes"] = {
        id_: ", ".join(one["restarted"]) for id_, one in answers.items() if one["restarted"]
    }
    silent = [id_ for id_ in plan["nodes"] if not isinstance(plan["reports"].get(id_), Mapping)]
    told = f"restarted on {len(ret['changes'])} hosts"
    if silent and watchers:
        told += f"; {', '.join(silent)} did not answer: restart kubelet and kube-proxy there"
    return {**ret, "comment": told}


def deployed(name: str) -> dict[str, Any]:
    """Bare hosts, where there are any, are deployed with the data that is there now."""
    ret = _result(name)
    if __opts__["test"]:
        return {**ret, "result": None, "comment": "Bare hosts would be deployed"}
    try:
        plan = _plan()
        bare = [
            id_ for id_, one in plan["reports"].items() if isinstance(one, Mapping) and one["bare"]
        ]
        if not bare:
            return {**ret, "comment": "No host is bare"}
        # Not through saltutil.runner: that turns an exception into a traceback in a string.
        runners = salt.loader.runner(__opts__, context=__context__)
        if problems := runners["indigo_hosts.deploy"]():
            raise CommandExecutionError("indigo.deploy: " + "; ".join(problems))
    except CommandExecutionError as err:
        return _failed(name, f"{err}. Run indigo.deploy when that is mended: the data is there")
    ret["changes"] = dict.fromkeys(bare, "deployed")
    return {**ret, "comment": f"{', '.join(bare)} were bare"}


def finished(name: str) -> dict[str, Any]:
    """Members note that the restore is over; the next one is another one."""
    ret = _result(name)
    if __opts__["test"]:
        return {**ret, "result": None, "comment": "It would be over"}
    if not __context__.get(PLAN):
        return {**ret, "comment": "Nothing was to be done"}
    try:
        plan = _plan()
        answers = _ask(plan["members"], "indigo_restore.finish", id_=plan["id"])
    except CommandExecutionError as err:
        return _failed(name, str(err))
    missing = [id_ for id_ in plan["members"] if answers.get(id_) is not True]
    if missing:
        return _failed(name, f"{', '.join(missing)} did not note the end: run it again")
    return {
        **ret,
        "comment": (
            f"The cluster is as {plan['backup']['name']} holds it. "
            if "backup" in plan
            else f"The cluster goes on with the data of {plan['best']}. "
        )
        + f"The data from before is kept on the members, in replaced-{plan['id']} below etcd's "
        "data: remove it when it is not needed any more",
    }


def keys(name: str) -> dict[str, Any]:
    """Authorities, tokens and shared keys that no host has any more come back from the set.

    The operator's private key opens them here, in memory; each part is sealed again for the minion
    that gets it.
    """
    ret = _result(name)
    if __opts__["test"]:
        return {**ret, "result": None, "comment": "Lost keys would come back from the set"}
    try:
        plan = _plan()
        if not plan["kinds"]:
            return {**ret, "comment": "No key is lost"}
        for kind in plan["kinds"]:
            receiver = plan["ca"] if kind == "authorities" else plan["masters"][0]
            said = __salt__["saltutil.runner"](
                "indigo_backup.hand_over",
                kwarg={
                    "name": plan["backup"]["name"],
                    "source": plan["holders"][0],
                    "kind": kind,
                    "receiver": receiver,
                    "key": plan["key"],
                },
            )
            if not isinstance(said, Mapping) or not said.get("changed"):
                raise CommandExecutionError(f"{kind} for {receiver}: {said}")
            ret["changes"][receiver] = {**ret["changes"].get(receiver, {}), kind: said["changed"]}
    except CommandExecutionError as err:
        return _failed(name, f"{err}. etcd was not touched")
    return {**ret, "comment": f"{' and '.join(plan['kinds'])} came back"}


# --- recovery ---------------------------------------------------------------------------------


def survivor(positions: Mapping[str, Any]) -> str:
    """The member to recover from: the one whose data goes furthest.

    Args:
        positions: By minion id, of ``indigo_restore.position``.

    Raises:
        ValueError: None has data.

    Example:
        >>> survivor({"a": {"data": True, "revision": 5}, "b": {"data": True, "revision": 7}})
        'b'
    """
    found = {id_: one["revision"] for id_, one in positions.items() if one.get("data")}
    if not found:
        raise ValueError("no etcd host that answers has data: restore a backup, or bring one back")
    return max(found, key=lambda id_: found[id_])


def lost_quorum(name: str, confirm: str | None = None) -> dict[str, Any]:
    """The quorum is lost, it is known what survives, and somebody wants to go on with that.

    Args:
        name: What the step says of itself.
        confirm: Name of the cluster.
    """
    ret = _result(name)
    try:
        plan = __salt__["indigo_model.plan"]()
        members = plan["roles"]["etcd"]
        reports = _reports(plan["hosts"])
        here = [id_ for id_ in members if isinstance(reports.get(id_), Mapping)]
        begun = [
            reports[id_]["journal"]
            for id_ in here
            if (reports[id_]["journal"] or {}).get("backup") == ""
            and reports[id_]["journal"]["stage"] != "done"
        ]
        if not begun and any(reports[id_]["healthy"] for id_ in here):
            return {**ret, "comment": "etcd has a quorum: nothing is to be recovered"}
        lost = [id_ for id_ in members if id_ not in here]
        told = (
            f"{', '.join(lost) or 'no host'} of etcd does not answer; {', '.join(here) or 'none'} "
            "does. The member whose data goes furthest would become a cluster of one, and the "
            "others that answer would join it without their data. Writes that only lost members "
            "know are gone, and a lost member that comes back with its old data must not: "
            "rebuild it"
        )
        if __opts__["test"]:
            return {**ret, "result": None, "comment": told}
        if confirm != plan["cluster"]:
            return _failed(
                name,
                f"{told}. Nothing was changed. To go on, give the cluster's name: salt-run "
                f'state.orchestrate indigo.recover pillar=\'{{"confirm": "{plan["cluster"]}"}}\'',
            )
        positions = _ask(here, "indigo_restore.position")
        _all_did(here, positions, "it cannot be told whose data goes furthest")
        best = survivor(positions)
        id_ = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        if begun:
            id_ = str(max(begun, key=lambda one: one["at"])["id"])
            first = [
                one
                for one in here
                if (reports[one]["journal"] or {}).get("id") == id_ and reports[one]["data"]
            ]
            best = first[0] if first else best
    except (CommandExecutionError, ValueError) as err:
        return _failed(name, str(err))
    __context__[PLAN] = {
        "cluster": plan["cluster"],
        "members": here,
        "masters": [m for m in plan["roles"]["master"] if isinstance(reports.get(m), Mapping)],
        "nodes": plan["roles"]["node"],
        "ca": plan["roles"]["ca"][0],
        "reports": dict(reports),
        "id": id_,
        "best": best,
        "bumped": False,
    }
    seen = ", ".join(f"{one} {positions[one]['revision']}" for one in here)
    return {**ret, "comment": f"{best} goes furthest (revisions: {seen}); lost: {lost or 'none'}"}


def survived(name: str) -> dict[str, Any]:
    """The member whose data goes furthest is a cluster of one; the others' data is aside."""
    ret = _result(name)
    if __opts__["test"]:
        return {**ret, "result": None, "comment": "One member would become a cluster of one"}
    plan = __context__.get(PLAN)
    if not plan:
        return {**ret, "comment": "Nothing is to be recovered"}
    try:
        others = [id_ for id_ in plan["members"] if id_ != plan["best"]]
        # First: two of them could be a quorum of what was.
        gave = _ask(others, "indigo_restore.give_way", id_=plan["id"])
        _all_did(others, gave, "not every member gave way; none was changed into a new cluster")
        said = _ask([plan["best"]], "indigo_restore.survive", id_=plan["id"])
        _all_did([plan["best"]], said, "the surviving member does not serve")
    except CommandExecutionError as err:
        return _failed(name, f"{err}. Run indigo.recover again when that is mended")
    found = said[plan["best"]]
    ret["changes"] = {
        plan["best"]: f"a cluster of one at revision {found['revision']}",
        **{id_: f"old data in {one['aside']}" for id_, one in gave.items() if one["aside"]},
    }
    return {**ret, "comment": f"{plan['best']} serves {found['keys']} keys"}


def rejoined(name: str) -> dict[str, Any]:
    """The other members that answer join the survivor's cluster, as learners first."""
    ret = _result(name)
    if __opts__["test"]:
        return {**ret, "result": None, "comment": "The other members would join"}
    plan = __context__.get(PLAN)
    if not plan:
        return {**ret, "comment": "Nothing is to be recovered"}
    try:
        others = [id_ for id_ in plan["members"] if id_ != plan["best"]]
        answers = _ask(others, "state.apply", mods="etcd", queue=True)
        _all_did(others, answers, "not every member joined")
        bad = _failures(answers)
        if bad:
            raise CommandExecutionError("not every member joined: " + "; ".join(bad))
    except CommandExecutionError as err:
        return _failed(name, f"{err}. Run indigo.recover again when that is mended")
    ret["changes"] = dict.fromkeys(others, "joined")
    return {**ret, "comment": f"{len(others) + 1} members"}


def _failures(answers: Mapping[str, Any]) -> list[str]:
    """States that failed, by host."""
    return [
        f"{id_}: {state.get('name')}: {state.get('comment')}"
        for id_, states in answers.items()
        for state in states.values()
        if isinstance(state, Mapping) and state.get("result") is False
    ]
