"""Restarts of a tier's units, one host after the other, also when all hosts apply at once.

A restart takes a lock that the whole cluster knows, waits until the rest of the tier serves,
restarts, waits until the unit serves again, and lets go. The lock is a queue of keys in the
cluster's etcd, each bound to a lease that its owner keeps alive: who dies is out when the lease
ends. The first of the queue holds the lock.

Hosts without a client certificate of etcd, the load balancers, stand in the same queue through the
Salt minion of an etcd member (:func:`hold`, :func:`free`): they need no new secret, and can touch
the entries of their own tier alone.

A *tier* is what the pillar says of a unit under ``indigo:rolling``:

``name``
    Of the lock. Units that must not restart at the same time share it.
``own``, ``members``
    This host's name, and every member's name to the URL of its health; or to its minion id where
    ``ask`` is ``salt``, for what only the host itself can see.
``need``
    ``majority`` or ``any``: how many members must serve for the tier to serve.
``url``, ``check``
    This unit's own endpoint, and further arguments of ``indigo_health.check``.
``settle``
    Seconds for which it must serve before others count on it, and ``timeout`` until it does.
``units``, ``address``
    Units of this host that must run, and the ``{"address", "port"}`` at which some member must
    answer, for this one to count as serving.
``yields``
    ``{"unit", "address", "port"}``: the unit that gives the virtual address up for the restart.

Sources: etcd's guides "gRPC gateway" and "API", ``rpc.proto`` of etcd 3.4 to 3.6, etcd's own
recipe of a lock (``client/v3/concurrency/mutex.go``), for why a lease alone is no fence:
https://jepsen.io/analyses/etcd-3.4.3.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import math
import os
import secrets
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

try:
    from salt.exceptions import CommandExecutionError
except ImportError:  # the pure functions are of use without Salt
    CommandExecutionError = RuntimeError  # type: ignore[assignment,misc]


#: Below this lie the queues: ``indigo/lock/<tier>/<owner>``.
PREFIX = "indigo/lock/"

#: Seconds until a holder that died is out; it renews its lease four times in that time.
TTL = 15

#: The same through another minion, where nothing renews in the background: longer than a restart.
RELAYED_TTL = 60

#: Seconds between two looks: at the queue, at the rest of the tier.
LOOK = 0.5

#: How often the rest of a tier must be seen serving in a row, and the own member not serving.
SEEN, MISSED = 2, 5

#: Status codes of gRPC by which etcd says that this member cannot help now, but another may:
#: canceled, unknown (a gateway whose member goes away under it), deadline exceeded, aborted,
#: internal, unavailable.
ELSEWHERE = (1, 2, 4, 10, 13, 14)
NOT_FOUND = 5

#: Seconds that whoever has the virtual address gives the others to come before it.
LAST = 5

#: A unit that was started so often, and never served for long enough, will not serve by waiting.
STARTS = 5

NEEDS = ("any", "majority")


class Unreachable(CommandExecutionError):
    """No member of etcd answers as part of a quorum, so nobody can say who holds the lock."""


def __virtual__() -> str:
    return "indigo_rolling"


# --- pure -------------------------------------------------------------------------------------


def required(members: int, need: str) -> int:
    """How many members must serve for the tier to serve.

    Args:
        members: How many there are.
        need: ``any`` or ``majority``.

    Raises:
        ValueError: ``need`` is neither.

    Example:
        >>> required(3, "majority"), required(5, "majority"), required(2, "any")
        (2, 3, 1)
    """
    if need not in NEEDS:
        raise ValueError(f"need is {need!r}; expected one of {', '.join(NEEDS)}")
    return members // 2 + 1 if need == "majority" else 1


def arithmetic(members: int, need: str) -> str:
    """How many there are and how many must serve, for a person.

    >>> arithmetic(3, "majority"), arithmetic(2, "any"), arithmetic(1, "any")
    ('3 members, quorum 2', '2 members, 1 must serve', '1 member, 1 must serve')
    """
    count = f"{members} member" + ("s" if members != 1 else "")
    least = required(members, need)
    return f"{count}, quorum {least}" if need == "majority" else f"{count}, {least} must serve"


def verdict(problems: Mapping[str, str], own: str, need: str) -> tuple[bool, str]:
    """Whether a member may stop serving for a moment, and why.

    All others must serve. A majority would do for the tier, but then a configuration that breaks
    a member would be given to as many members as the tier can lose, and not to one.

    Args:
        problems: Each member's name to what is wrong with it; empty where it serves.
        own: Name of the member that wants to restart.
        need: ``any`` or ``majority``.

    Returns:
        The answer, and the sum that it rests on.

    Example:
        >>> verdict({"a": "", "b": "", "c": ""}, "a", "majority")
        (True, '3 members, quorum 2: 3 healthy, one may go')
        >>> verdict({"a": "", "b": "status 503", "c": ""}, "a", "majority")
        (False, '3 members, quorum 2: 2 healthy, none may go: b (status 503)')
        >>> verdict({"a": "", "b": "status 503"}, "b", "any")
        (True, '2 members, 1 must serve: 1 healthy, b is not, so nothing is taken away')
    """
    bad = {name: problem for name, problem in problems.items() if problem}
    healthy = len(problems) - len(bad)
    total = f"{arithmetic(len(problems), need)}: {healthy} healthy"
    if own in bad:
        return True, f"{total}, {own} is not, so nothing is taken away"
    if bad:
        told = ", ".join(f"{name} ({problem})" for name, problem in sorted(bad.items()))
        return False, f"{total}, none may go: {told}"
    if healthy - 1 < required(len(problems), need):
        return True, f"{total}, an interruption cannot be avoided"
    return True, f"{total}, one may go"


def owner(entries: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The entry of a queue that holds the lock: the one that was made first.

    >>> owner([{"key": "b", "made": 7}, {"key": "a", "made": 9}])["key"]
    'b'
    """
    return min(entries, key=lambda entry: entry["made"], default=None)


