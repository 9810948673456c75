"""The status of the cluster for those who watch it: ``indigo.check`` and ``indigo.metrics``."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from salt.exceptions import CommandExecutionError, SaltException

#: Exit codes of checks, as Nagios' plug-ins have them.
WORDS = {0: "OK", 1: "WARNING", 2: "CRITICAL", 3: "UNKNOWN"}


def __virtual__() -> str:
    return "indigo_check"


def check(timeout: float = 15) -> dict[str, Any]:
    """One line, the problems, and an exit code; see ``indigo.check``."""
    started = time.monotonic()
    try:
        data = __salt__["indigo.status"](timeout=timeout)["data"]
    except (SaltException, OSError, ValueError, KeyError) as err:
        told = " ".join(str(err).split())
        return _shown(f"INDIGO UNKNOWN - {told}", 3)
    return _shown(line(data, time.monotonic() - started), severity(data))


def _shown(text: str, code: int) -> dict[str, Any]:
    # The outputter prints what it does not know as a status as it is.
    return {"outputter": "indigo_check", "data": {"text": text, "retcode": code}}


def metrics(path: str | None = None, timeout: float = 15) -> Any:
    """Text of Prometheus, printed or written; see ``indigo.metrics``."""
    started = time.monotonic()
    data = __salt__["indigo.status"](timeout=timeout)["data"]
    text = exposition(data, time.time(), time.monotonic() - started)
    if path is None:
        return _shown(text.rstrip("\n"), 0)
    target = Path(path)
    try:
        descriptor, partial = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(partial, 0o644)
        os.replace(partial, target)
    except OSError as err:
        raise CommandExecutionError(
            f"path: {path} cannot be written: {err}; expected a file in a folder that exists"
        ) from err
    return {"written": str(target), "problems": len(data["problems"])}


def severity(data: Mapping[str, Any]) -> int:
    """How bad it is: 2 when the cluster cannot be used, 1 when something else is wrong, else 0.

    >>> severity({"problems": []})
    0
    """
    if not data["problems"]:
        return 0
    served = (
        any(said == "ok" for said in data["api"].values())
        and (data["vip"]["holders"] or not _role(data, "lb"))
        and data["etcd"]["leader"]
        and data["kubernetes"]["nodes"]
    )
    return 1 if served else 2


def _role(data: Mapping[str, Any], role: str) -> list[str]:
    return [id_ for id_, host in data["hosts"].items() if role in host["roles"]]


def _counts(data: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """Of hosts, etcd members, API servers and nodes, how many are well, and of how many."""
    hosts, members = data["hosts"].values(), data["etcd"]["members"].values()
    nodes = data["kubernetes"]["nodes"].values()
    return {
        "hosts": (sum(one["answers"] for one in hosts), len(hosts)),
        "etcd": (sum(one["healthy"] for one in members), len(_role(data, "etcd"))),
        "api": (sum(said == "ok" for said in data["api"].values()), len(data["api"])),
        "nodes": (sum(one["ready"] for one in nodes), len(_role(data, "node"))),
    }


def line(data: Mapping[str, Any], seconds: float) -> str:
    """The verdict with figures that are kept, then the problems, one a line."""
    word = WORDS[severity(data)]
    counts = _counts(data)
    told = ", ".join(f"{name} {good}/{all_}" for name, (good, all_) in counts.items())
    if data["problems"]:
        told = f"{len(data['problems'])} problems; {told}"
    figures = [f"{name}={good};;;0;{all_}" for name, (good, all_) in counts.items()]
    figures.append(f"problems={len(data['problems'])}")
    first = data["certificates"]["first"]
    if first:
        figures.append(f"certificate_days={first['days_left']}")
    age = data.get("backup", {}).get("age")
    if age is not None:
        figures.append(f"backup_age={age}s")
    figures.append(f"time={seconds:.2f}s")
    # In the text after it a bar would begin figures.
    problems = [problem.replace("|", "/") for problem in data["problems"]]
    head = f"INDIGO {word} - {data['cluster']}: {told} | {' '.join(figures)}"
    return "\n".join([head, *problems])


def exposition(data: Mapping[str, Any], now: float, seconds: float) -> str:
    """The status in Prometheus' text format.

    Args:
        data: Of ``indigo.status``.
        now: Seconds since 1970.
        seconds: How long asking took.

    Returns:
        Samples with their HELP and TYPE, all of them gauges.
    """
    etcd, nodes = data["etcd"]["members"], data["kubernetes"]["nodes"]
    first, age = data["certificates"]["first"], data.get("backup", {}).get("age")
    kinds: list[tuple[str, str, Iterable[tuple[dict[str, str], float | None]]]] = [
        ("problems", "Problems that indigo.status knows of.", [({}, len(data["problems"]))]),
        ("severity", "0 well, 1 impaired, 2 not usable.", [({}, severity(data))]),
        (
            "host_answers", "Whether the host's minion answers.",
            [({"host": id_}, one["answers"]) for id_, one in data["hosts"].items()],
        ),
        (
            "unit_active", "Whether a unit of ours runs.",
            [
                ({"host": id_, "unit": unit}, active)
                for id_, one in data["hosts"].items()
                for unit, active in one.get("units", {}).items()
            ],
        ),
        ("vip_holders", "Hosts with the virtual address.", [({}, len(data["vip"]["holders"]))]),
        (
            "etcd_member_healthy", "Whether the member serves with the quorum's consent.",
            [({"member": name}, one["healthy"]) for name, one in etcd.items()],
        ),
        (
            "etcd_member_leader", "Whether the member leads.",
            [({"member": name}, one["leader"]) for name, one in etcd.items()],
        ),
        (
            "etcd_db_bytes", "Size of the member's database.",
            [({"member": name}, one["db_bytes"]) for name, one in etcd.items()],
        ),
        (
            "etcd_answer_seconds", "What a read with the quorum's consent took.",
            [
                ({"member": name}, one["answer_ms"] / 1000)
                for name, one in etcd.items()
                if one.get("answer_ms") is not None
            ],
        ),
        (
            "api_ready", "Whether the master's own API server is ready.",
            [({"host": id_}, said == "ok") for id_, said in data["api"].items()],
        ),
        (
            "node_ready", "Whether Kubernetes says that the node is ready.",
            [
                ({"node": name, "version": str(one.get("version", ""))}, one["ready"])
                for name, one in nodes.items()
            ],
        ),
        ("certificates", "Certificates on all hosts.", [({}, data["certificates"]["count"])]),
        (
            "certificate_first_expiry_days", "Days until the first certificate expires.",
            [({"host": first["host"], "path": first["path"]}, first["days_left"])] if first else [],
        ),
        ("tokens_in_step", "Whether all hosts have the same tokens.",
         [({}, data["tokens"]["in_step"])]),
        (
            "addon_works", "Whether the add-on passes the check of its own use.",
            [({"addon": name}, said == "ok") for name, said in data.get("addons", {}).items()],
        ),
        ("backup_age_seconds", "Age of the newest proven backup.",
         [({}, age)] if age is not None else []),
        ("version_info", "Declared releases.",
         [({"part": part, "version": str(v)}, 1) for part, v in data["versions"].items()]),
        ("asked_seconds", "How long it took to ask.", [({}, round(seconds, 3))]),
        ("asked_timestamp_seconds", "When it was asked: alert when that is long ago.",
         [({}, round(now, 3))]),
    ]  # fmt: skip
    lines: list[str] = []
    for name, meaning, samples in kinds:
        rows = [(labels, value) for labels, value in samples if value is not None]
        if not rows:
            continue
        lines += [f"# HELP indigo_{name} {meaning}", f"# TYPE indigo_{name} gauge"]
        for labels, value in rows:
            named = {"cluster": str(data["cluster"]), **labels}
            told = ",".join(f'{key}="{_escaped(text)}"' for key, text in named.items())
            lines.append(f"indigo_{name}{{{told}}} {_number(value)}")
    return "\n".join(lines) + "\n"


def _number(value: float) -> str:
    """A value as Prometheus reads it, without loss.

    >>> _number(True), _number(1790000000.5), _number(2**31)
    ('1', '1790000000.5', '2147483648')
    """
    return repr(value) if isinstance(value, float) else str(int(value))


def _escaped(text: str) -> str:
    r"""A label's value.

    >>> print(_escaped('a"b'))
    a\"b
    """
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
