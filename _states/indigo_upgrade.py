"""The steps of ``indigo.upgrade``, on the Salt master: what is declared, host by host.

Which hosts have something to do in which stage is what Salt's own test mode says of them, so an
upgrade that was stopped anywhere is run again and does the rest. A stage ends at the first host
that does not come through.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import salt.loader
from salt.exceptions import CommandExecutionError

#: Where a run keeps what its first step has found out.
RUN = "indigo_upgrade.run"

#: Where preflight leaves why hosts are not as the last deploy left them.
DIFFERS = "indigo_cluster.differs"

#: Where preflight leaves what shows the progress.
LIVE = "indigo_cluster.live"

AGAIN = "salt-run state.orchestrate indigo.upgrade"


def __virtual__() -> str | tuple[bool, str]:
    if "indigo_model.plan" not in __salt__:
        return False, "indigo_upgrade runs in orchestrations on the Salt master, with the model"
    return "indigo_upgrade"


class _Held(CommandExecutionError):
    """Nodes could not be emptied; nothing was restarted on them, and they take pods as before."""


# --- pure -------------------------------------------------------------------------------------


def failures(changes: Mapping[str, Any], comment: str) -> str:
    """What went wrong on the hosts of one ``salt.state``, for a person.

    Args:
        changes: Of its result, with ``ret``: minion id to states.
        comment: Of its result, where the hosts said nothing.

    Example:
        >>> failures({"ret": {"a": {"x_|-y_|-z_|-run": {"__id__": "etcd serves", "result": False,
        ...     "comment": "no answer"}}}}, "")
        'a: etcd serves: no answer'
    """
    found = []
    for id_, states in (changes.get("ret") or {}).items():
        if not isinstance(states, Mapping):
            found.append(f"{id_}: {states}")
            continue
        # What only waited for another state says nothing of its own.
        bad = [
            one
            for one in states.values()
            if isinstance(one, Mapping)
            and one.get("result") is False
            and one.get("__state_ran__") is not False
        ]
        found += [f"{id_}: {one.get('__id__', '?')}: {one.get('comment', '')}" for one in bad]
    return "; ".join(found) or " ".join(str(comment).split())


def listed(removed: Mapping[str, Any]) -> list[str]:
    """APIs in use that go, a line each.

    Example:
        >>> listed({"requested": ["batch/v1beta1 cronjobs"], "objects": {
        ...     "policy/v1beta1 podsecuritypolicies": {"strict": []}}})
        ['policy/v1beta1 podsecuritypolicies: strict', \
'batch/v1beta1 cronjobs: somebody asked for it since an API server started']
    """
    found = []
    for api, names in removed["objects"].items():
        shown = [f"{name} (by {', '.join(by)})" if by else name for name, by in names.items()]
        more = f" and {len(shown) - 5} more" if len(shown) > 5 else ""
        found.append(f"{api}: {', '.join(shown[:5])}{more}")
    found += [
        f"{api}: somebody asked for it since an API server started"
        for api in removed["requested"]
        if api not in removed["objects"]
    ]
    return found


def course_told(stages: Iterable[Mapping[str, Any]], old: Mapping[str, str]) -> str:
    """What a run would do, in one line.

    Example:
        >>> course_told([{"title": "nodes", "batches": [["a", "b"], ["c"]]}], {"etcd": "3.4.23"})
        'From etcd 3.4.23; nodes: a+b, c'
    """
    parts = [
        f"{stage['title']}: {', '.join('+'.join(batch) for batch in stage['batches'])}"
        for stage in stages
        if stage["batches"]
    ]
    begun = ", ".join(f"{key} {version}" for key, version in sorted(old.items()))
    return "; ".join([*([f"From {begun}"] if begun else []), *parts])


# --- asking hosts -----------------------------------------------------------------------------


def _one(host: str, function: str, **kwarg: Any) -> Any:
    """A host's answer; its error is raised."""
    return __salt__["indigo_ask.each"]([host], function, kwarg=kwarg)[host]


def _of_masters(masters: Sequence[str], function: str, **kwarg: Any) -> Any:
    """The answer of the first master that has one."""
    problems = []
    for master in masters:
        try:
            return _one(master, function, **kwarg)
        except CommandExecutionError as err:
            problems.append(str(err))
    raise CommandExecutionError("; ".join(problems) or "no master is declared")


