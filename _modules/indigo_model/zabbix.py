"""Zabbix: server, web front end and database in the cluster, an agent on every host.

Agents send to the virtual address, where haproxy leads to a node port of the server: a host needs
no way into the pod network. A host that the server does not know yet registers itself. Sources:
Zabbix' "Active agent autoregistration", "Zabbix server" and "Zabbix agent (UNIX)" (parameters),
zabbix-docker's README (variables of the web image).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import netaddr

from . import disks
from .cluster import Cluster, Host

#: Its key under ``services``, and its namespace.
NAME = "zabbix"

#: Settings of ``services.zabbix``.
DEFAULTS: Mapping[str, Any] = MappingProxyType(
    {
        "host": None,
        "size": "8Gi",
        "memory": "1Gi",
        "storage_class": None,
        "node": None,
        "port": 10051,
        "node_port": 30051,
    }
)

SERVER_PORT, WEB_PORT, DATABASE_PORT = 10051, 8080, 5432

#: How agents say whose they are: who sends this is taken in.
METADATA = "indigo"

#: What the server knows of a host that registers, by the names that its own data gives them.
GROUP, TEMPLATE = "Linux servers", "Linux by Zabbix agent active"

#: Where the database lies on its node, where the site named no class of disks.
FOLDER = "/var/lib/indigo-zabbix"

#: So many nodes take agents' connections: one more node changes no load balancer.
GATES = 3


def given(cluster: Cluster) -> dict[str, Any] | None:
    """Settings with their defaults, or None where nobody wants it."""
    if NAME not in cluster.addons:
        return None
    return {**DEFAULTS, **(cluster.addons[NAME] or {})}


def address(cluster: Cluster, name: str) -> str:
    """Fixed addresses of the service network, so that nothing waits for names.

    Args:
        cluster: The declared cluster.
        name: ``database`` (the eighteenth) or ``server`` (the nineteenth).
    """
    return str(netaddr.IPNetwork(cluster.services)[{"database": 18, "server": 19}[name]])


def place(cluster: Cluster, wanted: Mapping[str, Any]) -> Host | None:
    """The node that has the database on its own disk: the declared one, or the first."""
    if wanted["storage_class"]:
        return None
    nodes = cluster.with_role("node")
    return next((host for host in nodes if host.id == wanted["node"]), nodes[0] if nodes else None)


def storage(cluster: Cluster, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """The database's claim, and the volume that answers it, or None where a class makes it.

    Names have the node in them: neither object can be moved.

    Example:
        >>> from .cluster import Vip
        >>> node = Host("n", "10.0.0.4", ("node",))
        >>> c = Cluster("x", {"n": node}, Vip("10.0.0.9", "eth0"), "10.96.0.0/16", "10.244.0.0/16")
        >>> storage(c, DEFAULTS)["volume"]["name"]
        'zabbix-database-n'
    """
    size = {"storage": wanted["size"]}
    spec = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": size}}
    host = place(cluster, wanted)
    if host is None:
        spec["storageClassName"] = wanted["storage_class"] or ""
        return {"claim": {"name": "database", "spec": spec}, "volume": None}
    claim, volume = f"database-{host.name}", f"zabbix-database-{host.name}"
    terms = {"key": "kubernetes.io/hostname", "operator": "In", "values": [host.name]}
    return {
        "claim": {"name": claim, "spec": {**spec, "storageClassName": "", "volumeName": volume}},
        "volume": {
            "name": volume,
            "spec": {
                "capacity": size,
                "accessModes": ["ReadWriteOnce"],
                "persistentVolumeReclaimPolicy": "Retain",
                "claimRef": {
                    "apiVersion": "v1",
                    "kind": "PersistentVolumeClaim",
                    "namespace": NAME,
                    "name": claim,
                },
                "local": {"path": FOLDER},
                "nodeAffinity": {
                    "required": {"nodeSelectorTerms": [{"matchExpressions": [terms]}]}
                },
            },
        },
    }


def settings(cluster: Cluster, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """What the manifests and the check are filled with, beside what the site set.

    Args:
        cluster: The declared cluster.
        wanted: Settings of ``services.zabbix`` with defaults.

    Returns:
        ``database`` and ``server`` (addresses of their services), ``ports``, ``files`` (name to
        text), ``digest`` of what the database and what the server reads, ``claim`` and ``volume``
        of the database, ``replicas`` (of the front end), ``hosts`` (which agents must be heard of)
        and ``passwords``.
    """
    files = {
        "database.sh": DATABASE_SCRIPT,
        "schema.sh": SCHEMA_SCRIPT,
        "every-start.sql": EVERY_START,
        "server.sh": SERVER_SCRIPT,
        "server.conf": server_conf(cluster),
    }
    return {
        "cluster": cluster.name,
        "database": address(cluster, "database"),
        "server": address(cluster, "server"),
        "ports": {"server": SERVER_PORT, "web": WEB_PORT, "database": DATABASE_PORT},
        "buffers": f"{disks.mebibytes(wanted['memory']) // 4}MB",
        "files": files,
        "digest": {
            part: _digest({name: files[name] for name in names})
            for part, names in {
                "database": ["database.sh"],
                "server": [name for name in files if name != "database.sh"],
            }.items()
        },
        **storage(cluster, wanted),
        "replicas": min(2, max(1, len(cluster.with_role("node")))),
        "hosts": [host.name for host in cluster.hosts.values()],
        "passwords": {"zabbix": {"namespace": NAME, "keys": ["database", "admin"]}},
    }


def _digest(files: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()[:16]


def proxies(cluster: Cluster, connections: int) -> list[dict[str, Any]]:
    """What haproxy listens on for agents, in the form of :func:`ingress.proxies`.

    Args:
        cluster: The declared cluster.
        connections: How many haproxy takes in all; agents get a quarter at most.

    Example:
        >>> from .cluster import Vip
        >>> node = Host("n", "10.0.0.4", ("node",))
        >>> c = Cluster("x", {"n": node}, Vip("10.0.0.9", "eth0"), "10.96.0.0/16",
        ...             "10.244.0.0/16", addons={"zabbix": {}})
        >>> proxies(c, 8000)[0]["servers"]
        [{'name': 'n', 'endpoint': '10.0.0.4:30051'}]
    """
    wanted = given(cluster)
    if wanted is None:
        return []
    return [
        {
            "name": "zabbix-agents",
            "bind": f"{cluster.vip.address}:{wanted['port']}",
            "maxconn": max(1, connections // 4),
            "servers": [
                {"name": host.name, "endpoint": f"{host.address}:{wanted['node_port']}"}
                for host in cluster.with_role("node")[:GATES]
            ],
            "proxy": False,
            "health": None,
        }
    ]


def view(cluster: Cluster, host: Host) -> dict[str, Any]:
    """The agent of a host: part of its view, ``{"zabbix": None}`` where there is to be none.

    Example:
        >>> from .cluster import Vip
        >>> host = Host("N", "10.0.0.4", ("node",))
        >>> c = Cluster("x", {"N": host}, Vip("10.0.0.9", "eth0"), "10.96.0.0/16",
        ...             "10.244.0.0/16", addons={"zabbix": {}})
        >>> view(c, host)["zabbix"]["name"], view(c, host)["zabbix"]["server"]
        ('n', '10.0.0.9:10051')
    """
    wanted = given(cluster)
    if wanted is None:
        return {"zabbix": None}
    return {
        "zabbix": {
            "name": host.name,
            "server": f"{cluster.vip.address}:{wanted['port']}",
            "source": host.address,
            "metadata": f"{METADATA} {cluster.name} {' '.join(host.roles)}",
            "folder": FOLDER if place(cluster, wanted) == host else None,
        }
    }


def server_conf(cluster: Cluster) -> str:
    """The server's own file, without the password, which its start script adds."""
    return f"""\
LogType=console
PidFile=/tmp/zabbix_server.pid
SocketDir=/tmp
ListenPort={SERVER_PORT}
DBHost={address(cluster, "database")}
DBPort={DATABASE_PORT}
DBName=zabbix
DBUser=zabbix
# A host that has registered is known after so many seconds.
CacheUpdateFrequency=10
StartTrappers=10
# Hosts are all heard from; these are for what people add.
StartPollers=3
"""


