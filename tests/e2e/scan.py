"""Scans that hosts of the lab make of each other, what must be found, and what listens on each.

The scanner is plain Python, which every host has: it connects, and does not speak. What is expected
is the model's own table, for the cluster as it is declared in the lab.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import yaml
from cluster import kubectl
from indigo_lab.lab import Lab
from indigo_lab.topology import MASTER, VIP
from indigo_model import cluster as model
from indigo_model import ports
from indigo_model.cluster import Cluster, Host

OPEN, CLOSED, FILTERED = "open", "closed", "filtered"

#: The port of the service `web` on every node.
NODE_PORT = 30080

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


def declared(lab: Lab) -> Cluster:
    """The cluster as it is declared now."""
    return model.parse(yaml.safe_load(lab.cluster_file.read_bytes()))


def listening(cluster: Cluster, host: Host) -> set[tuple[str, int]]:
    """Addresses and ports, as others reach them, at which a host answers with TCP."""
    found = set()
    for row in ports.of_host(cluster, host):
        if row.protocol == "tcp" and row.at != ports.LOOPBACK and row.always:
            # kube-proxy answers for the ports of the services that there are.
            port = NODE_PORT if "-" in row.port else int(row.port)
            where = host.address if row.at == ports.EVERY else ports.address(cluster, host, row)
            found.add((where, port))
    if host.address == MASTER:
        found |= {(host.address, int(row.port)) for row in ports.SALT}
    return found


def interesting(cluster: Cluster) -> list[int]:
    """Every port of the table, also those of loopback."""
    rows = [row for host in cluster.hosts.values() for row in ports.of_host(cluster, host)]
    rows += ports.SALT
    return sorted({int(row.port) for row in rows if row.port.isdigit()} | {NODE_PORT})


def expected(cluster: Cluster) -> dict[str, Found]:
    """By the host that scans, what it must find of every other host and the virtual address."""
    everywhere = {
        id_: [port for where, port in listening(cluster, host) if where == host.address]
        for id_, host in cluster.hosts.items()
    }
    result = {}
    for id_, scanner in cluster.hosts.items():
        found = {VIP: {cluster.vip.port: OPEN}}
        for other, host in cluster.hosts.items():
            if other == id_:
                continue
            states = dict.fromkeys(everywhere[other], OPEN)
            for guard in ports.view(cluster, host)["firewall"].get("guards", []):
                if guard["protocol"] != "tcp":
                    continue
                networks = [ipaddress.ip_network(one) for one in guard["sources"]]
                if not any(ipaddress.ip_address(scanner.address) in one for one in networks):
                    states[int(guard["port"])] = FILTERED
            found[host.address] = states
        result[id_] = found
    return result


def differences(found: Mapping[str, Found], wanted: Mapping[str, Found]) -> str:
    """What scans found and should not have, and the other way round, a line each."""
    lines = []
    for scanner, addresses in wanted.items():
        for address, states in addresses.items():
            seen = found[scanner][address]
            lines += [
                f"{scanner} -> {address}:{port}: {seen.get(port, 'closed')}, "
                f"expected {states.get(port, 'closed')}"
                for port in sorted(seen.keys() | states.keys())
                if seen.get(port) != states.get(port)
            ]
    return "\n".join(lines)


def everyone_scans(lab: Lab, cluster: Cluster, shut: Iterable[str] = ()) -> str:
    """Every host scans every other one and the virtual address at the table's ports.

    Args:
        lab: The lab.
        cluster: As it is declared.
        shut: How the site's own firewall may answer at ports that the table does not name.
    """
    spans = [(port, port) for port in interesting(cluster)]
    wanted = expected(cluster)
    # The virtual address is another host's too, with all that listens there on every address.
    at_vip = [(cluster.vip.port, cluster.vip.port)]
    asked = {
        scanner: {address: at_vip if address == VIP else spans for address in addresses}
        for scanner, addresses in wanted.items()
    }
    found = {
        scanner: {
            address: {
                port: state
                for port, state in seen.items()
                if port in wanted[scanner][address] or state not in shut
            }
            for address, seen in addresses.items()
        }
        for scanner, addresses in scans(lab, asked).items()
    }
    return differences(found, wanted)


# Each node asks the service at its address and at every node's port, and the API's own service.
_ASK = """
import sys, socket, urllib.request
for url in sys.argv[1:]:
    try:
        assert urllib.request.urlopen(url, timeout=3).read().startswith(b"web-")
    except (OSError, AssertionError) as err:
        print(url, repr(err))
try:
    socket.create_connection(("10.96.0.1", 443), 3).close()
except OSError as err:
    print("the API's service", repr(err))
"""


def served(lab: Lab) -> list[str]:
    """What nodes do not get from pods, through services and node ports, on whichever node."""
    service = kubectl(lab, "get", "service", "web")["spec"]["clusterIP"]
    nodes = lab.with_role("node")
    urls = [f"http://{service}/"] + [f"http://{host.address}:{NODE_PORT}/" for host in nodes]
    wrong = []
    for host in nodes:
        done = lab.exec(host.name, ["python3", "-c", _ASK, *urls], timeout=60)
        wrong += [f"{host.name}: {line}" for line in (done.stdout + done.stderr).splitlines()]
    for pod in kubectl(lab, "get", "pods", "-l", "app=web")["items"]:
        name = pod["metadata"]["name"]
        # From a pod to the service, over the API server and kubelet of its node.
        ask = f"timeout 5 wget -qO- http://{service}/"
        done = lab.kubectl("exec", name, "--", "sh", "-c", ask, timeout=30)
        if not done.stdout.startswith("web-"):
            wrong.append(f"{name}: {done.stdout} {done.stderr}")
    return wrong
