"""Take hosts out of the cluster, and put new machines in the place of old ones.

``salt-run indigo.remove``, ``indigo.replace``, ``indigo.drain`` and ``indigo.uncordon`` lead here.
Everything that could lose data is decided by pure functions from what the hosts say; the rest is
one step after the other, each of which finds out by itself whether it is done already. So a run
that was killed is finished by running it again.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import salt.cache
import salt.client
import salt.key
import salt.loader
from salt.exceptions import CommandExecutionError

__virtualname__ = "indigo_hosts"

#: Seconds after which Salt asks hosts that have not answered whether they are still at work.
ANSWER = 15

#: What brings a minion this project's modules.
CODE = ("saltutil.sync_modules", "saltutil.sync_states")

#: What the refusals call the last host of a role.
LAST = {
    "ca": "it holds the certificate authorities, which cannot be made again. Copy /etc/indigo/ca "
    "to another host, give that one the role ca in its place and deploy (certificates.md)",
    "lb": "it is the last load balancer, the API's address would be gone. Add another one first",
    "etcd": "it is etcd's only member: all that the API knows would go with it. Add others first",
    "master": "it is the last master, and it has the only copy of the keys to what is in etcd. Add "
    "another one first",
}

#: A minion's public key. Salt 3008.3 prints the fingerprint of all of it on the Salt master, and of
#: a part of it on the minion (key.finger): https://github.com/saltstack/salt/issues/69970
MINION_KEY = "/etc/salt/pki/minion/minion.pub"

KEYS = {
    "minions": "accepted",
    "minions_pre": "pending",
    "minions_denied": "denied",
    "minions_rejected": "rejected",
}


def __virtual__() -> str:
    """Usable on every Salt master."""
    return __virtualname__


# --- decisions, pure --------------------------------------------------------------------------


def _name(host: str | Sequence[str]) -> list[str]:
    """Hosts from a command line: one, several with commas between them, or a list."""
    names = host.split(",") if isinstance(host, str) else [str(one) for one in host]
    found = list(dict.fromkeys(name.strip() for name in names if name.strip()))
    if not found:
        raise CommandExecutionError("host: found nothing; expected a minion id, such as node3")
    return found


def _refusals(
    plan: Mapping[str, Any],
    leaving: Sequence[str],
    reports: Mapping[str, Any],
    losses: Callable[[Sequence[Mapping[str, Any]], str], str | None],
    force: bool = False,
    gone: Sequence[str] = (),
) -> list[str]:
    """Why hosts must not leave the cluster now, each with what to do first.

    Args:
        plan: ``indigo_model.plan()`` of the whole cluster, those who leave among it.
        leaving: Ids of those who leave.
        reports: By id, ``indigo_status.report`` of the hosts that answered.
        losses: ``indigo_etcd.loss``.
        force: Those who leave and do not answer are off for good.
        gone: Of those who leave, who is through with it already and may be silent.
    """
    found: list[str] = []
    answered = {id_: one for id_, one in reports.items() if isinstance(one, Mapping)}
    for role, why in LAST.items():
        have = plan["roles"][role]
        if have and set(have) <= set(leaving):
            found += [f"{id_}: {why}" for id_ in have[:1]]
    if found:
        return found
    for id_ in leaving:
        if id_ not in answered and id_ not in gone and not force:
            found.append(
                f"{id_} does not answer ({reports.get(id_) or 'silence'}): start its salt-minion. "
                "If it is off for good, add force=True; then wipe its disks before it runs again"
            )
    found += _etcd_refusals(plan, leaving, answered, losses)
    found += _master_refusals(plan, leaving, answered, force)
    balancers = [id_ for id_ in plan["roles"]["lb"] if id_ not in leaving]
    if set(plan["roles"]["lb"]) & set(leaving) and not any(
        all(answered.get(id_, {}).get("units", {"": False}).values()) for id_ in balancers
    ):
        found.append(
            f"none of the load balancers that stay ({', '.join(balancers)}) runs haproxy and "
            "keepalived: nobody would take the API's address. `salt-run indigo.status` says what "
            "is wrong with them"
        )
    if not force:
        silent = [id_ for id_ in _told(plan, leaving) if id_ not in answered and id_ not in leaving]
        found += [
            f"{id_} does not answer, and it must learn of this: start its salt-minion. If it is "
            "off for good, remove it too. With force=True it learns of it from the next deploy"
            for id_ in silent
        ]
    return found


def _etcd_refusals(
    plan: Mapping[str, Any],
    leaving: Sequence[str],
    answered: Mapping[str, Mapping[str, Any]],
    losses: Callable[[Sequence[Mapping[str, Any]], str], str | None],
) -> list[str]:
    members = [id_ for id_ in plan["roles"]["etcd"] if id_ in leaving]
    if not members:
        return []
    rows: list[Mapping[str, Any]] = []
    told: list[str] = []
    for id_ in plan["roles"]["etcd"]:
        if id_ in leaving:
            continue
        said = answered.get(id_, {}).get("etcd") or {}
        if rows := list(said.get("members", [])):
            break
        told.append(f"{id_}: {said.get('problem', 'no answer')}")
    if not rows:
        return [
            f"{', '.join(members)}: no member of etcd that stays says who its members are "
            f"({'; '.join(told)}): without a quorum nobody can leave. Bring back a majority first "
            "(etcd.md)"
        ]
    found = []
    for id_ in members:
        name = plan["hosts"][id_]["name"]
        if why := losses(rows, name):
            found.append(why)
        rows = [one for one in rows if one["name"] != name]  # the next one leaves after it
    return found


def _master_refusals(
    plan: Mapping[str, Any],
    leaving: Sequence[str],
    answered: Mapping[str, Mapping[str, Any]],
    force: bool,
) -> list[str]:
    found = []
    stay = [id_ for id_ in plan["roles"]["master"] if id_ not in leaving]
    serve = [id_ for id_ in stay if (answered.get(id_, {}).get("api") or {}).get("ok")]
    going = [id_ for id_ in plan["roles"]["master"] if id_ in leaving]
    sets = {
        id_: one["tokens"]["set"]
        for id_, one in answered.items()
        if (one.get("tokens") or {}).get("set") and id_ in plan["roles"]["master"]
    }
    for id_ in going:
        own = sets.get(id_)
        copies = [
            other
            for other in stay
            if other in sets
            and (
                own is None
                or (
                    sets[other]["lineage"] == own["lineage"]
                    and sets[other]["generation"] >= own["generation"]
                )
            )
        ]
        if not copies:
            found.append(
                f"{id_}: no other master that answers ({', '.join(stay)}) has its tokens and keys, "
                "so the only copy of what opens the Secrets in etcd would be lost. Bring them in "
                "step with `salt-run indigo_tokens.replicate`, or start their minions"
            )
    needed = bool(going and not force) or any(
        "node" in plan["hosts"][id_]["roles"] for id_ in leaving
    )
    if needed and not serve:
        found.append(
            f"no API server serves on the masters that stay ({', '.join(stay) or 'none'}): see "
            "`salt-run indigo.status`, mend one first"
        )
    return found


def _told(plan: Mapping[str, Any], leaving: Sequence[str]) -> list[str]:
    """Hosts that have something to change when others leave."""
    roles = {role for id_ in leaving for role in plan["hosts"][id_]["roles"]}
    learn: set[str] = set()
    for role in roles:
        for other in {
            "lb": ("lb",),
            "etcd": ("master",),
            "master": ("lb", "master"),
            "node": ("master",),
        }.get(role, ()):
            learn.update(plan["roles"][other])
    return [id_ for id_ in plan["hosts"] if id_ in learn and id_ not in leaving]


def _changed(
    plan: Mapping[str, Any],
    leaving: Sequence[str],
    records: Mapping[str, Mapping[str, Any]],
    now: Mapping[str, Any],
) -> list[str]:
    """Hosts whose view is another one without those who leave, and those that must know anyway."""
    learn = set(_told(plan, leaving))
    for id_ in leaving:
        before = records[id_]["before"]
        learn |= {
            other
            for other, one in now["hosts"].items()
            if other in before and before[other] != one["digest"]
        }
    return [id_ for id_ in now["hosts"] if id_ in learn]


def _with(plan: Mapping[str, Any], records: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The plan of the cluster as it was before these hosts began to leave."""
    hosts = dict(plan["hosts"])
    roles = {role: list(ids) for role, ids in plan["roles"].items()}
    for id_, record in records.items():
        if id_ in hosts:
            continue
        hosts[id_] = {key: record[key] for key in ("address", "roles", "name")}
        for role in record["roles"]:
            roles[role].append(id_)
    return {**plan, "hosts": hosts, "roles": roles}


