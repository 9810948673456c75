"""Certificates of this host: check them, have them issued, report on them.

Private keys are made here and never leave. What a certificate must say comes from the pillar
(``indigo:pki``); whether it does is decided locally, so a host whose certificates are in order
contacts nobody.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import grp
import ipaddress
import json
import logging
import os
import pwd
import shutil
import stat
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from salt.exceptions import CommandExecutionError

try:
    from cryptography import x509
    from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    HAS_CRYPTOGRAPHY = True
except ImportError:  # pragma: no cover
    HAS_CRYPTOGRAPHY = False

if TYPE_CHECKING:
    __salt__: dict[str, Any]
    __pillar__: dict[str, Any]

log = logging.getLogger(__name__)

KEY_MODE = 0o600
CERTIFICATE_MODE = 0o644

#: Phases in which an authority is exchanged for another one.
PHASES = ("trusted", "used", "dropped")

#: Authorities are valid from this long before they are made: clocks of hosts differ.
BACKDATE = datetime.timedelta(hours=1)


def __virtual__() -> bool | tuple[bool, str]:
    if not HAS_CRYPTOGRAPHY:
        return False, "indigo_pki needs the Python library cryptography"
    return True


# Reports


def status(certificates: list[dict[str, Any]] | None = None) -> list[dict[str, Any]]:
    """Report on this host's certificates and on the authorities' that it keeps.

    Args:
        certificates: Declarations as in pillar ``indigo:pki:certificates``; the pillar's when
            left out.

    Returns:
        For each ``{"name", "path", "days_left", "problem"}``: days left as an integer, None if
        there is nothing to read; problem a sentence, None if there is none.

    Example:
        .. code-block:: bash

            salt '*' indigo_pki.status
    """
    pki = __pillar__.get("indigo", {}).get("pki", {})
    authorities = pki.get("authorities", [])
    wanted = pki.get("certificates", []) if certificates is None else certificates
    now = _now()
    rows = []
    for row in [*authorities, *pki.get("held", [])]:
        path = row.get("path") or row["certificate"]
        found = _first(path)
        name = f"{row['name']} authority"
        rows.append(
            {
                "name": name if "path" in row else f"{name} (held)",
                "path": path,
                "days_left": _days_left(found, now),
                "problem": _authority_problem(path, now)
                or (_held_problem(row) if "key" in row else ownership_problem(row)),
            }
        )
    for row in wanted:
        problem = certificate_problem(row, authorities) or ownership_problem(row)
        rows.append(
            {
                "name": row["name"],
                "path": row["path"],
                "days_left": _days_left(_first(row["path"]), now),
                "problem": problem,
            }
        )
    return rows


def certificate_problem(
    certificate: Mapping[str, Any], authorities: list[dict[str, str]]
) -> str | None:
    """Say what is wrong with one certificate or its key, if anything.

    Args:
        certificate: One of pillar ``indigo:pki:certificates``.
        authorities: Pillar ``indigo:pki:authorities``.

    Returns:
        The reason why it must be issued (again), or None.

    Example:
        .. code-block:: bash

            salt node1 indigo_pki.certificate_problem '{...}' '[{...}]'
    """
    try:
        key = _load_key(certificate["key"])
        found = _load_certificates(certificate["path"])[0]
        issuers = _issuers(certificate["authority"], authorities)
    except CommandExecutionError as err:
        return str(err)
    return _fault(certificate, found, key.public_key(), issuers, _now())


def authority_problem(authority: Mapping[str, str]) -> str | None:
    """Say what is wrong with an authority's certificate on this host, if anything.

    Args:
        authority: One of pillar ``indigo:pki:authorities``.

    Returns:
        The reason why it must be fetched (again), or None.

    Example:
        .. code-block:: bash

            salt node1 indigo_pki.authority_problem '{name: etcd, path: /etc/etcd/pki/ca.crt}'
    """
    return _authority_problem(authority["path"], _now())


def authorities() -> dict[str, dict[str, list[str]]]:
    """Which authorities this host holds, and which it trusts, told by their public keys.

    Returns:
        ``held`` (on the CA host) and ``trusted``: name to fingerprints (SHA-256, hex), of which a
        renewed certificate of the same key has the same. ``held`` is empty for an authority that
        is not there or is damaged; what is not trusted yet is left out.

    Example:
        .. code-block:: bash

            salt '*' indigo_pki.authorities
    """
    pki = __pillar__.get("indigo", {}).get("pki", {})
    trusted: dict[str, list[str]] = {}
    for row in pki.get("authorities", []):
        if found := _public_fingerprints(row["path"]):
            trusted.setdefault(row["name"], []).extend(found)
    return {
        "held": {
            row["name"]: [] if _held_problem(row) else _public_fingerprints(row["certificate"])
            for row in pki.get("held", [])
        },
        "trusted": trusted,
    }


def _public_fingerprints(path: str) -> list[str]:
    found = []
    with contextlib.suppress(CommandExecutionError):
        for one in _load_certificates(path):
            digest = hashes.Hash(hashes.SHA256())
            digest.update(
                one.public_key().public_bytes(
                    serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
                )
            )
            found.append(digest.finalize().hex())
    return found


def ownership_problem(declared: Mapping[str, Any]) -> str | None:
    """Say which file of a certificate has another owner or mode than it must have.

    Args:
        declared: One of pillar ``indigo:pki:certificates`` or ``indigo:pki:authorities``.

    Returns:
        A sentence, or None if all is well or there are no files yet.

    Example:
        .. code-block:: bash

            salt etcd1 indigo_pki.ownership_problem '{...}'
    """
    try:
        wanted = _ownership(declared)
    except CommandExecutionError as err:
        return str(err)
    for path, (uid, gid, mode) in wanted.items():
        found = _stat(path)
        if found is not None and found != (uid, gid, mode):
            return f"{path} is {_describe(*found)}, not {_describe(uid, gid, mode)}"
    return None


# Changes


def issue(
    ca: str,
    certificates: list[dict[str, Any]],
    authorities: list[dict[str, str]],
    timeout: int = 120,
    new_keys: bool = False,
) -> dict[str, Any]:
    """Have certificates issued by the CA minion in one request, and put them in place.

    A usable key on disk is kept, so that a renewal replaces one file, atomically. Nothing is
    written before the answer was found to be what was asked for.

    Args:
        ca: Minion id of the CA host.
        certificates: Declarations of the certificates to issue; may be empty.
        authorities: All of this host's authorities; their certificates are brought up to date.
        timeout: Seconds to wait for the CA minion.
        new_keys: Make a new key for each, also where there is a usable one.

    Returns:
        ``{"changes": {path: {"old": text or None, "new": text}}, "errors": [text, ...]}``: what
        was put in place, and what the CA minion refused or did wrong. No secrets.

    Raises:
        CommandExecutionError: The CA minion did not answer, or an account that should own a key
            does not exist. Nothing was changed.

    Example:
        .. code-block:: bash

            salt node1 indigo_pki.issue salt '[{...}]' '[{...}]'
    """
    for row in certificates:
        _ownership(row)  # accounts must exist before anything is asked for
    keys = {
        row["policy"]: (_new_key(), True) if new_keys else _key_for(row) for row in certificates
    }
    changes: dict[str, dict[str, Any]] = {}
    errors: list[str] = []
    wanted = certificates
    for fresh in (False, True):
        requests = {row["policy"]: keys[row["policy"]][0] for row in wanted}
        names = sorted({row["name"] for row in authorities})
        try:
            answer = _ask(ca, requests, names, fresh, timeout)
        except CommandExecutionError as err:
            if not fresh:
                raise
            errors.append(str(err))
            break
        for row in authorities:
            pem = answer["authorities"].get(row["name"])
            if pem is not None:
                changes.update(_replace_authority(row["path"], pem))
        errors = list(answer["errors"])
        left = []
        for row in wanted:
            pem = answer["certificates"].get(row["policy"])
            fault = None if pem is None else _answer_fault(row, pem, keys, authorities)
            if fault:
                errors.append(f"{row['policy']}: the issued certificate is unfit: {fault}")
            if pem is None or fault:
                left.append(row)
            else:
                changes.update(_install(row, pem, *keys[row["policy"]]))
        if not errors:
            break
        # The CA minion may not know yet how the cluster was changed: once more, with fresh pillar.
        wanted = left
    return {"changes": changes, "errors": [f"CA minion {ca}: {text}" for text in errors]}


def renew(
    names: list[str] | str | None = None,
    timeout: int = 120,
    new_keys: bool = False,
    older_than: float = 0,
) -> dict[str, Any]:
    """Issue certificates of this host anew now, whatever is left of them.

    Args:
        names: Names of certificates (``indigo_pki.status`` shows them); all when left out.
        timeout: Seconds to wait for the CA minion.
        new_keys: Make new keys, too.
        older_than: Minutes; what was issued since is left alone.

    Returns:
        What changed: ``{path: {"old": text or None, "new": text}}``.

    Raises:
        CommandExecutionError: A name is unknown, the CA minion refused, or as :func:`issue`.

    Example:
        .. code-block:: bash

            salt master1 indigo_pki.renew apiserver
    """
    pki = __pillar__.get("indigo", {}).get("pki", {})
    declared = {row["name"]: row for row in pki.get("certificates", [])}
    if isinstance(names, str):
        names = names.split(",")
    chosen = list(declared) if names is None else names
    unknown = sorted(set(chosen) - set(declared))
    if unknown:
        raise CommandExecutionError(
            f"no certificate named {', '.join(unknown)} on this host; there are: "
            f"{', '.join(declared) or 'none'}"
        )
    wanted = [declared[name] for name in chosen if _older(declared[name], older_than)]
    if not wanted and (older_than or not pki["authorities"]):
        return {}
    done = issue(pki["ca"], wanted, pki["authorities"], timeout, new_keys)
    if done["errors"]:
        raise CommandExecutionError(
            f"{'; '.join(done['errors'])}. Renewed: {', '.join(done['changes']) or 'nothing'}"
        )
    return done["changes"]


def due() -> dict[str, str]:
    """What of this host's certificates and authorities must be made anew now, and why, by path.

    CLI Example:

    .. code-block:: bash

        salt '*' indigo_pki.due
    """
    pki = __pillar__.get("indigo", {}).get("pki", {})
    authorities = pki.get("authorities", [])
    found = {row["path"]: authority_problem(row) for row in authorities}
    for row in pki.get("certificates", []):
        found[row["path"]] = certificate_problem(row, authorities)
    for row in pki.get("held", []):
        try:
            found[row["certificate"]] = held_problem(row)
        except CommandExecutionError as err:
            found[row["certificate"]] = str(err)
    return {path: why for path, why in found.items() if why}


def keep() -> dict[str, str]:
    """Renew what is due, with the states that restart what reads it; the schedule calls this.

    A host with nothing due asks nobody. Restarts wait for their turn, as in any ``state.apply``.

    Returns:
        What was due and is not any more, by path.

    Raises:
        CommandExecutionError: Something is still due. The next look tries again.

    CLI Example:

    .. code-block:: bash

        salt node1 indigo_pki.keep
    """
    before = due()
    if not before:
        return {}
    log.info("Certificates are due: %s", "; ".join(f"{k}: {v}" for k, v in before.items()))
    said = __salt__["state.apply"]("indigo.host", queue=True)
    left = due()
    if left:
        states = said.values() if isinstance(said, Mapping) else []
        bad = [str(one.get("comment")) for one in states if one.get("result") is False]
        raise CommandExecutionError(
            f"still due: {'; '.join(f'{path}: {why}' for path, why in left.items())}. "
            f"state.apply indigo.host says: {'; '.join(bad) if states else said}"
        )
    return before


def mend_ownership(declared: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Give the files of a certificate the owner and mode they must have.

    Args:
        declared: One of pillar ``indigo:pki:certificates`` or ``indigo:pki:authorities``.

    Returns:
        What changed: ``{path: {"old": "root:root 0644", "new": "etcd:etcd 0600"}}``.

    Raises:
        CommandExecutionError: The account does not exist.

    Example:
        .. code-block:: bash

            salt etcd1 indigo_pki.mend_ownership '{...}'
    """
    changes = {}
    for path, wanted in _ownership(declared).items():
        changes.update(_mend(path, *wanted))
    return changes


