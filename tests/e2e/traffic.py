"""Clients that write, read and watch through the VIP all the while, and know what was acknowledged.

    with Traffic(lab) as traffic:            # runs on the host `salt`, which no test powers off
        mark = traffic.flows()               # every kind of client has succeeded; the time now
        lab.kill("lb1")
        ...
        print(traffic.report(mark))          # so far: nothing is ended, nothing is verified
        report = traffic.stop(mark)          # ends them, and verifies every acknowledged write
    assert not report.lost and not report.unseen
    assert report.without_writes < 1.5
    figure(f"lb1 powered off: {report}")

The clients are one process in the lab. Each try is a line of its output, with the times at which it
began and ended (the clock of this machine), so any number of marks can be taken and looked at
afterwards: ``report(since, until)`` counts the tries that ended in that span.

======  =========================================================================================
new     writes (creates a ConfigMap of its own) over a new connection each, one every 1/rate s
        whether or not the ones before have an answer
kept    writes over one kept connection, one after the other, at most ``rate`` a second. It sees
        that the server closed it while idle, as Go's client does, and then opens another one
read    reads what was acknowledged last, over a new connection, ``rate``/2 a second
watch   one long watch of all of it; it goes on from the last version seen when it ends
======  =========================================================================================

A request that fails is tried once more, after ``pause`` seconds, over a new connection. A create
that says "exists already" at its second try is acknowledged: the first one was carried out.

`Report` has ``without_writes`` (longest time from one acknowledged write to the next, seconds),
``without_reads``, ``requests``, ``failed_first`` (first tries that failed), ``failed_twice``
(requests that failed both times), ``watches`` (times the watch was broken), ``without_watch``
(longest time from its end to its next beginning), and, from `stop` alone, ``lost``
(acknowledged writes that are not there) and ``unseen`` (those that the watch never told).
"""

from __future__ import annotations

import json
import subprocess
import threading
import time
from dataclasses import dataclass, field
from itertools import pairwise
from secrets import token_hex
from types import TracebackType
from typing import Any

from cluster import until
from indigo_lab.base import REPO
from indigo_lab.lab import Lab

KINDS = {"new", "kept", "read", "watch"}

