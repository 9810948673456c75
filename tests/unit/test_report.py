"""``salt-run indigo.report``: what is in the bundle, and what is not."""

from __future__ import annotations

import base64
import secrets
import tarfile

import pytest
from support import load

module = load("_modules", "indigo_report")
runner = load("_runners", "indigo_report")

TOKEN = secrets.token_hex(32)
KEY = base64.b64encode(secrets.token_bytes(32)).decode()
PEM = "-----BEGIN RSA PRIVATE KEY-----\n" + "\n".join(
    base64.b64encode(secrets.token_bytes(48)).decode() for _ in range(3)
) + "\n-----END RSA PRIVATE KEY-----\n"  # fmt: skip
FILES = [
    f'{TOKEN},system:kube-controller-manager,kube-controller-manager,"system:masters"\n',
    f"kind: EncryptionConfiguration\nsecretbox: {{keys: [{{name: key1, secret: {KEY}}}]}}\n",
    PEM,
]


def test_what_files_of_secrets_hold_is_removed_wherever_it_stands():
    known = module.secrets_in(FILES)
    line = PEM.splitlines()[2]
    text = (
        f"x{TOKEN}x {KEY} {line} {TOKEN.encode().hex()} {base64.b64encode(TOKEN.encode()).decode()}"
    )
    found = module.clean(text, known)
    assert found == f"x{module.REMOVED}x " + " ".join([module.REMOVED] * 4)


def test_names_stay():
    known = module.secrets_in(FILES)
    text = (
        "kube-controller-manager EncryptionConfiguration system:masters apiserver-etcd-client.crt"
    )
    assert module.clean(text, known) == text


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        (PEM, "[removed]\n"),
        ("Authorization: Bearer abc.def", "Authorization: Bearer [removed]"),
        ("token eyJhbGciOiJSUzI1.eyJpc3MiOiJrdWJl.c2ln end", "token [removed] end"),
        ("https://user:pass@mirror/x", "https://[removed]@mirror/x"),
        ("auth_pass 12345", "auth_pass [removed]"),
        ('"password": "x y"', '"password": [removed] y"'),
        ("10.0.0.1:6443 user@host https://host/a@b", "10.0.0.1:6443 user@host https://host/a@b"),
        ("tokenFile: /etc/kubernetes/tokens/kubelet", "tokenFile: /etc/kubernetes/tokens/kubelet"),
        ("--token-auth-file=/etc/x --v=2", "--token-auth-file=/etc/x --v=2"),
    ],
)
def test_what_looks_like_a_secret_is_removed_and_nothing_else(text, cleaned):
    assert module.clean(text, ()) == cleaned


def test_a_host_gives_its_texts_without_secrets(monkeypatch, tmp_path):
    (tmp_path / "tokens.csv").write_text(FILES[0])
    (tmp_path / "haproxy.cfg").write_text(f"# {TOKEN}\nfrontend x\n")
    monkeypatch.setattr(module, "SECRETS", (f"{tmp_path}/*.csv",))
    monkeypatch.setattr(module, "FILES", (f"{tmp_path}/*.cfg",))
    monkeypatch.setattr(module, "_run", lambda command: f"{command[0]} said {TOKEN}")
    monkeypatch.setattr(module, "__pillar__", {"indigo": {"roles": ["master"]}}, raising=False)
    monkeypatch.setattr(module, "__opts__", {"log_file": str(tmp_path / "none")}, raising=False)
    functions = {
        "indigo_status.report": lambda: {"units": {}},
        "indigo_status.units": lambda roles: ["kube-apiserver"],
    }
    monkeypatch.setattr(module, "__salt__", functions, raising=False)
    found = module.collect()
    assert TOKEN not in "".join(found.values())
    assert found[f"files{tmp_path}/haproxy.cfg"] == "# [removed]\nfrontend x\n"
    assert found["commands/kernel"] == "uname said [removed]"
    assert {"journal/kube-apiserver", "kubernetes/nodes", "status.json"} <= set(found)
    assert not [name for name in found if "tokens.csv" in name]


def test_no_file_that_is_put_in_is_a_file_of_secrets():
    import fnmatch

    for pattern in module.SECRETS:
        for wanted in module.FILES:
            assert not fnmatch.fnmatch(pattern.replace("*", "x"), wanted), (pattern, wanted)
            assert not fnmatch.fnmatch(wanted.replace("*", "x"), pattern), (pattern, wanted)


def test_only_its_owner_reads_the_archive(tmp_path):
    archive = tmp_path / "deep" / "a.tar.gz"
    size = runner.pack(archive, "indigo-1", {"cluster.yaml": "name: lab\n", "hosts/a//x": "y"})
    assert (archive.stat().st_mode & 0o777, archive.stat().st_size) == (0o600, size)
    with tarfile.open(archive) as tar:
        names = tar.getnames()
        text = tar.extractfile("indigo-1/cluster.yaml").read()
    assert text == b"name: lab\n" and len(names) == 2