def _facts(hosts: Sequence[str]) -> dict[str, Any]:
    return dict(__salt__["indigo_ask.each"](hosts, "indigo_upgrade.facts"))


def _previews(hosts: Sequence[str]) -> dict[str, Any]:
    """What each host would do, as Salt's test mode says."""
    kwarg = {"test": True, "queue": True}
    answers = __salt__["indigo_ask.minions"](hosts, "state.sls", arg=["indigo.host"], kwarg=kwarg)
    for id_ in hosts:
        found = answers.get(id_)
        if not isinstance(found, Mapping):
            raise CommandExecutionError(f"{id_}: its states cannot be tried: {found}")
        bad = failures({"ret": {id_: found}}, "")
        if bad:
            raise CommandExecutionError(bad)
    return answers


def _result(name: str) -> dict[str, Any]:
    return {"name": name, "result": True, "changes": {}, "comment": ""}


def _failed(ret: dict[str, Any], told: str) -> dict[str, Any]:
    return {**ret, "result": False, "comment": told}


def _begin(name: str) -> None:
    if live := __context__.get(LIVE):
        live.step = name


def _say(text: str) -> None:
    if live := __context__.get(LIVE):
        live.line(text)


# --- the steps --------------------------------------------------------------------------------


def allowed(name: str, removed_apis: str | None = None) -> dict[str, Any]:
    """What is declared may follow on what runs, and nothing is in its way.

    Reads, from the hosts themselves, what runs and what each would change, and keeps it for the
    steps that follow. Changes nothing, in neither mode.

    Args:
        name: What the step says of itself.
        removed_apis: ``accepted`` goes on although APIs are in use that go.

    Returns:
        A state's result. It fails with all that is in the way.
    """
    ret = _result(name)
    _begin(name)
    plan = __salt__["indigo_model.plan"]()
    hosts, masters = list(plan["hosts"]), plan["roles"]["master"]
    differs = __context__.get(DIFFERS, {})
    try:
        facts = _facts(hosts)
        nodes = _of_masters(masters, "indigo_upgrade.nodes")
        previews = _previews([id_ for id_ in hosts if differs.get(id_, "unknown")])
        course = __salt__["indigo_model.upgrade_course"](facts, nodes, previews)
        problems = list(course["problems"])
        gone: list[str] = []
        if course["removals"] and not problems:
            for master in masters:
                found = _one(
                    master,
                    "indigo_upgrade.removed",
                    rows=course["removals"],
                    until=course["until"],
                )
                gone += [line for line in listed(found) if line not in gone]
    except CommandExecutionError as err:
        return _failed(ret, f"The cluster cannot be judged, nothing was changed. {err}")
    if gone and removed_apis != "accepted":
        problems += [f"Kubernetes 1.{course['until']} does not serve {line}" for line in gone]
        problems.append(
            "write those objects and clients for the newer version of their API first; or, if you "
            'know them, add pillar=\'{"removed_apis": "accepted"}\''
        )
    if problems:
        text = "\n".join(f"- {problem}" for problem in problems)
        return _failed(ret, f"This upgrade must not begin. Nothing was changed.\n{text}")
    course["plan"] = plan
    __context__[RUN] = course
    told = course_told(course["stages"], course["old"])
    if not previews:
        told = f"All {len(hosts)} hosts are as the last deploy left them"
    elif not any(stage["batches"] for stage in course["stages"]):
        told = "Nothing that runs has to be restarted"
    left = [one for one in nodes if nodes[one]["ours"]]
    if left:
        told += f". Cordoned by an earlier run: {', '.join(left)}"
    if gone:
        told += f". Accepted: {'; '.join(gone)}"
    return {**ret, "comment": told}


def _restarts(course: Mapping[str, Any]) -> bool:
    return any(stage["batches"] for stage in course["stages"])


def fetched(name: str, sls: str) -> dict[str, Any]:
    """Every host that takes part has the new binaries beside those that run.

    Args:
        name: What the step says of itself.
        sls: What is applied, at once on all.
    """
    ret = _result(name)
    _begin(name)
    stages = __context__[RUN]["stages"]
    hosts = sorted({id_ for stage in stages for batch in stage["batches"] for id_ in batch})
    if not hosts:
        return {**ret, "comment": "Nothing is to be restarted"}
    if __opts__["test"]:
        told = f"{', '.join(hosts)} would fetch what they lack, beside what runs"
        return {**ret, "result": None, "comment": told}
    done = __states__["salt.state"](name, tgt=hosts, tgt_type="list", sls=sls, queue=True)
    if done["result"] is False:
        why = failures(done["changes"], done["comment"])
        told = f"{why}. Nothing was restarted; mend that and run {AGAIN} again"
        return _failed(done, told)
    return done


