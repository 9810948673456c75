"""Logs of pods and of nodes: Fluent Bit, Elasticsearch and Kibana.

Sources: Fluent Bit's manual ("Tail", "Systemd", "Kubernetes", "Elasticsearch"); Elasticsearch's
"Index lifecycle management", "Data streams" and "Security privileges"; Kibana's "Configure Kibana".
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import netaddr

from . import disks
from .cluster import Cluster

#: Settings of ``addons.logging``.
DEFAULTS: Mapping[str, Any] = MappingProxyType(
    {
        "retention": "14d",
        "size": "20Gi",
        "memory": "2Gi",
        "storage_class": None,
        "kibana": True,
        "host": None,
    }
)

PORT = 9200
KIBANA_PORT = 5601

#: Data streams, and what their index template matches.
STREAMS = ("logs-indigo-pods", "logs-indigo-hosts")
PATTERN = "logs-indigo-*"

#: Name of the lifecycle policy and of the index template.
POLICY = "indigo"


def address(cluster: Cluster) -> str:
    """Address of Elasticsearch's service: the seventeenth of the service network.

    A fixed one, so that lines are kept also while no name is resolved.
    """
    return str(netaddr.IPNetwork(cluster.services)[17])


def settings(cluster: Cluster, given: Mapping[str, Any]) -> dict[str, Any]:
    """What the manifests are filled with, beside what the site set.

    Returns:
        ``address`` and ``port`` of Elasticsearch, ``heap`` (for Java), ``files`` (name to text) of
        Fluent Bit and of the script that makes users and policies, ``digest`` of those, ``age``
        (after which an index goes), ``claims`` and ``volumes``, ``nodes``, and ``passwords``.
    """
    claims, volumes = disks.storage(given)
    files = {
        "fluent-bit.conf": fluent_bit(address(cluster), cluster.api_service),
        "parsers.conf": PARSERS,
        "ready.sh": script(given),
    }
    text = json.dumps(files, sort_keys=True)
    return {
        "address": address(cluster),
        "port": PORT,
        "kibana_port": KIBANA_PORT,
        "heap": f"{disks.mebibytes(given['memory']) // 2}m",
        "files": files,
        "digest": hashlib.sha256(text.encode()).hexdigest()[:16],
        "age": disks.days(given["retention"]),
        "claims": claims,
        "volumes": volumes,
        "nodes": [host.name for host in cluster.with_role("node")],
        "streams": PATTERN,
        "lifecycle": POLICY,
        "images": {
            name: image
            for name, image in given["images"].items()
            if name != "kibana" or given["kibana"]
        },
        "passwords": {
            "logging": {"namespace": "logging", "keys": ["elastic", "shipper", "kibana", "key"]}
        },
    }


def policy(given: Mapping[str, Any]) -> dict[str, Any]:
    """The lifecycle: a new index each day or at a tenth of the room, gone when it is too old.

    Example:
        >>> policy(DEFAULTS)["policy"]["phases"]["hot"]["actions"]["rollover"]
        {'max_age': '1d', 'max_primary_shard_size': '2048mb'}
    """
    tenth = max(50, disks.mebibytes(given["size"]) // 10)
    return {
        "policy": {
            "phases": {
                "hot": {
                    "actions": {
                        "rollover": {"max_age": "1d", "max_primary_shard_size": f"{tenth}mb"}
                    }
                },
                "delete": {"min_age": disks.days(given["retention"]), "actions": {"delete": {}}},
            }
        }
    }


def template() -> dict[str, Any]:
    """The index template of both streams."""
    return {
        "index_patterns": [PATTERN],
        "data_stream": {},
        # Above Elasticsearch's own template for logs-*-*.
        "priority": 300,
        "template": {
            "settings": {
                "index.lifecycle.name": POLICY,
                # There is one Elasticsearch: a copy would have no place.
                "number_of_shards": 1,
                "number_of_replicas": 0,
                # Labels of pods are the users' own: one that clashes must not lose the line.
                "index.mapping.ignore_malformed": True,
                "index.mapping.total_fields.limit": 2000,
                # A line with one field too many is kept, too; that field is not searched.
                "index.mapping.total_fields.ignore_dynamic_beyond_limit": True,
            },
            "mappings": {
                "properties": {
                    "@timestamp": {"type": "date"},
                    "node": {"type": "keyword"},
                    "message": {"type": "text"},
                    "kubernetes": {
                        "properties": {
                            "labels": {"type": "flattened"},
                            "namespace_name": {"type": "keyword"},
                            "pod_name": {"type": "keyword"},
                            "container_name": {"type": "keyword"},
                        }
                    },
                }
            },
        },
    }


#: Who ships lines may add them, and do nothing else.
SHIPPER = {
    "cluster": ["monitor"],
    "indices": [{"names": [PATTERN], "privileges": ["auto_configure", "create_doc"]}],
}


def script(given: Mapping[str, Any]) -> str:
    """What makes Elasticsearch ready: the users, the policy and the template are there.

    It runs as the readiness probe, so a pod that lost its data makes them anew. Passwords go
    through pipes, never through arguments.
    """
    return f"""\
