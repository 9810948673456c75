"""Static comparison of what hosts say of themselves with the declared cluster."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import netaddr

#: Supported systems: (family, name) to their releases. Run on Debian 12; the others are rendered.
SYSTEMS = {
    ("Debian", "Debian"): {"12", "13"},
    ("Debian", "Ubuntu"): {"22", "24"},
    ("RedHat", "Fedora"): {"41", "42", "43"},
    ("RedHat", "Rocky"): {"9"},
    ("RedHat", "RedHat"): {"9"},
    ("RedHat", "AlmaLinux"): {"9"},
    ("RedHat", "CentOS Stream"): {"9"},
}

#: Free space in MiB that a role's files need at least.
SPACE = {"etcd": {"/var/lib": 512}, "master": {"/opt": 700}, "node": {"/opt": 700, "/var/lib": 512}}

#: Seconds by which clocks may differ. Certificates are valid from five minutes ago, leases live
#: for seconds; the bound also covers the spread of the answers of busy hosts.
CLOCK = 30


def host_problems(plan: Mapping[str, Any], facts: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Everything about the hosts that would make a deploy fail.

    Args:
        plan: ``indigo_model.plan()``.
        facts: By minion id, ``indigo_preflight.facts()``; a host without an answer is missing.

    Returns:
        One sentence a problem: the host or key, what was found, what is expected, what to do.

    Example:
        >>> plan = {"hosts": {"lb1": {"address": "10.0.0.1", "roles": ["lb"]}},
        ...         "vip": {"address": "10.0.0.9", "interface": "eth0"}}
        >>> host_problems(plan, {})[0].startswith("lb1 (10.0.0.1) does not answer")
        True
    """
    found: list[str] = []
    for id_, host in plan["hosts"].items():
        if id_ not in facts:
            found.append(
                f"{id_} ({host['address']}) does not answer: start salt-minion there and see that "
                f"its key is accepted (`salt-key -L`), or take it out of `hosts`"
            )
            continue
        found += _of_host(id_, host, plan["vip"], facts[id_])
    found += _of_authorities(plan, facts)
    times = {id_: fact["time"] for id_, fact in facts.items() if id_ in plan["hosts"]}
    if times:
        middle = sorted(times.values())[len(times) // 2]
        found += [
            f"{id_}: its clock is {time - middle:+.0f} s off the other hosts'; at most {CLOCK} s "
            "is expected: start time synchronisation (chrony or systemd-timesyncd) there"
            for id_, time in times.items()
            if abs(time - middle) > CLOCK
        ]
    return found


def _of_authorities(plan: Mapping[str, Any], facts: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """An authority that hosts trust must be the one that the CA host holds, never a new one."""
    found = []
    for ca in plan.get("roles", {}).get("ca", []):
        held = facts.get(ca, {}).get("authorities", {}).get("held", {})
        for name, keys in held.items():
            strangers = sorted(
                id_
                for id_, fact in facts.items()
                if (trusted := fact.get("authorities", {}).get("trusted", {}).get(name))
                and not set(trusted) & set(keys)
            )
            if strangers:
                what = "is another" if keys else "is not there, or another"
                some = ", ".join(strangers[:3]) + (", …" if len(strangers) > 3 else "")
                found.append(
                    f"{ca}: authority {name} {what} than {len(strangers)} hosts trust ({some}). "
                    f"Expected it in /etc/indigo/ca/{name}. Put /etc/indigo/ca from a backup on "
                    f"{ca} (ca.key 0600, root). If those hosts are left from another cluster: "
                    "`salt HOST state.apply common.absent` there"
                )
    return found


def _of_host(
    id_: str, host: Mapping[str, Any], vip: Mapping[str, Any], fact: Mapping[str, Any]
) -> list[str]:
    found = []
    roles = host["roles"]
    family, name, release = fact["os"]
    if set(roles) - {"ca"}:
        releases = SYSTEMS.get((family, name))
        if releases is None or release not in releases:
            known = ", ".join(
                f"{system} {'/'.join(sorted(ones))}" for (_, system), ones in SYSTEMS.items()
            )
            found.append(
                f"{id_}: its system is {name} {release}; supported are {known}: "
                "reinstall the host or take it out of `hosts`"
            )
        if fact["init"] != "systemd":
            found.append(f"{id_}: its init is {fact['init']}; systemd is expected: boot with it")
        if fact["arch"] not in ("amd64", "x86_64", "arm64", "aarch64"):
            found.append(f"{id_}: its architecture is {fact['arch']}; amd64 or arm64 is expected")
    interfaces = fact["interfaces"]
    carried = [address.split("/")[0] for ones in interfaces.values() for address in ones]
    if host["address"] not in carried:
        have = ", ".join(address for address in carried if not address.startswith("127."))
        found.append(
            f"hosts.{id_}.address: {host['address']} is not on {id_}, which has {have or 'none'}: "
            "correct the key, or the host's network"
        )
    for port in fact.get("taken", []):
        who = f"{port['program']} (process {port['pid']})" if port["pid"] else "an unseen process"
        where = f"port {port['port']}/{port['protocol']}"
        found.append(
            f"{id_}: {where} is taken by {who} on {port['address']}; {port['service']} needs "
            "it: stop that program there, or give it another port"
        )
    if "lb" in roles:
        found += _of_balancer(id_, host.get("interface"), vip, interfaces)
    for role in roles:
        for folder, needed in SPACE.get(role, {}).items():
            free = fact["free_mb"].get(folder, needed)
            if free < needed:
                found.append(
                    f"{id_}: {free} MiB free under {folder}; role {role} needs {needed} MiB: "
                    "make room there"
                )
    return found


def _of_balancer(
    id_: str, own: str | None, vip: Mapping[str, Any], interfaces: Mapping[str, list[str]]
) -> list[str]:
    key, interface = (f"hosts.{id_}.interface", own) if own else ("vip.interface", vip["interface"])
    if interface not in interfaces:
        others = ", ".join(sorted(name for name in interfaces if name != "lo"))
        return [
            f"{key}: {interface} does not exist on {id_}, which has {others}: "
            "name the interface that carries the load balancers' addresses"
        ]
    networks = [netaddr.IPNetwork(address) for address in interfaces[interface]]
    if not any(vip["address"] in network for network in networks):
        subnets = ", ".join(str(network.cidr) for network in networks) or "no address"
        return [
            f"vip.address: {vip['address']} is outside the subnets of {interface} on {id_} "
            f"({subnets}): choose a free address inside, or another {key}"
        ]
    return []
