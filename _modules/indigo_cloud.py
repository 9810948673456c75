"""The way to an OpenStack cloud, as a Secret: ``cloud.conf``, its password, the site's authority.

All but the password is in the pillar. The password is in a file of the first master's, 0600, and
goes from there into the cluster and nowhere else: no return, log or argument has it.

Sources: cloud-provider-openstack's docs; gopkg.in/gcfg.v1 for what a value in quotes may hold.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

try:
    from salt.exceptions import CommandExecutionError
except ImportError:  # the pure functions are of use without Salt
    CommandExecutionError = RuntimeError  # type: ignore[assignment,misc]

#: Where :func:`keep` puts a password, and the pillar says that it is.
FILE = "/etc/kubernetes/openstack.secret"

CONFIGURATION = "cloud.conf"


def __virtual__() -> str:
    return "indigo_cloud"


# --- text (pure) ---------------------------------------------------------------------------------


def quoted(value: str) -> str:
    r"""A value of ``cloud.conf``, whatever is in it.

    >>> quoted('a"b\\c;#')
    '"a\\"b\\\\c;#"'
    """
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def text(sections: Mapping[str, Mapping[str, Any]]) -> str:
    """``cloud.conf``: sections and their options, each in the order of their names.

    >>> text({"Global": {"region": "r", "auth-url": "https://x/v3"}})
    '[Global]\\nauth-url="https://x/v3"\\nregion="r"\\n'
    """
    lines = []
    for section in sorted(sections):
        lines.append(f"[{section}]")
        options = sections[section]
        lines += [f"{name}={quoted(str(options[name]))}" for name in sorted(options)]
    return "\n".join(lines) + "\n"


def value_of(option: str, conf: str) -> str | None:
    r"""The value of an option in a text of :func:`text`; None where it has none.

    >>> value_of("password", '[Global]\npassword="a\\"b\\\\c"\n')
    'a"b\\c'
    """
    found = re.search(rf'^{re.escape(option)}="((?:[^"\\]|\\.)*)"$', conf, re.MULTILINE)
    return re.sub(r"\\(.)", r"\1", found[1]) if found else None


# --- on the first master -------------------------------------------------------------------------


def password(path: str) -> str | None:
    """What a file of root's alone holds: one line.

    Args:
        path: Of the file.

    Returns:
        The line; None where there is no file.

    Raises:
        CommandExecutionError: Others can read it, or it is not one line. The message has nothing
            of what is in it.
    """
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return None
    except OSError as err:
        raise CommandExecutionError(f"{path} cannot be read: {err.strerror}") from err
    if not stat.S_ISREG(found.st_mode):
        raise CommandExecutionError(f"{path}: found no plain file; expected one of root's, 0600")
    if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
        mode = f"{stat.S_IMODE(found.st_mode):04o}"
        raise CommandExecutionError(
            f"{path}: found mode {mode} and owner {found.st_uid}; expected 0600 and root: others "
            f"can read the password. Change it at the cloud, and `chown root {path}; chmod 0600 "
            f"{path}`"
        )
    try:
        lines = Path(path).read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as err:
        raise CommandExecutionError(f"{path} cannot be read: {type(err).__name__}") from None
    if len(lines) != 1 or not lines[0].strip():
        raise CommandExecutionError(
            f"{path}: found {len(lines)} lines; expected one, the password and nothing else"
        )
    return lines[0]


def manifest(cloud: Mapping[str, Any]) -> dict[str, Any]:
    """The Secret with the way to the cloud: for :func:`bring` alone, since it holds the password.

    Where the file with the password is not there, such as after another master became the first,
    the password that the Secret in the cluster has is kept.

    Args:
        cloud: As the model derives it: ``secret``, ``sections``, ``option``, ``file``,
            ``authority``.

    Raises:
        CommandExecutionError: No password, an authority that is not the declared one, or the API
            does not answer. The message names the file or the key.
    """
    namespace, _, name = cloud["secret"].partition("/")
    option, path = cloud["option"], cloud["file"]
    word = password(path)
    if word is None:
        held = (_live(cloud["secret"]) or {}).get(CONFIGURATION, b"").decode()
        word = value_of(option, held)
    if word is None:
        raise CommandExecutionError(
            f"{path}: found no such file; expected the {option.replace('-', ' ')} of "
            "addons.openstack in it, in one line. On this master, as root: `install -m 0600 "
            f"/dev/stdin {path}`, write it, and end with Ctrl-D"
        )
    sections = {**cloud["sections"], "Global": {**cloud["sections"]["Global"], option: word}}
    files = {CONFIGURATION: text(sections).encode()}
    if cloud["authority"]:
        files[cloud["authority"]["name"]] = _authority(cloud["authority"])
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "type": "Opaque",
        "metadata": {"name": name, "namespace": namespace},
        "data": {key: base64.b64encode(value).decode() for key, value in files.items()},
    }


def difference(cloud: Mapping[str, Any]) -> str | None:
    """Why the Secret must be written, or None when it is as declared.

    Args:
        cloud: See :func:`manifest`.

    Returns:
        ``created`` or ``updated``: never what is in it.

    Raises:
        CommandExecutionError: See :func:`manifest`.

    CLI Example:

    .. code-block:: bash

        salt master1 indigo_cloud.difference '{secret: openstack/cloud, …}'
    """
    wanted = manifest(cloud)["data"]
    live = _live(cloud["secret"])
    if live is None:
        return "created"
    held = {key: base64.b64encode(value).decode() for key, value in live.items()}
    return None if held == wanted else "updated"


def bring(cloud: Mapping[str, Any]) -> None:
    """Write the Secret into the cluster, with its namespace where that is not there yet.

    It is there before what reads it at its start, and so before the add-on.

    Raises:
        CommandExecutionError: See :func:`manifest`; or the API refuses.
    """
    found = manifest(cloud)
    namespace, _, name = cloud["secret"].partition("/")
    folder = f"/api/v1/namespaces/{namespace}/secrets"
    # As a whole: an authority that is no longer declared goes.
    replace = _live(cloud["secret"]) is not None
    if not replace:
        made = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}}
        _written("POST", "/api/v1/namespaces", made, f"Namespace {namespace}", also=409)
    method, path = ("PUT", f"{folder}/{name}") if replace else ("POST", folder)
    _written(method, path, found, f"Secret {cloud['secret']}")


def _written(
    method: str, path: str, body: Mapping[str, Any], what: str, also: int | None = None
) -> None:
    answer = __salt__["indigo_kube.request"](method, path, body, server=_server())
    if answer["status"] not in (200, 201, also):
        told = answer["body"].get("message", answer["status"])
        raise CommandExecutionError(f"{what} cannot be written: {told}")


def keep(sealed: Mapping[str, Any]) -> dict[str, bool]:
    """Take a password that was sealed for this minion, into its file, 0600.

    Args:
        sealed: As ``indigo_seal.seal`` made it; its header names the recipient and the file.

    Returns:
        ``changed``: whether the file held another one, or none.

    Raises:
        CommandExecutionError: It is for another host or file, or does not open.
    """
    header = sealed.get("header") or {}
    expected = {"recipient": __opts__["id"], "file": FILE}
    if header != expected:
        raise CommandExecutionError(f"a sealed password: found {header}; expected {expected}")
    key = Path(__opts__["pki_dir"], "minion.pem").read_bytes()
    problem = f"the sealed password for {FILE} does not open: run indigo.setup again"
    word = __salt__["indigo_seal.unseal"](sealed, key, problem)
    path = Path(FILE)
    try:
        if password(FILE) == word:
            return {"changed": False}
    except CommandExecutionError:
        pass  # it is written anew, as it must be
    partial = path.with_name(f".{path.name}.new")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial.unlink(missing_ok=True)
    with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(f"{word}\n")
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    return {"changed": True}


def _authority(declared: Mapping[str, str]) -> bytes:
    """The site's authority, as the Salt file server has it, if it is the declared one."""
    cached = __salt__["cp.cache_file"](declared["source"])
    if not cached:
        raise CommandExecutionError(
            f"addons.openstack.ca: found nothing at {declared['source']}; expected a file in PEM "
            "on the Salt master, in its file_roots"
        )
    content = Path(cached).read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != declared["sha256"]:
        raise CommandExecutionError(
            f"addons.openstack.ca_sha256: found {found} for {declared['source']}; expected "
            f"{declared['sha256']}: another file lies there. Find out why before you change the sum"
        )
    if b"-----BEGIN CERTIFICATE-----" not in content or b"PRIVATE KEY" in content:
        raise CommandExecutionError(
            f"addons.openstack.ca: found no certificate in {declared['source']}, or a private key; "
            "expected certificates in PEM and nothing else"
        )
    return content


def _live(secret: str) -> dict[str, bytes] | None:
    """What the Secret in the cluster holds; None where there is none."""
    namespace, _, name = secret.partition("/")
    path = f"/api/v1/namespaces/{namespace}/secrets/{name}"
    answer = __salt__["indigo_kube.request"]("GET", path, server=_server())
    if answer["status"] == 404:
        return None
    if answer["status"] != 200:
        raise CommandExecutionError(f"{path} answered {answer['status']}")
    data = answer["body"].get("data") or {}
    return {key: base64.b64decode(value) for key, value in data.items()}


def _server() -> str:
    return str(__pillar__["indigo"]["components"]["kube-apiserver"]["url"])