# The authorities, on the CA host


def held_problem(authority: Mapping[str, Any]) -> str | None:
    """Say what an authority held on this host lacks, if anything.

    Args:
        authority: One of pillar ``indigo:pki:held``.

    Returns:
        What :func:`establish` would do, and why, or None.

    Raises:
        CommandExecutionError: The authority is damaged: only a backup brings it back.

    Example:
        .. code-block:: bash

            salt salt indigo_pki.held_problem '{...}'
    """
    key_there = os.path.lexists(authority["key"])
    if not os.path.lexists(authority["certificate"]):
        if key_there:
            _load_key(authority["key"])
            return "its key is there and its certificate is not: the key will sign a new one"
        return "it is not there and will be made"
    if fault := _held_problem(authority):
        raise CommandExecutionError(
            f"authority {authority['name']}: {fault}. It is never made anew over an old one: "
            f"restore {authority['key']} and {authority['certificate']} from a backup"
        )
    now = _now()
    certificates = _load_certificates(authority["certificate"])
    left = _days_left(certificates[0], now)
    # Two of them: it is being exchanged for another one, and nothing else may happen to it.
    if left is not None and left < authority["renew_before"] and len(certificates) == 1:
        return f"its certificate is valid for {left} more days: its key will sign a new one"
    for path, mode in ((authority["key"], KEY_MODE), (authority["certificate"], CERTIFICATE_MODE)):
        found = _stat(path)
        wanted = (os.geteuid(), os.getegid(), mode)
        if found != wanted and found is not None:
            return f"{path} is {_describe(*found)}, not {_describe(*wanted)}"
    return None