def _steps(plan: Mapping[str, Any], leaving: Sequence[str], answering: Iterable[str]) -> list[str]:
    """What a removal does, in order and in words."""
    answering = set(answering)
    told = ", ".join(_told(plan, leaving))
    steps = []
    for id_ in leaving:
        host = plan["hosts"][id_]
        roles = host["roles"]
        if "node" in roles:
            steps.append(
                f"{id_}: cordon it and evict its pods"
                if id_ in answering
                else f"{id_}: delete its pods, as it is off"
            )
        if "etcd" in roles:
            steps.append(f"{id_}: member {host['name']} leaves etcd")
        if "lb" in roles and id_ in answering:
            steps.append(f"{id_}: gives the virtual address up")
    if any({"node", "master"} & set(plan["hosts"][id_]["roles"]) for id_ in leaving):
        steps.append("the masters drop the tokens that are nobody's any more")
    if told:
        steps.append(f"{told}: go on without {', '.join(leaving)}")
    for id_ in leaving:
        if id_ in answering:
            steps.append(f"{id_}: its services, data, certificates, tokens and keys are removed")
        if "node" in plan["hosts"][id_]["roles"]:
            steps.append(f"{id_}: Kubernetes forgets node {plan['hosts'][id_]['name']}")
        steps.append(f"{id_}: its Salt key, mine and cached data are deleted")
    return steps


