"""Steps of an orchestration that concern the whole cluster.

They run on the Salt master, inside ``state.orchestrate``, and have a test mode like any state.
Preflight alone does the same in both modes: it reads, and brings minions this project's modules
and their current pillar, which changes nothing a host runs.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import sys
import threading
import time
from collections.abc import Iterable, Mapping
from typing import Any, TextIO

import salt.fileserver
import salt.utils.event
from salt.exceptions import CommandExecutionError

log = logging.getLogger(__name__)

#: What brings a minion this project's modules and its current pillar.
REFRESH = ("saltutil.sync_modules", "saltutil.sync_states", "saltutil.refresh_pillar")


#: Where preflight leaves, for a later step of the same run, why hosts are not as deployed.
DIFFERS = "indigo_cluster.differs"

#: Where it leaves, for steps of other modules, what shows the progress.
LIVE = "indigo_cluster.live"


def __virtual__() -> str | tuple[bool, str]:
    if "indigo_model.plan" not in __salt__:
        return False, "indigo_cluster runs in orchestrations on the Salt master, with the model"
    return "indigo_cluster"


def preflight(name: str) -> dict[str, Any]:
    """Refuse a deploy that cannot succeed, before any host is touched.

    Checks the declared cluster, brings this project's modules and the current pillar to minions
    that lack them, and compares what every host says of itself with the declaration.

    Args:
        name: What the step says of itself.

    Returns:
        A state's result. It fails with all problems at once, each with key or host and remedy.

    Example:

    .. code-block:: yaml

        Every host passes preflight:
          indigo_cluster.preflight: []
    """
    _show_progress()
    _begin(name)
    problems = __salt__["indigo_model.problems"]()
    if problems:
        return _failed(name, "The declared cluster has problems", problems)
    plan = __salt__["indigo_model.plan"]()
    _list_files_anew(__opts__)
    try:
        facts, errors = _current_facts(plan)
    except CommandExecutionError as err:
        return _failed(name, "The hosts cannot be asked", [str(err)])
    problems = errors + [
        problem
        for problem in __salt__["indigo_model.host_problems"](facts)
        # A host that answered with an error is named once, with that error.
        if not any(problem.startswith(f"{error.split(':')[0]} (") for error in errors)
    ]
    if problems:
        return _failed(name, "Hosts are not ready", problems)
    __context__[DIFFERS] = {id_: str(fact.get("differs", "")) for id_, fact in facts.items()}
    return {
        "name": name,
        "result": True,
        "changes": {},
        "comment": f"{len(facts)} hosts answer and match the declared cluster {plan['cluster']}",
    }


def etcd_bootstrap(name: str) -> dict[str, Any]:
    """Let etcd's members form a new cluster, if and only if none of them has ever had data.

    A member starts a new cluster only where this step has left a grant. Grants are given when
    every declared member answers, and none has data or all with data hold a grant too: that is
    an earlier bootstrap which was interrupted. Otherwise members without data join.

    Args:
        name: What the step says of itself.

    Returns:
        A state's result; ``changes`` names the hosts that were given the grant.
    """
    _begin(name)
    plan = __salt__["indigo_model.plan"]()
    members = plan["roles"]["etcd"]
    try:
        needing = grants_needed(
            members, __salt__["indigo_ask.minions"](members, "indigo_etcd.facts")
        )
    except (ValueError, CommandExecutionError) as err:
        return _failed(name, "etcd cannot be bootstrapped", [str(err)])
    ret: dict[str, Any] = {"name": name, "result": True, "changes": {}, "comment": ""}
    if not needing:
        ret["comment"] = "etcd has data or may form its first quorum already"
        return ret
    ret["changes"] = {id_: {"old": None, "new": "bootstrap granted"} for id_ in needing}
    if __opts__["test"]:
        ret["result"] = None
        ret["comment"] = f"{', '.join(needing)} would be allowed to form a new etcd cluster"
        return ret
    kwarg = {"cluster": plan["cluster"], "members": members}
    try:
        answers = __salt__["indigo_ask.minions"](
            needing, "indigo_etcd.grant_bootstrap", kwarg=kwarg
        )
    except CommandExecutionError as err:
        return _failed(name, "etcd's bootstrap was not granted", [str(err)])
    silent = [id_ for id_ in needing if id_ not in answers or isinstance(answers[id_], str)]
    if silent:
        return _failed(
            name,
            "etcd's bootstrap was not granted everywhere",
            [f"{id_}: {answers.get(id_, 'no answer')}; run indigo.deploy again" for id_ in silent],
        )
    ret["comment"] = f"{', '.join(needing)} may form a new etcd cluster"
    return ret


def hosts_run(
    name: str, sls: str, everywhere: bool = False, title: str = "indigo.deploy"
) -> dict[str, Any]:
    """Run an SLS at once on the hosts that are not as the last successful deploy left them.

    Which these are preflight has found out, and the replication of tokens adds those that it gave
    something. The others are left alone, so that a change costs what it concerns. A step that runs
    without those two takes all hosts.

    Args:
        name: What the step says of itself.
        sls: What runs there, by ``salt.state``.
        everywhere: Take all hosts.
        title: What runs: the time that it took before is told.

    Returns:
        The result of ``salt.state``, or of nothing to do.

    Example:

    .. code-block:: yaml

        Every host runs its roles:
          indigo_cluster.hosts_run:
            - sls: indigo.host
    """
    declared = list(__salt__["indigo_model.plan"]()["hosts"])
    hosts = declared
    if not everywhere and DIFFERS in __context__:
        hosts = to_run(declared, __context__[DIFFERS], __context__.get("indigo_tokens.changed", ()))
    if not hosts:
        return {
            "name": name,
            "result": True,
            "changes": {},
            "comment": f"All {len(declared)} hosts are as the last deploy left them",
        }
    _begin(name)
    if _RUN and not __opts__["test"]:
        _RUN[0].expected = __salt__["indigo_model.estimate"](title, len(hosts))
        if _RUN[0].expected is not None:
            _RUN[0].line(f"{len(hosts)} hosts; the last runs took {_RUN[0].expected:.0f} s in all")
    ret = __states__["salt.state"](name, tgt=hosts, tgt_type="list", sls=sls, queue=True)
    if len(hosts) < len(declared):
        ret["comment"] = f"On {len(hosts)} of {len(declared)} hosts. {ret['comment']}"
    return ret


def to_run(
    declared: Iterable[str], differs: Mapping[str, str], given: Iterable[str] = ()
) -> list[str]:
    """Hosts on which something is to be done, in the declared order.

    Args:
        declared: Ids of all hosts.
        differs: By id, why a host is not as deployed; empty when it is. A host that is missing
            is taken.
        given: Ids of hosts that were given tokens since.

    Example:
        >>> to_run(["a", "b", "c", "d"], {"a": "", "b": "it was never deployed", "c": ""}, ["c"])
        ['b', 'c', 'd']
    """
    given = set(given)
    return [id_ for id_ in declared if differs.get(id_, "unknown") or id_ in given]


def whole(name: str, timeout: float = 180) -> dict[str, Any]:
    """Wait until every declared node is ready, as the API tells through the VIP.

    Args:
        name: What the step says of itself.
        timeout: Seconds to wait at most.

    Returns:
        A state's result without changes. It fails with each node that is not ready and why.
    """
    _begin(name)
    ret: dict[str, Any] = {"name": name, "result": True, "changes": {}, "comment": ""}
    if __opts__["test"]:
        ret["result"] = None
        ret["comment"] = "The API would be asked, through the VIP, until every node is ready"
        return ret
    plan = __salt__["indigo_model.plan"]()
    nodes = [plan["hosts"][id_]["name"] for id_ in plan["roles"]["node"]]
    answer: Any = None
    for master in plan["roles"]["master"]:
        try:
            answer = __salt__["indigo_ask.minions"](
                [master],
                "indigo_kube.wait_ready",
                kwarg={"names": nodes, "timeout": timeout},
            ).get(master)
        except CommandExecutionError as err:
            answer = str(err)
        if isinstance(answer, Mapping):
            break
    if not isinstance(answer, Mapping):
        return _failed(name, "No master answers", [str(answer or "no answer from any minion")])
    if answer["problem"] or answer["missing"]:
        problems = [f"node {node}: {why}" for node, why in sorted(answer["missing"].items())]
        if answer["problem"]:
            problems.insert(0, str(answer["problem"]))
        return _failed(
            name,
            f"After {answer['waited']} s the cluster is not whole",
            [*problems, "look at `journalctl -u kubelet` there, then run indigo.deploy again"],
        )
    ret["comment"] = f"Through the VIP: {len(nodes)} of {len(nodes)} nodes are ready"
    return ret


#: Seconds for add-ons that need more: tables are made, and hosts are heard of after minutes.
PATIENCE = {"zabbix": 480}


def addons_work(name: str, timeout: float = 120) -> dict[str, Any]:
    """Wait until every declared add-on does what it is for.

    Args:
        name: What the step says of itself.
        timeout: Seconds to wait at most.

    Returns:
        A state's result without changes. It fails with each add-on that does not work and why.
    """
    _begin(name)
    ret: dict[str, Any] = {"name": name, "result": True, "changes": {}, "comment": ""}
    plan = __salt__["indigo_model.plan"]()
    timeout = max([timeout, *(PATIENCE.get(addon, 0) for addon in plan["addons"])])
    if not plan["addons"]:
        return {**ret, "comment": "No add-on is declared"}
    listed = ", ".join(plan["addons"])
    if __opts__["test"]:
        return {**ret, "result": None, "comment": f"These would be tried: {listed}"}
    master = plan["roles"]["master"][0]
    began = time.monotonic()
    try:
        answer = __salt__["indigo_ask.minions"](
            [master], "indigo_addon.wait", kwarg={"timeout": timeout}
        ).get(master)
    except CommandExecutionError as err:
        answer = str(err)
    if not isinstance(answer, Mapping):
        return _failed(name, f"{master} does not answer", [str(answer or "no answer")])
    problems = [f"{addon}: {why}" for addon, why in answer.items() if why]
    if problems:
        waited = round(time.monotonic() - began)
        return _failed(name, f"After {waited} s not every add-on works", problems)
    return {**ret, "comment": f"Tried, and they work: {listed}"}


def grants_needed(members: Iterable[str], facts: Mapping[str, Any]) -> list[str]:
    """Which etcd hosts must be allowed to form a new cluster.

    Args:
        members: Ids of the declared etcd hosts.
        facts: By id, ``{"data": bool, "grant": bool}`` of the hosts that answered.

    Returns:
        Ids to grant, all of the members or none.

    Raises:
        ValueError: A member without data cannot be judged because another does not answer.

    Example:
        >>> grants_needed(["a", "b"], {"a": {"data": False, "grant": False},
        ...                            "b": {"data": False, "grant": True}})
        ['a']
        >>> grants_needed(["a", "b"], {"a": {"data": True, "grant": False},
        ...                            "b": {"data": False, "grant": False}})
        []
    """
    members = list(members)
    known = {id_: facts[id_] for id_ in members if isinstance(facts.get(id_), Mapping)}
    silent = [id_ for id_ in members if id_ not in known]
    if silent:
        raise ValueError(
            f"{', '.join(silent)} did not say whether etcd has data there "
            f"({'; '.join(str(facts.get(id_, 'no answer')) for id_ in silent)}): a new cluster "
            "could replace a living one. Bring the host back and run indigo.deploy again"
        )
    if any(fact["data"] for fact in known.values()):
        return []
    return [id_ for id_ in members if not known[id_]["grant"]]


def stale(plan: Mapping[str, Any], facts: Mapping[str, Any], code: str) -> tuple[list, list]:
    """Hosts that lack the current modules, and hosts that lack the current pillar.

    Args:
        plan: ``indigo_model.plan()``.
        facts: By id, the answers of ``indigo_preflight.facts``; text where it is not available.
        code: Fingerprint of the modules on the Salt master.
    """
    old_code = [
        id_
        for id_ in facts
        if not isinstance(facts[id_], Mapping) or facts[id_].get("code") != code
    ]
    old_pillar = [
        id_
        for id_ in facts
        if not isinstance(facts[id_], Mapping)
        or facts[id_].get("pillar") != plan["hosts"][id_]["digest"]
    ]
    return old_code, old_pillar


def _current_facts(plan: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Facts of the hosts that answer, and what went wrong on others that do."""
    facts = __salt__["indigo_ask.minions"](plan["hosts"], "indigo_preflight.facts")
    folders = [__opts__["module_dirs"][0], __opts__["states_dirs"][0]]
    code = __salt__["indigo_preflight.code_digest"](folders)
    old_code, old_pillar = stale(plan, facts, code)
    behind = sorted({*old_code, *old_pillar})
    if behind:
        # One job brings all: what costs is the start of a job on every host, not its functions.
        __salt__["indigo_ask.minions"](
            behind, REFRESH, arg=[[], [], [{"__kwarg__": True, "wait": True}]], timeout=15
        )
        facts.update(__salt__["indigo_ask.minions"](behind, "indigo_preflight.facts"))
    errors = [
        f"{id_}: {answer}; see /var/log/salt/minion there"
        for id_, answer in facts.items()
        if not isinstance(answer, Mapping)
    ]
    return {id_: fact for id_, fact in facts.items() if isinstance(fact, Mapping)}, errors


