"""One screen for ``salt-run indigo.status``: problems first, then the layers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import salt.output
import salt.utils.color


def __virtual__() -> str:
    return "indigo_status"


def output(data: Any, **kwargs: Any) -> str:
    """Draw the assessed status of a cluster.

    Args:
        data: The data of ``indigo.status``; anything else is drawn as ``nested``.

    Returns:
        Lines for a terminal, with colours where Salt uses them.
    """
    if isinstance(data, Mapping) and "data" in data:
        data = data["data"]
    if not isinstance(data, Mapping) or "problems" not in data:
        return salt.output.out_format(data, "nested", __opts__)
    colors = salt.utils.color.get_colors(__opts__.get("color"), __opts__.get("color_theme", None))

    def good(text: str) -> str:
        return f"{colors['GREEN']}{text}{colors['ENDC']}"

    def bad(text: str) -> str:
        return f"{colors['RED']}{text}{colors['ENDC']}"

    lines = [headline(data, good, bad)]
    lines += [bad(f"  ! {problem}") for problem in data["problems"]]
    lines.append("")
    lines += _hosts(data["hosts"], good, bad)
    lines.append("")
    lines += summary(data)
    return "\n".join(lines)


def headline(data: Mapping[str, Any], good: Any, bad: Any) -> str:
    """Name, version and the verdict."""
    count = len(data["problems"])
    verdict = good("all is well") if not count else bad(f"{count} problem{'s' * (count > 1)}")
    return f"{data['cluster']}: Kubernetes {data['versions'].get('kubernetes', '?')}, {verdict}"


def summary(data: Mapping[str, Any]) -> list[str]:
    """The layers, a line each.

    Example:
        >>> summary({"vip": {"address": "10.0.0.9", "holders": ["lb1"]},
        ...     "etcd": {"members": {}, "leader": None}, "api": {}, "tokens": {"in_step": True},
        ...     "kubernetes": {"nodes": {}, "leaders": {}},
        ...     "certificates": {"count": 0, "first": None}})[0]
        '  VIP           10.0.0.9 on lb1'
    """
    etcd = data["etcd"]["members"]
    healthy = sum(1 for member in etcd.values() if member["healthy"])
    nodes = data["kubernetes"]["nodes"]
    ready = sum(1 for node in nodes.values() if node["ready"])
    leaders = "; ".join(
        f"{name} on {(leader.get('holder') or 'no one').split('_')[0]}"
        for name, leader in data["kubernetes"]["leaders"].items()
    )
    first = data["certificates"]["first"]
    expiry = f", first to expire in {first['days_left']} days ({first['host']} {first['path']})"
    rows = [
        ("VIP", f"{data['vip']['address']} on {_listed(data['vip']['holders'])}"),
        ("etcd", f"{healthy} of {len(etcd)} healthy, leader {data['etcd']['leader']}{_size(etcd)}"),
        ("API servers", _listed(f"{id_} {said}" for id_, said in data["api"].items())),
        ("leaders", leaders or "unknown"),
        ("nodes", f"{ready} of {len(nodes)} ready{_running(nodes)}"),
        ("certificates", f"{data['certificates']['count']} valid{expiry if first else ''}"),
        ("tokens", "in step" if data["tokens"]["in_step"] else "not in step"),
        ("add-ons", _listed(f"{name} {said}" for name, said in data.get("addons", {}).items())),
    ]
    if data.get("exchange"):
        told = (f"{what}: the new is {it['phase']}" for what, it in data["exchange"].items())
        rows.append(("exchange", _listed(told)))
    if "backup" in data:
        rows.append(("backup", backup(data["backup"])))
    return [f"  {name:<13} {text}" for name, text in rows]


def _size(members: Mapping[str, Any]) -> str:
    """How large etcd's database is, and how long its slowest member takes to answer.

    >>> _size({"a": {"db_bytes": 2**20, "answer_ms": 5.2}, "b": {"db_bytes": None}})
    '; 1.0 MiB, answers within 5 ms'
    """
    sizes = [one["db_bytes"] for one in members.values() if one.get("db_bytes")]
    times = [one["answer_ms"] for one in members.values() if one.get("answer_ms") is not None]
    told = [f"{max(sizes) / 2**20:.1f} MiB"] if sizes else []
    told += [f"answers within {max(times):.0f} ms"] if times else []
    return "; " + ", ".join(told) if told else ""


def _running(nodes: Mapping[str, Any]) -> str:
    """The releases that nodes run, where they are known.

    >>> _running({"a": {"version": "v1.30.1"}, "b": {"version": "v1.30.1"}})
    ', v1.30.1'
    """
    versions = sorted({one["version"] for one in nodes.values() if one.get("version")})
    return ", " + " and ".join(versions) if versions else ""


def backup(found: Mapping[str, Any]) -> str:
    """The newest proven backup in a few words.

    Example:
        >>> backup({"age": 7200, "newest": {"hosts": ["a", "b"], "bytes": 2**21, "complete": True}})
        'proven 2.0 h ago, 2.0 MiB on a, b'
    """
    newest = found["newest"]
    if not newest:
        return "none yet"
    size = f"{newest['bytes'] / 2**20:.1f} MiB on {_listed(newest['hosts'])}"
    keys = "" if newest["complete"] else ", without the cluster's keys (backup.recipient)"
    return f"proven {found['age'] / 3600:.1f} h ago, {size}{keys}"


def _hosts(hosts: Mapping[str, Any], good: Any, bad: Any) -> list[str]:
    width = max((len(id_) for id_ in hosts), default=4)
    lines = []
    for id_, host in hosts.items():
        if not host["answers"]:
            state = bad("no answer")
        else:
            units = [
                good(unit) if active else bad(f"{unit} stopped")
                for unit, active in host["units"].items()
            ]
            state = " ".join(units) or good("answers")
        roles = ",".join(host["roles"])
        lines.append(f"  {id_:<{width}}  {host['address']:<15}  {roles:<18}  {state}")
    return lines


def _listed(items: Iterable[str]) -> str:
    return ", ".join(items) or "none"
