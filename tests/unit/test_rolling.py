"""Restarts one by one: the sums, the queue over an etcd in memory, and what a restart keeps to.

What a real etcd does with it is tested in ``tests/e2e/test_8_rolling_lock.py``.
"""

from __future__ import annotations

import http.client
import io
import json
import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest
from salt.exceptions import CommandExecutionError
from support import load

SETTINGS = {
    "endpoints": ["https://e1:2379", "https://e2:2379"],
    "ca": "ca",
    "cert": "c",
    "key": "k",
}


class Store:
    """As much of etcd as the lock asks of it."""

    def __init__(self, module) -> None:
        self.module = module
        self.revision = 1
        self.leases: dict[int, float] = {}
        self.keys: dict[str, dict[str, Any]] = {}
        self.calls: list[str] = []
        self.down = False
        #: Path whose next request is carried out, and its answer lost.
        self.lost = ""

    def __call__(self, **_settings: Any) -> Store:
        return self

    def close(self) -> None:
        pass

    def expire(self, lease: int) -> None:
        del self.leases[lease]
        self.keys = {key: kv for key, kv in self.keys.items() if kv["lease"] != str(lease)}

    def call(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        if self.down:
            raise self.module.Unreachable("etcd does not answer")
        for lease in [one for one, end in self.leases.items() if end < time.monotonic()]:
            self.expire(lease)
        self.calls.append(path)
        answer = getattr(self, path.rsplit("/", 1)[1])(body)
        if path == self.lost:
            self.lost = ""
            raise self.module.Unreachable("the answer was lost")
        return answer

    def grant(self, body):
        lease = 1000 + len(self.calls)
        self.leases[lease] = time.monotonic() + float(body["TTL"])
        return {"ID": str(lease), "TTL": body["TTL"]}

    def keepalive(self, body):
        lease = int(body["ID"])
        if lease not in self.leases:
            return {"ID": body["ID"]}  # without a TTL, which is zero
        self.leases[lease] = time.monotonic() + self.module.TTL
        return {"ID": body["ID"], "TTL": "15"}

    def revoke(self, body):
        if int(body["ID"]) not in self.leases:
            raise self.module._NotFound("requested lease not found")
        self.expire(int(body["ID"]))
        return {}

    def range(self, body):
        low, high = (self.module._plain(body[key]) for key in ("key", "range_end"))
        found = [kv for key, kv in sorted(self.keys.items()) if low <= key < high]
        return {"kvs": found, "count": str(len(found))} if found else {}

    def txn(self, body):
        put = body["success"][0]["request_put"]
        key = self.module._plain(put["key"])
        if key in self.keys:
            return {}
        self.revision += 1
        self.keys[key] = {**put, "create_revision": str(self.revision)}
        return {"succeeded": True}


@pytest.fixture
def rolling(monkeypatch):
    module = load("_modules", "indigo_rolling")
    module.LOOK = 0.01
    return module


@pytest.fixture
def store(rolling):
    rolling.Etcd = Store(rolling)
    return rolling.Etcd


def lock(rolling, host, **more):
    return rolling.Lock(SETTINGS, "etcd", host, **more)


# --- sums ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bad", "size", "need", "may", "why"),
    [
        # 1. All serve.
        ("", 1, "majority", True, "1 member, quorum 1: 1 healthy, an interruption cannot be avoid"),
        (
            "",
            2,
            "majority",
            True,
            "2 members, quorum 2: 2 healthy, an interruption cannot be avoid",
        ),
        ("", 3, "majority", True, "3 members, quorum 2: 3 healthy, one may go"),
        ("", 5, "majority", True, "5 members, quorum 3: 5 healthy, one may go"),
        (
            "",
            1,
            "any",
            True,
            "1 member, 1 must serve: 1 healthy, an interruption cannot be avoided",
        ),
        ("", 2, "any", True, "2 members, 1 must serve: 2 healthy, one may go"),
        # 2. One does not: none goes, whatever the sum would allow.
        ("b", 3, "majority", False, "3 members, quorum 2: 2 healthy, none may go: b (no)"),
        ("b", 5, "majority", False, "5 members, quorum 3: 4 healthy, none may go: b (no)"),
        ("cb", 5, "majority", False, "quorum 3: 3 healthy, none may go: b (no), c (no)"),
        ("b", 2, "any", False, "2 members, 1 must serve: 1 healthy, none may go: b (no)"),
        ("b", 3, "any", False, "3 members, 1 must serve: 2 healthy, none may go: b (no)"),
        # 3. The one that asks does not serve itself.
        ("a", 3, "majority", True, "quorum 2: 2 healthy, a is not, so nothing is taken away"),
        ("abc", 3, "majority", True, "quorum 2: 0 healthy, a is not, so nothing is taken away"),
        ("ab", 2, "any", True, "1 must serve: 0 healthy, a is not, so nothing is taken away"),
    ],
)
def test_who_may_go(rolling, bad, size, need, may, why):
    problems = {name: "no" if name in bad else "" for name in "abcde"[:size]}
    found, told = rolling.verdict(problems, "a", need)
    assert found is may
    assert why in told


