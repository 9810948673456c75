"""Bring the tokens of all masters and nodes in step, without ever seeing one.

The Salt master is only the postman: it asks who holds what (fingerprints), hands the holder the
public keys that it has accepted for the receivers, and passes on what the holder sealed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import salt.cache
import salt.client
import salt.loader
from salt.exceptions import CommandExecutionError

__virtualname__ = "indigo_tokens"

#: Bounds of one publish. A minion's return and an event may hold 1 MiB (max_event_size), and
#: every recipient of a publish gets all of it.
BATCH_HOSTS = 50
BATCH_BYTES = 400_000
#: Rough sizes of ciphertext in bytes: anything sealed, and each identity in a set.
SEALED_BYTES = 2_000
IDENTITY_BYTES = 110


def __virtual__() -> str:
    """Usable on every Salt master."""
    return __virtualname__


class Decision(NamedTuple):
    """What is to be done, from what the hosts said."""

    holder: str
    create: bool = False
    ensure: bool = False
    above: int = 0
    #: By minion id: ``{"set": True}`` for a master, ``{"grants": [...]}`` for a node.
    recipients: Mapping[str, Mapping[str, Any]] = MappingProxyType({})
    #: What is wrong, in words, by minion id; the holder's too.
    reasons: Mapping[str, str] = MappingProxyType({})


def _holder(
    masters: Sequence[str],
    answers: Mapping[str, Mapping[str, Any]],
    unreachable: Sequence[str],
    force: bool,
    wish: str | None,
) -> tuple[str, bool, int]:
    """Who holds the set: (minion id, whether it makes a new one, generation to exceed)."""
    reachable = [host for host in masters if host in answers]
    sets = {host: answers[host]["set"] for host in reachable if answers[host].get("set")}
    if not reachable:
        raise CommandExecutionError(
            f"masters: none of {', '.join(masters) or 'them is declared, so none'} answers; "
            "start their minions (salt-run manage.up shows who answers)"
        )
    if wish is not None:
        if wish not in sets:
            raise CommandExecutionError(
                f"holder: {wish} is no reachable master with a token set; those are: "
                f"{', '.join(sets) or 'none'}"
            )
        others = [other["generation"] for host, other in sets.items() if host != wish]
        differs = {other["fingerprint"] for other in sets.values()} != {sets[wish]["fingerprint"]}
        return wish, False, max(others, default=0) if differs else 0
    if sets:
        return _newest(sets), False, 0
    damaged = {host: answers[host]["damaged"] for host in reachable if answers[host]["damaged"]}
    if damaged:
        raise CommandExecutionError(
            "no master has a token set that can be read: "
            + "; ".join(f"{host}: {why}" for host, why in damaged.items())
        )
    silent = [host for host in masters if host in unreachable]
    if silent and not force:
        raise CommandExecutionError(
            f"no reachable master has the token set, and {', '.join(silent)} may hold it but "
            "does not answer; start its minion. If it is gone for good, remove it from "
            "pillar/cluster.yaml, or run salt-run indigo_tokens.replicate force=True: that makes "
            "new keys, and Secrets encrypted with the old key are lost unless that is restored"
        )
    remains = {host: answers[host]["remains"] for host in reachable if answers[host]["remains"]}
    distinct = {tuple(sorted(found.items())): host for host, found in remains.items()}
    if len(distinct) > 1:
        raise CommandExecutionError(
            f"{', '.join(distinct.values())} hold different keys of an earlier installation and "
            "no token set; move the files sa.key and encryption.yaml away on all masters but "
            "the one whose keys are in use"
        )
    return next(iter(remains), reachable[0]), True, 0


def _newest(sets: Mapping[str, Mapping[str, Any]]) -> str:
    """The host whose set wins; raises when that cannot be told."""
    best = max(sets, key=lambda host: sets[host]["generation"])  # the first of equals
    mine = sets[best]
    for host, other in sets.items():
        if other["fingerprint"] == mine["fingerprint"]:
            continue
        if other["lineage"] != mine["lineage"]:
            what = "of different origin, with different keys"
        elif other["generation"] == mine["generation"]:
            what = f"that differ and are both of generation {mine['generation']}"
        else:
            continue
        raise CommandExecutionError(
            f"{best} and {host} hold token sets {what}; decide whose API server has the keys in "
            f"use, {best} or {host}, and run salt-run indigo_tokens.replicate holder=<that host>"
            ": the other's set is replaced by it"
        )
    return best


def _decide(
    plan: Mapping[str, Any],
    declared: str,
    answers: Mapping[str, Mapping[str, Any]],
    unreachable: Sequence[str],
    force: bool = False,
    wish: str | None = None,
) -> Decision:
    """What each host lacks, and who supplies it. Pure.

    Args:
        plan: ``masters``, ``nodes``, ``identities`` (see ``indigo_model.tokens_plan``).
        declared: Digest of the plan's identities.
        answers: What ``indigo_tokens.state`` said, by minion id.
        unreachable: Declared hosts that did not answer.
        force: Make a set although an unreachable master may hold one.
        wish: The master whose set is to win.
    """
    masters = list(plan["masters"])
    holder, create, above = _holder(masters, answers, unreachable, force, wish)
    mine = answers[holder]["set"] or {"tokens": {}, "identities": None, "fingerprint": None}
    extend = create or bool(above) or mine["identities"] != declared
    reasons: dict[str, str] = {}
    if create:
        reasons[holder] = "makes the token set"
    elif extend:
        reasons[holder] = "updates the token set"
    elif answers[holder]["problems"]:
        reasons[holder] = "; ".join(answers[holder]["problems"])
    recipients: dict[str, dict[str, Any]] = {}
    for host in masters:
        if host == holder or host not in answers:
            continue
        answer = answers[host]
        if extend or not answer["set"] or answer["set"]["fingerprint"] != mine["fingerprint"]:
            reasons[host] = "receives the token set"
        elif answer["problems"]:
            reasons[host] = "; ".join(answer["problems"])
        else:
            continue
        recipients[host] = {"set": True}
    for host in plan["nodes"]:
        if host in masters or host not in answers:
            continue
        answer = answers[host]
        grants = [item["name"] for item in plan["identities"] if item.get("host") == host]
        lacking = [
            name
            for name in grants
            if not mine["tokens"].get(name) or answer["tokens"].get(name) != mine["tokens"][name]
        ]
        if lacking:
            reasons[host] = f"receives {', '.join(lacking)}"
        elif answer["problems"]:
            reasons[host] = "; ".join(answer["problems"])
        else:
            continue
        recipients[host] = {"grants": grants}
    return Decision(
        holder=holder,
        create=create,
        ensure=extend or holder in reasons,
        above=above,
        recipients=recipients,
        reasons=reasons,
    )


def _batches(
    recipients: Mapping[str, Mapping[str, Any]], identities: int
) -> Iterator[dict[str, Mapping[str, Any]]]:
    """Split recipients so that neither a return nor a publish grows too large."""
    batch: dict[str, Mapping[str, Any]] = {}
    size = 0
    for host, wish in recipients.items():
        cost = SEALED_BYTES + (identities * IDENTITY_BYTES if wish.get("set") else 0)
        if batch and (len(batch) == BATCH_HOSTS or size + cost > BATCH_BYTES):
            yield batch
            batch, size = {}, 0
        batch[host] = wish
        size += cost
    if batch:
        yield batch


def _model() -> Mapping[str, Any]:
    """Indigo's execution modules, in this process: only they are loaded, and no grains."""
    modules = salt.loader.minion_mods(
        {**__opts__, "grains": {}, "pillar": {}}, whitelist=["indigo_model", "indigo_tokens"]
    )
    for function in ("indigo_model.tokens_plan", "indigo_tokens.digest"):
        if function not in modules:
            raise CommandExecutionError(
                f"{function} is not there: module_dirs in the Salt master's configuration must "
                "name this tree's _modules folder with its absolute path"
            )
    return modules


