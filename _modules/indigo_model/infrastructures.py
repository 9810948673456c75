"""The service ``im``: the Infrastructure Manager of GRyCAP (UPV), which brings machines of clouds.

Sources: its ``IM/config.py`` (options of ``im.cfg``, ``USER_DB``) and ``IM/im_service.py``
(``logging.conf``, signals), release 2.0.0; Ansible's "Configuration Settings".
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from . import disks
from .cluster import Cluster

#: Key under ``services`` that enables it, and its namespace.
NAME = "im"

#: Settings of ``services.im``.
DEFAULTS: Mapping[str, Any] = MappingProxyType(
    {
        "memory": "1Gi",
        "size": "1Gi",
        "storage_class": None,
        "host": None,
        "secret": None,
        "config": MappingProxyType({}),
    }
)

PORT = 8800

#: The user that it makes when the site brings none, and the Secret with the password.
USER = "indigo"
SECRET = "im-users"  # noqa: S105 - a name

#: Options of ``[im]`` that a site may set. Not among them: ports, paths and what logs, which the
#: manifests rely on, and what is a secret.
OPTIONS = (
    "ANSIBLE_INSTALL_TIMEOUT",
    "BOOT_MODE",
    "CHECK_CTXT_PROCESS_INTERVAL",
    "CONFMAMAGER_CHECK_STATE_INTERVAL",
    "CORS_ORIGIN",
    "DEFAULT_DOMAIN",
    "DEFAULT_VM_CPUS",
    "DEFAULT_VM_CPU_ARCH",
    "DEFAULT_VM_MEMORY",
    "DEFAULT_VM_MEMORY_UNIT",
    "DEFAULT_VM_NAME",
    "DELAY_BETWEEN_VM_RETRIES",
    "ENABLE_CORS",
    "FORCE_OIDC_AUTH",
    "MAX_CONTEXTUALIZATION_TIME",
    "MAX_SIMULTANEOUS_LAUNCHES",
    "MAX_SSH_ERRORS",
    "MAX_VM_FAILS",
    "OIDC_AUDIENCE",
    "OIDC_GROUPS",
    "OIDC_GROUPS_CLAIM",
    "OIDC_ISSUERS",
    "OIDC_SCOPES",
    "PLAYBOOK_RETRIES",
    "PRIVATE_NET_MASKS",
    "REST_BLOCKING_CALL_TIMEOUT",
    "REST_MAX_BLOCKING_CALLS",
    "REST_ROOT_PATH",
    "SSH_REVERSE_TUNNELS",
    "UPDATE_CTXT_LOG_INTERVAL",
    "VAULT_MOUNT_POINT",
    "VAULT_PATH",
    "VAULT_ROLE",
    "VAULT_URL",
    "VERIFI_SSL",
    "VM_INFO_UPDATE_ERROR_GRACE_PERIOD",
    "VM_INFO_UPDATE_FREQUENCY",
    "VM_NUM_USE_CTXT_DIST",
    "VM_TAG_IM",
    "VM_TAG_IM_URL",
    "VM_TAG_INF_ID",
    "VM_TAG_USERNAME",
    "WAIT_PUBLIC_IP_TIMEOUT",
    "WAIT_RUNNING_VM_TIMEOUT",
    "WAIT_SSH_ACCCESS_TIMEOUT",
)

LOGGING = """\
[loggers]
keys = root, ConfManager, CloudConnector, InfrastructureManager
[handlers]
keys = console
[formatters]
keys = plain
[logger_root]
level = ERROR
handlers = console
[logger_ConfManager]
level = INFO
handlers = console
qualname = ConfManager
propagate = 0
[logger_CloudConnector]
level = INFO
handlers = console
qualname = CloudConnector
propagate = 0
[logger_InfrastructureManager]
level = INFO
handlers = console
qualname = InfrastructureManager
propagate = 0
[handler_console]
class = StreamHandler
level = INFO
formatter = plain
args = (sys.stdout,)
[formatter_plain]
format = %(asctime)s - %(name)s - %(levelname)s - %(message)s
"""

#: As upstream's image has it. Machines of clouds come and go at the same addresses with new keys.
ANSIBLE = """\
[defaults]
timeout = 30
host_key_checking = false
become_user = root
become_method = sudo
local_tmp = /tmp/ansible
[ssh_connection]
ssh_args = -o ControlMaster=auto -o ControlPersist=900s -o UserKnownHostsFile=/dev/null
control_path_dir = /tmp/ansible-ssh
pipelining = true
"""

#: Without a list of users, whoever comes is let in. It is written in memory only.
START = """\
import json, os, pathlib, sys
found = {file.name: file.read_text() for file in pathlib.Path("/etc/im-users").glob("[!.]*")}
users = [{"username": name, "password": word.rstrip("\\n")} for name, word in found.items()]
os.umask(0o077)
pathlib.Path("/run/im/users.json").write_text(json.dumps({"users": users}))
os.execv(sys.executable, [sys.executable, "-m", "IM.im_service"])
"""


def option(value: Any) -> str:
    """A value of the cluster file as ``im.cfg`` has it.

    >>> option(["a", "b"]), option(True), option("100%")
    ('a,b', 'true', '100%%')
    """
    several = value if isinstance(value, (list, tuple)) else [value]
    words = (str(one).lower() if isinstance(one, bool) else str(one) for one in several)
    return ",".join(words).replace("%", "%%")


def configuration(given: Mapping[str, Any]) -> str:
    """The text of ``im.cfg``.

    Args:
        given: The site's own options, of :data:`OPTIONS`.

    Example:
        >>> configuration({"MAX_VM_FAILS": 5}).splitlines()[-1]
        'MAX_VM_FAILS = 5'
    """
    own = {
        "DATA_DB": "sqlite:///data/inf.dat",
        "REST_ADDRESS": "0.0.0.0",  # noqa: S104 - of its pod
        "REST_PORT": PORT,
        "USER_DB": "/run/im/users.json",
        # As in the file of upstream's image, which this one takes the place of.
        "MAX_SIMULTANEOUS_LAUNCHES": 5,
        "PLAYBOOK_RETRIES": 3,
        "ANSIBLE_INSTALL_TIMEOUT": 900,
    }
    lines = [f"{name} = {option(value)}" for name, value in {**own, **given}.items()]
    return "\n".join(["[im]", *lines, ""])


def settings(_cluster: Cluster, given: Mapping[str, Any]) -> dict[str, Any]:
    """What the manifests are filled with, beside what the site set.

    Returns:
        ``port``, ``files`` (name to text), ``digest`` of those, ``claims``, ``volumes``, ``users``
        (name of the Secret whose keys are users and whose values are their passwords), ``user``
        (of the add-on's own making, or None) and ``passwords`` that it makes up once.
    """
    files = {
        "im.cfg": configuration(given["config"]),
        "logging.conf": LOGGING,
        "ansible.cfg": ANSIBLE,
        "start.py": START,
    }
    claims, volumes = disks.storage(given)
    own = given["secret"] is None
    return {
        "port": PORT,
        "config": dict(given["config"]),
        "files": files,
        "digest": hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()[:16],
        "claims": claims,
        "volumes": volumes,
        "users": given["secret"] or SECRET,
        "user": USER if own else None,
        "passwords": {SECRET: {"namespace": NAME, "keys": [USER]}} if own else {},
    }