def test_an_unknown_need_is_refused(rolling):
    with pytest.raises(ValueError, match="expected one of any, majority"):
        rolling.required(3, "all")


def test_an_entry_that_is_not_ours_does_not_hurt(rolling):
    coded = rolling._coded
    found = rolling.entry({"key": coded("k"), "value": coded("not JSON"), "create_revision": "3"})
    assert (found["host"], found["lease"], found["made"]) == ("?", 0, 3)
    assert rolling.entry({"key": coded("k"), "value": coded("[1]")})["host"] == "?"
    assert rolling.owner([]) is None


def test_tiers_do_not_share_a_queue_by_their_names(rolling, store):
    one = rolling.Lock(SETTINGS, "etcd", "a")
    other = rolling.Lock(SETTINGS, "etcd2", "a")
    one.stand()
    other.stand()
    assert [entry["key"] for entry in one.queue()] == [one.key]


# --- the queue -----------------------------------------------------------------------------------


def test_first_come_first_served(rolling, store):
    one, two, three = (lock(rolling, name) for name in "abc")
    one.acquire()
    order = []

    def wait(who, name):
        who.acquire(timeout=10)
        order.append(name)
        who.release()

    threads = []
    for who, name in ((two, "b"), (three, "c")):
        threads.append(threading.Thread(target=wait, args=(who, name)))
        threads[-1].start()
        while not any(entry["host"] == name for entry in one.queue()):
            time.sleep(0.005)
    time.sleep(0.05)
    assert order == []
    one.confirm()
    one.release()
    for thread in threads:
        thread.join()
    assert order == ["b", "c"]
    assert store.keys == {}
    assert store.leases == {}


@pytest.mark.parametrize("path", ["/v3/kv/txn", "/v3/kv/range", "/v3/lease/grant"])
def test_an_answer_that_gets_lost_makes_no_second_place(rolling, store, path):
    store.lost = path
    one = lock(rolling, "a")
    one.acquire(timeout=5, grace=5)
    assert len(store.keys) == 1
    one.confirm()
    one.release()
    assert store.keys == {}


def test_a_lease_that_ended_while_waiting_means_the_end_of_the_queue(rolling, store):
    one, two, three = (lock(rolling, name) for name in "abc")
    for who in (one, two, three):
        who.stand()
    store.expire(two.lease)
    with pytest.raises(CommandExecutionError, match="a holds it"):
        two.acquire(timeout=0.1)
    assert [entry["host"] for entry in sorted(one.queue(), key=lambda e: e["made"])] == [*"acb"]
    two.release()


def test_a_holder_whose_lease_ended_is_told_before_it_acts(rolling, store):
    one, two = lock(rolling, "a"), lock(rolling, "b")
    one.acquire()
    assert one.lasted()
    store.expire(one.lease)
    two.acquire(timeout=1)
    with pytest.raises(CommandExecutionError, match="the lock of the tier etcd was lost"):
        one.confirm()
    one.until = 0
    assert not one.lasted()
    one.release()
    two.confirm()
    two.release()


def test_it_is_renewed_in_the_background_also_while_it_waits(rolling, store):
    one, two = lock(rolling, "a", ttl=1), lock(rolling, "b", ttl=1)
    one.acquire()
    with pytest.raises(CommandExecutionError, match="a holds it"):
        two.acquire(timeout=2.5)
    one.confirm()
    two.release()
    one.release()
    assert one._keeper is not None
    assert not one._keeper.is_alive()


def test_an_etcd_that_is_away_for_a_moment_is_waited_for(rolling, store):
    store.down = True
    one = lock(rolling, "a")
    timer = threading.Timer(0.2, lambda: setattr(store, "down", False))
    timer.start()
    one.acquire(timeout=5, grace=5)
    store.down = True
    timer = threading.Timer(0.2, lambda: setattr(store, "down", False))
    timer.start()
    one.confirm()
    one.release()


def test_an_etcd_that_stays_away_is_reported(rolling, store):
    store.down = True
    one = lock(rolling, "a")
    with pytest.raises(rolling.Unreachable):
        one.acquire(timeout=60, grace=0.1)
    one.release()


def test_releasing_never_fails(rolling, store):
    one = lock(rolling, "a")
    one.release()
    one = lock(rolling, "a")
    one.acquire()
    store.down = True
    one.release()