def _ask(
    client: Any, hosts: Sequence[str], function: str, **kwargs: Any
) -> tuple[dict[str, Any], dict[str, str], list[str]]:
    """Run a function on hosts: (what they returned, what went wrong there, who kept silent)."""
    found: dict[str, Any] = {}
    failed: dict[str, str] = {}
    answers = client.cmd(list(hosts), function, kwarg=kwargs, tgt_type="list", full_return=True)
    for host, answer in (answers or {}).items():
        # Salt reports silence as a return of its own making.
        if not isinstance(answer, Mapping) or answer.get("out") == "no_return":
            continue
        if isinstance(answer.get("ret"), Mapping) and not answer.get("retcode"):
            found[host] = answer["ret"]
        else:
            text = str(answer.get("ret", "")).strip()
            failed[host] = text.splitlines()[-1] if text else "no answer"
            if "is not available" in text:
                failed[host] += " (run salt '*' saltutil.sync_all)"
    silent = [host for host in hosts if host not in found and host not in failed]
    return found, failed, silent


def _public_key(host: str) -> str:
    """The key that the Salt master accepted for a minion (pki_dir/minions/<id>)."""
    cache = salt.cache.Cache(__opts__, driver=__opts__["keys.cache_driver"])
    entry = cache.fetch("keys", host) or {}
    if entry.get("state") != "accepted" or not entry.get("pub"):
        raise CommandExecutionError(
            f"{host}: its Salt key is {entry.get('state', 'unknown')}, expected accepted; "
            f"compare fingerprints and run salt-key -a {host}"
        )
    return str(entry["pub"])