def _failed(name: str, what: str, problems: Iterable[str]) -> dict[str, Any]:
    listed = "\n".join(f"- {problem}" for problem in problems)
    return {
        "name": name,
        "result": False,
        "changes": {},
        "comment": f"{what}. Nothing was changed by this step.\n{listed}",
    }


# Live progress -----------------------------------------------------------------------------------


def describe(event: Mapping[str, Any], jobs: dict[str, dict[str, Any]]) -> str | None:
    """One line for an event of the master's bus that says how far a deploy is, or None.

    Args:
        event: ``{"tag": str, "data": dict}`` as the event bus gives it.
        jobs: State kept between calls: job id to what it does and who is expected.

    Example:
        >>> jobs = {}
        >>> describe({"tag": "salt/job/1/new", "data": {"jid": "1", "fun": "state.sls",
        ...           "arg": [{"mods": "x"}], "minions": ["a"]}}, jobs) is None
        True
        >>> describe({"tag": "salt/job/1/ret/a", "data": {"jid": "1", "id": "a", "fun": "state.sls",
        ...           "fun_args": ["indigo.host"], "return": {"s": {"result": True,
        ...           "changes": {"x": 1}}}}}, jobs)
        'indigo.host  a done, 1 of 1 hosts (1 states, 1 changed)'
    """
    data = event.get("data", {})
    parts = event.get("tag", "").split("/")
    if len(parts) < 4 or parts[:2] != ["salt", "job"]:
        return None
    # A job of several functions has a list of them.
    if not str(data.get("fun", "")).startswith("state."):
        return None
    job = jobs.setdefault(parts[2], {"expected": 0, "done": 0})
    if parts[3] == "new":
        job["expected"] = len(data.get("minions", []))
        return None
    if parts[3] != "ret":
        return None
    job["done"] += 1
    states = data.get("return")
    if not isinstance(states, Mapping):
        outcome = "FAILED: " + " ".join(str(states).split())[:200]
    else:
        results = [one for one in states.values() if isinstance(one, Mapping)]
        bad = [one for one in results if one.get("result") is False]
        changed = sum(1 for one in results if one.get("changes"))
        outcome = (
            "FAILED: " + "; ".join(str(one.get("name", "?")) for one in bad)[:200]
            if bad
            else f"done, {job['done']} of {job['expected']} hosts "
            f"({len(results)} states, {changed} changed)"
        )
    what = next((arg for arg in data.get("fun_args", []) if isinstance(arg, str)), data["fun"])
    return f"{what}  {data['id']} {outcome}"