def _carries(report: Mapping[str, Any]) -> list[str]:
    """What of a cluster a host runs or holds: nothing on a new machine."""
    found = [unit for unit, active in report.get("units", {}).items() if active]
    tokens = report.get("tokens") or {}
    if any((tokens.get("tokens") or {}).values()):
        found.append("tokens")
    return found


# --- the edge to Salt -------------------------------------------------------------------------


class _Site:
    """The declared cluster and the hosts, as a runner reaches them."""

    def __init__(self) -> None:
        self.model = salt.loader.minion_mods(
            {**__opts__, "grains": {}, "pillar": {}}, whitelist=["indigo_model", "indigo_etcd"]
        )
        if "indigo_model.leaving" not in self.model:
            raise CommandExecutionError(
                "indigo_model is not there: module_dirs in the Salt master's configuration must "
                "name this tree's _modules folder with its absolute path"
            )
        self.client = salt.client.get_local_client(mopts=__opts__)
        self._begun = time.monotonic()

    def say(self, text: str) -> None:
        """One line of progress; standard output is for the result."""
        print(f"[{time.monotonic() - self._begun:6.1f} s] {text}", file=sys.stderr, flush=True)

    def ask(
        self,
        hosts: Iterable[str],
        function: str | Sequence[str],
        arg: Sequence[Any] = (),
        **kwargs: Any,
    ) -> dict[str, Any]:
        """What hosts returned, or in words what went wrong; who kept silent is missing."""
        hosts = list(hosts)
        if not hosts:
            return {}
        answers = self.client.cmd(
            hosts,
            function if isinstance(function, str) else list(function),
            arg=list(arg),
            kwarg=kwargs,
            tgt_type="list",
            timeout=ANSWER,
            full_return=True,
        )
        found: dict[str, Any] = {}
        for host, answer in (answers or {}).items():
            if not isinstance(answer, Mapping) or answer.get("out") == "no_return":
                continue
            found[host] = answer.get("ret")
            if answer.get("retcode") and isinstance(found[host], str):
                found[host] = f"{function}: {found[host].strip().splitlines()[-1]}"
        return found

    def do(self, host: str, function: str, **kwargs: Any) -> Any:
        """Run a function on one host; its answer must be data."""
        answer = self.ask([host], function, **kwargs)
        if host not in answer:
            raise CommandExecutionError(f"{host} did not answer to {function}; run this again")
        if isinstance(answer[host], str):
            raise CommandExecutionError(f"{host}: {answer[host]}")
        return answer[host]

    def apply(self, hosts: Iterable[str], sls: str, **kwargs: Any) -> dict[str, Any]:
        """Apply states; what changed, by host. Raises with all that failed."""
        hosts = list(hosts)
        answers = self.ask(hosts, "state.sls", mods=sls, queue=True, **kwargs)
        wrong, changed = [], {}
        for host in hosts:
            states = answers.get(host, "no answer")
            if not isinstance(states, Mapping):
                told = states if isinstance(states, str) else "; ".join(map(str, states))
                wrong.append(f"{host}: {' '.join(told.split())}")
                continue
            wrong += [
                f"{host}: {one.get('name')}: {one.get('comment')}"
                for one in states.values()
                if one.get("result") is False
            ]
            changed[host] = {
                one.get("name"): one["changes"] for one in states.values() if one.get("changes")
            }
        if wrong:
            raise CommandExecutionError(
                f"{sls} failed; mend it, run this again. {'; '.join(wrong)}"
            )
        return changed

    def master(
        self, plan: Mapping[str, Any], reports: Mapping[str, Any], but: Sequence[str]
    ) -> str:
        """A master that answers and whose API server serves."""
        for id_ in plan["roles"]["master"]:
            report = reports.get(id_)
            serves = isinstance(report, Mapping) and (report.get("api") or {}).get("ok")
            if id_ not in but and serves:
                return str(id_)
        raise CommandExecutionError(
            "no master that stays has an API server that serves: see `salt-run indigo.status`"
        )

    def keys(self, host: str) -> list[str]:
        """States of a minion's keys on the Salt master: ``accepted``, ``pending``."""
        with salt.key.get_key(__opts__) as keys:
            listed = keys.list_keys()
        return [word for folder, word in KEYS.items() if host in listed.get(folder, [])]

    def fingerprint(self, host: str) -> str:
        """Fingerprint of a key that waits to be accepted."""
        with salt.key.get_key(__opts__) as keys:
            found = keys.finger(host)
        return next(
            (shown[host] for folder, shown in found.items() if host in shown and "pre" in folder),
            "?",
        )

    def forget(self, host: str) -> bool:
        """Delete a minion's keys and what the Salt master remembers of it."""
        known = bool(self.keys(host))
        if known:
            # Only by its exact name: `match` is a pattern.
            with salt.key.get_key(__opts__) as keys:
                listed = keys.list_keys()
                keys.delete_key(
                    match_dict={folder: [host] for folder in KEYS if host in listed.get(folder, [])}
                )
        cache = salt.cache.factory(__opts__)
        for bank, key in (
            ("mine", host), ("grains", host), ("pillar", host),
            (f"minions/{host}", None),
        ):  # fmt: skip
            with contextlib.suppress(Exception):
                cache.flush(bank, key)
        return known