def establish(authority: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Make an authority that is not there, or renew its certificate with the key it has.

    Certificates that the authority issued stay valid: subject and key of a renewed
    authority are those of the old one.

    Args:
        authority: One of pillar ``indigo:pki:held``.

    Returns:
        What changed: ``{path: {"old": text or None, "new": text}}``.

    Raises:
        CommandExecutionError: As :func:`held_problem` does.

    Example:
        .. code-block:: bash

            salt salt indigo_pki.establish '{...}'
    """
    if held_problem(authority) is None:
        return {}
    changes: dict[str, dict[str, Any]] = {}
    owner = (os.geteuid(), os.getegid())
    _folder(os.path.dirname(authority["key"]), 0o700)
    if os.path.lexists(authority["key"]):
        key = _load_key(authority["key"])
    else:
        key = _new_key()
        _write(authority["key"], _key_pem(key), *owner, KEY_MODE)
        changes[authority["key"]] = {"old": None, "new": "new private key (EC P-256)"}
    old = _first(authority["certificate"])
    left = _days_left(old, _now())
    if old is None or left is None or left < authority["renew_before"]:
        new = _self_signed(authority, key, old)
        pem = new.public_bytes(serialization.Encoding.PEM)
        _write(authority["certificate"], pem, *owner, CERTIFICATE_MODE)
        changes[authority["certificate"]] = {"old": _label(old), "new": _label(new)}
    changes.update(_mend(authority["key"], *owner, KEY_MODE))
    changes.update(_mend(authority["certificate"], *owner, CERTIFICATE_MODE))
    return changes


def exchange(phase: str | None, pods: int | None = None) -> dict[str, Any]:
    """On the CA host: bring the exchange of its authorities for new ones into its next phase.

    ``trusted``: hosts are told of both, the old one signs. ``used``: of both, the new one signs.
    ``dropped``: of the new one alone. The old pair is kept in the folder ``exchange`` below each
    authority until the exchange is over (None), and the phase in ``exchange.json`` beside them, so
    whatever was killed is done again. Whether every host knows of a phase is for the caller to see:
    ``salt-run state.orchestrate indigo.rotate.ca``.

    Args:
        phase: ``trusted``, ``used``, ``dropped``, or None.
        pods: Note that pods made before this time (Unix seconds) trust the old ones alone.

    Returns:
        ``changes`` as :func:`establish` gives them, and ``rotation`` (see :func:`exchanged`).

    Raises:
        CommandExecutionError: An authority is damaged, or a phase would be left out.

    Example:
        .. code-block:: bash

            salt salt indigo_pki.exchange trusted
    """
    held = __pillar__.get("indigo", {}).get("pki", {}).get("held", [])
    if not held or phase not in (*PHASES, None):
        raise CommandExecutionError(
            f"{phase!r} here: expected one of {', '.join(PHASES)}, on the host with role ca"
        )
    with _locked(os.path.dirname(_note(held))):
        return _exchange(held, phase, pods)


def _exchange(held: list[dict[str, Any]], phase: str | None, pods: int | None) -> dict[str, Any]:
    note = exchanged() or {}
    if phase is None:
        return _exchange_over(held, note)
    reached = PHASES.index(note["phase"]) if note else -1
    if PHASES.index(phase) > reached + 1:
        raise CommandExecutionError(
            f"the authorities cannot be {phase} now: the exchange is "
            f"{note.get('phase', 'not begun')}; run salt-run state.orchestrate indigo.rotate.ca"
        )
    changes: dict[str, dict[str, Any]] = {}
    # Noted as dropped, all files are as they must be, and the pairs may be gone already.
    if PHASES.index(phase) >= reached and reached < len(PHASES) - 1:
        if not note and (faults := [fault for row in held if (fault := _held_problem(row))]):
            raise CommandExecutionError("; ".join(faults))
        for row in held:
            changes.update(_exchanged_files(row, phase))
    if PHASES.index(phase) > reached:
        note = {**note, "what": "ca", "phase": phase, "since": int(time.time())}
    if pods is not None:
        note.setdefault("pods", pods)
    owner = (os.geteuid(), os.getegid())
    _write(_note(held), json.dumps(note).encode(), *owner, KEY_MODE)
    return {"changes": changes, "rotation": note}


@contextlib.contextmanager
def _locked(folder: str) -> Iterator[None]:
    """One writer at a time: on a busy Salt master a job may be sent twice."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def exchanged() -> dict[str, Any] | None:
    """How far the exchange of this host's authorities is: ``what``, ``phase``, ``since``; or None.

    Example:
        .. code-block:: bash

            salt salt indigo_pki.exchanged
    """
    held = __pillar__.get("indigo", {}).get("pki", {}).get("held", [])
    if not held or not os.path.lexists(_note(held)):
        return None
    try:
        found = json.loads(_read(_note(held)))
    except ValueError:
        found = None
    if not isinstance(found, dict) or found.get("phase") not in PHASES:
        raise CommandExecutionError(
            f"{_note(held)} cannot be read; expected JSON with `phase`. Which phase it is, the "
            "files tell: see docs/operations/rotate.md"
        )
    return found


def _note(held: list[dict[str, Any]]) -> str:
    return os.path.join(os.path.dirname(os.path.dirname(held[0]["key"])), "exchange.json")


def _exchange_over(held: list[dict[str, Any]], note: Mapping[str, Any]) -> dict[str, Any]:
    if not note:
        return {"changes": {}, "rotation": None}
    if note["phase"] != PHASES[-1]:
        raise CommandExecutionError(
            f"the exchange of the authorities is {note['phase']}, and over only when {PHASES[-1]}"
        )
    changes = {}
    for row in held:
        folder = os.path.join(os.path.dirname(row["key"]), "exchange")
        if os.path.isdir(folder):
            shutil.rmtree(folder)
            changes[folder] = {"old": "the old authority", "new": None}
    os.unlink(_note(held))
    return {"changes": changes, "rotation": None}


def _exchanged_files(authority: Mapping[str, Any], phase: str) -> dict[str, dict[str, Any]]:
    """An authority's files as a phase wants them; the pairs that they are made of come first."""
    folder = os.path.join(os.path.dirname(authority["key"]), "exchange")
    owner = (os.geteuid(), os.getegid())
    pairs: dict[str, tuple[bytes, bytes]] = {}
    _folder(folder, 0o700)
    for which in ("old", "new"):
        paths = [os.path.join(folder, f"{which}.{kind}") for kind in ("key", "crt")]
        # The certificate is written last, so a pair is there when it is.
        if not os.path.lexists(paths[1]):
            if phase != PHASES[0]:
                raise CommandExecutionError(f"{paths[1]} is missing: restore {folder}")
            if which == "old":
                pair = (_read(authority["key"]), _read(authority["certificate"]))
            else:
                key = _new_key()
                made = _self_signed(authority, key, _load_certificates(authority["certificate"])[0])
                pair = (_key_pem(key), made.public_bytes(serialization.Encoding.PEM))
            _write(paths[0], pair[0], *owner, KEY_MODE)
            _write(paths[1], pair[1], *owner, CERTIFICATE_MODE)
        pairs[which] = (_read(paths[0]), _read(paths[1]))
        if _load_key(paths[0]).public_key() != _load_certificates(paths[1])[0].public_key():
            raise CommandExecutionError(f"{paths[1]} does not belong to {paths[0]}")
    first, second = ("old", "new") if phase == PHASES[0] else ("new", "old")
    bundle = pairs[first][1] + (b"" if phase == PHASES[-1] else pairs[second][1])
    changes: dict[str, dict[str, Any]] = {}
    for path, content, mode, what in (
        (authority["certificate"], bundle, CERTIFICATE_MODE, f"certificates when {phase}"),
        (authority["key"], pairs[first][0], KEY_MODE, f"the {first} authority's key"),
    ):
        if _read(path) != content:
            _write(path, content, *owner, mode)
            changes[path] = {"old": "as before", "new": what}
    return changes


def trust(timeout: int = 120) -> dict[str, Any]:
    """Fetch the authorities' certificates as the CA host has them now.

    Returns:
        What changed: ``{path: {"old": text or None, "new": text}}``.

    Example:
        .. code-block:: bash

            salt '*' indigo_pki.trust
    """
    return _issued_here([], timeout)


def follow(timeout: int = 120) -> dict[str, Any]:
    """New keys and certificates of this host where they are not of the newest authority it trusts.

    Returns:
        What changed, and nothing when all are of the newest.

    Example:
        .. code-block:: bash

            salt '*' indigo_pki.follow
    """
    pki = __pillar__.get("indigo", {}).get("pki", {})
    wanted = []
    for row in pki.get("certificates", []):
        newest = max(
            _issuers(row["authority"], pki["authorities"]), key=lambda it: _validity(it)[0]
        )
        found = _first(row["path"])
        if found is None or not _issued(found, newest):
            wanted.append(row)
    return _issued_here(wanted, timeout) if wanted else {}


def _issued_here(wanted: list[dict[str, Any]], timeout: int) -> dict[str, Any]:
    pki = __pillar__.get("indigo", {}).get("pki", {})
    if not pki.get("authorities"):
        return {}
    done = issue(pki["ca"], wanted, pki["authorities"], timeout, new_keys=True)
    if done["errors"]:
        raise CommandExecutionError("; ".join(done["errors"]))
    return dict(done["changes"])


def _held_problem(authority: Mapping[str, Any]) -> str | None:
    try:
        key = _load_key(authority["key"])
        found = _load_certificates(authority["certificate"])[0]
    except CommandExecutionError as err:
        return str(err)
    if found.public_key() != key.public_key():
        return f"{authority['certificate']} does not belong to {authority['key']}"
    return None


def _self_signed(
    authority: Mapping[str, Any], key: Any, old: x509.Certificate | None
) -> x509.Certificate:
    subject = old.subject if old else _name(authority["common_name"], None)
    now = _now()
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATE)
        .not_valid_after(now + datetime.timedelta(days=authority["days"]))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(
            x509.KeyUsage(
                digital_signature=True,
                key_cert_sign=True,
                crl_sign=True,
                content_commitment=False,
                key_encipherment=False,
                data_encipherment=False,
                key_agreement=False,
                encipher_only=False,
                decipher_only=False,
            ),
            critical=True,
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )


# The conversation with the CA minion


def _answer_fault(
    declared: Mapping[str, Any],
    pem: str,
    keys: Mapping[str, tuple[Any, bool]],
    authorities: list[dict[str, str]],
) -> str | None:
    """What is wrong with a certificate that the CA minion sent, if anything."""
    key, _new = keys[declared["policy"]]
    try:
        found = _parse_certificates(pem, "it")[0]
        issuers = _issuers(declared["authority"], authorities)
    except CommandExecutionError as err:
        return str(err)
    return _fault(declared, found, key.public_key(), issuers, _now())


def _install(declared: Mapping[str, Any], pem: str, key: Any, new: bool) -> dict[str, Any]:
    """Put a verified certificate in place, and before it its key if that is a new one."""
    ownership = _ownership(declared)
    changes: dict[str, Any] = {}
    if new:
        old = "unusable key" if os.path.lexists(declared["key"]) else None
        _write(declared["key"], _key_pem(key), *ownership[declared["key"]])
        changes[declared["key"]] = {"old": old, "new": "new private key (EC P-256)"}
    before = _first(declared["path"])
    _write(declared["path"], pem.encode(), *ownership[declared["path"]])
    changes[declared["path"]] = {"old": _label(before), "new": _label(_first(declared["path"]))}
    return changes