def _fail(what: str, failed: Mapping[str, str]) -> None:
    if failed:
        raise CommandExecutionError(
            f"{what}: " + "; ".join(f"{host}: {why}" for host, why in failed.items())
        )


def replicate(test: bool = False, force: bool = False, holder: str | None = None) -> dict[str, Any]:
    """Bring every reachable master and node in step with the holder of the token set.

    Args:
        test: Only say what would be done.
        force: Make a set although an unreachable master may hold one. Secrets that were
            encrypted with that one's key cannot be read with the new set.
        holder: Minion id of the master whose set is to win, when sets differ.

    Returns:
        ``changes``: by minion id, what was found wrong by path (in test mode: in words, what
        would happen). ``holder``: minion id. ``in_step``: whether every declared host is known
        to be in step now. ``unreachable``: declared hosts that did not answer.

    Raises:
        CommandExecutionError: No or two holders; a host that cannot do its part, each named.

    CLI Example:

    .. code-block:: bash

        salt-run indigo_tokens.replicate test=True
        salt-run indigo_tokens.replicate
    """
    model = _model()
    plan = model["indigo_model.tokens_plan"]()
    identities = plan["identities"]
    hosts = list(dict.fromkeys([*plan["masters"], *plan["nodes"]]))
    with salt.client.get_local_client(mopts=__opts__) as client:
        answers, failed, unreachable = _ask(client, hosts, "indigo_tokens.state")
        _fail("the tokens could not be looked at, nothing was changed", failed)
        decision = _decide(
            plan,
            model["indigo_tokens.digest"](identities),
            answers,
            unreachable,
            force=force,
            wish=holder,
        )
        result: dict[str, Any] = {
            "changes": dict(decision.reasons) if test else {},
            "holder": decision.holder,
            "in_step": not unreachable and not decision.reasons,
            "unreachable": unreachable,
        }
        if test or not decision.reasons:
            return result
        result["changes"] = _carry_out(client, decision, identities)
    result["in_step"] = not unreachable
    return result


def _carry_out(
    client: Any, decision: Decision, identities: Sequence[Mapping[str, Any]]
) -> dict[str, dict[str, str]]:
    """Have the holder update and seal, and the others unseal; returns the changes by host."""
    keys = {host: _public_key(host) for host in decision.recipients}  # before anything changes
    changes: dict[str, dict[str, str]] = {}
    failed: dict[str, str] = {}
    ensure: dict[str, Any] = {}
    if decision.ensure:
        ensure = {
            "identities": [
                {key: item[key] for key in ("name", "user", "groups")} for item in identities
            ],
            "create": decision.create,
            "above": decision.above,
        }
    batches = list(_batches(decision.recipients, len(identities))) or [{}]
    for batch in batches:
        wishes = {host: {**wish, "public_key": keys[host]} for host, wish in batch.items()}
        found, wrong, silent = _ask(
            client, [decision.holder], "indigo_tokens.seal", recipients=wishes, **ensure
        )
        ensure = {}  # once is enough
        _fail("the holder of the token set failed", wrong | _silence(silent))
        answer = found[decision.holder]
        if answer["ensured"] and answer["ensured"]["changed"]:
            changes[decision.holder] = answer["ensured"]["changed"]
        if not batch:
            continue
        if set(answer["sealed"]) != set(batch):
            raise CommandExecutionError(
                f"{decision.holder}: sealed for {', '.join(answer['sealed'])}, expected "
                f"{', '.join(batch)}; nothing was sent"
            )
        found, wrong, silent = _ask(
            client, list(batch), "indigo_tokens.unseal", sealed=answer["sealed"]
        )
        failed |= wrong | _silence(silent)
        for host, received in found.items():
            if received["changed"]:
                changes[host] = received["changed"]
    _fail("tokens did not arrive; put this right and run it again", failed)
    return changes


def _silence(hosts: Sequence[str]) -> dict[str, str]:
    return dict.fromkeys(hosts, "did not answer")