def test_who_holds_and_who_waits(rolling, store):
    rolling.__pillar__ = {"indigo": {"lock": SETTINGS}}
    assert rolling.holders() == {}
    for name in "ba":
        lock(rolling, name).stand()
    rolling.Lock(SETTINGS, "lb", "l").stand()
    found = rolling.holders()
    assert [one["host"] for one in found["etcd"]] == ["b", "a"]
    assert [one["host"] for one in found["lb"]] == ["l"]


@pytest.mark.parametrize(
    ("pillar", "told"),
    [
        ({}, "indigo:lock is missing"),
        ({"indigo": {"lock": {"through": ["e1"]}}}, "no certificate of etcd"),
    ],
)
def test_a_host_that_cannot_ask_says_why(rolling, pillar, told):
    rolling.__pillar__ = pillar
    with pytest.raises(CommandExecutionError, match=told):
        rolling.holders()


# --- the gateway ---------------------------------------------------------------------------------


class Gateway:
    """In place of connections: answers by host, in order; an exception is raised."""

    def __init__(self, answers: dict[str, list[Any]]) -> None:
        self.answers, self.asked, self.opened = answers, [], []

    def __call__(self, host, port, timeout, context):
        self.opened.append(host)
        return SimpleNamespace(
            request=lambda method, path, body, headers: self.asked.append((host, path)),
            getresponse=lambda: self._answer(host),
            close=lambda: None,
        )

    def _answer(self, host):
        status, text = self._next(host)
        return SimpleNamespace(status=status, read=lambda: io.BytesIO(text.encode()).read())

    def _next(self, host):
        answer = self.answers[host].pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.fixture
def gateway(rolling, monkeypatch):
    context = SimpleNamespace(load_cert_chain=lambda *_: None)
    monkeypatch.setattr(rolling.ssl, "create_default_context", lambda cafile: context)

    def start(**answers):
        made = Gateway(answers)
        monkeypatch.setattr(rolling.http.client, "HTTPSConnection", made)
        return made, rolling.Etcd(**SETTINGS)

    return start


GOOD = (200, '{"header": {}, "kvs": []}')


def error(status, code, message, stream=False):
    """As etcd 3.4 and 3.5 write it; 3.6 leaves ``error`` out."""
    said = {"error": message, "code": code, "message": message}
    return status, json.dumps({"error": said} if stream else said)


@pytest.mark.parametrize(
    "bad",
    [
        ConnectionRefusedError("refused"),
        TimeoutError("timed out"),
        http.client.BadStatusLine("x"),
        error(503, 14, "etcdserver: no leader"),
        error(503, 14, "etcdserver: request timed out"),
        error(200, 14, "etcdserver: no leader", stream=True),
        (502, "<html>"),
        (200, "<html>"),
        (200, ""),
    ],
)
def test_another_member_is_asked_and_stays_the_preferred_one(gateway, bad):
    made, etcd = gateway(e1=[bad], e2=[GOOD, GOOD])
    assert etcd.call("/v3/kv/range", {}) == {"header": {}, "kvs": []}
    etcd.call("/v3/kv/range", {})
    assert [host for host, _ in made.asked] == ["e1", "e2", "e2"]
    assert made.opened == ["e1", "e2"]  # and the connection is kept


def test_all_members_are_named_when_none_answers(rolling, gateway):
    bad = error(503, 14, "etcdserver: no leader")
    _, etcd = gateway(e1=[ConnectionRefusedError("refused")], e2=[bad])
    with pytest.raises(rolling.Unreachable) as told:
        etcd.call("/v3/kv/range", {})
    assert "https://e1:2379: refused; https://e2:2379: etcdserver: no leader" in str(told.value)
    assert "part of a quorum" in str(told.value)


def test_a_kept_connection_that_ended_is_made_again(gateway):
    made, etcd = gateway(e1=[GOOD, http.client.RemoteDisconnected("closed"), GOOD], e2=[])
    etcd.call("/a", {})
    etcd.call("/b", {})
    assert made.opened == ["e1", "e1"]


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (error(400, 3, "etcdserver: key is not provided"), "key is not provided"),
        (error(429, 8, "etcdserver: mvcc: database space exceeded"), "database space exceeded"),
        ((404, "404 page not found\n"), "remove enable-grpc-gateway"),
        ((403, '{"code": 7, "message": "permission denied", "details": []}'), "permission denied"),
    ],
)
def test_a_refusal_is_no_reason_to_ask_another(rolling, gateway, answer, told):
    made, etcd = gateway(e1=[answer], e2=[])
    with pytest.raises(CommandExecutionError, match=told) as raised:
        etcd.call("/v3/kv/txn", {})
    assert not isinstance(raised.value, rolling.Unreachable)
    assert len(made.asked) == 1


