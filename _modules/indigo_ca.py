"""The certificate authority's side: sign for other minions, one job per requesting host.

Salt's ``x509.certificate_managed`` asks the CA minion once per certificate, and each such job
costs a process start on it. :func:`sign` takes all requests of a host at once and hands each to
``x509.sign_remote_certificate``, so signing policies mean here what they mean there.

The master lets minions call it with ``peer: {'.*': [indigo_ca.sign]}``. Salt's
``x509.sign_remote_certificate`` itself needs no permission.
"""

from __future__ import annotations

import datetime
import ssl
import time
from typing import TYPE_CHECKING, Any

from salt.exceptions import CommandExecutionError

try:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec, rsa

    HAS_CRYPTOGRAPHY = True
except ImportError:  # pragma: no cover
    HAS_CRYPTOGRAPHY = False

if TYPE_CHECKING:
    __salt__: dict[str, Any]
    __pillar__: dict[str, Any]

#: Certificates are valid from this long before they are made: clocks of hosts differ.
BACKDATE = datetime.timedelta(hours=1)

#: How often to look for an authority that is still being made, in seconds.
LOOK_AGAIN = 0.2


def __virtual__() -> bool | tuple[bool, str]:
    if not HAS_CRYPTOGRAPHY:
        return False, "indigo_ca needs the Python library cryptography"
    return True


def sign(
    requests: list[dict[str, str]],
    authorities: list[str] | None = None,
    fresh: bool = False,
    wait: float = 60,
    **kwargs: Any,
) -> dict[str, Any]:
    """Sign for the minion that asks, and tell it the authorities' certificates.

    Runs on the CA minion, called with ``publish.publish`` by another one. The master states who
    asks (``__pub_id``, which overrides whatever a caller passes by that name), and every policy
    admits one minion. A request adds its public key to what the policy fixes, nothing else.

    Args:
        requests: ``[{"policy": name, "public_key": PEM}, ...]``; may be empty.
        authorities: Names of the authorities whose certificates the caller wants.
        fresh: Read the policies from the master anew: the cluster was changed a moment ago.
        wait: Seconds to wait for an authority that this host is just about to make.
        kwargs: What Salt adds to a published job.

    Returns:
        ``{"certificates": {policy: PEM}, "authorities": {name: PEM}, "errors": [text, ...]}``.

    Raises:
        CommandExecutionError: The caller is unknown or this minion holds no authority.

    Example:
        .. code-block:: bash

            salt node1 publish.publish salt indigo_ca.sign "[[], [kubernetes]]"

    Source: Salt's documentation of ``x509_v2`` and of the master's ``peer`` setting.
    """
    minion = kwargs.get("__pub_id")
    if not minion:
        raise CommandExecutionError(
            "indigo_ca.sign: the minion that asks is unknown. It only serves requests that "
            "minions send through the master with publish.publish"
        )
    if fresh:
        # For this job only. x509 reads the same dictionary.
        __pillar__.update(__salt__["pillar.items"](unmask=True))
    held = {row["name"]: row for row in _held()}
    answer: dict[str, Any] = {"certificates": {}, "authorities": {}, "errors": []}
    deadline = time.monotonic() + wait
    for name in authorities or []:
        try:
            answer["authorities"][name] = _authority(name, held, deadline)
        except CommandExecutionError as err:
            answer["errors"].append(str(err))
    for request in requests:
        try:
            name, pem = _signed(request, minion, deadline)
            answer["certificates"][name] = pem
        except CommandExecutionError as err:
            answer["errors"].append(str(err))
    return answer


def _held() -> list[dict[str, Any]]:
    held = __pillar__.get("indigo", {}).get("pki", {}).get("held")
    if not held:
        raise CommandExecutionError(
            "indigo_ca.sign: this minion holds no authority (pillar indigo:pki:held is empty). "
            "Ask the host with role ca, or refresh its pillar: saltutil.refresh_pillar"
        )
    return held


def _authority(name: str, held: dict[str, dict[str, Any]], deadline: float) -> str:
    if name not in held:
        raise CommandExecutionError(
            f"authority {name!r} is unknown here, known are: {', '.join(held)}"
        )
    return _read_when_there(held[name]["certificate"], deadline)


def _signed(request: dict[str, str], minion: str, deadline: float) -> tuple[str, str]:
    """Name of the policy and the certificate, or the reason why there is none."""
    name = str(request.get("policy"))
    policy = __pillar__.get("x509_signing_policies", {}).get(name)
    if not policy:
        raise CommandExecutionError(
            f"signing policy {name!r} is not in the pillar of the CA minion: check that the "
            f"cluster declares {minion} with the roles it should have"
        )
    # x509 checks this too; here a policy without `minions`, which it lets anyone use, is refused.
    if policy.get("minions") != minion:
        raise CommandExecutionError(
            f"minion {minion!r} may not use signing policy {name!r}: it is another minion's"
        )
    for kind in ("signing_cert", "signing_private_key"):
        _read_when_there(policy[kind], deadline)
    since = datetime.datetime.now(datetime.timezone.utc) - BACKDATE
    answer = __salt__["x509.sign_remote_certificate"](
        name,
        {
            "public_key": _public_key(name, request.get("public_key")),
            "not_before": since.strftime("%Y-%m-%d %H:%M:%S"),
        },
        __pub_id=minion,
    )
    if answer.get("errors") or not answer.get("data"):
        raise CommandExecutionError(f"{name}: {'; '.join(answer.get('errors') or ['no answer'])}")
    return name, ssl.DER_cert_to_PEM_cert(answer["data"])


def _public_key(policy: str, text: Any) -> str:
    """The request's public key, proven to be one: x509 would also take the name of a file."""
    try:
        key = serialization.load_pem_public_key(str(text).encode())
    except ValueError as err:
        raise CommandExecutionError(f"{policy}: public_key is not a public key in PEM") from err
    strong = isinstance(key, ec.EllipticCurvePublicKey) or (
        isinstance(key, rsa.RSAPublicKey) and key.key_size >= 2048
    )
    if not strong:
        raise CommandExecutionError(
            f"{policy}: public_key is neither an elliptic curve key nor RSA of 2048 bits or more"
        )
    return key.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    ).decode()


def _read_when_there(path: str, deadline: float) -> str:
    """Text of a file that another job on this host may be making right now."""
    while True:
        try:
            with open(path, encoding="ascii") as file:
                return file.read()
        except FileNotFoundError as err:
            if time.monotonic() >= deadline:
                raise CommandExecutionError(
                    f"{path} is missing on the CA host: apply the state ca.configured to it"
                ) from err
            time.sleep(LOOK_AGAIN)