# --- functions --------------------------------------------------------------------------------


def remove(
    host: str | Sequence[str],
    force: bool = False,
    test: bool = False,
    cancel: bool = False,
    deadline: float = 300,
) -> dict[str, Any]:
    """Take hosts out of the cluster; see ``indigo.remove``."""
    leaving = _name(host)
    site = _Site()
    if cancel:
        return _cancelled(site, leaving)
    records = dict(site.model["indigo_model.leaving"]())
    if all(records.get(id_, {}).get("done") for id_ in leaving):
        return {"hosts": leaving, "done": [], "next": _next(site, leaving)}
    plan = site.model["indigo_model.plan"]()
    for id_ in leaving:
        if id_ not in records and id_ not in plan["hosts"]:
            raise CommandExecutionError(
                f"{id_} is not declared in {site.model['indigo_model.cluster_file']()}; there are "
                f"{', '.join(plan['hosts'])}. A host is removed before its lines are deleted: what "
                "it has to leave follows from them. If they are gone already, write them in again"
            )
    plan = _with(plan, {id_: records[id_] for id_ in leaving if id_ in records})
    gone = [id_ for id_ in leaving if records.get(id_, {}).get("left")]
    reports = _reports(site, plan, gone)
    problems = _refusals(
        plan, leaving, reports, site.model["indigo_etcd.loss"], force=force, gone=gone
    )
    new = [id_ for id_ in leaving if id_ not in records]
    if not problems and new:
        problems = site.model["indigo_model.remaining_problems"](*leaving)
    if problems:
        raise CommandExecutionError(
            f"{', '.join(leaving)} cannot be removed now. Nothing was changed.\n"
            + "\n".join(f"- {problem}" for problem in problems)
        )
    answering = [id_ for id_ in leaving if isinstance(reports.get(id_), Mapping)]
    if test:
        return {
            "hosts": leaving,
            "would": _steps(plan, leaving, answering),
            "then": _next(site, leaving),
        }
    done = _removed(site, plan, leaving, reports, records, force, deadline)
    return {"hosts": leaving, "done": done, "next": _next(site, leaving)}