_CLIENT = r"""
import http.client, itertools, json, select, socket, ssl, sys, threading, time

config = json.loads(sys.stdin.readline())
tls = ssl.create_default_context(cadata=config["ca"])
HEAD = {"Authorization": "Bearer " + config["token"], "Content-Type": "application/json"}
KIND, FIELD = ("Secret", "stringData") if config["secrets"] else ("ConfigMap", "data")
BASE = f"/api/v1/namespaces/default/{KIND.lower()}s"
CHOSEN = "labelSelector=traffic%3D" + config["run"]
RUN, RATE, PAUSE = config["run"], config["rate"], config["pause"]
CONNECT, ANSWER = config["connect_timeout"], config["timeout"]
BROKEN = (OSError, http.client.HTTPException, ValueError)

ended, over = threading.Event(), threading.Event()
out, acknowledged, seen = threading.Lock(), [], set()

def tell(**line):
    with out:
        print(json.dumps(line), flush=True)

def connect():
    # Two times to wait: for a host that is gone, and for one that is slow.
    link = http.client.HTTPSConnection(config["address"], config["port"], timeout=ANSWER)
    plain = socket.create_connection((config["address"], config["port"]), CONNECT)
    try:
        plain.settimeout(ANSWER)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        link.sock = tls.wrap_socket(plain, server_hostname=config["address"])
    except BaseException:
        plain.close()
        raise
    return link

def ask(link, method, path, body=None):
    link.request(method, path, body and json.dumps(body), HEAD)
    answer = link.getresponse()
    return answer.status, answer.read()

def once(method, path, body=None):
    link = connect()
    try:
        return ask(link, method, path, body)
    finally:
        link.close()

def attempt(kind, name, number, work, good):
    began, wrong = time.time(), None
    try:
        status, text = work()
        if status not in good:
            wrong = f"{status} {text[:160]!r}"
    except BROKEN as err:
        wrong = repr(err)
    tell(kind=kind, name=name, number=number, began=began, ended=time.time(), wrong=wrong)
    return wrong is None

def request(kind, name, work, again, good):
    if attempt(kind, name, 1, work, good):
        return True
    time.sleep(PAUSE)
    return attempt(kind, name, 2, again, (*good, 409) if kind != "read" else good)

def document(name):
    return {"kind": KIND, "apiVersion": "v1", FIELD: {"name": name},
            "metadata": {"name": name, "labels": {"traffic": RUN}}}

def write(kind, number, work=None):
    name = f"traffic-{RUN}-{kind}-{number}"
    again = lambda: once("POST", BASE, document(name))
    first = again if work is None else lambda: work("POST", BASE, document(name))
    if request(kind, name, first, again, (201,)):
        acknowledged.append(name)

def read():
    if acknowledged:
        name = acknowledged[-1]
        get = lambda: once("GET", f"{BASE}/{name}")
        request("read", name, get, get, (200,))

def ticking(rate, work):
    # As many at the same time as it takes; a hundred that hang are enough.
    running, due = [], time.monotonic()
    for number in itertools.count():
        due += 1 / rate
        if ended.wait(max(0, due - time.monotonic())):
            break
        running = [one for one in running if one.is_alive()]
        if len(running) < 100:
            running.append(threading.Thread(target=work, args=(number,), daemon=True))
            running[-1].start()
    for one in running:
        one.join()

def new():
    ticking(RATE, lambda number: write("new", number))

def reads():
    ticking(RATE / 2, lambda number: read())

def kept():
    link = [None]
    def work(*words):
        if link[0] is not None and select.select([link[0].sock], [], [], 0)[0]:
            link[0].close()  # the server closed it while it was idle
            link[0] = None
        try:
            if link[0] is None:
                link[0] = connect()
            found = ask(link[0], *words)
            if link[0].sock is None:  # the server asked to close it
                link[0] = None
            return found
        except BROKEN:
            if link[0] is not None:
                link[0].close()
            link[0] = None
            raise
    for number in itertools.count():
        began = time.monotonic()
        write("kept", number, work)
        if ended.wait(max(0, began + 1 / RATE - time.monotonic())):
            return

def listed():
    names, more, version = set(), "", ""
    while True:
        status, text = once("GET", f"{BASE}?{CHOSEN}&limit=500{more}")
        if status != 200:
            raise ValueError(f"{status} {text[:160]!r}")
        page = json.loads(text)
        names |= {one["metadata"]["name"] for one in page["items"]}
        version = page["metadata"]["resourceVersion"]
        if not page["metadata"].get("continue"):
            return names, version
        more = "&continue=" + page["metadata"]["continue"]

def watch():
    version = None
    while not over.is_set():
        opened, wrong = None, None
        try:
            if version is None:
                names, version = listed()
                seen.update(names)
            link = connect()
            # There are writes all the time: a watch that is silent for so long is dead.
            link.sock.settimeout(config["silence"])
            try:
                link.request("GET", f"{BASE}?watch=1&allowWatchBookmarks=true&timeoutSeconds=3600"
                                    f"&{CHOSEN}&resourceVersion={version}", headers=HEAD)
                answer = link.getresponse()
                if answer.status != 200:
                    raise ValueError(f"{answer.status} {answer.read()[:160]!r}")
                opened = time.time()
                tell(kind="watch", name="", number=1, began=opened, ended=opened, wrong=None)
                while not over.is_set():
                    line = answer.readline()
                    if not line:
                        wrong = "it was ended"
                        break
                    event = json.loads(line)
                    if event["type"] == "ERROR":
                        version = None
                        raise ValueError(str(event["object"])[:160])
                    version = event["object"]["metadata"]["resourceVersion"]
                    if event["type"] != "BOOKMARK":
                        seen.add(event["object"]["metadata"]["name"])
            finally:
                link.close()
        except BROKEN as err:
            wrong = repr(err)
        if wrong and not over.is_set():
            now = time.time()
            tell(kind="watch", name="", number=1, began=opened or now, ended=now, wrong=wrong)
            over.wait(0 if opened else 0.1)

def patiently(work):
    end = time.monotonic() + config["patience"]
    while True:
        try:
            return work()
        except BROKEN:
            if time.monotonic() > end:
                raise
            time.sleep(0.5)

clients = [threading.Thread(target=one, daemon=True) for one in (new, reads, kept)]
for one in (*clients, threading.Thread(target=watch, daemon=True)):
    one.start()
sys.stdin.read()
ended.set()
for one in clients:
    one.join()
wanted = set(acknowledged)
there, _ = patiently(listed)
last = time.monotonic() + 10
while wanted - seen and time.monotonic() < last:
    time.sleep(0.1)
over.set()
lost, unseen = sorted(wanted - there), sorted(wanted - seen)
tell(kind="verdict", acknowledged=len(wanted), lost=lost, unseen=unseen)
patiently(lambda: once("DELETE", f"{BASE}?{CHOSEN}"))
"""


