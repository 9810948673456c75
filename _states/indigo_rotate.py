"""The steps of ``indigo.rotate.*``, on the Salt master: shared keys and tokens for new ones.

An exchange has three phases: the new one is taken beside the old one, it is used, the old one is
dropped. The token set knows which it is in, so an orchestration that was killed half-way is run
again, and a deploy in between keeps the phase. No phase begins before every host that must know of
the one before runs with it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import salt.loader
from salt.exceptions import CommandExecutionError

#: As ``indigo_tokens`` has them.
PHASES = ("trusted", "used", "dropped")

#: Where a run keeps what its steps have found out.
RUN = "indigo_rotate.run"

#: Where preflight leaves why hosts are not as the last deploy left them.
DIFFERS = "indigo_cluster.differs"

#: Whose services read what is exchanged, in each phase.
READERS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "encryption": {"trusted": ("master",), "used": ("master",), "dropped": ("master",)},
    "tokens": {"trusted": ("master",), "used": ("master", "node"), "dropped": ("master",)},
    "serviceaccount": {"trusted": ("master",), "used": ("master",), "dropped": ("master",)},
}


def __virtual__() -> str | tuple[bool, str]:
    if "indigo_model.plan" not in __salt__:
        return False, "indigo_rotate runs in orchestrations on the Salt master, with the model"
    return "indigo_rotate"


# --- pure -------------------------------------------------------------------------------------


def passed(rotation: Mapping[str, Any] | None, phase: str) -> bool:
    """Whether an exchange is beyond a phase, so that nothing is left to be done for that one.

    Example:
        >>> passed({"phase": "used"}, "trusted"), passed({"phase": "used"}, "used")
        (True, False)
        >>> passed(None, "trusted")
        False
    """
    return rotation is not None and PHASES.index(rotation["phase"]) > PHASES.index(phase)


def readers(plan: Mapping[str, Any], what: str, phase: str) -> list[str]:
    """Ids of the hosts whose services must run with a phase before the next one begins.

    Example:
        >>> plan = {"roles": {"master": ["a", "b"], "node": ["b", "c"]}}
        >>> readers(plan, "tokens", "used"), readers(plan, "tokens", "dropped")
        (['a', 'b', 'c'], ['a', 'b'])
    """
    roles = READERS[what][phase]
    return list(dict.fromkeys(id_ for role in roles for id_ in plan["roles"][role]))


def told(rotation: Mapping[str, Any] | None, what: str, now: float) -> str:
    """What a run would do, for a person.

    Example:
        >>> told(None, "tokens", 0)
        'tokens: a new exchange would begin'
        >>> told({"what": "tokens", "phase": "used", "since": 0}, "tokens", 600)
        'tokens: the exchange that is used since 10 min would go on'
    """
    if not rotation:
        return f"{what}: a new exchange would begin"
    minutes = max(0, now - rotation["since"]) / 60
    return f"{what}: the exchange that is {rotation['phase']} since {minutes:.0f} min would go on"


# --- asking hosts -----------------------------------------------------------------------------


def _one(host: str, function: str, **kwarg: Any) -> Any:
    """A host's answer; its error is raised."""
    return __salt__["indigo_ask.each"]([host], function, kwarg=kwarg)[host]


def _hosts_run(name: str, what: str, hosts: list[str]) -> dict[str, Any]:
    """Apply all roles of some hosts at once; where one fails, say how the exchange goes on."""
    ret = __states__["salt.state"](name, tgt=hosts, tgt_type="list", sls="indigo.host", queue=True)
    if ret["result"] is False:
        return {**_failed(name, what, ret["comment"]), "changes": ret["changes"]}
    return ret


def _replicated(plan: Mapping[str, Any]) -> dict[str, Any]:
    """Every master and node has the set as it is; who does not answer stops the exchange."""
    # Not through saltutil.runner: that turns an exception into a traceback in a string.
    runners = salt.loader.runner(__opts__, context=__context__)
    done: dict[str, Any] = runners["indigo_tokens.replicate"]()
    if done["unreachable"]:
        raise CommandExecutionError(
            f"{', '.join(done['unreachable'])} does not answer, and would go on with what is "
            "dropped in the end: bring it back, or take it out of the cluster (indigo.remove)"
        )
    return done


