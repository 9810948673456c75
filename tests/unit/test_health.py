"""Health checks against real servers on loopback, over verified TLS and Unix sockets."""

from __future__ import annotations

import datetime
import http.server
import ipaddress
import socketserver
import ssl
import threading
import time
from types import SimpleNamespace

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from salt.exceptions import CommandExecutionError
from support import load


def certificate(folder, name, issuer=None, address="127.0.0.1"):
    """A certificate and key in PEM files; ``issuer`` is another one's (certificate, key)."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.timezone.utc)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer[0].subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), True)
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))]), False
        )
    )
    made = builder.sign(issuer[1] if issuer else key, hashes.SHA256())
    (folder / f"{name}.crt").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (folder / f"{name}.key").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return made, key


@pytest.fixture(scope="module")
def pki(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pki")
    ca = certificate(folder, "ca")
    certificate(folder, "other")
    certificate(folder, "server", ca)
    certificate(folder, "elsewhere", ca, address="127.0.0.9")
    return folder


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.seen.append(self.headers.get("Authorization"))
        status, body = self.server.answers.pop(0) if self.server.answers else (200, "ok")
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_):
        pass

    def address_string(self):
        return "local"


class Server(http.server.ThreadingHTTPServer):
    def handle_error(self, *_):  # a client that refuses the certificate is what is tested
        pass


class UnixServer(socketserver.ThreadingUnixStreamServer):
    pass


@pytest.fixture
def serve(pki):
    servers = []

    def start(name="server", answers=()):
        server = Server(("127.0.0.1", 0), Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pki / f"{name}.crt", pki / f"{name}.key")
        server.socket = context.wrap_socket(server.socket, server_side=True)
        return run(server, answers), f"https://127.0.0.1:{server.server_address[1]}/readyz"

    def run(server, answers=()):
        server.answers, server.seen = list(answers), []
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        servers.append(server)
        return server

    start.run = run
    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def health():
    module = load("_modules", "indigo_health")
    module.__salt__ = {"indigo_service.show": lambda _: {"MainPID": "7", "ActiveState": "active"}}
    return module


def test_a_good_answer(health, serve, pki):
    _, url = serve()
    found = health.check(url, ca=str(pki / "ca.crt"))
    assert (found["ok"], found["status"], found["body"], found["problem"]) == (True, 200, "ok", "")


@pytest.mark.parametrize(
    ("answer", "expect", "problem"),
    [
        ((500, "[-]etcd failed"), "ok", "status 500, expected 200"),
        ((200, "Welcome to nginx"), "ok", "the body does not hold 'ok'"),
        ((401, "ok"), "ok", "status 401, expected 200"),
        ((200, "anything"), None, ""),
    ],
)
def test_status_and_body_both_count(health, serve, pki, answer, expect, problem):
    _, url = serve(answers=[answer])
    found = health.check(url, ca=str(pki / "ca.crt"), expect=expect)
    assert found["problem"] == problem
    assert found["body"] == answer[1]


def test_another_authority_is_refused(health, serve, pki):
    _, url = serve()
    found = health.check(url, ca=str(pki / "other.crt"))
    assert "certificate is refused" in found["problem"]


def test_a_certificate_for_another_address_is_refused(health, serve, pki):
    _, url = serve("elsewhere")
    assert "certificate is refused" in health.check(url, ca=str(pki / "ca.crt"))["problem"]


def test_the_token_is_sent_and_never_told(health, serve, pki, tmp_path):
    server, url = serve(answers=[(403, "forbidden")])
    (tmp_path / "token").write_text("s3cret\n")
    found = health.check(url, ca=str(pki / "ca.crt"), token_file=str(tmp_path / "token"))
    assert server.seen == ["Bearer s3cret"]
    assert "s3cret" not in str(found)


def test_nobody_there_and_missing_files_are_answers_too(health, pki):
    found = health.check("https://127.0.0.1:1/", ca=str(pki / "ca.crt"))
    assert "ConnectionRefusedError" in found["problem"]
    assert "FileNotFoundError" in health.check("https://127.0.0.1:1/", ca="/nonexistent")["problem"]


def test_over_a_unix_socket(health, serve, tmp_path):
    path = str(tmp_path / "s")
    serve.run(UnixServer(path, Handler), [(200, "200 OK")])
    assert health.check(f"unix:{path}", expect="200 OK")["ok"]
    assert not health.check(f"unix:{path}x")["ok"]


@pytest.mark.parametrize(
    ("healthy", "total", "need", "expected"),
    [
        (1, 3, "any", True),
        (0, 3, "any", False),
        (1, 3, "majority", False),
        (2, 3, "majority", True),
        (2, 4, "majority", False),
        (2, 3, "all", False),
        (3, 3, "all", True),
    ],
)
def test_enough(health, healthy, total, need, expected):
    assert health.enough(healthy, total, need) is expected


@pytest.fixture
def state(health):
    module = load("_states", "indigo_health")
    names = ("check", "told", "wait_unit", "wait_all")
    module.__salt__ = {f"indigo_health.{name}": getattr(health, name) for name in names}
    unit = {"MainPID": "7", "ActiveState": "active", "SubState": "running"}

    def show(_):
        if pids := unit.get("pids"):
            unit["MainPID"] = pids.pop(0)
        return {key: value for key, value in unit.items() if key != "pids"}

    health.__salt__ = module.__salt__ | {"indigo_service.show": show}
    module.__salt__["indigo_service.show"] = show

    def serving(url, pki, *, test=False, **more):
        module.__opts__ = {"test": test}
        more = {"interval": 0.01, "timeout": 0.3, **more}
        return module.serving("etcd", url, ca=str(pki / "ca.crt"), **more)

    return SimpleNamespace(module=module, unit=unit, serving=serving)


def test_serving_waits_for_answers_in_a_row(state, serve, pki):
    bad = (500, "not yet")
    server, url = serve(answers=[bad, bad, (200, "ok"), bad, (200, "ok"), (200, "ok"), (200, "ok")])
    ret = state.serving(url, pki, timeout=5)
    assert (ret["result"], ret["changes"]) == (True, {})
    assert server.answers == []


def test_one_answer_is_enough_of_a_process_that_settled(state, serve, pki):
    state.unit["ExecMainStartTimestampMonotonic"] = str(int((time.monotonic() - 60) * 1e6))
    server, url = serve()
    assert state.serving(url, pki)["result"] is True
    assert len(server.seen) == 1


def test_answers_of_changing_processes_do_not_count(state, serve, pki):
    state.unit["pids"] = [str(pid) for pid in range(1000)]
    _, url = serve()
    ret = state.serving(url, pki)
    assert ret["result"] is False
    assert "not from one process" in ret["comment"]


def test_a_unit_that_ends_again_and_again_is_given_up(health, serve):
    _, url = serve(answers=[(500, "no")] * 1000)
    numbers = iter(range(1000))
    health.__salt__ = {
        "indigo_service.show": lambda _: {"MainPID": "0", "InvocationID": str(next(numbers) // 2)}
    }
    found = health.wait_unit("etcd", url, interval=0.01, timeout=20, starts=4)
    assert (found["ok"], found["starts"]) == (False, 4)
    assert next(numbers) == 7


def test_an_answer_without_a_process_of_the_unit_does_not_count(state, serve, pki):
    state.unit.update(MainPID="0", ActiveState="failed", SubState="failed")
    _, url = serve()
    ret = state.serving(url, pki)
    assert ret["result"] is False
    assert "failed" in ret["comment"]


def test_failure_tells_unit_answer_and_where_to_look(state, serve, pki):
    _, url = serve(answers=[(500, "[-]etcd failed")] * 1000)
    ret = state.serving(url, pki)
    assert ret["result"] is False
    for part in ("etcd does not serve", "[-]etcd failed", "journalctl -u etcd", url):
        assert part in ret["comment"]


def test_test_mode_looks_once_and_never_fails(state, serve, pki):
    ret = state.serving("https://127.0.0.1:1/", pki, test=True)
    assert (ret["result"], ret["changes"]) == (None, {})
    _, url = serve()
    assert state.serving(url, pki, test=True)["result"] is True


@pytest.mark.parametrize(("need", "result"), [("any", True), ("majority", False), ("all", False)])
def test_answering(state, serve, pki, need, result):
    _, url = serve()
    urls = [url, "https://127.0.0.1:1/"]
    more = {"ca": str(pki / "ca.crt"), "interval": 0.01, "timeout": 0.1}
    state.module.__opts__ = {"test": False}
    ret = state.module.answering("the quorum", urls, need=need, **more)
    assert ret["result"] is result
    if not result:
        assert "1 of 2 answer" in ret["comment"]
        state.module.__opts__ = {"test": True}
        assert state.module.answering("q", urls, need=need, **more)["result"] is None


@pytest.mark.parametrize(("urls", "need"), [([], "all"), (["https://127.0.0.1:1/"], "most")])
def test_a_wrong_question_is_an_error(health, urls, need):
    with pytest.raises(CommandExecutionError, match="expected at least one url"):
        health.wait_all(urls, need=need)
