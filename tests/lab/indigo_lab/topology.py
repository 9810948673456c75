"""Which hosts a lab has: a pure function of the profile and the number of nodes."""

from __future__ import annotations

from dataclasses import dataclass

from .base import LabError

NETWORK = "10.77.0.0/24"
GATEWAY = "10.77.0.1"  # the machine's end of the bridge: a default route that leads nowhere
MIRROR = "10.77.0.2"
MIRROR_URL = f"http://{MIRROR}"
MASTER = "10.77.0.5"
VIP = "10.77.0.10"
SERVICES = "10.96.0.0/16"
PODS = "10.244.0.0/16"
PROFILES = ("ha", "compact", "single")


@dataclass(frozen=True)
class Host:
    """A host of the lab; its name is also its minion id."""

    name: str
    address: str
    roles: tuple[str, ...]

    @property
    def mac(self) -> str:
        """A hardware address that stays the same over power-offs.

        >>> Host("lb1", "10.77.0.11", ("lb",)).mac
        '02:49:0a:4d:00:0b'
        """
        return "02:49:" + ":".join(f"{int(part):02x}" for part in self.address.split("."))


def hosts(profile: str = "ha", nodes: int | None = None) -> list[Host]:
    """The hosts of a profile, the Salt master's host first.

    Args:
        profile: `ha` (salt, 3 lb, 3 etcd, 2 masters, nodes), `compact` (salt and three hosts that
            share all roles) or `single` (one host that is everything).
        nodes: hosts with the role node, in `ha` only (default 3).

    Raises:
        LabError: an unknown profile or a number of nodes that it does not have.

    >>> [h.name for h in hosts("compact")]
    ['salt', 'host1', 'host2', 'host3']
    """
    if profile not in PROFILES:
        raise LabError(f"--profile: found {profile!r}, expected one of {', '.join(PROFILES)}")
    if profile != "ha":
        if nodes is not None:
            raise LabError(f"--nodes: the profile {profile} has a fixed size; use --profile ha")
        if profile == "single":
            return [Host("salt", MASTER, ("ca", "lb", "etcd", "master", "node"))]
        return [
            Host("salt", MASTER, ("ca",)),
            *(
                Host(
                    f"host{n}",
                    f"10.77.0.{30 + n}",
                    ("lb", "etcd", "master", "node") if n <= 2 else ("lb", "etcd", "node"),
                )
                for n in (1, 2, 3)
            ),
        ]
    count = 3 if nodes is None else nodes
    if not 0 <= count <= 100:
        raise LabError(f"--nodes: found {count}, expected 0 to 100")
    return [
        Host("salt", MASTER, ("ca",)),
        *(Host(f"lb{n}", f"10.77.0.{10 + n}", ("lb",)) for n in (1, 2, 3)),
        *(Host(f"etcd{n}", f"10.77.0.{20 + n}", ("etcd",)) for n in (1, 2, 3)),
        *(Host(f"master{n}", f"10.77.0.{30 + n}", ("master",)) for n in (1, 2)),
        *(Host(f"node{n}", f"10.77.0.{40 + n}", ("node",)) for n in range(1, count + 1)),
    ]