def _ask(
    ca: str, keys: Mapping[str, Any], authorities: list[str], fresh: bool, timeout: int
) -> dict[str, Any]:
    """What the CA minion answers to all requests of this host."""
    requests = [{"policy": policy, "public_key": _public_pem(key)} for policy, key in keys.items()]
    if "publish.publish" not in __salt__:
        raise CommandExecutionError(
            f"certificates are issued by minion {ca} through a Salt master: this minion has none"
        )
    begun = time.monotonic()
    # Salt's own default of 5 s is too short for many hosts at once.
    answer = __salt__["publish.publish"](
        ca, "indigo_ca.sign", arg=[requests, authorities, fresh], tgt_type="list", timeout=timeout
    )
    waited = time.monotonic() - begun
    result = answer.get(ca) if isinstance(answer, Mapping) else answer
    if isinstance(result, Mapping) and "certificates" in result:
        return {"authorities": {}, "errors": [], **result}
    if result:
        raise CommandExecutionError(f"CA minion {ca} could not sign: {result}")
    if answer == {} and waited < timeout:
        raise CommandExecutionError(
            f"the Salt master did not pass the request on to CA minion {ca}: its configuration "
            "must allow it, `peer: {'.*': [indigo_ca.sign]}` (after a change, restart the master)"
        )
    if answer is None:
        raise CommandExecutionError(
            f"the Salt master knows no minion {ca}: accept its key, or correct which host has "
            "role ca"
        )
    raise CommandExecutionError(
        f"CA minion {ca} did not answer within {timeout} s: see that its salt-minion runs "
        f"(`salt {ca} test.ping`) and try again"
    )