@dataclass(frozen=True)
class Try:
    """One try of a client; of the watch: one beginning (``wrong`` is None) or one end."""

    kind: str
    name: str
    number: int
    began: float
    ended: float
    wrong: str | None


@dataclass(frozen=True)
class Report:
    """What the clients noticed in a span of time."""

    since: float
    until: float
    tries: list[Try] = field(repr=False)
    #: Names of acknowledged writes that are not there, or that the watch never told; by `stop`.
    lost: list[str] = field(default_factory=list)
    unseen: list[str] = field(default_factory=list)
    acknowledged: int | None = None

    def _of(self, *kinds: str) -> list[Try]:
        return [one for one in self.tries if one.kind in kinds]

    def _longest(self, *kinds: str) -> float:
        good = sorted(one.ended for one in self._of(*kinds) if one.wrong is None)
        return max(b - a for a, b in pairwise([self.since, *good, self.until]))

    @property
    def without_writes(self) -> float:
        """Longest time without an acknowledged write, seconds."""
        return self._longest("new", "kept")

    @property
    def without_reads(self) -> float:
        """Longest time without an answered read, seconds."""
        return self._longest("read")

    @property
    def requests(self) -> int:
        """How many were begun."""
        return len([one for one in self._of("new", "kept", "read") if one.number == 1])

    @property
    def failed_first(self) -> list[Try]:
        """First tries that failed."""
        found = self._of("new", "kept", "read")
        return [one for one in found if one.wrong and one.number == 1]

    @property
    def failed_twice(self) -> list[Try]:
        """Requests that failed at their second try, too."""
        found = self._of("new", "kept", "read")
        return [one for one in found if one.wrong and one.number == 2]

    @property
    def watches(self) -> list[Try]:
        """Ends of the watch that nobody asked for; failed tries to begin one are among them."""
        return [one for one in self._of("watch") if one.wrong]

    @property
    def without_watch(self) -> float:
        """Longest time from an end of the watch to its next beginning, seconds."""
        longest, end = 0.0, None
        for one in self._of("watch"):
            if one.wrong:
                end = end or one.ended
            elif end:
                longest, end = max(longest, one.ended - end), None
        return max(longest, self.until - end) if end else longest

    def __str__(self) -> str:
        told = (
            f"{self.without_writes:.2f} s without writes, {self.without_reads:.2f} s without "
            f"reads, {len(self.failed_first)} of {self.requests} first tries failed, "
            f"{len(self.failed_twice)} failed after one retry, watch broken {len(self.watches)} "
            f"times for {self.without_watch:.2f} s at most"
        )
        if self.acknowledged is not None:
            told += f"; {len(self.lost)} of {self.acknowledged} acknowledged writes lost"
        return told

    def details(self) -> str:
        """Each try that failed, for the message of an assertion."""
        return "\n".join(
            f"{one.kind} {one.name} try {one.number}: {one.began - self.since:.2f} s to "
            f"{one.ended - self.since:.2f} s: {one.wrong}"
            for one in self.tries
            if one.wrong
        )


def noticed_nothing(report: Report) -> None:
    """Clients that try once more noticed nothing, and nothing is lost."""
    assert report.requests > 50
    assert not report.failed_twice, report.details()
    assert (report.lost, report.unseen) == ([], [])