class _Live:
    """What a terminal shows of this run while it goes on, and what it keeps for the end."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.terminal = stream.isatty()
        self.started = time.monotonic()
        self.step = ""
        self.expected: float | None = None
        self.jobs: dict[str, dict[str, Any]] = {}
        #: Job, id, return and time of every run of states on a host.
        self.returns: list[tuple[str, str, Any, str]] = []
        #: Host, name, begin and end of every function of ours that a job had it run, and whether
        #: it went well.
        self.asked: list[tuple[str, str, str, str, bool]] = []
        self._sent: dict[str, tuple[str, str]] = {}
        self.last: list[str] = []

    def line(self, text: str) -> None:
        """A line that stays."""
        clear = "\r\033[K" if self.terminal else ""
        told = f"{clear}[{time.monotonic() - self.started:6.1f} s] {text}"
        print(told, file=self.stream, flush=True)

    def tick(self) -> None:
        """On a terminal, the line that moves."""
        if self.terminal and self.step:
            now = time.monotonic() - self.started
            text = f"[{now:6.1f} s] {moving(self.step, self.jobs, now, self.expected)}"
            print(f"\r\033[K{text[:110]}", end="", file=self.stream, flush=True)

    def take(self, event: Mapping[str, Any]) -> None:
        """One event of the Salt master's bus."""
        if text := describe(event, self.jobs):
            self.line(text)
            data = event["data"]
            job = event["tag"].split("/")[2]
            self.returns.append((job, data["id"], data.get("return"), data.get("_stamp", "")))

        self._take_function(event)

    def _take_function(self, event: Mapping[str, Any]) -> None:
        data, parts = event.get("data", {}), event.get("tag", "").split("/")
        if len(parts) < 4 or parts[:2] != ["salt", "job"]:
            return
        # A job of several functions has a list of them.
        names = data.get("fun", "")
        name = ", ".join(names) if isinstance(names, list) else str(names)
        if parts[3] == "new" and "indigo_" in name:
            self._sent[parts[2]] = (name, data.get("_stamp", ""))
        elif parts[3] == "ret" and parts[2] in self._sent:
            name, sent = self._sent[parts[2]]
            good = data.get("success") is not False and not data.get("retcode")
            self.asked.append((data["id"], name, sent, data.get("_stamp", ""), good))

    def settle(self, jobs: Iterable[str], seconds: float = 3) -> None:
        """Wait for returns that are still on their way over the bus."""
        deadline = time.monotonic() + seconds
        waited = [self.jobs[job] for job in jobs if job in self.jobs]
        while any(job["done"] < job["expected"] for job in waited) and time.monotonic() < deadline:
            time.sleep(0.05)

    def end(self) -> None:
        """The last lines, after all that Salt itself prints."""
        self.step = ""
        sys.stdout.flush()
        if self.terminal:
            print("\r\033[K", end="", file=self.stream)
        for line in self.last:
            print(line, file=self.stream, flush=True)