# Facts about certificates


def _fault(
    declared: Mapping[str, Any],
    found: x509.Certificate,
    public_key: Any,
    issuers: Iterable[x509.Certificate],
    now: datetime.datetime,
) -> str | None:
    """The first thing in which a certificate differs from its declaration."""
    if found.public_key() != public_key:
        return f"it does not belong to the key {declared['key']}"
    if not any(_issued(found, issuer) for issuer in issuers):
        return f"it was not issued by the {declared['authority']} authority"
    subject = _name(declared["common_name"], declared.get("organization"))
    if found.subject != subject:
        return f"its subject is {_dn(found.subject)}, not {_dn(subject)}"
    sans, wanted = _sans(found), {_san(text) for text in declared.get("sans") or []}
    if sans != wanted:
        return f"its names are {_listed(sans)}, not {_listed(wanted)}"
    usages = _usages(found)
    if usages != set(declared["usages"]):
        return f"its usages are {_listed(usages)}, not {_listed(declared['usages'])}"
    return _timing(found, declared["renew_before"], now)


def _timing(found: x509.Certificate, renew_before: int, now: datetime.datetime) -> str | None:
    since, until = _validity(found)
    if now >= until:
        return f"it expired on {_day(until)}"
    if now < since:
        return f"it is not valid before {since:%Y-%m-%d %H:%M} UTC: compare this host's clock"
    if until - now < datetime.timedelta(days=renew_before):
        return f"it expires on {_day(until)}, within {renew_before} days"
    return None


