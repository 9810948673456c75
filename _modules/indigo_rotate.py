"""A master's part in the exchange of keys: Secrets and tokens that must be written anew.

Which key is in use, and how far its exchange is, the token set says (``indigo_tokens.rotate``).
Nothing here returns, logs or raises a Secret: what is told is names and numbers.

Sources: Kubernetes' "Encrypting Confidential Data at Rest" (the prefix names provider and key; a
write of the unchanged object encrypts it anew), etcd's "gRPC gateway".
"""

from __future__ import annotations

import base64
import calendar
import contextlib
import hashlib
import http.client
import json
import math
import secrets
import ssl
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from salt.exceptions import CommandExecutionError

try:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import padding

    HAS_CRYPTOGRAPHY = True
except ImportError:
    HAS_CRYPTOGRAPHY = False

#: How many values etcd is asked for at once: each may be a megabyte.
PAGE = 50

#: How often the whole is looked through: Secrets that were written meanwhile are found the next
#: time, and those are few.
ROUNDS = 5

#: How often one object is written when others write it, too.
TRIES = 5

#: Seconds between two looks at what controllers of the cluster are to do.
LOOK = 1

#: Where a pod finds the token of its service account, and the authority.
MOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"

#: Type and annotation of a Secret that holds a token of a service account.
TOKEN_TYPE = "kubernetes.io/service-account-token"  # noqa: S105 - a type
OF_ACCOUNT = "kubernetes.io/service-account.name"

#: What a restart of a workload leaves in its template.
RESTARTED = "indigo/keys-exchanged-at"

#: Kinds whose controllers replace their pods when the template changes.
WORKLOADS = {"Deployment": "deployments", "StatefulSet": "statefulsets", "DaemonSet": "daemonsets"}


def __virtual__() -> str | tuple[bool, str]:
    if not HAS_CRYPTOGRAPHY:
        return False, "indigo_rotate needs the Python package cryptography"
    return "indigo_rotate"


# --- pure -------------------------------------------------------------------------------------


def encryption(value: bytes) -> str:
    """By what a value in etcd is encrypted: ``provider:version:key``, or ``identity``.

    Example:
        >>> encryption(b"k8s:enc:secretbox:v1:key2:...")
        'secretbox:v1:key2'
        >>> encryption(b"k8s\\x00")
        'identity'
    """
    parts = value[:200].split(b":", 5)
    if parts[:2] != [b"k8s", b"enc"] or len(parts) < 6:
        return "identity"
    return b":".join(parts[2:5]).decode("ascii", "replace")


def named(key: str, prefix: str) -> tuple[str, str]:
    """Namespace and name of the Secret that lies under a key of etcd.

    Example:
        >>> named("/registry/secrets/default/a", "/registry/secrets/")
        ('default', 'a')
    """
    namespace, _, name = key[len(prefix) :].partition("/")
    return namespace, name


def uses_account(pod: Mapping[str, Any]) -> bool:
    """Whether a pod that still runs, or will, has the token of its service account.

    Example:
        >>> uses_account({"spec": {"containers": [{"volumeMounts": [{"mountPath": MOUNT}]}]}})
        True
        >>> uses_account({"spec": {"containers": [{}]}})
        False
    """
    if pod.get("status", {}).get("phase") in ("Succeeded", "Failed"):
        return False
    spec = pod["spec"]
    mounts = [
        mount["mountPath"]
        for container in [*spec["containers"], *spec.get("initContainers", [])]
        for mount in container.get("volumeMounts") or []
    ]
    return MOUNT in mounts


def seconds(moment: str) -> int:
    """Unix seconds of a time as the API writes it.

    >>> seconds("1970-01-01T00:01:00Z")
    60
    """
    return calendar.timegm(time.strptime(moment, "%Y-%m-%dT%H:%M:%SZ"))


def signed_by(token: str, public: Any) -> bool:
    """Whether a token (a JWT, RS256) was signed with the private part of a key."""
    try:
        signed, _, signature = token.rpartition(".")
        public.verify(_decoded(signature), signed.encode(), padding.PKCS1v15(), hashes.SHA256())
    except (InvalidSignature, ValueError):
        return False
    return True