@pytest.mark.parametrize(
    "answer",
    [
        error(404, 5, "etcdserver: requested lease not found"),
        (404, '{"code": 5, "message": "etcdserver: requested lease not found", "details": []}'),
        error(200, 5, "etcdserver: requested lease not found", stream=True),
        (200, '{"result": {"header": {}, "ID": "7"}}\n'),
    ],
)
def test_a_lease_that_is_gone_is_known_in_every_form(rolling, gateway, answer):
    _, etcd = gateway(e1=[answer], e2=[])
    one = rolling.Lock(SETTINGS, "etcd", "a")
    one.lease = 7
    assert one._renewed(etcd) is False
    assert one.lease == 0


def test_a_lease_that_lives_is_kept(rolling, gateway):
    _, etcd = gateway(e1=[(200, '{"result":{"ID":"7","TTL":"15"}}\n')], e2=[])
    one = rolling.Lock(SETTINGS, "etcd", "a")
    one.lease = 7
    assert one._renewed(etcd) is True
    assert one.until > time.monotonic() + 14


# --- through another minion ----------------------------------------------------------------------


@pytest.fixture
def relay(rolling, store):
    """Relays of two load balancers over a Salt master that lets them ask two etcd hosts."""
    lends = {"lb": ["lb1", "lb2"]}
    rolling.__pillar__ = {"indigo": {"lock": {**SETTINGS, "lends": lends}}}
    asked: list[tuple[str, str]] = []
    dead: dict[str, Any] = {}

    def make(who, through=("e1", "e2")):
        def publish(minion, function, arg, tgt_type, timeout):
            asked.append((minion, function))
            if minion in dead:
                return dead[minion]
            name = function.removeprefix("indigo_rolling.")
            return {minion: getattr(rolling, name)(*arg, __pub_id=who)}

        return rolling.Relay(publish, through, "lb")

    make.asked, make.dead = asked, dead
    return make


def test_a_host_without_a_certificate_waits_in_the_same_queue(rolling, relay, store):
    one, two = relay("lb1"), relay("lb2")
    direct = rolling.Lock(SETTINGS, "lb", "host3")
    one.acquire(timeout=1)
    one.confirm()
    assert one.lasted()
    assert len(store.keys) == 1
    for other in (two, direct):
        with pytest.raises(CommandExecutionError, match="lb1 holds it"):
            other.acquire(timeout=0.1)
    one.release()
    two.acquire(timeout=1)
    two.release()
    direct.acquire(timeout=1)
    with pytest.raises(CommandExecutionError, match="host3 holds it"):
        one.acquire(timeout=0.1)
    direct.release()


def test_a_host_that_begins_again_finds_its_own_place(relay, store):
    relay("lb1").acquire(timeout=1)
    # Killed, and run again: it need not wait for its own lease.
    relay("lb1").acquire(timeout=1)
    assert len(store.keys) == len(store.leases) == 1


def test_the_next_etcd_host_is_asked_when_one_is_silent(rolling, relay, store):
    relay.dead["e1"] = {}
    one = relay("lb1")
    one.acquire(timeout=1)
    one.release()
    assert [minion for minion, _ in relay.asked] == ["e1", "e2", "e2"]
    relay.dead["e2"] = "'indigo_rolling.hold' publish timed out"
    with pytest.raises(rolling.Unreachable) as told:
        one.acquire(timeout=5, grace=0)
    assert "e1: no answer" in str(told.value)
    assert "publish timed out" in str(told.value)
    assert "indigo_rolling.hold" in str(told.value)
    one.release()  # and does not fail


def test_an_etcd_without_a_quorum_is_reported_through_another_minion_too(rolling, relay, store):
    store.down = True
    with pytest.raises(rolling.Unreachable, match="etcd does not answer"):
        relay("lb1").acquire(timeout=5, grace=0)


@pytest.mark.parametrize("who", ["node1", "", None])
def test_others_are_refused_and_nothing_is_stored(rolling, relay, store, who):
    with pytest.raises(CommandExecutionError, match="may not have the lock of the tier 'lb'"):
        relay(who).acquire(timeout=5)
    assert rolling.hold("etcd", __pub_id="lb1")["problem"]
    assert "may not" in rolling.free("etcd", __pub_id="lb1")["problem"]
    assert store.calls == []


def test_a_renewal_is_due_after_half_the_time(relay, store):
    one = relay("lb1")
    one.acquire(timeout=1)
    asked = len(relay.asked)
    one.keep()
    assert len(relay.asked) == asked
    one.until -= 40
    one.keep()
    assert len(relay.asked) == asked + 1
    assert one.lasted()


def test_a_lock_that_was_lost_to_another_is_told(relay, store):
    one, two = relay("lb1"), relay("lb2")
    one.acquire(timeout=1)
    store.expire(next(iter(store.leases)))
    two.acquire(timeout=1)
    with pytest.raises(CommandExecutionError, match="lost to lb2"):
        one.confirm()
    assert not one.lasted()