def _result(name: str) -> dict[str, Any]:
    return {"name": name, "result": True, "changes": {}, "comment": ""}


def _failed(name: str, what: str, error: Any) -> dict[str, Any]:
    again = f"salt-run state.orchestrate indigo.rotate.{what}"
    text = f"{error}. Nothing is lost: when that is mended, run {again} again; it goes on from here"
    return {**_result(name), "result": False, "comment": text}


# --- the steps --------------------------------------------------------------------------------


def ready(name: str, what: str) -> dict[str, Any]:
    """All hosts have the token set as it is, and nothing else of it is being exchanged.

    Args:
        name: What the step says of itself.
        what: ``encryption`` or ``tokens``.

    Returns:
        A state's result; in test mode it says whether an exchange would begin or go on.
    """
    ret = _result(name)
    try:
        plan = __salt__["indigo_model.plan"]()
        runners = salt.loader.runner(__opts__, context=__context__)
        done = (
            runners["indigo_tokens.replicate"](test=True) if __opts__["test"] else _replicated(plan)
        )
        found = _one(done["holder"], "indigo_tokens.state")["set"]
        rotation = found and found["rotation"]
        if rotation and rotation["what"] != what:
            raise CommandExecutionError(
                f"an exchange of {rotation['what']} is {rotation['phase']}: finish it first, "
                f"salt-run state.orchestrate indigo.rotate.{rotation['what']}"
            )
    except CommandExecutionError as err:
        return _failed(name, what, err)
    if __opts__["test"]:
        return {**ret, "result": None, "comment": told(rotation, what, time.time())}
    __context__[RUN] = {"plan": plan, "rotation": rotation}
    if rotation:
        return {**ret, "comment": f"An exchange goes on: the new one is {rotation['phase']}"}
    return {**ret, "comment": f"All are in step with {done['holder']}; an exchange begins"}


def reached(name: str, what: str, phase: str) -> dict[str, Any]:
    """The exchange is in a phase, and every host that this concerns runs with it.

    Args:
        name: What the step says of itself.
        what: ``encryption`` or ``tokens``.
        phase: ``trusted``, ``used`` or ``dropped``.

    Returns:
        A state's result, with what changed on the hosts.
    """
    ret = _result(name)
    if __opts__["test"]:
        return {**ret, "result": None, "comment": "Restarts would follow, one host at a time"}
    try:
        run = __context__[RUN]
        if passed(run["rotation"], phase):
            return {**ret, "comment": "An earlier run did that"}
        holder = _replicated(run["plan"])["holder"]
        said = _one(holder, "indigo_tokens.rotate", what=what, phase=phase)
        run["rotation"] = said["set"]["rotation"]
        _replicated(run["plan"])
    except (CommandExecutionError, KeyError) as err:
        return _failed(name, what, err)
    return _hosts_run(name, what, readers(run["plan"], what, phase))


def rewritten(name: str) -> dict[str, Any]:
    """Every Secret in etcd is encrypted by the new key.

    Args:
        name: What the step says of itself.
    """
    ret = _result(name)
    if __opts__["test"]:
        return {**ret, "result": None, "comment": "Every Secret would be written again"}
    try:
        run = __context__[RUN]
        if passed(run["rotation"], "used"):
            return {**ret, "comment": "An earlier run did that"}
        key = run["rotation"]["key"]
        said = _one(run["plan"]["roles"]["master"][0], "indigo_rotate.rewrite", key=key)
    except (CommandExecutionError, KeyError) as err:
        return _failed(name, "encryption", err)
    if said["written"]:
        ret["changes"] = {"secrets": {"old": "another key", "new": key, "number": said["written"]}}
    return {**ret, "comment": f"All {said['secrets']} Secrets in etcd are encrypted by {key}"}


