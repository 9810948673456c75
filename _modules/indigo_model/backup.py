"""What backups and the upkeep of etcd need: on etcd's hosts, on the masters and on the CA host.

Salt's schedule only looks, often; whether something is due is decided on the host when it looks.
So neither a restart of a minion, which starts its intervals anew, nor a host that is down at the
hour can lose a backup.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .cluster import Cluster, Host
from .lb import endpoint

#: Names of the jobs in Salt's schedule.
BACKUP_JOB = "etcd_backup"
UPKEEP_JOB = "etcd_upkeep"


def view(cluster: Cluster, host: Host) -> dict[str, Any]:
    """A host's part in backups.

    Args:
        cluster: The declared cluster.
        host: One of its hosts.

    Returns:
        ``{"backup": …}``: on etcd's hosts all of it; on masters and the CA host the recipient, for
        they seal their own secrets; ``{}`` elsewhere.

    Example:
        >>> from .cluster import Vip
        >>> host = Host("e", "10.0.0.3", ("etcd",))
        >>> c = Cluster("x", {"e": host}, Vip("10.0.0.9", "eth0"), "10.96.0.0/16", "10.244.0.0/16")
        >>> view(c, host)["backup"]["hosts"]
        {'e': '10.0.0.3:2382'}
    """
    if not {"etcd", "master", "ca"} & set(host.roles):
        return {}
    declared = cluster.backup
    members = cluster.with_role("etcd")
    found: dict[str, Any] = {
        "recipient": declared["recipient"],
        # Who may ask for what is sealed here, and for a set.
        "members": [one.id for one in members],
    }
    if "etcd" in host.roles:
        found |= {
            "every": declared["every"],
            "at": declared["at"],
            "keep": dict(declared["keep"]),
            "folder": declared["folder"],
            "target": declared["target"],
            "copies": declared["copies"],
            "hosts": {one.id: endpoint(one.address, declared["port"]) for one in members},
            # Whose secrets belong into a set; of the masters one is enough.
            "secrets": {
                "authorities": [one.id for one in cluster.with_role("ca")],
                "tokens": [one.id for one in cluster.with_role("master")],
            },
            "defragment": dict(declared["defragment"]),
            "schedule": schedule(declared),
        }
    return {"backup": found}


def schedule(declared: Mapping[str, Any]) -> dict[str, Any]:
    """Salt's schedule on an etcd host.

    Args:
        declared: The section ``backup`` with its defaults.

    Returns:
        Job names to jobs, as Salt's pillar key ``schedule`` takes them.

    Example:
        >>> from .cluster import BACKUP
        >>> sorted(schedule(BACKUP))
        ['etcd_backup', 'etcd_upkeep']
    """

    def job(function: str, seconds: int) -> dict[str, Any]:
        return {
            "function": function,
            "seconds": seconds,
            "splay": declared["splay"],
            "maxrunning": 1,
            # Not at once after every change of the pillar, and a deploy has other things to do.
            "run_on_start": False,
            # What is of interest is told by events of our own.
            "return_job": False,
        }

    jobs = {UPKEEP_JOB: job("indigo_upkeep.run", max(3600, declared["look"]))}
    if declared["every"]:
        jobs[BACKUP_JOB] = job("indigo_backup.run", declared["look"])
    return jobs