#!/bin/bash
set -euo pipefail
ask() {{
  printf 'user = "elastic:%s"\\n' "$ELASTIC_PASSWORD" |
    curl --silent --show-error --fail --max-time 8 --config - --output /dev/null \\
      --header 'Content-Type: application/json' "$@"
}}
base=http://127.0.0.1:{PORT}
if [ ! -e /tmp/settled ]; then
  user=/tmp/user.json
  umask 077
  printf '{{"password": "%s"}}' "$KIBANA_PASSWORD" > $user
  ask --request POST --data @$user $base/_security/user/kibana_system/_password
  ask --request PUT --data '{json.dumps(SHIPPER)}' $base/_security/role/indigo-shipper
  printf '{{"password": "%s", "roles": ["indigo-shipper"]}}' "$SHIPPER_PASSWORD" > $user
  ask --request PUT --data @$user $base/_security/user/shipper
  rm $user
  ask --request PUT --data '{json.dumps(policy(given))}' $base/_ilm/policy/{POLICY}
  ask --request PUT --data '{json.dumps(template())}' $base/_index_template/{POLICY}
  touch /tmp/settled
fi
ask "$base/_cluster/health?wait_for_status=yellow&timeout=5s"
"""


PARSERS = r"""
[PARSER]
    Name        cri
    Format      regex
    Regex       ^(?<time>[^ ]+) (?<stream>stdout|stderr) (?<logtag>[^ ]*) (?<message>.*)$
    Time_Key    time
    Time_Format %Y-%m-%dT%H:%M:%S.%L%z
"""


def fluent_bit(server: str, api: str) -> str:
    """Fluent Bit's own file.

    Args:
        server: Address of Elasticsearch.
        api: Address of the service ``kubernetes``. By its name Fluent Bit would wait for DNS for
            three minutes before it starts, longer than its liveness probe waits.
    """
    shared = f"""\
    Name                es
    Host                {server}
    Port                {PORT}
    HTTP_User           shipper
    HTTP_Passwd         ${{SHIPPER_PASSWORD}}
    Suppress_Type_Name  On
    # A data stream takes nothing but new documents.
    Write_Operation     create
    Replace_Dots        On
    Retry_Limit         no_limits
    Trace_Error         On
    # An answer that it cannot hold counts as none: it would send the same lines again for ever
    # (fluent/fluent-bit#3918).
    Buffer_Size         false
    storage.total_limit_size  512M
"""
    return f"""\
[SERVICE]
    Flush               2
    Log_Level           info
    Parsers_File        parsers.conf
    HTTP_Server         On
    HTTP_Listen         0.0.0.0
    HTTP_Port           2020
    Health_Check        On
    # What cannot be sent waits on the node's disk.
    storage.path        /state/buffers
    storage.max_chunks_up  64

[INPUT]
    Name                tail
    Tag                 kube.*
    Path                /var/log/containers/*.log
    Exclude_Path        /var/log/containers/fluent-bit-*_logging_*.log
    multiline.parser    cri
    DB                  /state/tail.db
    Mem_Buf_Limit       32M
    Skip_Long_Lines     On
    storage.type        filesystem

[INPUT]
    Name                systemd
    Tag                 host.*
    DB                  /state/systemd.db
    Read_From_Tail      On
    Strip_Underscores   On
    storage.type        filesystem

[FILTER]
    Name                kubernetes
    Match               kube.*
    Kube_URL            https://{api}:443
    Merge_Log           Off
    Annotations         Off
    Buffer_Size         256k

[FILTER]
    Name                modify
    Match               kube.*
    Rename              log message

[FILTER]
    Name                modify
    Match               host.*
    Rename              MESSAGE message

[FILTER]
    Name                record_modifier
    Match               *
    Record              node ${{NODE_NAME}}

[OUTPUT]
    Match               kube.*
    Index               {STREAMS[0]}
{shared}
[OUTPUT]
    Match               host.*
    Index               {STREAMS[1]}
{shared}"""