def entry(kv: Mapping[str, Any]) -> dict[str, Any]:
    """An entry of a queue from etcd's JSON, where 64-bit numbers are text and zeros left out.

    >>> entry({"key": "YQ==", "value": "e30=", "create_revision": "12", "lease": "34"})
    {'key': 'a', 'made': 12, 'lease': 34, 'host': '?', 'since': 0}
    """
    try:
        value = json.loads(_plain(str(kv.get("value", ""))))
    except ValueError:
        value = {}
    value = value if isinstance(value, dict) else {}
    return {
        "key": _plain(str(kv.get("key", ""))),
        "made": int(kv.get("create_revision", 0)),
        "lease": int(kv.get("lease", 0)),
        "host": str(value.get("host", "?")),
        "since": int(value.get("since", 0)),
    }


def after(prefix: str) -> str:
    """The first key behind all that begin with a prefix: ``range_end`` of etcd's API.

    >>> after("a/")
    'a0'
    """
    return prefix[:-1] + chr(ord(prefix[-1]) + 1)


def tries(settle: float, interval: float = LOOK / 2) -> int:
    """Answers in a row, one every interval, that prove that a unit serves for some seconds.

    >>> tries(0), tries(2.0)
    (3, 9)
    """
    return max(3, math.ceil(settle / interval) + 1)


def describe(tier: Mapping[str, Any]) -> str:
    """What a restart in this tier would keep to, for test mode. Asks nobody.

    >>> describe({"name": "etcd", "members": {"a": "", "b": "", "c": ""}, "need": "majority"})
    'one host at a time in the tier etcd: 3 members, quorum 2, all others must serve'
    """
    sum_ = arithmetic(len(tier["members"]), tier["need"])
    return f"one host at a time in the tier {tier['name']}: {sum_}, all others must serve"


def _coded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def _plain(text: str) -> str:
    return base64.b64decode(text).decode("utf-8", "replace")


# --- etcd -------------------------------------------------------------------------------------


class _NotFound(CommandExecutionError):
    """A lease that etcd does not know, or no longer."""


class _Elsewhere(Exception):
    """A member that cannot answer now."""


