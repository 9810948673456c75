"""Make, extend, seal and unseal the cluster's tokens and shared keys, on the hosts that use them.

The masters share one secret, *the token set*: a token for each identity, the key that signs
service account tokens, and the key that encrypts Secrets at rest. It is one JSON file
(``tokens.set``, 0600), replaced by a rename, so that a crash leaves the old set or the new one
and never half of either. What the services read (``tokens.csv``, ``sa.key``, …) is written from
it and can be written again at any time.

Nothing secret leaves a host but sealed: encrypted with a fresh AES-256-GCM key that is itself
encrypted (RSA-OAEP, SHA-256) for the Salt minion key of the one host that may read it. What the
functions return, log and raise holds names, paths and fingerprints only.

A fingerprint is a shortened SHA-256 over 256 random bits or more. Nobody can search that space,
so it shows whether two hosts hold the same secret and nothing about the secret.
"""

from __future__ import annotations

import base64
import contextlib
import csv
import fcntl
import grp
import hashlib
import io
import json
import logging
import os
import pwd
import re
import secrets
import stat
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import salt.utils.yaml
from salt.exceptions import CommandExecutionError

try:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    HAS_CRYPTOGRAPHY = True
except ImportError:
    HAS_CRYPTOGRAPHY = False

log = logging.getLogger(__name__)

__virtualname__ = "indigo_tokens"

FORMAT = 1
#: What a token may look like: as Kubernetes' token file takes it, and too long to be guessed.
TOKEN = re.compile(r"[A-Za-z0-9._~+/=-]{32,}")
NAME = re.compile(r"[A-Za-z0-9._:@-]+")

DEPLOY = "run salt-run state.orchestrate indigo.deploy on the Salt master"

#: What of the set can be exchanged for a new one.
ROTATIONS = ("encryption", "tokens", "serviceaccount")

#: How far an exchange is: the new one is taken beside the old one, then used, then the only one.
PHASES = ("trusted", "used", "dropped")


def __virtual__() -> str | tuple[bool, str]:
    """Usable where Salt's own library for cryptography is."""
    if not HAS_CRYPTOGRAPHY:
        return False, "indigo_tokens needs the Python package cryptography"
    return __virtualname__


# --- The set: pure functions over one document ------------------------------------------------


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _fingerprint(kind: str, value: Any, digits: int = 32) -> str:
    return hashlib.sha256(f"indigo {kind}\0".encode() + _canonical(value)).hexdigest()[:digits]


def _token_fingerprint(identity: str, token: str) -> str:
    return _fingerprint("token", [identity, token], 16)


def digest(identities: Iterable[Mapping[str, Any]]) -> str:
    """Short name for a list of identities, whatever its order; nothing secret goes into it.

    Args:
        identities: Entries with ``name``, ``user`` and ``groups``; further keys do not count.

    Returns:
        32 hexadecimal digits, equal for equal sets of identities.

    CLI Example:

    .. code-block:: bash

        salt-call --local indigo_tokens.digest '[{"name": "admin", "user": "admin", "groups": []}]'
    """
    rows = sorted([item["name"], item["user"], list(item["groups"])] for item in identities)
    return _fingerprint("identities", rows)


def _declared(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {"name": name, "user": entry["user"], "groups": entry["groups"]}
        for name, entry in document["tokens"].items()
    ]


def _summary(document: Mapping[str, Any]) -> dict[str, Any]:
    """What may be told about a set."""
    return {
        "cluster": document["cluster"],
        "lineage": document["lineage"],
        "generation": document["generation"],
        "fingerprint": _fingerprint("set", document),
        "identities": digest(_declared(document)),
        "tokens": {
            name: _token_fingerprint(name, entry["token"])
            for name, entry in document["tokens"].items()
        },
        "rotation": document.get("rotation"),
        "encryption_since": document.get("encryption_since", 0),
    }


