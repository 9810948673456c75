"""Health checks at protocol level, in process: HTTP over verified TLS.

A check looks at what was answered, not only at whether something was: the server proves its name
with a certificate, the status is 200 and the body holds what is expected. No subprocess: a check
costs a few milliseconds, so that waiting for a service can look often.
"""

from __future__ import annotations

import http.client
import socket
import ssl
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

try:
    from salt.exceptions import CommandExecutionError
except ImportError:  # the pure functions are of use without Salt
    CommandExecutionError = RuntimeError  # type: ignore[assignment,misc]


#: As much of an answer as a person wants to read in an error.
BODY_LIMIT = 2000

#: How many of several endpoints must answer.
NEEDS = ("all", "any", "majority")


def __virtual__() -> str:
    return "indigo_health"


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def _context(ca: str | None, cert: str | None, key: str | None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=ca)
    if cert:
        context.load_cert_chain(cert, key)
    return context


def check(
    url: str,
    ca: str | None = None,
    cert: str | None = None,
    key: str | None = None,
    token_file: str | None = None,
    expect: str | None = "ok",
    timeout: float = 2,
) -> dict[str, Any]:
    """Ask an endpoint once.

    Args:
        url: ``https://host:port/path`` or ``http://…``; the certificate must name the host.
            ``unix:/path/of/socket`` asks for ``/`` over a Unix socket.
        ca: File with the authority that signed the server's certificate; None: the system's.
        cert: Client certificate file, with ``key`` as its private key file.
        key: Private key file of ``cert``.
        token_file: File with a bearer token to send.
        expect: Text that the body must hold; None accepts any body.
        timeout: Seconds for the connection and for each read.

    Returns:
        ``{"ok": bool, "url": str, "status": int | None, "body": str, "problem": str,
        "seconds": float}``. ``problem`` is empty when ok. Nothing is raised: a server that does
        not answer, or a file that is not there yet, is an answer, too.

    Example:
        ``salt-call indigo_health.check https://10.0.0.10:8443/readyz ca=/path/ca.crt``
    """
    start = time.monotonic()
    status: int | None = None
    body = problem = ""
    parts = urlsplit(url)
    connection: http.client.HTTPConnection | None = None
    try:
        headers = {}
        if token_file:
            token = Path(token_file).read_text(encoding="utf-8").strip()
            headers["Authorization"] = f"Bearer {token}"
        host = parts.hostname or ""
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        if parts.scheme == "unix":
            connection = _UnixConnection(parts.path, timeout)
            target = "/"
        elif parts.scheme == "https":
            context = _context(ca, cert, key)
            connection = http.client.HTTPSConnection(
                host, parts.port or 443, timeout=timeout, context=context
            )
        else:
            connection = http.client.HTTPConnection(host, parts.port or 80, timeout=timeout)
        connection.request("GET", target, headers=headers)
        answer = connection.getresponse()
        status = answer.status
        body = answer.read(BODY_LIMIT).decode("utf-8", "replace").strip()
        if status != 200:
            problem = f"status {status}, expected 200"
        elif expect is not None and expect not in body:
            problem = f"the body does not hold {expect!r}"
    except ssl.SSLCertVerificationError as error:
        problem = f"the server's certificate is refused: {error.verify_message}"
    except (OSError, http.client.HTTPException, ValueError) as error:
        problem = f"{type(error).__name__}: {error}"
    finally:
        if connection is not None:
            connection.close()
    return {
        "ok": not problem,
        "url": url,
        "status": status,
        "body": body,
        "problem": problem,
        "seconds": round(time.monotonic() - start, 4),
    }


def told(answer: dict[str, Any]) -> str:
    """One line about a failed :func:`check`.

    >>> told({"url": "https://a/", "problem": "status 500, expected 200", "body": "no"})
    'https://a/: status 500, expected 200; it answered: no'
    """
    said = f"; it answered: {answer['body']}" if answer.get("body") else ""
    return f"{answer['url']}: {answer['problem']}{said}"