def accounts(name: str, pods: str = "restart") -> dict[str, Any]:
    """Every service account has a token of the new key, and every pod has been given it.

    Args:
        name: What the step says of itself.
        pods: ``restart`` workloads whose pods were made before; or ``leave`` pods that nothing
            replaces with what they have, which ends with the old key.
    """
    ret = _result(name)
    if __opts__["test"]:
        return {**ret, "result": None, "comment": "Accounts and pods would get new tokens"}
    try:
        run = __context__[RUN]
        if passed(run["rotation"], "used"):
            return {**ret, "comment": "An earlier run did that"}
        master = run["plan"]["roles"]["master"][0]
        if "pods" not in run["rotation"]:
            said = _one(master, "indigo_rotate.second_tokens")
            ret["changes"]["accounts with a second token"] = said["made"]
            now = int(time.time()) + 1
            holder = _replicated(run["plan"])["holder"]
            said = _one(
                holder, "indigo_tokens.rotate", what="serviceaccount", phase="used", pods=now
            )
            run["rotation"] = said["set"]["rotation"]
            _replicated(run["plan"])
        restarted = _pods_renewed(master, run["rotation"]["pods"], pods)
        if restarted:
            ret["changes"]["restarted"] = restarted
        said = _one(master, "indigo_rotate.old_tokens_end")
        if any(said.values()):
            ret["changes"]["tokens of the old key"] = said
    except (CommandExecutionError, KeyError) as err:
        return {**_failed(name, "serviceaccount", err), "changes": ret["changes"]}
    return {**ret, "comment": "No Secret and no pod has a token of the old key"}


def _pods_renewed(master: str, since: float, pods: str) -> list[str]:
    """Workloads that were restarted, so that no pod is left from before a time."""
    said = _one(master, "indigo_rotate.renew_pods", since=since)
    stay = [*said["left"], *said["waiting"]]
    if stay and pods != "leave":
        raise CommandExecutionError(
            f"{len(stay)} pods have what they were started with, and nothing replaces them: "
            f"{', '.join(stay[:5])}. Delete or recreate them, or give pillar "
            '\'{"pods": "leave"}\': they are refused by the API in the end'
        )
    return list(said["restarted"])


def finished(name: str, what: str) -> dict[str, Any]:
    """Every master notes that the exchange is over; the next run begins another one.

    Args:
        name: What the step says of itself.
        what: ``encryption`` or ``tokens``.
    """
    ret = _result(name)
    if __opts__["test"]:
        return {**ret, "result": None, "comment": "It would be over"}
    try:
        run = __context__[RUN]
        masters = run["plan"]["roles"]["master"]
        holder = _replicated(run["plan"])["holder"]
        _one(holder, "indigo_tokens.rotate", what=what, phase=None)
        _replicated(run["plan"])
        # Their states succeeded in the step before, and only the note went since.
        __salt__["indigo_ask.minions"](masters, "indigo_deployed.record")
    except (CommandExecutionError, KeyError) as err:
        return _failed(name, what, err)
    ret["changes"] = {what: {"old": "exchanged", "new": "the new one alone is taken"}}
    return {**ret, "comment": "The old one is taken nowhere any more"}


def renewed(name: str, older_than: float = 60) -> dict[str, Any]:
    """Every host has new keys and certificates, and runs with them.

    What was issued lately is left alone, so a run that was killed is run again and does the rest.

    Args:
        name: What the step says of itself.
        older_than: Minutes.
    """
    ret = _result(name)
    if __opts__["test"]:
        told_ = f"Keys and certificates older than {older_than:g} min would be exchanged"
        return {**ret, "result": None, "comment": told_}
    try:
        hosts = list(__salt__["indigo_model.plan"]()["hosts"])
        answers = __salt__["indigo_ask.each"](
            hosts, "indigo_pki.renew", kwarg={"new_keys": True, "older_than": older_than}
        )
    except CommandExecutionError as err:
        return _failed(name, "certificates", err)
    # Also where a run before this one left new certificates that nobody has read yet.
    differs = __context__.get(DIFFERS, {})
    new = [id_ for id_ in hosts if answers[id_]]
    chosen = [id_ for id_ in hosts if differs.get(id_, "unknown") or id_ in new]
    if not chosen:
        return {**ret, "comment": f"No certificate is older than {older_than:g} min"}
    ret = _hosts_run(name, "certificates", chosen)
    if ret["result"] is False:
        return ret
    count = sum(path.endswith(".crt") for id_ in new for path in answers[id_])
    return {**ret, "comment": f"{count} certificates on {len(new)} hosts. {ret['comment']}"}


