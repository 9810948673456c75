"""Everything that can be known before a deploy, in one table: ``salt-run indigo.preflight``.

``indigo.deploy`` begins with a part of it, which takes a second. This takes some, for hosts also
try the ways to each other, and it goes on where a deploy would stop.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import salt.client
import salt.loader

#: What brings a minion this project's modules and its current pillar.
REFRESH = ("saltutil.sync_modules", "saltutil.refresh_pillar")

#: Seconds for which hosts listen for each other.
LISTEN = 30


def __virtual__() -> str:
    return "indigo_preflight"


def run(timeout: float = 15) -> dict[str, Any]:
    """Check the declared cluster, and if it can be used, its hosts and the ways between them.

    Hosts are brought this project's modules and their pillar; nothing else of them changes.

    Args:
        timeout: Seconds to wait for hosts' answers.

    Returns:
        ``{"outputter": "indigo_preflight", "data": {"checks": [...], "problems": n, "warnings": n,
        "retcode": 0 or 1}}``; ``--out json`` prints the data. A check has ``check``, ``result``
        (``ok``, ``warning``, ``problem``), ``found`` and ``problems`` (sentences).
    """
    model = salt.loader.minion_mods(__opts__)
    declared = model["indigo_model.problems"]()
    checks = [file_check(declared, {} if declared else model["indigo_model.plan"]())]
    if not declared:
        with salt.client.get_local_client(mopts=__opts__) as client:
            checks += model["indigo_model.checks"](*_asked(model, client, timeout))
    return {"outputter": "indigo_preflight", "data": judged(checks)}


def file_check(problems: Iterable[str], plan: Mapping[str, Any]) -> dict[str, Any]:
    """The check of the cluster file itself, with all versions and checksums.

    >>> file_check(["name: found nothing"], {})["result"]
    'problem'
    """
    problems = list(problems)
    found = "cannot be used"
    if not problems:
        parts = ", ".join(f"{part} {plan['versions'][part]}" for part in ("kubernetes", "etcd"))
        found = f"{plan['cluster']}, {len(plan['hosts'])} hosts, {parts}; checksums are known"
    result = "problem" if problems else "ok"
    return {"check": "cluster.yaml", "result": result, "found": found, "problems": problems}


def judged(checks: list[dict[str, Any]]) -> dict[str, Any]:
    """The checks, and how many of them failed.

    >>> judged([{"check": "x", "result": "warning", "found": "", "problems": ["y"]}])["retcode"]
    0
    """
    count = {name: sum(one["result"] == name for one in checks) for name in ("problem", "warning")}
    return {
        "checks": checks,
        "problems": count["problem"],
        "warnings": count["warning"],
        "retcode": int(bool(count["problem"])),
    }


def _asked(model: Any, client: Any, timeout: float) -> tuple[dict, dict, dict]:
    """Facts, surveys and what hosts reached, by id; hosts that do not answer are missing."""
    ids = list(model["indigo_model.plan"]()["hosts"])

    def ask(targets: Iterable[str], function: Any, arg: Iterable[Any] = ()) -> dict[str, Any]:
        targets = list(targets)
        if not targets:
            return {}
        return client.cmd(targets, function, arg=list(arg), tgt_type="list", timeout=timeout)

    ask(ids, list(REFRESH), [[], [{"__kwarg__": True, "wait": True}]])
    facts = ask(ids, "indigo_preflight.facts")
    surveys = ask(facts, "indigo_survey.survey")
    ways = model["indigo_model.ways"]()
    # In one job each host learns its own part by its id: where to listen, and whom to try.
    wanted: dict[str, list[Any]] = {id_: [] for id_ in ids}
    for targets in ways.values():
        for other, address, port, _ in targets:
            if [address, port] not in wanted[other]:
                wanted[other].append([address, port])
    listeners = [id_ for id_ in facts if wanted[id_]]
    ask(listeners, "indigo_survey.listen_as", [wanted, LISTEN])
    targets = {
        id_: [[address, port] for other, address, port, _ in found if other in facts]
        for id_, found in ways.items()
    }
    reached = ask([id_ for id_ in facts if targets[id_]], "indigo_survey.reach_as", [targets])
    return facts, surveys, {id_: one for id_, one in reached.items() if isinstance(one, list)}