def _csv(document: Mapping[str, Any]) -> str:
    """The set's tokens as kube-apiserver's --token-auth-file wants them.

    Columns: token, user, uid (the identity's name), groups. Without groups the last column is
    left out: an empty one would put the user into a group without a name
    (k8s.io/apiserver/pkg/authentication/token/tokenfile).
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    for name, entry in sorted(document["tokens"].items()):  # the same bytes on every master
        # In an order that does not tell which of two is in use: no restart when that changes.
        for token in sorted({entry["token"], entry.get("also", entry["token"])}):
            row = [token, entry["user"], name]
            writer.writerow([*row, ",".join(entry["groups"])] if entry["groups"] else row)
    return out.getvalue()


def _parse_csv(text: str) -> dict[str, dict[str, Any]]:
    """Identities of a token file by uid; lines without a uid or a proper token are passed over."""
    found: dict[str, dict[str, Any]] = {}
    for row in csv.reader(io.StringIO(text)):
        if len(row) >= 3 and row[2] and TOKEN.fullmatch(row[0]):
            groups = [group for group in row[3].split(",") if group] if len(row) > 3 else []
            found[row[2]] = {"token": row[0], "user": row[1], "groups": groups}
    return found


def _encryption(name: str = "key1") -> str:
    """A fresh configuration for encryption at rest.

    The first provider writes, all of them read; ``identity`` comes last so that Secrets from
    before encryption stay readable
    (https://kubernetes.io/docs/tasks/administer-cluster/encrypt-data/).
    """
    key = base64.b64encode(secrets.token_bytes(32)).decode()
    return (
        "apiVersion: apiserver.config.k8s.io/v1\n"
        "kind: EncryptionConfiguration\n"
        "resources:\n"
        "  - resources:\n"
        "      - secrets\n"
        "    providers:\n"
        "      - secretbox:\n"
        "          keys:\n"
        f"            - name: {name}\n"
        f"              secret: {key}\n"
        "      - identity: {}\n"
    )


def _signing_key() -> str:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.TraditionalOpenSSL,
        serialization.NoEncryption(),
    ).decode()


def _public_part(private: str) -> str:
    try:
        key = serialization.load_pem_private_key(private.encode(), password=None)
    except (ValueError, TypeError):
        raise CommandExecutionError(
            "the service account key is no PEM private key without passphrase; restore it "
            "from a backup, or move it away to have a new one made"
        ) from None
    return (
        key.public_key()
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        .decode()
    )


def _extend(
    document: Mapping[str, Any],
    identities: Sequence[Mapping[str, Any]],
    known: Mapping[str, Mapping[str, Any]],
    above: int = 0,
) -> tuple[dict[str, Any], dict[str, list[str]]]:
    """The set for these identities, and what that changes.

    Tokens that are there stay, also when the identity's user or groups changed; ``known`` gives
    tokens to identities that are new. The generation grows when anything changed.
    """
    old = document["tokens"]
    tokens: dict[str, dict[str, Any]] = {}
    for item in identities:
        name = item["name"]
        kept = old.get(name) or known.get(name) or {"token": secrets.token_hex(32)}
        tokens[name] = {
            "user": item["user"],
            "groups": list(item["groups"]),
            "token": kept["token"],
            **({"also": kept["also"]} if "also" in kept else {}),
        }
    changes = {
        "added": [name for name in tokens if name not in old],
        "dropped": [name for name in old if name not in tokens],
        "altered": [name for name in tokens if name in old and tokens[name] != old[name]],
    }
    generation = document["generation"]
    if any(changes.values()):
        generation += 1
    if above >= generation:
        generation = above + 1
    new = {**document, "tokens": tokens if any(changes.values()) else dict(old)}
    new["generation"] = generation
    return new, {kind: names for kind, names in changes.items() if names}


# --- Exchanging a part of the set: pure, but for the new secret's randomness ---------------------


def _rotated(document: Mapping[str, Any], what: str, phase: str, now: int) -> dict[str, Any]:
    """The set in the next phase of an exchange; the set itself where it is that far already.

    ``rotation`` in the set says what is exchanged (``what``), how far that is (``phase``), since
    when (``since``, Unix seconds) and, of an encryption key, the new one's name (``key``). It goes
    with the set, so whoever has the set knows the phase.

    Raises:
        CommandExecutionError: Another part is being exchanged, or a phase would be left out.
    """
    begun = document.get("rotation") or {}
    if begun and begun["what"] != what:
        raise CommandExecutionError(
            f"an exchange of {begun['what']} is under way ({begun['phase']}): finish it first, "
            f"salt-run state.orchestrate indigo.rotate.{begun['what']}"
        )
    reached = PHASES.index(begun["phase"]) if begun else -1
    if reached >= PHASES.index(phase):
        return dict(document)
    if reached + 1 != PHASES.index(phase):
        raise CommandExecutionError(
            f"{what} cannot be {phase} now: the exchange is "
            f"{begun['phase'] if begun else 'not begun'}; run "
            f"salt-run state.orchestrate indigo.rotate.{what}"
        )
    new = {**document, "rotation": {**begun, "what": what, "phase": phase, "since": now}}
    {"encryption": _rotate_encryption, "tokens": _rotate_tokens,
     "serviceaccount": _rotate_service_account}[what](new, phase)  # fmt: skip
    new["generation"] = document["generation"] + 1
    return new


def _over(document: Mapping[str, Any], what: str) -> dict[str, Any]:
    """The set without the note of an exchange that was carried through."""
    begun = document.get("rotation")
    if not begun or begun["what"] != what:
        return dict(document)
    if begun["phase"] != PHASES[-1]:
        raise CommandExecutionError(
            f"the exchange of {what} is {begun['phase']}, and over only when {PHASES[-1]}"
        )
    new = {key: value for key, value in document.items() if key != "rotation"}
    return {**new, "generation": document["generation"] + 1}


def _rotate_encryption(new: dict[str, Any], phase: str) -> None:
    """Give the configuration a key: last of all, then first of all, then alone."""
    try:
        config = salt.utils.yaml.safe_load(new["encryption"])
        entries = [(entry["resources"], entry["providers"]) for entry in config["resources"]]
        kinds = {kind for resources, _ in entries for kind in resources}
        boxes = [_secretbox(providers) for _, providers in entries]
    except Exception:  # the original's message may quote the text
        raise CommandExecutionError(
            "the configuration of encryption at rest cannot be read; it is the text `encryption` "
            "of the token set: restore that from a backup"
        ) from None
    if kinds != {"secrets"}:
        raise CommandExecutionError(
            f"the configuration of encryption at rest names {', '.join(sorted(kinds))}; only a key "
            "of Secrets alone can be exchanged here"
        )
    if phase == "trusted":
        names = {key["name"] for box in boxes for key in box["secretbox"]["keys"]}
        # Never a name that was in use: what is encrypted says by which key it was.
        numbers = [int(name[3:]) for name in names if re.fullmatch(r"key\d+", name)]
        name = f"key{max(numbers, default=1) + 1}"
        new["rotation"]["key"] = name
        added = {"name": name, "secret": base64.b64encode(secrets.token_bytes(32)).decode()}
    for (_, providers), box in zip(entries, boxes, strict=True):
        keys = box["secretbox"]["keys"]
        if phase == "trusted":
            keys.append(added)
            if box not in providers:
                providers.append(box)
            continue
        own = [key for key in keys if key["name"] == new["rotation"]["key"]]
        others = [key for key in keys if key not in own]
        rest = [one for one in providers if one is not box]
        if phase == "dropped":
            others, rest = [], [one for one in rest if "identity" in one]
        box["secretbox"]["keys"] = own + others
        providers[:] = [box, *rest]
    if phase == "dropped":
        # What a backup of etcd from before holds cannot be read with this set.
        new["encryption_since"] = new["generation"] + 1
    new["encryption"] = salt.utils.yaml.safe_dump(config, default_flow_style=False)


def _secretbox(providers: Sequence[Any]) -> dict[str, Any]:
    """The provider whose keys are exchanged: the one that is there, or one to be added."""
    found = next((one for one in providers if "secretbox" in one), None)
    return found or {"secretbox": {"keys": []}}


def _rotate_tokens(new: dict[str, Any], phase: str) -> None:
    """A second token for each identity, then that one handed out, then that one alone."""
    tokens: dict[str, Any] = {}
    for name, entry in new["tokens"].items():
        entry = dict(entry)
        if phase == "trusted":
            entry["also"] = secrets.token_hex(32)
        elif phase == "used" and "also" in entry:
            entry["token"], entry["also"] = entry["also"], entry["token"]
        elif phase == "dropped":
            entry.pop("also", None)
        tokens[name] = entry
    new["tokens"] = tokens


def _rotate_service_account(new: dict[str, Any], phase: str) -> None:
    """A second key: its signatures taken, then it signs, then its signatures alone taken."""
    if phase == "trusted":
        new["service_account_next"] = _signing_key()
        new["service_account_public"] += _public_part(new["service_account_next"])
    elif phase == "used":
        old = _public_part(new["service_account_key"])
        new["service_account_key"] = new.pop("service_account_next")
        new["service_account_public"] = _public_part(new["service_account_key"]) + old
    else:
        new["service_account_public"] = _public_part(new["service_account_key"])


def _check_identities(identities: Sequence[Mapping[str, Any]]) -> None:
    if not identities:
        raise CommandExecutionError(
            "identities: the list is empty, which would revoke every token of the cluster; "
            "expected the identities of the declared hosts"
        )
    seen: set[str] = set()
    for item in identities:
        if item["name"] in seen:
            raise CommandExecutionError(f"identities: {item['name']} is there twice")
        seen.add(item["name"])
        texts = [item["name"], item["user"], *item["groups"]]
        wrong = [text for text in texts if not NAME.fullmatch(text)]
        if wrong:
            raise CommandExecutionError(
                f"identities: {wrong[0]!r} cannot be a name, user or group; expected letters, "
                "digits and . _ : @ -"
            )


def _parse_set(text: bytes, path: str) -> dict[str, Any]:
    """Read a set's document and check its shape."""
    remedy = (
        "restore it from a backup or, if another master holds the set, move it away and " + DEPLOY
    )
    try:
        document = json.loads(text)
    except ValueError:  # the message of the original may quote the text
        raise CommandExecutionError(f"{path}: not a JSON document; {remedy}") from None
    shape = {
        "format": int,
        "cluster": str,
        "lineage": str,
        "generation": int,
        "tokens": dict,
        "service_account_key": str,
        "service_account_public": str,
        "encryption": str,
    }
    if not isinstance(document, dict):
        raise CommandExecutionError(f"{path}: not a token set; {remedy}")
    for key, kind in shape.items():
        if not isinstance(document.get(key), kind):
            raise CommandExecutionError(
                f"{path}: {key} is missing or not of type {kind.__name__}; {remedy}"
            )
    if document["format"] != FORMAT:
        raise CommandExecutionError(
            f"{path}: format {document['format']}, expected {FORMAT}; "
            "it was written by another release of Indigo: use that release on this host too"
        )
    for name, entry in document["tokens"].items():
        if not isinstance(entry, dict) or not TOKEN.fullmatch(str(entry.get("token"))):
            raise CommandExecutionError(f"{path}: {name} has no proper token; {remedy}")
    return document


# --- Sealing ----------------------------------------------------------------------------------


def _seal(header: Mapping[str, Any], payload: Any, public_key: str) -> dict[str, Any]:
    """Encrypt ``payload`` for one host; ``header`` stays readable but cannot be changed."""
    whose = f"{header['recipient']}: its Salt public key"
    remedy = "delete and accept the minion's key again (salt-key; keysize in its configuration)"
    return __salt__["indigo_seal.seal"](header, payload, public_key, whose, remedy)


def _unseal(sealed: Mapping[str, Any], private_key: bytes) -> Any:
    """Decrypt what :func:`_seal` made; raises when key, header or data are not the right ones."""
    problem = (
        "the sealed tokens do not open: they were changed on their way or sealed for another key; "
        f"if this minion has a new key, accept it on the Salt master and {DEPLOY}"
    )
    return __salt__["indigo_seal.unseal"](sealed, private_key, problem)


# --- Files ------------------------------------------------------------------------------------


def _account(user: str) -> tuple[int, int]:
    """Who owns a file: its reader, or root for as long as the reader has no account here.

    Tokens arrive before anything is installed, so that a deploy needs one run on each host; the
    states that make the accounts then hand the files over.
    """
    try:
        entry = pwd.getpwnam(user)
    except KeyError:
        return os.geteuid(), os.getegid()
    return entry.pw_uid, entry.pw_gid


def _temporary(path: str) -> str:
    folder, name = os.path.split(path)
    return os.path.join(folder, f".{name}.indigo-new")


def _sync_folder(folder: str) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _replace(path: str, content: bytes, owner: tuple[int, int], mode: int) -> None:
    """Put a file in place whole: nobody ever sees a part of it, or it with a wider mode."""
    temporary, folder = _temporary(path), os.path.dirname(path)
    os.makedirs(folder, mode=0o755, exist_ok=True)
    _discard(temporary)  # a run before this one was killed
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(content)
        os.fchown(file.fileno(), *owner)
        os.fchmod(file.fileno(), mode)
        file.flush()
        os.fsync(file.fileno())
    os.rename(temporary, path)
    _sync_folder(folder)


def _discard(path: str) -> bool:
    try:
        os.unlink(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _read(path: str) -> bytes | None:
    """Content of a regular file; None where there is none."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    with os.fdopen(handle, "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            return None
        return file.read()


def _owner_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _group_name(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


def _access_drift(path: str, user: str, mode: int) -> str | None:
    """What is wrong with a file's owner, group or mode; None when nothing is."""
    found = os.lstat(path)
    uid, gid = _account(user)
    wrong = []
    if stat.S_IMODE(found.st_mode) != mode:
        wrong.append(f"mode {stat.S_IMODE(found.st_mode):04o}, expected {mode:04o}")
    if found.st_uid != uid:
        wrong.append(f"owner {_owner_name(found.st_uid)}, expected {_owner_name(uid)}")
    if found.st_gid != gid:
        wrong.append(f"group {_group_name(found.st_gid)}, expected {_group_name(gid)}")
    return "; ".join(wrong) or None


def _set_access(path: str, user: str, mode: int) -> None:
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        os.fchown(handle, *_account(user))
        os.fchmod(handle, mode)
    finally:
        os.close(handle)


@contextlib.contextmanager
def _locked(folder: str) -> Iterator[None]:
    """One writer at a time on this host; the lock dies with the process that holds it."""
    os.makedirs(folder, mode=0o755, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _own_token(content: bytes | None) -> str | None:
    """The token of a token file, or None when it does not hold exactly one."""
    text = (content or b"").decode("ascii", "replace")
    return text[:-1] if text.endswith("\n") and TOKEN.fullmatch(text[:-1]) else None


def _load_set(path: str) -> dict[str, Any] | None:
    """The set of this host, or None when there is no such file."""
    content = _read(path)
    if content is None:
        if os.path.lexists(path):
            raise CommandExecutionError(
                f"{path}: expected a regular file that root can read; move it away and {DEPLOY}"
            )
        return None
    return _parse_set(content, path)


# --- What this host should have ---------------------------------------------------------------


def _indigo() -> Mapping[str, Any]:
    view = __pillar__.get("indigo")
    if not isinstance(view, Mapping):
        raise CommandExecutionError(
            f"pillar indigo: {__opts__['id']} has none; declare the host in pillar/cluster.yaml "
            "and run saltutil.refresh_pillar on it"
        )
    return view


def _cluster() -> str:
    return str(_indigo()["cluster"]["name"])


def _wanted(
    tokens: Sequence[Mapping[str, Any]] | None, token_set: Mapping[str, Any] | None
) -> tuple[Sequence[Mapping[str, Any]], Mapping[str, Any] | None]:
    if tokens is None:
        view = _indigo()
        return view.get("tokens", []), view.get("token_set")
    return tokens, token_set


def _token_set() -> Mapping[str, Any]:
    token_set = _indigo().get("token_set")
    if not token_set:
        raise CommandExecutionError(
            f"{__opts__['id']} is no master by its pillar, so it may not hold the token set; "
            "declare the role master for it and run saltutil.refresh_pillar on it"
        )
    return token_set


def _folder(tokens: Sequence[Mapping[str, Any]], token_set: Mapping[str, Any] | None) -> str:
    """The folder whose lock guards this host's files."""
    return os.path.dirname(token_set["path"] if token_set else tokens[0]["path"])


def _expected(
    tokens: Sequence[Mapping[str, Any]],
    token_set: Mapping[str, Any] | None,
    document: Mapping[str, Any] | None,
) -> list[tuple[str, str, int, bytes | None]]:
    """Files of this host: path, account, mode, and content where this host can tell it."""
    files: list[tuple[str, str, int, bytes | None]] = []
    contents: dict[str, bytes] = {}
    if token_set and document is not None:
        contents = {
            "service-account-key": document["service_account_key"].encode(),
            "service-account-public": document["service_account_public"].encode(),
            "encryption": document["encryption"].encode(),
            "tokens": _csv(document).encode(),
        }
    if token_set:
        files.append((token_set["path"], token_set["user"], 0o600, None))
        for file in token_set["files"]:
            mode = int(str(file["mode"]), 8)
            files.append((file["path"], file["user"], mode, contents.get(file["kind"])))
    for entry in tokens:
        known = (document or {}).get("tokens", {}).get(entry["identity"])
        content = f"{known['token']}\n".encode() if known else None
        files.append((entry["path"], entry["user"], 0o600, content))
    return files


def _drift(
    tokens: Sequence[Mapping[str, Any]],
    token_set: Mapping[str, Any] | None,
    document: Mapping[str, Any] | None,
) -> tuple[dict[str, str], dict[str, str]]:
    """What differs: (what this host can mend alone, what it needs the Salt master for)."""
    own = {entry["path"] for entry in tokens}
    mendable: dict[str, str] = {}
    lost: dict[str, str] = {}
    for path, user, mode, content in _expected(tokens, token_set, document):
        found = _read(path)
        if content is not None and found != content:
            mendable[path] = "missing" if found is None else "content differs from the token set"
        elif found is None:
            lost[path] = "missing"
        elif path in own and content is None and _own_token(found) is None:
            lost[path] = "does not hold one token"
        elif wrong := _access_drift(path, user, mode):
            mendable[path] = wrong
    return mendable, lost


def _mend(
    tokens: Sequence[Mapping[str, Any]],
    token_set: Mapping[str, Any] | None,
    document: Mapping[str, Any] | None,
) -> dict[str, str]:
    """Write and set right what differs; returns what was found wrong, by path."""
    mendable, _ = _drift(tokens, token_set, document)
    for path, user, mode, content in _expected(tokens, token_set, document):
        _discard(_temporary(path))
        if path not in mendable:
            continue
        if content is not None and _read(path) != content:
            _replace(path, content, _account(user), mode)
        else:
            _set_access(path, user, mode)
    return mendable


def _remains(token_set: Mapping[str, Any]) -> dict[str, str]:
    """Fingerprints of keys that lie here without a set: an earlier installation's."""
    found: dict[str, str] = {}
    for file in token_set["files"]:
        content = _read(file["path"])
        if content and file["kind"] in ("service-account-key", "encryption"):
            found.setdefault(
                file["kind"], _fingerprint(file["kind"], content.decode("utf-8", "replace"))
            )
    return found


def _create(token_set: Mapping[str, Any], cluster: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """A new set; keys and tokens that an earlier installation left here are taken over.

    A new encryption key would lock the API servers out of every Secret written with the old
    one, so an existing key is never thrown away.
    """
    paths: dict[str, str] = {}
    for file in token_set["files"]:
        paths.setdefault(file["kind"], file["path"])
    key = _read(paths["service-account-key"])
    encryption = _read(paths["encryption"])
    known = _parse_csv((_read(paths["tokens"]) or b"").decode("utf-8", "replace"))
    private = key.decode("utf-8", "replace") if key else _signing_key()
    document = {
        "format": FORMAT,
        "cluster": cluster,
        "lineage": secrets.token_hex(8),
        "generation": 0,
        "tokens": {},
        "service_account_key": private,
        "service_account_public": _public_part(private),
        "encryption": encryption.decode("utf-8", "replace") if encryption else _encryption(),
    }
    return document, known


def _write_set(token_set: Mapping[str, Any], document: Mapping[str, Any]) -> None:
    path = token_set["path"]
    content = json.dumps(document, indent=1, sort_keys=True).encode() + b"\n"
    _replace(path, content, _account(token_set["user"]), 0o600)


# --- Functions --------------------------------------------------------------------------------


def state() -> dict[str, Any]:
    """What this host holds of the tokens, told by fingerprints; changes nothing.

    Returns:
        ``set``: None, or the set's ``cluster``, ``lineage``, ``generation``, ``fingerprint``,
        ``identities`` (digest of those it has), ``tokens`` (fingerprint by identity),
        ``rotation`` (None, or what of it is being exchanged and how far that is) and
        ``encryption_since`` (generation since which it has no older key of encryption).
        ``tokens``: fingerprint by identity of this host's own token files, None where the file
        holds no token. ``problems``: one line for each file that is not as it should be.
        ``damaged``: why the set cannot be read, or None. ``remains``: fingerprints of keys that
        lie here without a set.

    CLI Example:

    .. code-block:: bash

        salt 'master*' indigo_tokens.state
    """
    tokens, token_set = _wanted(None, None)
    result: dict[str, Any] = {
        "set": None,
        "tokens": {},
        "problems": [],
        "damaged": None,
        "remains": {},
    }
    document = None
    if token_set:
        try:
            document = _load_set(token_set["path"])
            if document and document["cluster"] != _cluster():
                raise CommandExecutionError(_foreign(token_set["path"], document))
        except CommandExecutionError as error:
            result["damaged"], document = str(error), None
        if document:
            result["set"] = _summary(document)
        else:
            result["remains"] = _remains(token_set)
    for entry in tokens:
        token = _own_token(_read(entry["path"]))
        result["tokens"][entry["identity"]] = (
            _token_fingerprint(entry["identity"], token) if token else None
        )
    if document or not token_set:
        mendable, lost = _drift(tokens, token_set, document)
        result["problems"] = [f"{path}: {what}" for path, what in {**mendable, **lost}.items()]
    return result


def _foreign(path: str, document: Mapping[str, Any]) -> str:
    return (
        f"{path}: belongs to the cluster {document['cluster']}, expected {_cluster()}; "
        "move it away if this host has changed clusters, or declare the old name again"
    )


def inspect(
    tokens: Sequence[Mapping[str, Any]] | None = None,
    token_set: Mapping[str, Any] | None = None,
) -> dict[str, dict[str, str]]:
    """Compare this host's token files with what they should be; changes nothing.

    Args:
        tokens: Own token files (``identity``, ``path``, ``user``); by default the pillar's.
        token_set: Path and files of the set on a master; by default the pillar's.

    Returns:
        ``mendable`` and ``lost``: what is wrong, by path. What is lost must be sent here from
        another host.

    CLI Example:

    .. code-block:: bash

        salt-call indigo_tokens.inspect
    """
    tokens, token_set = _wanted(tokens, token_set)
    document = _load_set(token_set["path"]) if token_set else None
    mendable, lost = _drift(tokens, token_set, document)
    return {"mendable": mendable, "lost": lost}


def mend(
    tokens: Sequence[Mapping[str, Any]] | None = None,
    token_set: Mapping[str, Any] | None = None,
) -> dict[str, str]:
    """Put right what this host can put right alone: owners, modes, and on a master contents.

    Args:
        tokens: Own token files (``identity``, ``path``, ``user``); by default the pillar's.
        token_set: Path and files of the set on a master; by default the pillar's.

    Returns:
        What was wrong, by path.

    CLI Example:

    .. code-block:: bash

        salt-call indigo_tokens.mend
    """
    tokens, token_set = _wanted(tokens, token_set)
    if not tokens and not token_set:
        return {}
    with _locked(_folder(tokens, token_set)):
        document = _load_set(token_set["path"]) if token_set else None
        return _mend(tokens, token_set, document)


def ensure(
    identities: Sequence[Mapping[str, Any]], create: bool = False, above: int = 0
) -> dict[str, Any]:
    """On the holder: have the set, with a token for each of these identities and no others.

    Args:
        identities: Every identity of the cluster: ``name``, ``user``, ``groups``.
        create: Whether a set may be made where there is none. The runner says so only when no
            other master has one.
        above: Generation that the set must exceed, when it is to win over another one.

    Returns:
        ``created``, ``identities`` (names ``added``, ``dropped``, ``altered``), ``changed``
        (what was found wrong, by path) and ``set`` (see :func:`state`).

    Raises:
        CommandExecutionError: No set and ``create`` is false; the set is damaged or another
            cluster's; this host is no master.
    """
    _check_identities(identities)
    tokens, _ = _wanted(None, None)
    token_set = _token_set()
    path, cluster = token_set["path"], _cluster()
    with _locked(_folder(tokens, token_set)):
        old = _load_set(path)
        known: Mapping[str, Any] = {}
        document: Mapping[str, Any]
        if old is None:
            if not create:
                raise CommandExecutionError(
                    f"{path}: missing, though this host was taken for the holder of the token "
                    f"set; {DEPLOY} again"
                )
            document, known = _create(token_set, cluster)
        elif old["cluster"] != cluster:
            raise CommandExecutionError(_foreign(path, old))
        else:
            document = old
        document, names = _extend(document, identities, known, above)
        changed: dict[str, str] = {}
        if document != old:
            # From here on the set is the new one; a kill before _mend is put right by the
            # next run of anything that mends.
            _write_set(token_set, document)
            changed[path] = "missing" if old is None else f"generation {old['generation']}"
        changed.update(_mend(tokens, token_set, document))
    log.info("Token set is at generation %s", document["generation"])
    return {
        "created": old is None,
        "identities": names,
        "changed": changed,
        "set": _summary(document),
    }


def rotate(what: str, phase: str | None, pods: int | None = None) -> dict[str, Any]:
    """On the holder: bring the exchange of a part of the set into its next phase.

    The others receive the set as always, with the phase in it; see ``indigo_tokens.replicate`` on
    the Salt master. Whether every host runs with the phase before is for the caller to know:
    ``salt-run state.orchestrate indigo.rotate.encryption`` does all of it.

    Args:
        what: ``encryption``, ``tokens`` or ``serviceaccount``.
        phase: ``trusted``, ``used`` or ``dropped``; None to note that the exchange is over.
        pods: Note that pods made before this time (Unix seconds) still have the old one.

    Returns:
        ``changed`` (what was found wrong, by path) and ``set`` (see :func:`state`). Never a secret.

    Raises:
        CommandExecutionError: There is no set here; another part is being exchanged; a phase would
            be left out.
    """
    if what not in ROTATIONS or phase not in (*PHASES, None):
        raise CommandExecutionError(
            f"{what!r} {phase!r} is no exchange; expected {', '.join(ROTATIONS)} and "
            f"{', '.join(PHASES)}"
        )
    tokens, _ = _wanted(None, None)
    token_set = _token_set()
    path = token_set["path"]
    with _locked(_folder(tokens, token_set)):
        old = _load_set(path)
        if old is None:
            raise CommandExecutionError(f"{path}: missing; {DEPLOY}")
        new = _rotated(old, what, phase, int(time.time())) if phase else _over(old, what)
        if pods is not None and "pods" not in new["rotation"]:
            new = {**new, "rotation": {**new["rotation"], "pods": pods}}
            new["generation"] += 1
        changed: dict[str, str] = {}
        if new != old:
            _write_set(token_set, new)
            changed[path] = f"generation {old['generation']}"
        changed.update(_mend(tokens, token_set, new))
    return {"changed": changed, "set": _summary(new)}


def seal(
    recipients: Mapping[str, Mapping[str, Any]],
    identities: Sequence[Mapping[str, Any]] | None = None,
    create: bool = False,
    above: int = 0,
) -> dict[str, Any]:
    """On the holder: encrypt for each recipient what it may have, and nobody else can read.

    Args:
        recipients: By minion id: ``public_key`` (PEM, as the Salt master accepted it) and either
            ``set: true`` for a master or ``grants``, the identities of a node.
        identities: When given, :func:`ensure` runs first with them, ``create`` and ``above``.
        create: See :func:`ensure`.
        above: See :func:`ensure`.

    Returns:
        ``sealed``: ciphertext by minion id; ``ensured``: what :func:`ensure` returned, or None;
        ``set``: see :func:`state`.

    Raises:
        CommandExecutionError: An unknown identity, or a public key that cannot be used.
    """
    ensured = None
    if identities is not None:
        ensured = ensure(identities, create=create, above=above)
    path = _token_set()["path"]
    document = _load_set(path)
    if document is None:
        raise CommandExecutionError(f"{path}: missing, so there is nothing to seal; {DEPLOY}")
    summary = _summary(document)
    sealed = {}
    for recipient, wish in recipients.items():
        header = {
            "format": FORMAT,
            "cluster": document["cluster"],
            "recipient": recipient,
            "kind": "set" if wish.get("set") else "tokens",
            "generation": document["generation"],
            "fingerprint": summary["fingerprint"],
        }
        payload: Any = document
        if not wish.get("set"):
            unknown = [name for name in wish["grants"] if name not in document["tokens"]]
            if unknown:
                raise CommandExecutionError(
                    f"{recipient}: the token set has no {', '.join(unknown)}; {DEPLOY}"
                )
            payload = {name: document["tokens"][name]["token"] for name in wish["grants"]}
        sealed[recipient] = _seal(header, payload, wish["public_key"])
    return {"sealed": sealed, "ensured": ensured, "set": summary}


def unseal(sealed: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """On a receiver: decrypt what is addressed to this host and put it in place.

    Args:
        sealed: Ciphertext by minion id, as :func:`seal` returned it. Others' entries are
            neither read nor readable.

    Returns:
        ``changed`` (what was found wrong, by path), ``tokens`` (see :func:`state`) and ``set``
        (the fingerprint of the sender's set). Never a secret.

    Raises:
        CommandExecutionError: Nothing is addressed to this host; it was sealed for another host,
            cluster or key; it holds what this host's pillar does not grant; it is older than
            what this host has.
    """
    me = __opts__["id"]
    if me not in sealed:
        raise CommandExecutionError(f"the sealed tokens hold nothing for {me}")
    envelope = sealed[me]
    header = envelope.get("header") if isinstance(envelope, Mapping) else None
    if not isinstance(header, Mapping):
        raise CommandExecutionError(f"the sealed tokens for {me} have no header; {DEPLOY}")
    for key, expected in (("format", FORMAT), ("recipient", me), ("cluster", _cluster())):
        if header.get(key) != expected:
            raise CommandExecutionError(
                f"the sealed tokens for {me}: {key} is {header.get(key)!r}, expected {expected!r}; "
                + DEPLOY
            )
    tokens, token_set = _wanted(None, None)
    kind = "set" if token_set else "tokens"
    if header.get("kind") != kind or not (tokens or token_set):
        raise CommandExecutionError(
            f"the sealed tokens for {me}: kind is {header.get('kind')!r}, and the pillar of {me} "
            f"declares {'a master' if token_set else 'a node' if tokens else 'neither role'}; "
            "run saltutil.refresh_pillar on it and deploy again"
        )
    payload = _unseal(envelope, _private_key())
    with _locked(_folder(tokens, token_set)):
        changed = (
            _take_set(token_set, tokens, payload, header)
            if token_set
            else _take_tokens(tokens, payload)
        )
    result = state()
    return {"changed": changed, "tokens": result["tokens"], "set": header["fingerprint"]}


def _private_key() -> bytes:
    path = os.path.join(__opts__["pki_dir"], "minion.pem")
    content = _read(path)
    if content is None:
        raise CommandExecutionError(
            f"{path}: this minion's private key is not there or cannot be read; "
            "the minion must run as root and keep its key in pki_dir"
        )
    return content


def _take_set(
    token_set: Mapping[str, Any],
    tokens: Sequence[Mapping[str, Any]],
    payload: Any,
    header: Mapping[str, Any],
) -> dict[str, str]:
    path = token_set["path"]
    document = _parse_set(_canonical(payload), "the sealed token set")
    if _fingerprint("set", document) != header["fingerprint"]:
        raise CommandExecutionError("the sealed token set is not the one its header names")
    try:
        old = _load_set(path)
    except CommandExecutionError:  # damaged: that is what the new one is for
        old = None
    changed: dict[str, str] = {}
    if old and old["lineage"] == document["lineage"]:
        if old["generation"] > document["generation"]:
            raise CommandExecutionError(
                f"{path}: generation {old['generation']} is newer than the sealed one, "
                f"{document['generation']}; {DEPLOY}"
            )
    elif (content := _read(path)) is not None:
        # Another set's encryption key may be the only way to read some Secrets: keep it.
        kept = f"{path}.replaced-{hashlib.sha256(content).hexdigest()[:16]}"
        if not os.path.lexists(kept):
            os.link(path, kept)
            changed[kept] = "the set that was here before, of another origin or damaged"
    if document != old:
        _write_set(token_set, document)
        changed[path] = f"generation {old['generation']}" if old else "missing"
    return {**changed, **_mend(tokens, token_set, document)}


def _take_tokens(tokens: Sequence[Mapping[str, Any]], payload: Any) -> dict[str, str]:
    if not isinstance(payload, Mapping):
        raise CommandExecutionError("the sealed tokens are no mapping of identities")
    wanted = {entry["identity"] for entry in tokens}
    if set(payload) != wanted:
        raise CommandExecutionError(
            f"the sealed tokens are for {', '.join(sorted(payload)) or 'nobody'}, and the pillar "
            f"of {__opts__['id']} declares {', '.join(sorted(wanted))}; run "
            "saltutil.refresh_pillar on it and deploy again"
        )
    bad = [name for name, token in payload.items() if not TOKEN.fullmatch(str(token))]
    if bad:
        raise CommandExecutionError(f"the sealed token of {bad[0]} is not a proper token")
    return _mend(
        tokens, None, {"tokens": {name: {"token": token} for name, token in payload.items()}}
    )


def remove(
    tokens: Sequence[Mapping[str, Any]] | None = None,
    token_set: Mapping[str, Any] | None = None,
    test: bool = False,
) -> list[str]:
    """Remove this host's tokens, and on a master the set with all that was written from it.

    Args:
        tokens: Own token files (``identity``, ``path``, ``user``); by default the pillar's.
        token_set: Path and files of the set on a master; by default the pillar's.
        test: Only say what would go.

    Returns:
        The paths that went, or would go.

    CLI Example:

    .. code-block:: bash

        salt-call indigo_tokens.remove
    """
    tokens, token_set = _wanted(tokens, token_set)
    paths = [path for path, _, _, _ in _expected(tokens, token_set, None)]
    paths += [_temporary(path) for path in paths]
    if token_set:
        folder, name = os.path.split(token_set["path"])
        if os.path.isdir(folder):
            kept = sorted(os.listdir(folder))
            paths += [os.path.join(folder, it) for it in kept if it.startswith(f"{name}.replaced-")]
    found = [path for path in paths if os.path.lexists(path)]
    if found and not test:
        with _locked(_folder(tokens, token_set)):
            found = [path for path in found if _discard(path)]
    return found