def enough(healthy: int, total: int, need: str) -> bool:
    """Whether that many healthy endpoints meet a need.

    Args:
        healthy: How many answered well.
        total: How many there are.
        need: ``all``, ``any`` or ``majority``.

    Raises:
        ValueError: ``need`` is none of these.

    Example:
        >>> enough(2, 3, "majority"), enough(2, 4, "majority")
        (True, False)
    """
    if need not in NEEDS:
        raise ValueError(f"need is {need!r}; expected one of {', '.join(NEEDS)}")
    return healthy >= {"all": total, "any": 1, "majority": total // 2 + 1}[need]


def wait_unit(
    name: str,
    url: str,
    successes: int = 3,
    interval: float = 0.2,
    timeout: float = 120,
    starts: int | None = None,
    **checks: Any,
) -> dict[str, Any]:
    """Wait until a unit's endpoint answers well several times in a row from one process.

    A process that crashes soon after its start answers once or twice; it does not get through.

    Args:
        name: Unit whose main process must stay the same.
        url: See :func:`check`.
        successes: Answers in a row.
        interval: Seconds between two questions.
        timeout: Seconds after which to give up.
        starts: Starts of the unit, seen while waiting, after which to give up; None waits on.
        checks: Further arguments of :func:`check`.

    Returns:
        ``{"ok": bool, "pid": str, "answers": int, "starts": int, "last": answer of check, "unit":
        properties}``.

    Raises:
        CommandExecutionError: systemd does not answer.

    Example:
        ``salt-call indigo_health.wait_unit etcd https://10.0.0.1:2379/health expect=true``
    """
    # One question must not eat the whole time, nor may a slow answer count as none.
    checks = {**checks, "timeout": max(0.5, min(5.0, timeout))}
    end = time.monotonic() + timeout
    row, pid = 0, ""
    begun = set()
    while True:
        unit = __salt__["indigo_service.show"](name)
        begun.add(unit.get("InvocationID", ""))
        answer = check(url, **checks)
        if answer["ok"] and unit.get("MainPID", "0") != "0":
            row = row + 1 if unit["MainPID"] == pid else 1
            pid = unit["MainPID"]
        else:
            row, pid = 0, ""
        done = row >= successes
        over = starts is not None and len(begun) >= starts
        if done or over or time.monotonic() >= end:
            found = {"ok": done, "pid": pid, "answers": row, "starts": len(begun)}
            return {**found, "last": answer, "unit": unit}
        time.sleep(interval)


def survey(urls: Iterable[str], **checks: Any) -> list[dict[str, Any]]:
    """Ask several endpoints once, one after the other.

    Args:
        urls: See :func:`check`.
        checks: Further arguments of :func:`check`.

    Returns:
        One answer per URL, in order.

    Example:
        ``salt-call indigo_health.survey '["https://10.0.0.1:2379/health"]' expect=true``
    """
    return [check(url, **checks) for url in urls]


def wait_all(
    urls: Iterable[str],
    need: str = "all",
    interval: float = 0.2,
    timeout: float = 120,
    **checks: Any,
) -> dict[str, Any]:
    """Wait until enough of several endpoints answer well.

    Args:
        urls: See :func:`check`.
        need: ``all``, ``any`` or ``majority``.
        interval: Seconds between two rounds.
        timeout: Seconds after which to give up.
        checks: Further arguments of :func:`check`.

    Returns:
        ``{"ok": bool, "healthy": int, "answers": [answer of check, ...]}``.

    Raises:
        CommandExecutionError: ``need`` is unknown, or no URL is given.

    Example:
        ``salt-call indigo_health.wait_all '["https://a:2379/health"]' need=any expect=true``
    """
    urls = list(urls)
    if not urls or need not in NEEDS:
        raise CommandExecutionError(
            f"indigo_health: {len(urls)} urls, need={need!r}; "
            f"expected at least one url and one of {', '.join(NEEDS)}"
        )
    end = time.monotonic() + timeout
    while True:
        answers = survey(urls, **checks)
        healthy = sum(answer["ok"] for answer in answers)
        done = enough(healthy, len(urls), need)
        if done or time.monotonic() >= end:
            return {"ok": done, "healthy": healthy, "answers": answers}
        time.sleep(interval)


def open_port(address: str, port: int, timeout: float = 1) -> bool:
    """Whether a TCP connection is accepted.

    Example:
        ``salt-call indigo_health.open_port 10.0.0.10 8443``
    """
    try:
        with socket.create_connection((address, port), timeout):
            return True
    except OSError:
        return False