#: The one run of this process.
_RUN: list[_Live] = []


def moving(
    step: str, jobs: Mapping[str, Mapping[str, Any]], now: float, expected: float | None
) -> str:
    """The line that moves: the step, its hosts, and how long it may still take.

    Example:
        >>> moving("Every host runs its roles", {"1": {"done": 2, "expected": 3}}, 20, 50)
        'Every host runs its roles: 2 of 3 hosts, about 30 s left'
    """
    text = step
    if jobs:
        done = sum(job["done"] for job in jobs.values())
        text += f": {done} of {sum(job['expected'] for job in jobs.values())} hosts"
    if expected is not None:
        left = expected - now
        text += f", about {left:.0f} s left" if left >= 1 else ", longer than the last runs"
    return text


def _list_files_anew(opts: Mapping[str, Any]) -> None:
    """Have the Salt master find files that came since it last looked.

    It lists its files every 20 s (``fileserver_list_cache_time``). Modules of a tree that was just
    updated, or a folder of a new service, would not be there for a deploy that comes sooner.

    Args:
        opts: The Salt master's configuration.
    """
    salt.fileserver.Fileserver(dict(opts)).clear_file_list_cache({"saltenv": None})


def _begin(name: str) -> None:
    if _RUN:
        _RUN[0].step = name