def _cancelled(site: _Site, leaving: Sequence[str]) -> dict[str, Any]:
    kept = [id_ for id_ in leaving if site.model["indigo_model.unmark"](id_)]
    if not kept:
        raise CommandExecutionError(
            f"{', '.join(leaving)}: no removal was begun, so there is none to cancel"
        )
    return {
        "hosts": kept,
        "next": f"{', '.join(kept)} is what cluster.yaml says again. Accept its Salt key if that "
        "was deleted, and run: salt-run state.orchestrate indigo.deploy",
    }


def _next(site: _Site, leaving: Sequence[str]) -> str:
    """What is left for a person to do."""
    file = site.model["indigo_model.cluster_file"]()
    places = []
    for id_ in leaving:
        if found := site.model["indigo_model.lines"](id_):
            first, last = found
            many = f"lines {first} to {last}" if first != last else f"line {first}"
            places.append(f"{many} ({id_})")
    if not places:
        return "nothing: cluster.yaml does not name them any more"
    told = f"delete {', '.join(places)} of {file}, then run indigo.deploy: it changes nothing more"
    members = [
        id_ for id_ in site.model["indigo_model.plan"]()["roles"]["etcd"] if id_ not in leaving
    ]
    if len(members) % 2 == 0:
        told += (
            f". etcd has {len(members)} members now, which survive no more than {len(members) - 1} "
            "do: let the lines stand until you add a member in their place, or remove another"
        )
    return told


def _reports(site: _Site, plan: Mapping[str, Any], but: Sequence[str]) -> dict[str, Any]:
    """``indigo_status.report`` of all hosts, with the modules of this tree."""
    hosts = [id_ for id_ in plan["hosts"] if id_ not in but]
    site.say(f"ask {len(hosts)} hosts")
    up = site.ask(hosts, CODE, arg=[[], []])
    return site.ask(list(up), "indigo_status.report")