def backed_up(name: str) -> dict[str, Any]:
    """A backup of etcd was made now, and restored aside to prove it.

    Args:
        name: What the step says of itself.
    """
    ret = _result(name)
    _begin(name)
    if not _restarts(__context__[RUN]):
        return {**ret, "comment": "Nothing is to be restarted"}
    if __opts__["test"]:
        return {**ret, "result": None, "comment": "A backup would be made and proven"}
    try:
        runners = salt.loader.runner(__opts__, context=__context__)
        made = runners["indigo_backup.run"]()
    except CommandExecutionError as err:
        told = f"{err}. Nothing was restarted. See docs/operations/backup.md, then run {AGAIN}"
        return _failed(ret, told)
    return {
        **ret,
        "changes": {"backup": {"old": None, "new": made["made"]}},
        "comment": f"{made['made']} on {made['host']} was restored aside and read",
    }


def stage(name: str, stage: str, force: bool = False) -> dict[str, Any]:
    """The hosts of a stage, one after the other or in batches, run what is declared.

    Before each batch it waits while ``salt-run indigo.pause`` holds it. It stops at the first host
    that does not come through: that one is named, and those after it are not touched.

    Args:
        name: What the step says of itself.
        stage: ``etcd``, ``lb``, ``api``, ``controllers`` or ``node``.
        force: Also evict pods that nothing would bring back elsewhere.

    Returns:
        A state's result, with what changed on the hosts.
    """
    ret = _result(name)
    _begin(name)
    run = __context__[RUN]
    found = next(one for one in run["stages"] if one["name"] == stage)
    if not found["batches"]:
        return {**ret, "comment": f"All {found['title']} run what is declared"}
    order = ", ".join("+".join(batch) for batch in found["batches"])
    if __opts__["test"]:
        emptied = f"; {', '.join(found['disturbed'])} emptied before" if found["disturbed"] else ""
        return {**ret, "result": None, "comment": f"One after the other: {order}{emptied}"}
    total = len(found["batches"])
    states: dict[str, Any] = {}
    jobs: list[str] = []
    done: list[str] = []
    for number, batch in enumerate(found["batches"], 1):
        _unpaused(f"{name}: {number} of {total}, {', '.join(batch)}")
        _begin(f"{name}: {number} of {total}, {', '.join(batch)}")
        try:
            _through(name, found, batch, force, states, jobs)
        except CommandExecutionError as err:
            rest = [id_ for later in found["batches"][number:] for id_ in later]
            ret["comment"] = _stopped(err, batch, done, rest, stage, run["old"])
            ret["result"] = False
            run["failed"] = [run["plan"]["hosts"][id_]["name"] for id_ in batch]
            break
        done += batch
    else:
        ret["comment"] = f"One after the other: {order}"
    if states:
        ret["changes"] = {"out": "highstate", "ret": states}
    ret["__jobs__"] = jobs
    return ret


def _through(
    name: str,
    found: Mapping[str, Any],
    batch: list[str],
    force: bool,
    states: dict[str, Any],
    jobs: list[str],
) -> None:
    """Bring one batch through its stage; raises what is wrong with it."""
    plan = __context__[RUN]["plan"]
    masters = plan["roles"]["master"]
    names = [plan["hosts"][id_]["name"] for id_ in batch]
    disturbed = [plan["hosts"][id_]["name"] for id_ in batch if id_ in found["disturbed"]]
    if disturbed:
        limit = plan["upgrade"]["drain"]
        said = _of_masters(
            masters, "indigo_upgrade.enter", names=disturbed, deadline=limit, force=force
        )
        if said["held"]:
            raise _Held(said["held"])
        _say(f"{', '.join(disturbed)} emptied: {len(said['evicted'])} pods went elsewhere")
    applied = __states__["salt.state"](
        name, tgt=batch, tgt_type="list", sls=found["sls"], queue=True
    )
    jobs.append(str(applied.get("__jid__", "")))
    for id_, one in (applied["changes"].get("ret") or {}).items():
        states[id_] = {**states.get(id_, {}), **one} if isinstance(one, Mapping) else one
    if applied["result"] is False:
        raise CommandExecutionError(failures(applied["changes"], applied["comment"]))
    if found["units"]:
        wrong = __salt__["indigo_model.upgrade_wrong"](found["units"], _facts(batch))
        if wrong:
            raise CommandExecutionError("; ".join(f"{id_}: {why}" for id_, why in wrong.items()))
    if found["name"] != "node":
        return
    ready = _of_masters(masters, "indigo_kube.wait_ready", names=names, timeout=180)
    if ready["missing"] or ready["problem"]:
        told = [f"{node} is not ready: {why}" for node, why in ready["missing"].items()]
        raise CommandExecutionError("; ".join(told) or str(ready["problem"]))
    _of_masters(masters, "indigo_upgrade.leave", names=names)