def _show_progress() -> None:
    """Tell of every host that finishes a step, for as long as this salt-run lives."""
    if os.path.basename(sys.argv[0]) != "salt-run" or _RUN:
        return
    # stderr: `--out json` keeps stdout for the result.
    live = _Live(sys.stderr)
    _RUN.append(live)
    __context__[LIVE] = live
    atexit.register(_end, live)
    threading.Thread(target=_watch, args=(dict(__opts__), live), daemon=True).start()


def _end(live: _Live) -> None:
    live.end()
    # Salt 3008.3 goes on with lines about unclosed objects and a traceback of a returner while
    # Python is taken down. They mean nothing, and would bury what failed.
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def _watch(opts: dict[str, Any], live: _Live) -> None:
    try:
        with salt.utils.event.get_event(
            "master", sock_dir=opts["sock_dir"], opts=opts, listen=True
        ) as bus:
            while True:
                event = bus.get_event(wait=1, tag="salt/job/", full=True)
                if event:
                    live.take(event)
                live.tick()
    except Exception:
        # Progress is a courtesy: without it the deploy goes on.
        log.exception("Live progress ended")


def watched(name: str, title: str) -> dict[str, Any]:
    """Tell how far a run is from now on, and how long it took before; :func:`told` sums it up.

    A run that begins with :func:`preflight` needs none of it.

    Args:
        name: What the step says of itself.
        title: What runs, such as ``indigo.restore``.

    Example:

    .. code-block:: yaml

        The run is watched:
          indigo_cluster.watched:
            - title: indigo.restore
            - order: 1
    """
    ret: dict[str, Any] = {"name": name, "result": True, "changes": {}, "comment": ""}
    if __opts__["test"]:
        return {**ret, "comment": "Nothing is watched where nothing is done"}
    _show_progress()
    if _RUN:
        _RUN[0].step = title
        _RUN[0].expected = __salt__["indigo_model.estimate"](title)
    return ret