#: The database's start: made once, whole or not at all; the password is the Secret's each time.
DATABASE_SCRIPT = """\
#!/bin/sh
set -eu
umask 077
data=/data/database
if [ ! -s $data/PG_VERSION ]; then
  rm -rf $data.new
  initdb --pgdata=$data.new --username=zabbix --encoding=UTF8 --locale=C.UTF-8 \\
    --auth-local=trust --auth-host=scram-sha-256
  echo 'host all all all scram-sha-256' >> $data.new/pg_hba.conf
  echo 'CREATE DATABASE zabbix' | postgres --single -D $data.new postgres > /dev/null
  mv $data.new $data
fi
# The volume's group may have been given more, which PostgreSQL does not want.
chmod 0700 $data
echo "ALTER ROLE zabbix PASSWORD '$DATABASE_PASSWORD'" |
  postgres --single -D $data postgres > /dev/null
unset DATABASE_PASSWORD
postgres -D $data -c listen_addresses='*' -c unix_socket_directories=/tmp \\
  -c shared_buffers="$BUFFERS" -c jit=off &
server=$!
# What ends a pod would have it wait for its clients to leave.
trap 'kill -INT $server' TERM INT
code=0
while kill -0 $server 2> /dev/null; do
  code=0
  wait $server || code=$?
done
exit $code
"""