# --- the authorities --------------------------------------------------------------------------


def authorities_ready(name: str) -> dict[str, Any]:
    """The CA host says how far an exchange of its authorities is.

    Args:
        name: What the step says of itself.
    """
    ret = _result(name)
    try:
        plan = __salt__["indigo_model.plan"]()
        ca = plan["roles"]["ca"][0]
        rotation = _one(ca, "indigo_pki.exchanged")
    except CommandExecutionError as err:
        return _failed(name, "ca", err)
    if __opts__["test"]:
        return {**ret, "result": None, "comment": told(rotation, "ca", time.time())}
    __context__[RUN] = {"plan": plan, "rotation": rotation, "ca": ca}
    if rotation:
        return {**ret, "comment": f"An exchange goes on: the new ones are {rotation['phase']}"}
    return {**ret, "comment": "An exchange begins"}


def authorities_reached(name: str, phase: str) -> dict[str, Any]:
    """The exchange of the authorities is in a phase, and every host runs with it.

    Args:
        name: What the step says of itself.
        phase: ``trusted``, ``used`` or ``dropped``.
    """
    ret = _result(name)
    if __opts__["test"]:
        return {**ret, "result": None, "comment": "Restarts would follow, one host at a time"}
    try:
        run = __context__[RUN]
        if passed(run["rotation"], phase):
            return {**ret, "comment": "An earlier run did that"}
        run["rotation"] = _one(run["ca"], "indigo_pki.exchange", phase=phase)["rotation"]
        hosts = list(run["plan"]["hosts"])
        function = "indigo_pki.follow" if phase == "used" else "indigo_pki.trust"
        __salt__["indigo_ask.each"](hosts, function)
    except (CommandExecutionError, KeyError) as err:
        return _failed(name, "ca", err)
    return _hosts_run(name, "ca", hosts)


def pods_trust(name: str, pods: str = "restart") -> dict[str, Any]:
    """Every pod that speaks to the API trusts both authorities.

    Args:
        name: What the step says of itself.
        pods: As in :func:`accounts`.
    """
    ret = _result(name)
    if __opts__["test"]:
        return {**ret, "result": None, "comment": "Workloads would be restarted"}
    try:
        run = __context__[RUN]
        if passed(run["rotation"], "trusted"):
            return {**ret, "comment": "An earlier run did that"}
        master = run["plan"]["roles"]["master"][0]
        if "pods" not in run["rotation"]:
            _one(master, "indigo_rotate.published")
            now = int(time.time()) + 1
            said = _one(run["ca"], "indigo_pki.exchange", phase="trusted", pods=now)
            run["rotation"] = said["rotation"]
        restarted = _pods_renewed(master, run["rotation"]["pods"], pods)
    except (CommandExecutionError, KeyError) as err:
        return _failed(name, "ca", err)
    if restarted:
        ret["changes"] = {"restarted": restarted}
    return {**ret, "comment": "No pod is left that trusts the old authority alone"}


def authorities_finished(name: str) -> dict[str, Any]:
    """The old authorities' keys are gone, and the next run begins another exchange.

    Args:
        name: What the step says of itself.
    """
    ret = _result(name)
    if __opts__["test"]:
        return {**ret, "result": None, "comment": "It would be over"}
    try:
        said = _one(__context__[RUN]["ca"], "indigo_pki.exchange", phase=None)
    except (CommandExecutionError, KeyError) as err:
        return _failed(name, "ca", err)
    ret["changes"] = said["changes"]
    return {**ret, "comment": "The old authorities are trusted nowhere any more"}