def _authority_problem(path: str, now: datetime.datetime) -> str | None:
    try:
        found = _load_certificates(path)[0]
    except CommandExecutionError as err:
        return str(err)
    return _timing(found, 0, now)


def _issued(found: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        found.verify_directly_issued_by(issuer)
    except (InvalidSignature, ValueError, TypeError, UnsupportedAlgorithm):
        return False
    return True


def _issuers(name: str, authorities: list[dict[str, str]]) -> list[x509.Certificate]:
    """Certificates of an authority on this host: a file may hold an old one and a new one."""
    paths = [row["path"] for row in authorities if row["name"] == name]
    if not paths:
        raise CommandExecutionError(f"authority {name} is not among this host's authorities")
    return _load_certificates(paths[0])


def _validity(found: x509.Certificate) -> tuple[datetime.datetime, datetime.datetime]:
    try:
        return found.not_valid_before_utc, found.not_valid_after_utc
    except AttributeError:  # cryptography before 42
        utc = datetime.timezone.utc
        return (
            found.not_valid_before.replace(tzinfo=utc),
            found.not_valid_after.replace(tzinfo=utc),
        )


def _name(common_name: str, organization: str | None) -> x509.Name:
    attributes = [x509.NameAttribute(NameOID.COMMON_NAME, common_name)]
    if organization:
        # The order in which Salt's x509 puts them.
        attributes.insert(0, x509.NameAttribute(NameOID.ORGANIZATION_NAME, organization))
    return x509.Name(attributes)


def _san(text: str) -> str:
    kind, _, value = text.partition(":")
    return f"IP:{ipaddress.ip_address(value)}" if kind == "IP" else f"{kind}:{value.lower()}"


def _sans(found: x509.Certificate) -> set[str]:
    try:
        names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return set()
    texts = set()
    for name in names:
        if isinstance(name, x509.IPAddress):
            texts.add(f"IP:{name.value}")
        elif isinstance(name, x509.DNSName):
            texts.add(f"DNS:{name.value.lower()}")
        else:
            texts.add(f"{type(name).__name__}:{name.value}")
    return texts


def _usages(found: x509.Certificate) -> set[str]:
    known = {
        ExtendedKeyUsageOID.SERVER_AUTH: "serverAuth",
        ExtendedKeyUsageOID.CLIENT_AUTH: "clientAuth",
    }
    try:
        usages = found.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return set()
    return {known.get(oid, oid.dotted_string) for oid in usages}


def _older(declared: Mapping[str, Any], minutes: float) -> bool:
    """Whether a certificate was issued more than so long ago, or is not there."""
    found = _first(declared["path"])
    if found is None or not minutes:
        return True
    issued = _validity(found)[0] + BACKDATE
    return _now() - issued > datetime.timedelta(minutes=minutes)


def _days_left(found: x509.Certificate | None, now: datetime.datetime) -> int | None:
    return None if found is None else (_validity(found)[1] - now).days


def _label(found: x509.Certificate | None) -> str | None:
    if found is None:
        return None
    return f"serial {found.serial_number:x}, not after {_day(_validity(found)[1])}"


def _day(when: datetime.datetime) -> str:
    return f"{when:%Y-%m-%d}"


def _dn(name: x509.Name) -> str:
    return name.rfc4514_string()


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "none"


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.timezone.utc)


# Keys and files


def _new_key() -> Any:
    """A key that every Kubernetes and etcd release accepts, made in a millisecond."""
    return ec.generate_private_key(ec.SECP256R1())