class Etcd:
    """etcd's JSON gateway: one connection that is kept, and other members when it fails.

    Args:
        endpoints: URLs ``https://host:port`` of members, the preferred first.
        ca: File with etcd's authority.
        cert: Client certificate file.
        key: Its private key file.
        timeout: Seconds to wait for one member.

    Example:
        >>> Etcd(["https://10.0.0.1:2379"], "/ca.crt", "/c.crt", "/c.key").endpoints
        ['https://10.0.0.1:2379']
    """

    def __init__(
        self, endpoints: Iterable[str], ca: str, cert: str, key: str, timeout: float = 3
    ) -> None:
        self.endpoints = list(endpoints)
        self._files = (ca, cert, key)
        self._timeout = timeout
        self._connection: http.client.HTTPSConnection | None = None

    def call(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """POST to the gateway of the first member that can answer.

        Args:
            path: For example ``/v3/kv/range``.
            body: The request, in the JSON form of protocol buffers.

        Returns:
            The answer; of a stream the first one.

        Raises:
            Unreachable: No member answered as part of a quorum.
            CommandExecutionError: A member answered, and refuses.
        """
        problems = []
        for _ in range(len(self.endpoints)):
            endpoint = self.endpoints[0]
            try:
                return self._ask(endpoint, path, json.dumps(body))
            except (_Elsewhere, OSError, http.client.HTTPException, ValueError) as error:
                problems.append(f"{endpoint}: {str(error) or type(error).__name__}")
            self.close()
            self.endpoints.append(self.endpoints.pop(0))
        raise Unreachable(
            f"etcd does not answer: {'; '.join(problems) or 'no endpoints are declared'}; "
            "expected a member that is part of a quorum. See `salt-run indigo.status`"
        )

    def _ask(self, endpoint: str, path: str, body: str) -> dict[str, Any]:
        kept = self._connection is not None
        try:
            return self._once(endpoint, path, body)
        except (http.client.RemoteDisconnected, ConnectionError):
            # A connection that was kept may have ended long ago.
            if not kept:
                raise
            self.close()
            return self._once(endpoint, path, body)

    def _once(self, endpoint: str, path: str, body: str) -> dict[str, Any]:
        if self._connection is None:
            parts = urlsplit(endpoint)
            ca, cert, key = self._files
            context = ssl.create_default_context(cafile=ca)
            context.load_cert_chain(cert, key)
            self._connection = http.client.HTTPSConnection(
                parts.hostname or "", parts.port or 443, timeout=self._timeout, context=context
            )
        self._connection.request("POST", path, body, {"Content-Type": "application/json"})
        answer = self._connection.getresponse()
        # Of a stream, and keeping a lease alive is one, there is a line for each message.
        text = answer.read().decode("utf-8", "replace").strip()
        said = _parsed(text)
        if said is None and answer.status == 200:
            raise _Elsewhere(f"no JSON: {text[:200]!r}")
        said = said or {}
        if answer.status != 200 or said.get("error"):
            error = said.get("error")
            _fail(endpoint, path, answer.status, error if isinstance(error, dict) else said, text)
        return dict(said.get("result") or said)

    def close(self) -> None:
        """End the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _parsed(text: str) -> dict[str, Any] | None:
    """The first JSON document of an answer; None where it holds none."""
    try:
        found = json.loads(text.splitlines()[0])
    except (ValueError, IndexError):
        return None
    return found if isinstance(found, dict) else None


def _fail(endpoint: str, path: str, status: int, said: Mapping[str, Any], text: str) -> None:
    """Raise what an answer that is none stands for."""
    code = said.get("code", said.get("grpc_code"))
    told = str(said.get("message") or said.get("error") or text[:200] or "nothing")
    if code == NOT_FOUND:
        raise _NotFound(told)
    if code in ELSEWHERE or (code is None and status >= 500):
        raise _Elsewhere(told)
    if code is None and status == 404:
        told = "its gateway is off: remove enable-grpc-gateway from overrides.etcd.flags"
    raise CommandExecutionError(
        f"etcd at {endpoint} refuses {path} (status {status}): {told}; see journalctl -u etcd there"
    )


class Lock:
    """A place in the queue of a tier, and the lock once it is the first one.

    Args:
        settings: Arguments of :class:`Etcd`.
        tier: Name of the tier.
        host: Who it is for, told to those who wait.
        ttl: Seconds after which a place whose owner died is taken away.
        place: Name of the place; one of its own by default. Whoever uses the same one shares it.

    Example:
        >>> Lock({"endpoints": [], "ca": "", "cert": "", "key": ""}, "etcd", "a", place="x").key
        'indigo/lock/etcd/x'
    """

    def __init__(
        self,
        settings: Mapping[str, Any],
        tier: str,
        host: str,
        ttl: int = TTL,
        place: str | None = None,
    ) -> None:
        self.tier, self.host, self.ttl = tier, host, ttl
        self.prefix = f"{PREFIX}{tier}/"
        self.key = self.prefix + (place or f"{host}.{os.getpid()}.{secrets.token_hex(4)}")
        self.lease = 0
        #: Until then, in monotonic seconds, the place is surely kept.
        self.until = 0.0
        self._etcd = Etcd(**settings)
        self._settings = settings
        self._end = threading.Event()
        self._keeper: threading.Thread | None = None

    # Steps

    def stand(self) -> None:
        """Take a place in the queue, or keep the one that is there."""
        if self.lease and self._renewed(self._etcd):
            return
        if self._adopted():
            return
        begun = time.monotonic()
        lease = int(self._etcd.call("/v3/lease/grant", {"TTL": str(self.ttl)})["ID"])
        value = json.dumps({"host": self.host, "since": int(time.time())})
        key = _coded(self.key)
        put = {"key": key, "value": _coded(value), "lease": str(lease)}
        done = self._etcd.call(
            "/v3/kv/txn",
            {
                "compare": [
                    {"key": key, "target": "CREATE", "result": "EQUAL", "create_revision": "0"}
                ],
                "success": [{"request_put": put}],
            },
        )
        if done.get("succeeded"):
            self.lease, self.until = lease, begun + self.ttl
            return
        # An earlier request was carried out although its answer was lost.
        self._adopted()
        if self.lease != lease:
            self._revoke(lease)

    def _adopted(self) -> bool:
        """Take over the lease of the place if it is there and lives."""
        found = [one for one in self.queue() if one["key"] == self.key]
        if not found:
            return False
        self.lease = found[0]["lease"]
        return self._renewed(self._etcd)

    def _renewed(self, etcd: Etcd) -> bool:
        """Renew the lease; False when it has ended. Called from two threads."""
        lease, begun = self.lease, time.monotonic()
        try:
            said = etcd.call("/v3/lease/keepalive", {"ID": str(lease)})
        except _NotFound:
            said = {}
        alive = int(said.get("TTL", 0)) > 0
        if lease == self.lease:  # and not another one by now
            self.lease, self.until = (lease, begun + self.ttl) if alive else (0, 0.0)
        return alive

    def queue(self) -> list[dict[str, Any]]:
        """Every entry of the tier's queue, as a quorum of etcd knows it."""
        span = {"key": _coded(self.prefix), "range_end": _coded(after(self.prefix))}
        return [entry(kv) for kv in self._etcd.call("/v3/kv/range", span).get("kvs", [])]

    def first(self) -> Mapping[str, Any] | None:
        """Whose turn it is. Our own entry when its key is :attr:`key`."""
        return owner(self.queue())

    def others(self) -> int:
        """How many more stand in the queue."""
        return len([one for one in self.queue() if one["key"] != self.key])

    def again(self) -> None:
        """Give the place up, for the end of the queue at the next :meth:`acquire`."""
        lease, self.lease = self.lease, 0
        self._revoke(lease)

    def _revoke(self, lease: int) -> None:
        with contextlib.suppress(CommandExecutionError):
            self._etcd.call("/v3/lease/revoke", {"ID": str(lease)})

    # The whole

    def acquire(self, timeout: float = 600, grace: float = 30) -> None:
        """Wait for the lock and keep it until :meth:`release`.

        Args:
            timeout: Seconds to wait for those before us.
            grace: Seconds for which etcd may be without a quorum.

        Raises:
            Unreachable: etcd has no quorum, for longer than the grace.
            CommandExecutionError: Others held the lock for too long.
        """
        end, since = time.monotonic() + timeout, time.monotonic()
        while True:
            try:
                now = self._looked()
                since = time.monotonic()
            except Unreachable:
                if time.monotonic() >= since + grace:
                    raise
                now = None
            if now is not None and now["key"] == self.key:
                return
            if time.monotonic() >= end:
                raise CommandExecutionError(_busy(self.tier, now, timeout))
            time.sleep(LOOK)

    def _looked(self) -> Mapping[str, Any] | None:
        if not self.lease:
            self.stand()
            self._keep()
        entries = self.queue()
        if all(one["key"] != self.key for one in entries):
            self.lease = 0  # it ended while etcd could not be reached: to the end of the queue
        return owner(entries)

    def _keep(self) -> None:
        """Renew the lease in the background, over a connection of its own."""
        if self._keeper is not None:
            return
        etcd = Etcd(**self._settings)

        def work() -> None:
            pause = self.ttl / 4
            while not self._end.wait(pause):
                pause = self.ttl / 4
                try:
                    if self.lease:
                        self._renewed(etcd)
                except CommandExecutionError:
                    pause = min(1.0, self.ttl / 8)
            etcd.close()

        self._keeper = threading.Thread(target=work, name=f"lock {self.tier}", daemon=True)
        self._keeper.start()

    def confirm(self) -> None:
        """Make sure, as late as possible before what it is for, that the lock is ours.

        Raises:
            CommandExecutionError: It is not, or nobody can say so.
        """
        lease = self.lease
        while True:
            try:
                if lease and self.until - time.monotonic() < self.ttl / 2:
                    self._renewed(self._etcd)
                now = self.first()
                break
            except Unreachable:  # etcd may be electing a leader
                if time.monotonic() >= self.until:
                    raise
                time.sleep(LOOK)
        if not self.lease or self.lease != lease or now is None or now["key"] != self.key:
            raise CommandExecutionError(
                f"the lock of the tier {self.tier} was lost: this host did not reach etcd for "
                f"{self.ttl} s. Run the state again"
            )

    def keep(self) -> None:
        """Called now and then while the lock is held; here the background sees to it."""

    def lasted(self) -> bool:
        """Whether the lock was kept all the time until now."""
        return bool(self.lease) and time.monotonic() < self.until

    def release(self) -> None:
        """Let go. What cannot be told to etcd ends with the lease."""
        self._end.set()
        if self._keeper is not None:
            self._keeper.join(self.ttl)
        if self.lease:
            self._revoke(self.lease)
            self.lease = 0
        self.close()

    def close(self) -> None:
        """End the connection; the place stays as long as its lease."""
        self._etcd.close()


def _busy(tier: str, now: Mapping[str, Any] | None, waited: float) -> str:
    who = f"{now['host']} holds it" if now else "etcd did not answer"
    return (
        f"the lock of the tier {tier} was not free within {waited:g} s: {who}. See there what its "
        "state.apply waits for, then run the state again"
    )


def lock(settings: Mapping[str, Any], name: str, host: str, ttl: int = TTL) -> Lock:
    """A lock of the whole cluster for another of our modules on a host with a certificate of etcd.

    Args:
        settings: Arguments of :class:`Etcd`.
        name: Of the lock; that of a tier keeps its restarts away.
        host: Who it is for, told to those who wait.
        ttl: Seconds after which it is free when its owner died.

    Returns:
        A place that nobody has taken yet: ``acquire`` and, whatever happened, ``release``.

    Example:
        ``__salt__["indigo_rolling.lock"](settings, "backup", "etcd1").acquire(timeout=5)``
    """
    return Lock(settings, name, host, ttl)


# --- through another minion -------------------------------------------------------------------


class Relay:
    """The lock for a host without a certificate of etcd: etcd members' minions keep its place.

    Args:
        publish: Salt's ``publish.publish``.
        through: Minion ids of etcd members; the first that answers is used.
        tier: Name of the tier.
    """

    def __init__(self, publish: Callable[..., Any], through: Iterable[str], tier: str) -> None:
        self._publish, self._through, self.tier = publish, list(through), tier
        self.until = 0.0
        self._others = 0

    def _ask(self, function: str, *arguments: Any, seconds: float = 10) -> dict[str, Any]:
        problems = []
        for _ in range(len(self._through)):
            minion = self._through[0]
            said = self._publish(
                minion,
                f"indigo_rolling.{function}",
                arg=[self.tier, *arguments],
                tgt_type="list",
                timeout=seconds,
            )
            answer = said.get(minion) if isinstance(said, Mapping) else said
            if isinstance(answer, Mapping) and not answer.get("unreachable"):
                if answer.get("problem"):
                    raise CommandExecutionError(f"{minion}: {answer['problem']}")
                return dict(answer)
            told = answer.get("problem") if isinstance(answer, Mapping) else answer
            problems.append(f"{minion}: {told or 'no answer'}")
            self._through.append(self._through.pop(0))
        raise Unreachable(
            f"no minion of an etcd host could be asked for the lock of the tier {self.tier}: "
            f"{'; '.join(problems)}. Expected one that answers, and a Salt master whose setting "
            "`peer` allows indigo_rolling.hold"
        )

    def _held(self, wait: float) -> dict[str, Any]:
        begun = time.monotonic()
        said = self._ask("hold", wait, seconds=wait + 8)
        self.until = begun + RELAYED_TTL if said.get("held") else 0.0
        self._others = int(said.get("others", 0))
        return said

    def others(self) -> int:
        """See :meth:`Lock.others`; as of the last answer."""
        return self._others

    def again(self) -> None:
        """See :meth:`Lock.again`."""
        self._ask("free")

    def acquire(self, timeout: float = 600, grace: float = 30) -> None:
        """See :meth:`Lock.acquire`."""
        end, since = time.monotonic() + timeout, time.monotonic()
        while True:
            said: dict[str, Any] = {}
            try:
                said = self._held(wait=max(0.0, min(5.0, end - time.monotonic())))
                since = time.monotonic()
            except Unreachable:
                if time.monotonic() >= since + grace:
                    raise
            if said.get("held"):
                return
            if time.monotonic() >= end:
                raise CommandExecutionError(_busy(self.tier, said or None, timeout))
            time.sleep(LOOK)

    def keep(self) -> None:
        """Renew while waiting; nothing does so in the background."""
        if self.until - time.monotonic() < RELAYED_TTL / 2:
            self.confirm()

    def confirm(self) -> None:
        """See :meth:`Lock.confirm`; afterwards there is the whole time for what it is for."""
        said = self._held(wait=0)
        if not said.get("held"):
            raise CommandExecutionError(
                f"the lock of the tier {self.tier} was lost to {said.get('host')}: this host did "
                f"not ask again for {RELAYED_TTL} s. Run the state again"
            )

    def lasted(self) -> bool:
        """See :meth:`Lock.lasted`."""
        return time.monotonic() < self.until

    def release(self) -> None:
        """See :meth:`Lock.release`."""
        with contextlib.suppress(CommandExecutionError):
            self._ask("free")


def hold(tier: str, wait: float = 5, **kwargs: Any) -> dict[str, Any]:
    """Keep, or get, a place in a tier's queue for the minion that asks.

    Runs on an etcd member, called with ``publish.publish`` by a host that has no certificate of
    etcd. The master states who asks (``__pub_id``); the pillar says which hosts may have which
    lock here.

    Args:
        tier: Name of the tier.
        wait: Seconds to wait for those before it, 10 at most.
        kwargs: What Salt adds to a published job.

    Returns:
        ``{"held": bool, "host": who holds it, "others": how many more stand there}``; with
        ``problem`` where it could not be asked for, and ``unreachable`` where another member may do
        better.

    Example:
        ``salt-call publish.publish etcd1 indigo_rolling.hold lb``
    """
    try:
        lock = _lent(tier, kwargs)
    except CommandExecutionError as error:
        return {"held": False, "problem": str(error)}
    end = time.monotonic() + min(float(wait), 10.0)
    try:
        lock.stand()
        while True:
            entries = lock.queue()
            now = owner(entries)
            held = now is not None and now["key"] == lock.key
            if held or time.monotonic() >= end:
                others = len([one for one in entries if one["key"] != lock.key])
                return {"held": held, "host": now["host"] if now else "?", "others": others}
            time.sleep(LOOK)
    except CommandExecutionError as error:
        unreachable = isinstance(error, Unreachable)
        return {"held": False, "problem": str(error), "unreachable": unreachable}
    finally:
        lock.close()


def free(tier: str, **kwargs: Any) -> dict[str, Any]:
    """Give up the place that :func:`hold` keeps for the minion that asks.

    Args:
        tier: Name of the tier.
        kwargs: What Salt adds to a published job.

    Returns:
        ``{"freed": bool}``, with ``problem`` and ``unreachable`` as in :func:`hold`.

    Example:
        ``salt-call publish.publish etcd1 indigo_rolling.free lb``
    """
    try:
        lock = _lent(tier, kwargs)
        mine = [one for one in lock.queue() if one["key"] == lock.key]
        lock.lease = mine[0]["lease"] if mine else 0
        lock.release()
    except CommandExecutionError as error:
        unreachable = isinstance(error, Unreachable)
        return {"freed": False, "problem": str(error), "unreachable": unreachable}
    return {"freed": bool(mine)}


def _lent(tier: str, kwargs: Mapping[str, Any]) -> Lock:
    """The place of the minion that asks; the same one each time, so that no answer can get lost."""
    minion = kwargs.get("__pub_id")
    settings = _settings()
    if not minion or minion not in settings.get("lends", {}).get(tier, []):
        raise CommandExecutionError(
            f"minion {minion!r} may not have the lock of the tier {tier!r} here: it is for hosts "
            "of that tier without a certificate of etcd, as cluster.yaml declares them"
        )
    return Lock(_etcd(settings), tier, minion, RELAYED_TTL, place=f"@{minion}")


def holders() -> dict[str, list[dict[str, Any]]]:
    """Who holds each lock, and who waits for it, in their order.

    Returns:
        Tier to entries ``{"host", "since"}``, since when in seconds of the epoch. The first of
        each holds the lock; a tier without any is left out.

    Raises:
        CommandExecutionError: This host has no certificate of etcd, or etcd does not answer.

    Example:
        ``salt etcd1 indigo_rolling.holders``
    """
    etcd = Etcd(**_etcd(_settings()))
    try:
        said = etcd.call(
            "/v3/kv/range", {"key": _coded(PREFIX), "range_end": _coded(after(PREFIX))}
        )
    finally:
        etcd.close()
    found: dict[str, list[dict[str, Any]]] = {}
    for one in sorted((entry(kv) for kv in said.get("kvs", [])), key=lambda one: one["made"]):
        tier = one["key"].removeprefix(PREFIX).partition("/")[0]
        found.setdefault(tier, []).append({"host": one["host"], "since": one["since"]})
    return found


def _settings() -> Mapping[str, Any]:
    try:
        return __pillar__["indigo"]["lock"]
    except KeyError:
        raise CommandExecutionError(
            "this host knows no way to the cluster's locks: pillar indigo:lock is missing. "
            "Run saltutil.refresh_pillar"
        ) from None


def _etcd(settings: Mapping[str, Any]) -> dict[str, Any]:
    if "endpoints" not in settings:
        raise CommandExecutionError(
            "this host has no certificate of etcd: ask a host with the role etcd or master"
        )
    return {name: settings[name] for name in ("endpoints", "ca", "cert", "key")}


def _lock(tier: Mapping[str, Any]) -> Lock | Relay:
    settings = _settings()
    if "endpoints" in settings:
        return Lock(_etcd(settings), tier["name"], __pillar__["indigo"]["id"])
    if "publish.publish" not in __salt__:
        raise CommandExecutionError(
            f"the lock of the tier {tier['name']} is asked for through a Salt master: this minion "
            "has none"
        )
    return Relay(__salt__["publish.publish"], settings["through"], tier["name"])


# --- health of a tier -------------------------------------------------------------------------


def serves(unit: str) -> dict[str, Any]:
    """Whether this host serves as a member of a unit's tier.

    Args:
        unit: A unit that pillar ``indigo:rolling`` names.

    Returns:
        ``{"ok": bool, "problem": why not}``.

    Example:
        ``salt 'lb*' indigo_rolling.serves haproxy``
    """
    tier = __pillar__.get("indigo", {}).get("rolling", {}).get(unit)
    if not tier:
        return {"ok": False, "problem": f"the pillar declares no tier of {unit} on this host"}
    try:
        problem = _own_problem(tier)
    except CommandExecutionError as error:
        problem = str(error)
    return {"ok": not problem, "problem": problem}


def _own_problem(tier: Mapping[str, Any]) -> str:
    """What is wrong with this host's member; empty where it serves."""
    answer = __salt__["indigo_health.check"](tier["url"], **tier.get("check", {}))
    if not answer["ok"]:
        return _brief(answer)
    for unit in tier.get("units", ()):
        found = __salt__["indigo_service.show"](unit)
        if found.get("ActiveState") not in ("active", "reloading"):
            return f"{unit} is {found.get('ActiveState')}"
        started = int(found.get("ExecMainStartTimestampMonotonic") or 0) / 1e6
        if started and time.monotonic() - started < tier.get("settle", 0):
            return f"{unit} has just started"
    address = tier.get("address")
    if address and not __salt__["indigo_health.open_port"](address["address"], address["port"]):
        return f"nobody answers at {address['address']}:{address['port']}"
    return ""


def _brief(answer: Mapping[str, Any]) -> str:
    return f"{answer['url']}: {answer['problem']}" if answer["problem"] else ""


def _problems(unit: str, tier: Mapping[str, Any]) -> dict[str, str]:
    """Each member of a tier to what is wrong with it."""
    own, members = tier["own"], tier["members"]
    others = {name: where for name, where in members.items() if name != own}
    found = {own: _own_problem(tier)}
    if tier.get("ask") != "salt":
        for name, url in others.items():
            answer = __salt__["indigo_health.check"](url, **tier.get("check", {}))
            found[name] = "" if answer["ok"] else _brief(answer)
        return found
    if "publish.publish" not in __salt__:
        return {**dict.fromkeys(others, "there is no Salt master to ask it through"), **found}
    said = __salt__["publish.publish"](
        sorted(others.values()), "indigo_rolling.serves", arg=[unit], tgt_type="list", timeout=8
    )
    for name, minion in others.items():
        answer = said.get(minion) if isinstance(said, Mapping) else None
        if isinstance(answer, Mapping):
            found[name] = "" if answer.get("ok") else str(answer.get("problem"))
        else:
            found[name] = f"its minion says {answer or 'nothing'}"
    return found


def _leave(
    unit: str, tier: Mapping[str, Any], patience: float, keep: Callable[[], None]
) -> tuple[bool, str]:
    """Wait until this member may stop serving; the answer and the sum it rests on.

    A member that did not serve, and then does, may have been started by its host without the lock:
    who counts on it must have had the time to notice, as after a restart.
    """
    end = time.monotonic() + patience
    seen = missed = 0
    enough = SEEN
    while True:
        problems = _problems(unit, tier)
        may, why = verdict(problems, tier["own"], tier["need"])
        down = bool(problems[tier["own"]])
        seen = seen + 1 if may and not down else 0
        missed = missed + 1 if down else 0
        if not may:
            enough = tries(tier.get("settle", 0), LOOK)
        if seen >= enough or missed >= MISSED:
            return True, why
        if time.monotonic() >= end:
            return False, why
        keep()
        time.sleep(LOOK)


def _stays_down(tier: Mapping[str, Any]) -> bool:
    """Whether this host's member does not serve, looked at several times."""
    for turn in range(MISSED):
        if not _own_problem(tier):
            return False
        if turn < MISSED - 1:
            time.sleep(LOOK)
    return True


# --- the restart ------------------------------------------------------------------------------


def restart(
    name: str,
    files: Iterable[str],
    tier: Mapping[str, Any],
    wait: bool = True,
    patience: float = 60,
    timeout: float = 600,
    grace: float = 30,
    packages: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Restart a running unit when it is this host's turn and the rest of the tier serves.

    What does not serve may be restarted whatever the rest does, for that takes nothing away. So
    neither a broken configuration nor an etcd without a quorum, which nobody can take a lock
    from, keeps a member from being mended:

    ======================  =======================================================
    etcd has a quorum       lock, wait for the rest of the tier, restart, let go
    it has none, unit up    refused once the grace is over: nothing is restarted
    it has none, unit down  restarted without a lock once the grace is over
    ======================  =======================================================

    Args:
        name: Unit.
        files: Files that it reads at start; see ``indigo_service.restart``.
        tier: See the module's description.
        wait: Of ``indigo_service.restart``, where the unit was no member of its tier yet.
        patience: Seconds to wait, with the lock, for the rest of the tier to serve.
        timeout: Seconds to wait for the lock.
        grace: Seconds for which etcd may be without a quorum.
        packages: Packages to exchange before the restart, to their versions, see
            ``indigo_package.exchange``.

    Returns:
        ``{"restarted": bool, "ok": bool, "comment": str}``. Not ok where it was refused, or where
        the unit does not serve afterwards.

    Raises:
        CommandExecutionError: The lock could not be taken in time, or was lost before the restart;
            or systemd refuses.

    Example:
        ``__salt__["indigo_rolling.restart"]("etcd", [], __pillar__["indigo"]["rolling"]["etcd"])``
    """
    files, packages = list(files), dict(packages or {})
    if not __salt__["indigo_service.stamped"](name) and _own_problem(tier):
        # Its package started it at installation. What follows waits for it as after a first start.
        _exchange(packages)
        __salt__["indigo_service.restart"](name, files, wait=wait)
        told = f"it was no member of the tier {tier['name']} yet"
        return {"restarted": True, "ok": True, "comment": told}
    lock = _lock(tier)
    begun = time.monotonic()
    try:
        try:
            _acquire(lock, tier, timeout, grace)
        except Unreachable as error:
            if not _stays_down(tier):
                return _refused(name, tier, f"nobody can take its lock. {error}")
            count = arithmetic(len(tier["members"]), tier["need"])
            why = f"{count}: restarted without a lock, for etcd has no quorum to take it from, and "
            return _act(name, files, tier, why + f"{tier['own']} did not serve", packages)
        waited = time.monotonic() - begun
        may, why = _leave(name, tier, patience, lock.keep)
        if not may:
            told = f"{why}, after {patience:g} s. Mend the others first, or remove them from "
            return _refused(name, tier, told + "cluster.yaml")
        if not _stale(name, files) and not _differing(packages):
            told = f"{name} was restarted by another while it waited for its turn"
            return {"restarted": False, "ok": True, "comment": told}
        lock.confirm()
        done = _act(name, files, tier, why, packages)
        if not lock.lasted():
            done["comment"] += ". The lock was lost on the way: see why this host lost etcd"
        done["comment"] += f" (waited {waited:.1f} s for the lock)"
        return done
    finally:
        lock.release()


def _acquire(lock: Lock | Relay, tier: Mapping[str, Any], timeout: float, grace: float) -> None:
    """Take the lock; who has the virtual address takes it last.

    So the address moves once, to a host that has restarted already, and not from one to the next.
    """
    end = time.monotonic() + timeout
    address = tier.get("address")
    if address and __salt__["indigo_host.holds"](address["address"]):
        time.sleep(LAST)
    lock.acquire(timeout, grace)
    for _ in tier["members"]:
        if not address or not __salt__["indigo_host.holds"](address["address"]):
            return
        if not lock.others():
            return
        lock.again()
        time.sleep(LOOK)
        lock.acquire(max(0.0, end - time.monotonic()), grace)


def _refused(name: str, tier: Mapping[str, Any], why: str) -> dict[str, Any]:
    told = f"{name} was not restarted, for it serves in the tier {tier['name']}: {why}"
    return {"restarted": False, "ok": False, "comment": told}


def _stale(name: str, files: Sequence[str]) -> bool:
    """Whether a restart is still due: minutes may have gone by."""
    if not __salt__["indigo_service.active"](name):
        return True
    changed = __salt__["indigo_service.stale"](name, files)
    return bool(changed["unit"] or changed["files"])


def _differing(packages: Mapping[str, str]) -> bool:
    return bool(packages and __salt__["indigo_package.differing"](packages))


def _exchange(packages: Mapping[str, str]) -> None:
    if packages:
        __salt__["indigo_package.exchange"](packages)


def _act(
    name: str,
    files: Sequence[str],
    tier: Mapping[str, Any],
    why: str,
    packages: Mapping[str, str],
) -> dict[str, Any]:
    """Restart and wait until the unit serves: several answers in a row from a new process."""
    before = __salt__["indigo_service.show"](name).get("InvocationID", "")
    with _yielded(tier) as gave:
        if packages:
            _exchange(packages)
            if gave:  # its package has started it again
                __salt__["indigo_service.pause"](gave)
        begun = time.monotonic()
        __salt__["indigo_service.restart"](name, files, wait=False)
        found = _serving(name, tier)
        took = time.monotonic() - begun
    problem = "" if found["ok"] else _brief(found["last"]) or "it answers, but not for long enough"
    if found["unit"].get("InvocationID", "") == before:
        problem = "the old process runs on"
    if found["starts"] > STARTS:
        problem = f"it ends soon after each start, and was started {STARTS} times"
    problem = problem or _settled(tier)
    if problem:
        return {
            "restarted": True,
            "ok": False,
            "comment": f"{why}, but {name} does not serve again: {problem}. The rest of the tier "
            f"{tier['name']} stays as it is until it does. Look at: journalctl -u {name} -n 50",
        }
    told = f"{why}; it serves again {took:.1f} s after"
    if gave:
        told += f", {tier['yields']['address']} was given to another host before"
    return {"restarted": True, "ok": True, "comment": told}


def _serving(unit: str, tier: Mapping[str, Any]) -> dict[str, Any]:
    return __salt__["indigo_health.wait_unit"](
        unit,
        tier["url"],
        successes=tries(tier.get("settle", 0)),
        interval=LOOK / 2,
        timeout=tier.get("timeout", 120),
        # The old process may be seen, too.
        starts=STARTS + 1,
        **tier.get("check", {}),
    )


def _settled(tier: Mapping[str, Any]) -> str:
    """What is wrong with this member still, after some time; empty as soon as nothing is."""
    end = time.monotonic() + tier.get("timeout", 120)
    while True:
        problem = _own_problem(tier)
        if not problem or time.monotonic() >= end:
            return problem
        time.sleep(LOOK)


@contextlib.contextmanager
def _yielded(tier: Mapping[str, Any], timeout: float = 10) -> Iterator[str]:
    """Have another host take the virtual address first, if this one has it; the unit stopped."""
    given = tier.get("yields")
    if not given or not __salt__["indigo_host.holds"](given["address"]):
        yield ""
        return
    unit, address, port = given["unit"], given["address"], given["port"]
    try:
        __salt__["indigo_service.pause"](unit)
        end = time.monotonic() + timeout
        while not _elsewhere(address, port):
            if time.monotonic() >= end:
                raise CommandExecutionError(
                    f"no other host took {address} within {timeout:g} s after {unit} was stopped "
                    f"here; nothing was restarted. Look at: journalctl -u {unit} on the others"
                )
            time.sleep(0.1)
        yield unit
    finally:
        # Whatever happened: it takes the address only if this host serves.
        __salt__["indigo_service.resume"](unit)


def _elsewhere(address: str, port: int) -> bool:
    here = __salt__["indigo_host.holds"](address)
    return not here and __salt__["indigo_health.open_port"](address, port)