def told(name: str, title: str) -> dict[str, Any]:
    """Sum the run up when it ends, whatever became of it: in lines, and as a picture of its time.

    The lines come after everything else, what failed last. The picture is a page below the Salt
    master's cache; how long the run took is kept there too, for the next one's estimate. None of
    that is a change.

    Args:
        name: What the step says of itself.
        title: What runs, such as ``indigo.deploy``.

    Example:

    .. code-block:: yaml

        What happened is told:
          indigo_cluster.told:
            - title: indigo.deploy
            - order: last
    """
    ret: dict[str, Any] = {"name": name, "result": True, "changes": {}, "comment": ""}
    if __opts__["test"]:
        return {**ret, "result": None, "comment": "The run would be summed up and drawn"}
    live = _RUN[0] if _RUN else None
    running = {tag: dict(one) for tag, one in __running__.items()}
    if live:
        live.settle(
            str(job)
            for one in running.values()
            for job in (*one.get("__jobs__", ()), one.get("__jid__"))
            if job
        )
    now = time.time()
    returns = list(live.returns) if live else []
    asked = list(live.asked) if live else []
    zone = float(time.localtime(now).tm_gmtoff)
    try:
        found = __salt__["indigo_model.told"](running, returns, title, now, zone, True, asked)
    except Exception as err:
        # To tell of it is a courtesy: a run that succeeded must not fail for it.
        log.exception("The run could not be summed up")
        return {**ret, "comment": f"The run could not be summed up: {err}"}
    if live:
        live.last = found["lines"]
    return {**ret, "comment": f"{found['lines'][0]}. Its timeline: {found['picture']}"}