def _stopped(
    error: Exception,
    batch: Sequence[str],
    done: Sequence[str],
    rest: Sequence[str],
    stage: str,
    old: Mapping[str, str],
) -> str:
    hosts = ", ".join(batch)
    mend = f"mend {hosts}, or correct cluster.yaml,"
    if isinstance(error, _Held):
        mend = f"nothing was restarted on {hosts}; see to what held the pods,"
    return (
        f"Stopped at {hosts}. {error}\n"
        f"Through before it: {', '.join(done) or 'none'}; not touched: {', '.join(rest) or 'none'}."
        f"\nOn: {mend} and run {AGAIN} again; it goes on here.\n"
        f"{__salt__['indigo_model.upgrade_back'](stage, dict(old))}"
    )


def _pause_file() -> str:
    return os.path.join(__opts__["cachedir"], "indigo", "upgrade.paused")


def _unpaused(what: str) -> None:
    """Wait while somebody holds the upgrade."""
    told = False
    while os.path.exists(_pause_file()):
        if not told:
            _say(f"paused before {what}; go on with: salt-run indigo.resume")
            told = True
        time.sleep(1)


def left(name: str) -> dict[str, Any]:
    """Nodes that an upgrade cordoned take pods again where they are well; the rest is told.

    Also after a run that failed, so that nothing stays cordoned or locked in silence.

    Args:
        name: What the step says of itself.

    Returns:
        A state's result; it fails where a node stays cordoned, or a lock is held, by an upgrade.
    """
    ret = _result(name)
    if RUN not in __context__:
        return {**ret, "comment": "Nothing was begun"}
    plan, failed = __context__[RUN]["plan"], __context__[RUN].get("failed", [])
    masters = plan["roles"]["master"]
    try:
        known = _of_masters(masters, "indigo_upgrade.nodes")
        ours = [node for node, one in known.items() if one["ours"]]
        # Kubernetes calls a node ready for a while after it ceased to be.
        well = [node for node in ours if known[node]["ready"] and node not in failed]
        if __opts__["test"]:
            told = f"{', '.join(well)} would take pods again" if well else "Nothing is cordoned"
            return {**ret, "result": None if well else True, "comment": told}
        freed = _of_masters(masters, "indigo_upgrade.leave", names=well) if well else []
        held = _of_masters(masters, "indigo_rolling.holders")
    except CommandExecutionError as err:
        return _failed(ret, f"It is not known whether a node is cordoned or a lock is held: {err}")
    if freed:
        ret["changes"] = {node: {"old": "cordoned", "new": "takes pods"} for node in freed}
    stay = [node for node in ours if node not in freed]
    others = [node for node, one in known.items() if one["cordoned"] and not one["ours"]]
    told = [
        f"{node} stays cordoned, for it "
        + ("did not come through" if node in failed else f"is not ready ({known[node]['reason']})")
        + f": mend it and run {AGAIN} again, or salt-run indigo.uncordon host={node}"
        for node in stay
    ]
    told += [
        f"the lock of {tier} is held by {queue[0]['host']}: it ends by itself within a minute of "
        "that run's end (salt MASTER indigo_rolling.holders)"
        for tier, queue in held.items()
    ]
    if told:
        return _failed(ret, "; ".join(told))
    text = f"{', '.join(freed)} take pods again" if freed else "No node is cordoned by an upgrade"
    if others:
        text += f"; cordoned by somebody else: {', '.join(others)}"
    return {**ret, "comment": f"{text}; no lock is held"}