def _removed(
    site: _Site,
    plan: Mapping[str, Any],
    leaving: Sequence[str],
    reports: Mapping[str, Any],
    records: dict[str, dict[str, Any]],
    force: bool,
    deadline: float,
) -> list[str]:
    done: list[str] = []

    def tell(text: str) -> None:
        site.say(text)
        done.append(text)

    answering = [id_ for id_ in leaving if isinstance(reports.get(id_), Mapping)]
    roles = {id_: plan["hosts"][id_]["roles"] for id_ in leaving}
    nodes = [id_ for id_ in leaving if "node" in roles[id_]]
    names = {id_: plan["hosts"][id_]["name"] for id_ in leaving}
    master = site.master(plan, reports, leaving) if nodes else ""

    # Before anything else: it can fail, and then all is as it was.
    for id_ in nodes:
        if id_ in answering:
            site.say(f"{id_}: drain, for at most {deadline:g} s")
            pods = site.do(
                master, "indigo_drain.drain", name=names[id_], deadline=deadline, force=force
            )["evicted"]
            tell(f"{id_}: drained, {len(pods)} pods evicted")

    # From here on nothing brings them back: no view names them, and they have none themselves.
    for id_ in leaving:
        if id_ not in records:
            records[id_] = {
                **{key: plan["hosts"][id_][key] for key in ("address", "roles", "name")},
                "pillar": site.model["indigo_model.pillar"](id_),
                "before": {other: one["digest"] for other, one in plan["hosts"].items()},
                "left": False,
                "done": False,
            }
    for id_ in leaving:
        site.model["indigo_model.mark"](id_, records[id_])
    told = _changed(plan, leaving, records, site.model["indigo_model.plan"]())
    present = [id_ for id_ in told if isinstance(reports.get(id_), Mapping)]
    others = [
        id_ for id_ in plan["hosts"] if id_ not in leaving and isinstance(reports.get(id_), Mapping)
    ]
    site.ask(others, "saltutil.refresh_pillar", wait=True)

    for id_ in leaving:
        if "etcd" in roles[id_]:
            _leave_etcd(site, plan, leaving, reports, id_, tell)
    for id_ in leaving:
        if "lb" in roles[id_] and id_ in answering:
            site.apply([id_], "lb.absent", pillar=records[id_]["pillar"])
            tell(f"{id_}: gave the virtual address up")

    if any({"node", "master"} & set(roles[id_]) for id_ in leaving):
        _replicated()
        tell("the masters have no tokens of them any more")
    if present:
        site.say(f"{', '.join(present)}: apply")
        site.apply(present, "indigo.host")
        tell(f"{', '.join(present)}: go on without {', '.join(leaving)}")

    for id_ in answering:
        site.say(f"{id_}: remove all that it has")
        site.apply([id_], "common.absent", pillar=records[id_]["pillar"])
        tell(f"{id_}: services, data, certificates, tokens and keys are removed")
    for id_ in leaving:
        records[id_]["left"] = True
        site.model["indigo_model.mark"](id_, records[id_])
    for id_ in nodes:
        if site.do(master, "indigo_drain.forget", name=names[id_], pods=id_ not in answering):
            tell(f"{id_}: Kubernetes forgot node {names[id_]}")
    for id_ in leaving:
        if site.forget(id_):
            tell(f"{id_}: Salt key, mine and cached data are deleted")
    for id_ in leaving:
        records[id_]["done"] = True
        site.model["indigo_model.mark"](id_, records[id_])
    if untold := [id_ for id_ in told if id_ not in present]:
        tell(f"{', '.join(untold)} did not answer: run indigo.deploy when they are back")
    return done


def _leave_etcd(
    site: _Site,
    plan: Mapping[str, Any],
    leaving: Sequence[str],
    reports: Mapping[str, Any],
    host: str,
    tell: Callable[[str], None],
) -> None:
    """Have a member that stays take another one out."""
    problems = []
    for id_ in plan["roles"]["etcd"]:
        report = reports.get(id_)
        if id_ in leaving or not isinstance(report, Mapping):
            continue
        if "members" not in (report.get("etcd") or {}):
            continue
        try:
            left = site.do(
                id_,
                "indigo_etcd.leave",
                name=plan["hosts"][host]["name"],
                peer=f"https://{plan['hosts'][host]['address']}:2380",
            )
        except CommandExecutionError as error:
            problems.append(str(error))
            continue
        if left["removed"]:
            tell(f"{host}: left etcd, whose members are {', '.join(left['members'])}")
        return
    raise CommandExecutionError(
        f"{host} did not leave etcd: {'; '.join(problems) or 'no member could be asked'}"
    )


def _replicated() -> None:
    runners = salt.loader.runner(__opts__, context=__context__)
    runners["indigo_tokens.replicate"]()


def replace(host: str, test: bool = False) -> dict[str, Any]:
    """Put a new machine in the place of a host; see ``indigo.replace``."""
    (id_, *more) = _name(host)
    if more:
        raise CommandExecutionError("host: found several; expected one: replace them one by one")
    site = _Site()
    if id_ in site.model["indigo_model.leaving"]():
        raise CommandExecutionError(
            f"{id_} is being removed; expected a host that stays. To keep it: "
            f"salt-run indigo.remove host={id_} cancel=True"
        )
    plan = site.model["indigo_model.plan"]()
    if id_ not in plan["hosts"]:
        raise CommandExecutionError(
            f"{id_} is not declared; there are {', '.join(plan['hosts'])}. A host of another id "
            "is added, and the old one removed: docs/operations/hosts.md"
        )
    reports = _reports(site, plan, [])
    own = reports.get(id_)
    if isinstance(own, str):
        raise CommandExecutionError(f"{id_}: {own}")
    if problems := _irreplaceable(plan, id_, reports, site.model["indigo_etcd.loss"]):
        raise CommandExecutionError(
            f"{id_} cannot be replaced now. Nothing was changed.\n"
            + "\n".join(f"- {problem}" for problem in problems)
        )
    if isinstance(own, Mapping) and "ca" in plan["hosts"][id_]["roles"]:
        _authorities_restored(site, id_)
    keys = site.keys(id_)
    if test:
        return {"host": id_, "would": _replacing(plan, id_, own is not None)}
    done = _dismissed(site, plan, id_, reports)
    if own is None:
        _new_key(site, id_, keys, done)
    site.say(f"{id_} is a new machine: deploy")
    found = _deployed()
    return {"host": id_, "done": [*done, "indigo.deploy brought the new machine in"], **found}