def signed_again(token: str, private: Any) -> str:
    """The same claims as a token has, signed with another key.

    The header names the key as Kubernetes does: by the SHA-256 of its public part
    (``keyIDFromPublicKey`` in ``pkg/serviceaccount/jwt.go``).
    """
    public = private.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    header = {"alg": "RS256", "kid": _encoded(hashlib.sha256(public).digest())}
    claims = token.split(".")[1]
    signed = f"{_encoded(json.dumps(header, separators=(',', ':')).encode())}.{claims}"
    return (
        f"{signed}.{_encoded(private.sign(signed.encode(), padding.PKCS1v15(), hashes.SHA256()))}"
    )


def _encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _decoded(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


# --- etcd -------------------------------------------------------------------------------------


def _view() -> Mapping[str, Any]:
    view = __pillar__.get("indigo")
    if not view or "master" not in view.get("roles", []):
        raise CommandExecutionError(
            f"{__opts__['id']} is no master by its pillar; this is asked of masters"
        )
    return view


def _prefix() -> str:
    flags = _view()["components"]["kube-apiserver"]["flags"]
    return flags.get("etcd-prefix", "/registry").rstrip("/") + "/secrets/"


def _range(body: Mapping[str, Any]) -> dict[str, Any]:
    """One question to etcd, of the first member that answers."""
    lock = _view()["lock"]
    context = ssl.create_default_context(cafile=lock["ca"])
    context.load_cert_chain(lock["cert"], lock["key"])
    problems = []
    for endpoint in lock["endpoints"]:
        asked = urllib.request.Request(  # noqa: S310 - always https
            f"{endpoint}/v3/kv/range", json.dumps(body).encode(), method="POST"
        )
        try:
            with urllib.request.urlopen(asked, timeout=20, context=context) as answer:  # noqa: S310
                return dict(json.load(answer))
        except (OSError, ValueError, http.client.HTTPException) as err:
            problems.append(f"{endpoint}: {err}")
    raise CommandExecutionError(f"etcd does not answer: {'; '.join(problems)}")


def _stored() -> Iterator[tuple[str, str]]:
    """Key of each Secret in etcd, and by what its value is encrypted."""
    prefix = _prefix()
    start, end = prefix.encode(), (prefix[:-1] + "0").encode()
    while True:
        said = _range(
            {
                "key": base64.b64encode(start).decode(),
                "range_end": base64.b64encode(end).decode(),
                "limit": PAGE,
            }
        )
        for one in said.get("kvs", []):
            start = base64.b64decode(one["key"]) + b"\0"
            # The beginning is enough; in multiples of four characters.
            yield start[:-1].decode(), encryption(base64.b64decode(one["value"][:256]))
        if not said.get("more"):
            return


def stored() -> dict[str, int]:
    """How many Secrets lie in etcd under each key of encryption.

    CLI Example:

    .. code-block:: bash

        salt master1 indigo_rotate.stored
    """
    return dict(Counter(how for _, how in _stored()))


# --- the API ----------------------------------------------------------------------------------


class _Api:
    """The master's own API server as admin, over one connection that is kept."""

    def __init__(self) -> None:
        view = _view()
        self._url = urlsplit(view["components"]["kube-apiserver"]["url"])
        self._ca = view["paths"]["pki"] + "/ca.crt"
        token = Path(view["paths"]["tokens"], "admin").read_text("utf-8").strip()
        self._headers = {"Authorization": f"Bearer {token}", "Accept": "application/json"}
        self._connection: http.client.HTTPSConnection | None = None

    def ask(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """Status and document of an answer."""
        kept = self._connection is not None
        try:
            return self._once(method, path, body)
        except (OSError, ValueError, http.client.HTTPException) as err:
            self.close()
            if not kept:
                raise CommandExecutionError(
                    f"{self._url.geturl()}{path} does not answer: {err}"
                ) from err
        return self.ask(method, path, body)

    def _once(self, method: str, path: str, body: Any) -> tuple[int, Any]:
        if self._connection is None:
            self._connection = http.client.HTTPSConnection(
                self._url.hostname or "",
                self._url.port,
                timeout=20,
                context=ssl.create_default_context(cafile=self._ca),
            )
        data = None if body is None else json.dumps(body)
        kind = "application/merge-patch+json" if method == "PATCH" else "application/json"
        self._connection.request(method, path, data, {**self._headers, "Content-Type": kind})
        answer = self._connection.getresponse()
        return answer.status, json.loads(answer.read())

    def done(self, method: str, path: str, body: Any = None) -> Any:
        """The document of an answer; an error status is raised, without the answer's text."""
        status, found = self.ask(method, path, body)
        if status >= 400:
            raise CommandExecutionError(f"{method} {path}: {status} {found.get('reason', '')}")
        return found

    def all(self, path: str) -> Iterator[dict[str, Any]]:
        """Every object of a collection, a page at a time."""
        more = ""
        joint = "&" if "?" in path else "?"
        while True:
            page = self.done("GET", f"{path}{joint}limit=500{more}")
            yield from page["items"]
            token = page["metadata"].get("continue")
            if not token:
                return
            more = f"&continue={quote(token)}"

    def close(self) -> None:
        """End the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _path(namespace: str, name: str) -> str:
    return f"/api/v1/namespaces/{quote(namespace)}/secrets/{quote(name)}"


def _write_again(
    api: _Api, namespace: str, name: str, change: Callable[[dict[str, Any]], bool] | None = None
) -> bool:
    """Write a Secret as it is, or as ``change`` makes it of itself; whether it was written."""
    path = _path(namespace, name)
    status, reason = 0, ""
    for _ in range(TRIES):
        status, found = api.ask("GET", path)
        if status == 404:
            return False
        if status == 200:
            if change is not None and not change(found):
                return False
            status, found = api.ask("PUT", path, found)
            if status == 200:
                return True
            if status == 404:
                return False
        reason = str(found.get("reason", ""))  # the message could quote the object
        if status != 409:
            break
    raise CommandExecutionError(
        f"Secret {namespace}/{name} could not be written again: {status} {reason}; see "
        f"`kubectl get secret -n {namespace} {name}` and what admission says to an update of it"
    )


def rewrite(key: str) -> dict[str, Any]:
    """Have every Secret that is not encrypted by one key written again, until all are.

    Every API server must write with that key already. What etcd says is believed, nothing else.

    Args:
        key: Name of the key in the configuration of encryption at rest.

    Returns:
        ``written``, how many were written again, and ``secrets``, how many there are.

    Raises:
        CommandExecutionError: A Secret cannot be written, or some still have another key after
            several rounds. Running it again goes on with those.

    CLI Example:

    .. code-block:: bash

        salt master1 indigo_rotate.rewrite key2
    """
    prefix, wanted = _prefix(), f"secretbox:v1:{key}"
    api = _Api()
    written = 0
    try:
        for _ in range(ROUNDS):
            found = dict(_stored())
            stale = [named(one, prefix) for one, how in found.items() if how != wanted]
            if not stale:
                return {"written": written, "secrets": len(found)}
            written += sum(_write_again(api, *one) for one in stale)
    finally:
        api.close()
    raise CommandExecutionError(
        f"after {ROUNDS} rounds {len(stale)} Secrets are not encrypted by {key}, for example "
        f"{'/'.join(stale[0])}: an API server still writes with another key. Run "
        "salt 'MASTERS' state.apply, then this again"
    )


# --- tokens of service accounts ---------------------------------------------------------------


def _signing_key() -> Any:
    paths = [
        file["path"]
        for file in _view()["token_set"]["files"]
        if file["kind"] == "service-account-key"
    ]
    return serialization.load_pem_private_key(Path(paths[0]).read_bytes(), password=None)


def _token_secrets(api: _Api) -> list[dict[str, Any]]:
    return list(api.all(f"/api/v1/secrets?fieldSelector=type%3D{quote(TOKEN_TYPE, safe='')}"))


def _token(secret: Mapping[str, Any]) -> str:
    return base64.b64decode(secret.get("data", {}).get("token", "")).decode("ascii", "replace")


def second_tokens(timeout: float = 60) -> dict[str, int]:
    """Give each service account whose Secret holds a token of the old key another such Secret.

    The new one comes first in the account, so new pods have it. The old one stays until the old
    key is dropped: the pods that have it go on. Releases that make no such Secrets have none here
    that an account names, and nothing is done.

    Args:
        timeout: Seconds to wait for the controller manager to fill in the tokens.

    Returns:
        ``made``: how many Secrets.

    Raises:
        CommandExecutionError: The controller manager does not make tokens, or the API refuses.

    CLI Example:

    .. code-block:: bash

        salt master1 indigo_rotate.second_tokens
    """
    public = _signing_key().public_key()
    with contextlib.closing(_Api()) as api:
        old, new = set(), set()
        spare: dict[tuple[str, str], tuple[str, str]] = {}
        for one in _token_secrets(api):
            where = _name(one)
            if signed_by(_token(one), public):
                new.add(where)
                # A run before this one may have made it, and been killed.
                spare[where[0], one["metadata"]["annotations"].get(OF_ACCOUNT, "")] = where
            else:
                old.add(where)
        made = []
        for account in list(api.all("/api/v1/serviceaccounts")):
            who = _name(account)
            held = {(who[0], one["name"]) for one in account.get("secrets") or []}
            if held & old and not held & new:
                made.append(spare.get(who) or _second(api, *who))
        deadline = time.monotonic() + timeout
        left = list(made)
        while left:
            left = [one for one in left if not _token(api.done("GET", _path(*one)))]
            if left and time.monotonic() > deadline:
                raise CommandExecutionError(
                    f"{len(left)} tokens, for example {'/'.join(left[0])}, were not made within "
                    f"{timeout:g} s: see kube-controller-manager on the masters"
                )
            if left:
                time.sleep(LOOK)
        for namespace, name in made:
            _put_first(api, namespace, name)
    return {"made": len(made)}


def _name(thing: Mapping[str, Any]) -> tuple[str, str]:
    return thing["metadata"]["namespace"], thing["metadata"]["name"]


def _second(api: _Api, namespace: str, account: str) -> tuple[str, str]:
    """Make a Secret that the controller manager puts a token into."""
    name = f"{account}-token-{secrets.token_hex(3)}"
    document = {
        "apiVersion": "v1",
        "kind": "Secret",
        "type": TOKEN_TYPE,
        "metadata": {"name": name, "annotations": {OF_ACCOUNT: account}},
    }
    api.done("POST", f"/api/v1/namespaces/{quote(namespace)}/secrets", document)
    return namespace, name


def _put_first(api: _Api, namespace: str, name: str) -> None:
    secret = api.done("GET", _path(namespace, name))
    account = secret["metadata"]["annotations"][OF_ACCOUNT]
    path = f"/api/v1/namespaces/{quote(namespace)}/serviceaccounts/{quote(account)}"
    for _ in range(TRIES):
        found = api.done("GET", path)
        others = [one for one in found.get("secrets") or [] if one["name"] != name]
        found["secrets"] = [{"name": name}, *others]
        status, said = api.ask("PUT", path, found)
        if status == 200:
            return
        if status != 409:
            break
    raise CommandExecutionError(f"{path} could not be changed: {status} {said.get('reason', '')}")


def old_tokens_end() -> dict[str, int]:
    """No Secret holds a token of another key than the one that signs now.

    A Secret that an account names is removed where the account has a newer one; any other was
    made by a person, for somebody outside: its token is signed again in its place.

    Returns:
        ``removed`` and ``signed``: how many Secrets.

    CLI Example:

    .. code-block:: bash

        salt master1 indigo_rotate.old_tokens_end
    """
    key = _signing_key()
    public = key.public_key()
    removed = signed = 0

    def sign(secret: dict[str, Any]) -> bool:
        token = _token(secret)
        if not token or signed_by(token, public):
            return False
        secret["data"]["token"] = base64.b64encode(signed_again(token, key).encode()).decode()
        return True

    with contextlib.closing(_Api()) as api:
        found = _token_secrets(api)
        new = {_name(one) for one in found if signed_by(_token(one), public)}
        named_by: dict[tuple[str, str], bool] = {}
        for account in api.all("/api/v1/serviceaccounts"):
            space = account["metadata"]["namespace"]
            held = {(space, one["name"]) for one in account.get("secrets") or []}
            named_by |= dict.fromkeys(held, bool(held & new))
        for one in found:
            where = _name(one)
            if where in new:
                continue
            if named_by.get(where):
                status, said = api.ask("DELETE", _path(*where))
                if status not in (200, 202, 404):
                    reason = said.get("reason", "")
                    raise CommandExecutionError(f"Secret {'/'.join(where)}: {status} {reason}")
                removed += 1
            else:
                signed += _write_again(api, *where, sign)
    return {"removed": removed, "signed": signed}


# --- pods -------------------------------------------------------------------------------------


def _old_pods(api: _Api, since: float) -> list[dict[str, Any]]:
    """Pods with a service account that were made before a time, and not for that reason."""

    def old(meta: Mapping[str, Any]) -> bool:
        # Clocks may differ; a pod that a restart of ours has made says so.
        stamp = (meta.get("annotations") or {}).get(RESTARTED, "0")
        made = max(seconds(meta["creationTimestamp"]), int(stamp) if stamp.isdigit() else 0)
        return made < since

    return [pod for pod in api.all("/api/v1/pods") if uses_account(pod) and old(pod["metadata"])]


def _workload(api: _Api, pod: Mapping[str, Any]) -> tuple[str, str] | None:
    """Path and kind of what replaces a pod when its template changes; None where nothing does."""
    meta = pod["metadata"]
    owner = next((one for one in meta.get("ownerReferences", []) if one.get("controller")), None)
    space = f"/apis/apps/v1/namespaces/{quote(meta['namespace'])}"
    if owner and owner["kind"] == "ReplicaSet":
        status, found = api.ask("GET", f"{space}/replicasets/{quote(owner['name'])}")
        if status != 200:
            return None
        listed = found["metadata"].get("ownerReferences", [])
        owner = next((one for one in listed if one.get("controller")), None)
    if not owner or owner["kind"] not in WORKLOADS:
        return None
    return f"{space}/{WORKLOADS[owner['kind']]}/{quote(owner['name'])}", owner["kind"]


def renew_pods(since: float, timeout: float = 600, restart: bool = True) -> dict[str, Any]:
    """Have every pod that uses a service account replaced that was made before a time.

    Deployments, StatefulSets and DaemonSets replace their pods as their own strategy says. A pod
    of anything else stays: whoever made it must decide.

    Args:
        since: Unix seconds.
        timeout: Seconds to wait for the last of them.
        restart: Restart workloads; else only look.

    Returns:
        ``restarted`` (paths of workloads) and ``left`` (pods that nothing replaces, as
        ``namespace/name``), and ``waiting`` (pods that were not replaced in time).

    CLI Example:

    .. code-block:: bash

        salt master1 indigo_rotate.renew_pods 1767225600 restart=False
    """
    deadline = time.monotonic() + timeout
    restarted: set[str] = set()
    stamp = {RESTARTED: str(math.ceil(since))}
    patch = {"spec": {"template": {"metadata": {"annotations": stamp}}}}
    with contextlib.closing(_Api()) as api:
        while True:
            left, waiting = [], []
            for pod in _old_pods(api, since):
                workload = _workload(api, pod)
                if workload is None or not restart:
                    left.append("/".join(_name(pod)))
                    continue
                waiting.append("/".join(_name(pod)))
                if workload[0] not in restarted:
                    api.done("PATCH", workload[0], patch)
                    restarted.add(workload[0])
            if not waiting or time.monotonic() > deadline:
                return {"restarted": sorted(restarted), "left": left, "waiting": waiting}
            time.sleep(LOOK)


def published(timeout: float = 120) -> int:
    """Wait until pods would be told of all authorities that this master trusts.

    The controller manager writes them into a ConfigMap of each namespace, and into the Secrets
    with tokens.

    Returns:
        How many objects hold them.

    CLI Example:

    .. code-block:: bash

        salt master1 indigo_rotate.published
    """
    wanted = Path(_view()["paths"]["pki"], "ca.crt").read_text("ascii").split()
    deadline = time.monotonic() + timeout
    maps = "/api/v1/configmaps?fieldSelector=metadata.name%3Dkube-root-ca.crt"
    with contextlib.closing(_Api()) as api:
        while True:
            found = {_name(it): it.get("data", {}).get("ca.crt", "") for it in api.all(maps)}
            for one in _token_secrets(api):
                text = base64.b64decode(one.get("data", {}).get("ca.crt", ""))
                found[_name(one)] = text.decode("ascii", "replace")
            behind = ["/".join(where) for where, text in found.items() if text.split() != wanted]
            if not behind:
                return len(found)
            if time.monotonic() > deadline:
                raise CommandExecutionError(
                    f"after {timeout:g} s {len(behind)} objects do not hold the authorities that "
                    f"{_view()['id']} trusts, for example {behind[0]}: see kube-controller-manager"
                )
            time.sleep(LOOK)