#: Before the server starts: its tables are there. In one transaction, so never half of them.
SCHEMA_SCRIPT = """\
#!/bin/sh
set -eu
schema=/tmp/create.sql.gz
ask() { psql --no-psqlrc --quiet --set=ON_ERROR_STOP=1 --output=/dev/null "$@"; }
until ask --command='SELECT 1'; do sleep 2; done
if ! ask --command='SELECT 1 FROM dbversion' 2> /dev/null; then
  echo 'making the tables'
  {
    zcat $schema | sed -e '/^START TRANSACTION;$/d' -e '/^BEGIN;$/d' -e '/^COMMIT;$/d'
    # It would look for an agent beside the server, where there is none.
    echo "UPDATE hosts SET status = 1 WHERE host = 'Zabbix server';"
  } | ask --single-transaction --file=-
fi
{
  printf '\\\\set admin %s\\n' "$ADMIN_PASSWORD"
  cat /indigo/every-start.sql
} | ask --single-transaction --file=-
"""

#: What holds at every start: the password of Admin is the Secret's, hosts may register.
EVERY_START = f"""\
CREATE EXTENSION IF NOT EXISTS pgcrypto;
UPDATE users SET passwd = crypt(:'admin', gen_salt('bf', 10)), attempt_failed = 0
  WHERE username = 'Admin';
DO $$
DECLARE
  action bigint;
  operation bigint;
BEGIN
  IF EXISTS (SELECT 1 FROM actions WHERE name = 'Indigo: hosts of the cluster') THEN
    RETURN;
  END IF;
  SELECT coalesce(max(actionid), 0) + 1 INTO action FROM actions;
  SELECT coalesce(max(operationid), 0) INTO operation FROM operations;
  INSERT INTO actions (actionid, name, eventsource, evaltype, status)
    VALUES (action, 'Indigo: hosts of the cluster', 2, 0, 0);
  -- 24 is what an agent says of itself, 2 that it contains the value.
  INSERT INTO conditions (conditionid, actionid, conditiontype, operator, value)
    SELECT coalesce(max(conditionid), 0) + 1, action, 24, 2, '{METADATA}' FROM conditions;
  -- The host is taken in, comes into a group, and gets a template.
  INSERT INTO operations (operationid, actionid, operationtype)
    VALUES (operation + 1, action, 2), (operation + 2, action, 4), (operation + 3, action, 6);
  INSERT INTO opgroup (opgroupid, operationid, groupid)
    SELECT (SELECT coalesce(max(opgroupid), 0) + 1 FROM opgroup), operation + 2, groupid
    FROM hstgrp WHERE name = '{GROUP}';
  INSERT INTO optemplate (optemplateid, operationid, templateid)
    SELECT (SELECT coalesce(max(optemplateid), 0) + 1 FROM optemplate), operation + 3, hostid
    FROM hosts WHERE host = '{TEMPLATE}' AND status = 3;
  -- Where nothing is noted Zabbix looks for the highest number itself.
  DELETE FROM ids
    WHERE table_name IN ('actions', 'conditions', 'operations', 'opgroup', 'optemplate');
END $$;
"""  # noqa: S608 - of constants

SERVER_SCRIPT = """\
#!/bin/sh
set -eu
umask 077
{
  cat /indigo/server.conf
  echo "DBPassword=$DATABASE_PASSWORD"
  # From 7.0 on it would have zabbix.com asked for newer releases; before that the key is an error.
  case $(/usr/sbin/zabbix_server --version) in
    *'(Zabbix) 6.'*) ;;
    *) echo AllowSoftwareUpdateCheck=0 ;;
  esac
} > /tmp/zabbix_server.conf
unset DATABASE_PASSWORD
exec /usr/sbin/zabbix_server --foreground --config /tmp/zabbix_server.conf
"""