def _replacing(plan: Mapping[str, Any], id_: str, there: bool) -> list[str]:
    """What replacing a host does, in words."""
    host = plan["hosts"][id_]
    steps = []
    if "node" in host["roles"]:
        steps.append(f"Kubernetes forgets node {host['name']} and the pods that were on it")
    if "etcd" in host["roles"]:
        steps.append(f"the old member {host['name']} leaves etcd")
    if not there:
        steps.append("the old machine's Salt key is deleted; you accept the new one's, run again")
    return [*steps, "indigo.deploy brings the new machine in: sealed tokens, new certificates"]


def _irreplaceable(
    plan: Mapping[str, Any],
    id_: str,
    reports: Mapping[str, Any],
    losses: Callable[[Sequence[Mapping[str, Any]], str], str | None],
) -> list[str]:
    """Why a host must not be replaced now, each with what to do first."""
    own = reports.get(id_)
    roles = plan["hosts"][id_]["roles"]
    if isinstance(own, Mapping) and (carried := _carries(own)):
        return [
            f"{id_} answers, and it is no new machine: it has {', '.join(carried)}. If that is the "
            "old one, switch it off, or wipe it with "
            f"`salt {id_} state.apply common.absent`. If a deploy of the new one was broken off, "
            "run indigo.deploy"
        ]
    answered = {other: one for other, one in reports.items() if isinstance(one, Mapping)}
    found = _etcd_refusals(plan, [id_], answered, losses)
    if plan["roles"]["etcd"] == [id_]:
        found = [
            f"{id_} was etcd's only member: what the API knew is gone with it. Restore a backup "
            "(etcd.md)"
        ]
    restored = ((answered.get(id_) or {}).get("tokens") or {}).get("set")
    if "master" in roles and not restored:
        stay = [other for other in plan["roles"]["master"] if other != id_]
        if not any((answered.get(o, {}).get("tokens") or {}).get("set") for o in stay):
            found.append(
                f"{id_}: no other master that answers ({', '.join(stay) or 'there is none'}) has "
                "the tokens and keys. Start their minions, or put /etc/kubernetes/tokens.set from "
                f"a backup on {id_} (root, 0600)"
            )
    if "node" in roles:
        serve = [
            other
            for other in plan["roles"]["master"]
            if other != id_ and (answered.get(other, {}).get("api") or {}).get("ok")
        ]
        if not serve and len(plan["roles"]["master"]) > 1:
            found.append("no API server serves on another master: mend one first")
    return found


def _authorities_restored(site: _Site, id_: str) -> None:
    """The authorities of the cluster must come from a backup; they are never made anew."""
    facts = site.do(id_, "indigo_pki.authorities")["held"]
    missing = [name for name, key in facts.items() if not key]
    if missing:
        raise CommandExecutionError(
            f"{id_} holds the certificate authorities, and {', '.join(missing)} is not there. "
            "Authorities cannot be made again: put /etc/indigo/ca from a backup on it (folders "
            "0700, ca.key 0600, owner root), then run this again (docs/operations/certificates.md)"
        )


def _dismissed(
    site: _Site, plan: Mapping[str, Any], id_: str, reports: Mapping[str, Any]
) -> list[str]:
    """The cluster forgets what the old machine was."""
    done: list[str] = []

    def tell(text: str) -> None:
        site.say(text)
        done.append(text)

    host = plan["hosts"][id_]
    if "etcd" in host["roles"]:
        _leave_etcd(site, plan, [id_], reports, id_, tell)
    if "node" in host["roles"] and len(plan["roles"]["master"]) > int("master" in host["roles"]):
        master = site.master(plan, reports, [id_])
        if site.do(master, "indigo_drain.forget", name=host["name"], pods=True):
            tell(f"{id_}: Kubernetes forgot node {host['name']} and its pods")
    return done