def _key_for(declared: Mapping[str, Any]) -> tuple[Any, bool]:
    """The key of a certificate, and whether it was made just now."""
    try:
        return _load_key(declared["key"]), False
    except CommandExecutionError:
        return _new_key(), True


def _load_key(path: str) -> Any:
    try:
        return serialization.load_pem_private_key(_read(path), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as err:
        raise CommandExecutionError(f"{path} is not an unencrypted private key in PEM") from err


def _key_pem(key: Any) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def _public_pem(key: Any) -> str:
    return (
        key.public_key()
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        .decode()
    )


def _parse_certificates(text: str, source: str) -> list[x509.Certificate]:
    marker = "-----END CERTIFICATE-----"
    blocks = [block + marker for block in text.split(marker)[:-1]]
    try:
        found = [x509.load_pem_x509_certificate(block.encode()) for block in blocks]
    except ValueError as err:
        raise CommandExecutionError(f"{source} is not a certificate in PEM") from err
    if not found:
        raise CommandExecutionError(f"{source} holds no certificate")
    return found


def _load_certificates(path: str) -> list[x509.Certificate]:
    return _parse_certificates(_read(path).decode("ascii", "replace"), path)


def _first(path: str) -> x509.Certificate | None:
    with contextlib.suppress(CommandExecutionError):
        return _load_certificates(path)[0]
    return None


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as err:
        reason = "is missing" if isinstance(err, FileNotFoundError) else f"unreadable: {err}"
        raise CommandExecutionError(f"{path} {reason}") from err


def _replace_authority(path: str, pem: str) -> dict[str, dict[str, Any]]:
    new = _parse_certificates(pem, f"certificate for {path}")
    old = _first(path)
    owner = (os.geteuid(), os.getegid())
    # In whatever order: which of two signs is the CA host's business.
    if old is not None and set(_load_certificates(path)) == set(new):
        found = _stat(path)
        if found == (*owner, CERTIFICATE_MODE) or found is None:
            return {}
    _write(path, pem.encode(), *owner, CERTIFICATE_MODE)
    return {path: {"old": _label(old), "new": _label(new[0])}}


def _ownership(declared: Mapping[str, Any]) -> dict[str, tuple[int, int, int]]:
    """Owner, group and mode of each file. Only a key is the service's own."""
    public = {declared["path"]: (os.geteuid(), os.getegid(), CERTIFICATE_MODE)}
    if "key" not in declared:
        return public
    user, group = declared.get("user", "root"), declared.get("group", "root")
    try:
        uid, gid = pwd.getpwnam(user).pw_uid, grp.getgrnam(group).gr_gid
    except KeyError as err:
        raise CommandExecutionError(
            f"{declared['key']}: account {user}:{group}, its owner, does not exist on this host: "
            "apply the state common, which makes the accounts"
        ) from err
    return {declared["key"]: (uid, gid, KEY_MODE), **public}


def _stat(path: str) -> tuple[int, int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)


def _mend(path: str, uid: int, gid: int, mode: int) -> dict[str, dict[str, Any]]:
    found = _stat(path)
    if found is None or found == (uid, gid, mode):
        return {}
    # Narrow first: a key must not be the new owner's and world readable for a moment.
    os.chmod(path, mode & found[2])
    os.chown(path, uid, gid)
    os.chmod(path, mode)
    return {path: {"old": _describe(*found), "new": _describe(uid, gid, mode)}}


def _describe(uid: int, gid: int, mode: int) -> str:
    try:
        user = pwd.getpwuid(uid).pw_name
    except KeyError:
        user = str(uid)
    try:
        group = grp.getgrgid(gid).gr_name
    except KeyError:
        group = str(gid)
    return f"{user}:{group} {mode:04o}"


def _folder(path: str, mode: int = 0o755) -> None:
    """Make a folder, and those above it, whatever the umask is."""
    missing = []
    while path and not os.path.isdir(path):
        missing.append(path)
        path = os.path.dirname(path)
    for index, folder in enumerate(reversed(missing), start=1):
        os.mkdir(folder)
        os.chmod(folder, mode if index == len(missing) else 0o755)


def _write(path: str, content: bytes, uid: int, gid: int, mode: int) -> None:
    """Replace a file as a whole: at no moment is it there in part or with another owner."""
    folder = os.path.dirname(path)
    _folder(folder)
    handle, temporary = tempfile.mkstemp(dir=folder, prefix=f".{os.path.basename(path)}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fchown(file.fileno(), uid, gid)
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    entry = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(entry)
    finally:
        os.close(entry)