class Traffic:
    """The clients; use it as a context manager.

    Args:
        lab: The lab, with a deployed cluster.
        host: Where they run: any host with Python that keeps its power and its network.
        rate: Writes a second of each writer.
        pause: Seconds between a request's two tries.
        connect_timeout: Seconds for a TCP connection.
        timeout: Seconds for the TLS handshake, and for an answer.
        silence: Seconds after which a watch that tells nothing is given up.
        patience: Seconds for which the verification tries again.
        address, port: Of the API; the VIP.
        secrets: Write Secrets in place of ConfigMaps.
        token: The clients' own, in place of the admin's.
    """

    def __init__(
        self,
        lab: Lab,
        host: str = "salt",
        *,
        rate: float = 5,
        pause: float = 0.2,
        connect_timeout: float = 1,
        timeout: float = 10,
        silence: float = 10,
        patience: float = 60,
        address: str = "10.77.0.10",
        port: int = 8443,
        secrets: bool = False,
        token: str | None = None,
    ) -> None:
        self.run = token_hex(3)
        self._config: dict[str, Any] = {
            "run": self.run, "rate": rate, "pause": pause, "connect_timeout": connect_timeout,
            "timeout": timeout, "silence": silence, "patience": patience, "address": address,
            "port": port, "secrets": secrets, **_credentials(lab),
        }  # fmt: skip
        if token is not None:
            self._config["token"] = token
        self._process = subprocess.Popen(
            [str(REPO / "tests/lab/lab"), "exec", host, "--", "python3", "-u", "-c", _CLIENT],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self._process.stdin
        self._process.stdin.write(json.dumps(self._config) + "\n")
        self._process.stdin.flush()
        self._tries: list[Try] = []
        self._verdict: dict[str, Any] | None = None
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout
        for text in self._process.stdout:
            line = json.loads(text)
            if line["kind"] == "verdict":
                self._verdict = line
            else:
                self._tries.append(Try(**line))

    def __enter__(self) -> Traffic:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        err: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._close()

    def flows(self, seconds: float = 30) -> float:
        """Wait until each kind of client has succeeded after now; the time of that."""
        since = time.time()

        def good() -> bool:
            # The watch tells of its beginning only, which may be long ago.
            good = [one for one in list(self._tries) if not one.wrong]
            return {o.kind for o in good if o.ended > since or o.kind == "watch"} >= KINDS

        assert until(good, seconds, 0.1), f"no traffic: {self.report(since).details()}"
        return time.time()

    def report(self, since: float, until: float | None = None) -> Report:
        """What the clients noticed in a span, from what they have told so far."""
        end = time.time() if until is None else until
        return Report(since, end, [one for one in list(self._tries) if since <= one.ended <= end])

    @property
    def written(self) -> set[str]:
        """Names of the writes acknowledged so far, for when the clients themselves are lost."""
        return {o.name for o in list(self._tries) if o.kind in ("new", "kept") and not o.wrong}

    def stop(self, since: float) -> Report:
        """End the clients, verify every acknowledged write and remove what they wrote."""
        end = time.time()
        self._close()
        assert self._verdict, f"the clients ended with {self._process.returncode}"
        # Tries that were under way are told after the end.
        tries = [one for one in self._tries if one.ended >= since]
        found = self._verdict
        return Report(
            since, end, tries, found["lost"], found["unseen"], acknowledged=found["acknowledged"]
        )

    def _close(self) -> None:
        if self._process.stdin and not self._process.stdin.closed:
            self._process.stdin.close()
        try:
            self._process.wait(timeout=self._config["patience"] * 2 + 60)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._reader.join(timeout=10)


def _credentials(lab: Lab) -> dict[str, str]:
    """The admin's token and the authority, from the first master that has power."""
    powered = lab.powered()
    master = next(host.name for host in lab.with_role("master") if powered[host.name])
    files = {"token": "/etc/kubernetes/tokens/admin", "ca": "/etc/kubernetes/pki/ca.crt"}
    return {
        name: lab.exec(master, ["cat", path], check=True).stdout.strip()
        for name, path in files.items()
    }