def _new_key(site: _Site, id_: str, keys: Sequence[str], done: Sequence[str]) -> None:
    """Make way for the new machine's key; who accepts it is a person."""
    said = "; ".join(done) or "nothing else was to be done"
    if "accepted" in keys:
        # Deletes one that was denied beside it, too: its minion sends it again.
        site.forget(id_)
        site.say(f"{id_}: the old machine's Salt key is deleted")
    raise CommandExecutionError(
        f"{id_} is not replaced yet. So far: {said}; the old machine's Salt key is not accepted "
        f"any more. Bring up the new machine with minion id {id_} and address as declared, compare "
        f"`salt-key -f {id_}` with `sha256sum {MINION_KEY}` on it, run `salt-key -a {id_}`, "
        f"then `salt-run indigo.replace host={id_}` again"
        + (f". A key is waiting: {site.fingerprint(id_)}" if "pending" in keys else "")
    )


def _deployed() -> dict[str, Any]:
    """Run ``indigo.deploy``; raises with what failed."""
    if wrong := deploy():
        raise CommandExecutionError(
            "The old machine is forgotten, and the deploy of the new one failed: mend it, run "
            f"indigo.deploy again. {'; '.join(wrong)}"
        )
    return {"next": "nothing: salt-run indigo.status shows the cluster"}


def deploy() -> list[str]:
    """Run ``indigo.deploy`` as a person would, within another run; what did not succeed.

    As a program of its own: an orchestration inside another run cannot authenticate to the Salt
    master where its steps make clients of their own. Its progress goes where ours does.

    CLI Example:

    .. code-block:: bash

        salt-run indigo_hosts.deploy
    """
    program = sys.argv[0] if os.path.basename(sys.argv[0]) == "salt-run" else "salt-run"
    folder = os.path.dirname(__opts__["conf_file"])
    command = [program, "-c", folder, "state.orchestrate", "indigo.deploy", "--out", "json"]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, check=False
        )
        wrong = failed_steps(json.loads(done.stdout))
    except (OSError, ValueError) as err:
        return [f"{' '.join(command)}: {err}"]
    return wrong or ([done.stdout[-500:]] if done.returncode else [])


def failed_steps(data: Mapping[str, Any]) -> list[str]:
    """What did not succeed, from what an orchestration prints with ``--out json``.

    >>> failed_steps({"data": {"m": {"s": {"__id__": "x", "result": False, "comment": "y"}}}})
    ['x: y']
    """
    wrong = []
    for steps in data.get("data", data).values():
        if not isinstance(steps, Mapping):
            wrong.append(str(steps))
            continue
        wrong += [
            f"{one.get('__id__', one.get('name'))}: {one.get('comment')}"
            for one in steps.values()
            if one.get("result") is False
        ]
    return wrong


def drain(host: str, deadline: float = 300, force: bool = False) -> dict[str, Any]:
    """Empty a node; see ``indigo.drain``."""
    return _on_master(host, "indigo_drain.drain", deadline=deadline, force=force)


def uncordon(host: str) -> dict[str, Any]:
    """Give a node pods again; see ``indigo.uncordon``."""
    return _on_master(host, "indigo_drain.uncordon")


def _on_master(host: str, function: str, **kwargs: Any) -> dict[str, Any]:
    """Do something about nodes through the first master that can."""
    site = _Site()
    plan = site.model["indigo_model.plan"]()
    ids = _name(host)
    wrong = [id_ for id_ in ids if id_ not in plan["roles"]["node"]]
    if wrong:
        raise CommandExecutionError(
            f"{', '.join(wrong)} is no declared node; nodes are {', '.join(plan['roles']['node'])}"
        )
    masters = plan["roles"]["master"]
    reports = site.ask(masters, "indigo_status.report")
    master = site.master(plan, reports, [])
    return {
        id_: site.do(master, function, name=plan["hosts"][id_]["name"], **kwargs) for id_ in ids
    }
