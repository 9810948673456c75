"""Scans that hosts of the lab make of each other, and what listens on each.

The scanner is plain Python, which every host has: it connects, and does not speak.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from indigo_lab.lab import Lab

OPEN, CLOSED, FILTERED = "open", "closed", "filtered"

#: Reads {address: [[first, last], ...]} and prints {address: {port: state}} of all that is not
#: closed. Thousands of connections are under way at once; what does not answer is filtered.
_SCANNER = """
import errno, json, resource, select, socket, sys, time
wanted = json.load(sys.stdin)
limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
AT_ONCE, PATIENCE = 2000, float(sys.argv[1])
todo = ((address, port) for address, spans in wanted.items()
        for first, last in spans for port in range(first, last + 1))
found = {address: {} for address in wanted}
poll, busy, more, look = select.epoll(), {}, True, 0
while more or busy:
    while more and len(busy) < AT_ONCE:
        target = next(todo, None)
        if target is None:
            more = False
            break
        one = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        code = one.connect_ex(target)
        if code in (0, errno.EINPROGRESS):
            busy[one.fileno()] = (one, target, time.monotonic())
            poll.register(one, select.EPOLLOUT | select.EPOLLERR | select.EPOLLHUP)
        elif code == errno.ECONNREFUSED:
            one.close()
        else:
            found[target[0]][target[1]] = errno.errorcode.get(code, str(code))
            one.close()
    for number, _ in poll.poll(0.05, AT_ONCE):
        one, (address, port), _ = busy.pop(number)
        code = one.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code != errno.ECONNREFUSED:
            found[address][port] = "open" if code == 0 else errno.errorcode.get(code, str(code))
        one.close()
    now = time.monotonic()
    if now < look:
        continue
    look = now + 0.2
    for number in [n for n, (_, _, since) in busy.items() if since < now - PATIENCE]:
        one, (address, port), _ = busy.pop(number)
        found[address][port] = "filtered"
        one.close()
print(json.dumps(found))
"""

Found = dict[str, dict[int, str]]


def scan(
    lab: Lab, host: str, wanted: Mapping[str, Iterable[tuple[int, int]]], patience: float = 3
) -> Found:
    """What a host finds at others' ports.

    Args:
        lab: The lab.
        host: Name of the host that scans.
        wanted: By address, first and last port of each span.
        patience: Seconds without an answer after which a port counts as filtered.

    Returns:
        By address, the state of every port that is not closed.
    """
    text = json.dumps({address: list(spans) for address, spans in wanted.items()})
    done = lab.exec(
        host, ["python3", "-c", _SCANNER, str(patience)], stdin=text, timeout=300, check=True
    )
    return {
        address: {int(port): state for port, state in ports.items()}
        for address, ports in json.loads(done.stdout).items()
    }


def scans(
    lab: Lab, wanted: Mapping[str, Mapping[str, Iterable[tuple[int, int]]]]
) -> dict[str, Found]:
    """Several hosts scan, two at the same time: by the host that scans, what it found."""
    with ThreadPoolExecutor(2) as pool:
        return dict(zip(wanted, pool.map(lambda h: scan(lab, h, wanted[h]), wanted), strict=True))


def sockets(lab: Lab, host: str) -> set[tuple[str, str, int | str, str]]:
    """What listens on a host, as ``ss`` says: protocol, address, port and program.

    A raw socket's port is the number of its IP protocol.
    """
    done = lab.exec(host, ["ss", "-H", "-lntupw"], check=True)
    found = set()
    for line in done.stdout.splitlines():
        fields = line.split()
        address, _, port = fields[4].rpartition(":")
        address = {"*": "0.0.0.0", "[::]": "::"}.get(address, address)
        program = line.partition('users:(("')[2].partition('"')[0]
        found.add((fields[0], address.partition("%")[0], int(port), program))
    return found


def counters(lab: Lab, host: str) -> dict[str, int]:
    """Packets that each rule of the host's firewall has dropped, by the rule's comment."""
    done = lab.exec(host, ["nft", "-j", "list", "table", "inet", "indigo"], check=True)
    found: dict[str, int] = {}
    for item in json.loads(done.stdout)["nftables"]:
        rule: dict[str, Any] = item.get("rule", {})
        for part in rule.get("expr", []):
            if "counter" in part:
                comment = rule.get("comment", "")
                found[comment] = found.get(comment, 0) + part["counter"]["packets"]
    return found
