"""The version table: complete, consistent, and true to what the releases were seen to accept."""

from __future__ import annotations

import doctest
import itertools

import pytest
from indigo_model import versions

MINORS = range(versions.FIRST_MINOR, versions.LAST_MINOR + 1)
COMPONENTS = (
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kubelet",
    "kube-proxy",
)

#: Seen to be refused by 1.36 when 1.20's command lines were given to it.
GONE_BY_36 = {
    "kube-apiserver": ["insecure-port", "logtostderr", "log-dir", "cloud-provider", "cloud-config"],
    "kube-controller-manager": ["address", "port", "pod-eviction-timeout", "enable-taint-manager"],
    "kube-scheduler": ["address", "port", "algorithm-provider", "policy-config-file"],
    "kubelet": [
        "container-runtime",
        "pod-infra-container-image",
        "network-plugin",
        "cni-conf-dir",
        "logtostderr",
    ],
    "kube-proxy": ["logtostderr", "proxy-port-range"],
}

#: What a highly available cluster cannot do without, in every release of the table.
ESSENTIAL = {
    "kube-apiserver": """
        advertise-address anonymous-auth audit-log-path audit-policy-file authorization-mode
        bind-address client-ca-file default-not-ready-toleration-seconds
        default-unreachable-toleration-seconds enable-admission-plugins enable-aggregator-routing
        encryption-provider-config etcd-cafile etcd-certfile etcd-keyfile etcd-servers
        kubelet-certificate-authority kubelet-client-certificate kubelet-client-key
        kubelet-preferred-address-types profiling proxy-client-cert-file proxy-client-key-file
        requestheader-allowed-names requestheader-client-ca-file secure-port
        service-account-issuer service-account-key-file service-account-signing-key-file
        service-cluster-ip-range shutdown-delay-duration tls-cert-file tls-private-key-file
        token-auth-file
    """,
    "kube-controller-manager": """
        allocate-node-cidrs authentication-kubeconfig authorization-kubeconfig bind-address
        cluster-cidr kubeconfig leader-elect node-cidr-mask-size node-monitor-grace-period
        node-monitor-period profiling root-ca-file service-account-private-key-file
        service-cluster-ip-range tls-cert-file use-service-account-credentials
    """,
    "kube-scheduler": """
        authentication-kubeconfig authorization-kubeconfig bind-address kubeconfig leader-elect
        profiling tls-cert-file
    """,
    "kubelet": """
        config container-runtime-endpoint hostname-override kubeconfig node-ip node-labels
        register-with-taints v
    """,
    "kube-proxy": "config hostname-override v",
}


def test_examples_in_the_docstrings_hold() -> None:
    result = doctest.testmod(versions)
    assert result.attempted > 5
    assert result.failed == 0


def test_every_component_has_a_table() -> None:
    assert set(versions.FLAGS) == set(COMPONENTS)


@pytest.mark.parametrize("component", COMPONENTS)
@pytest.mark.parametrize("minor", MINORS)
def test_no_release_lacks_what_the_cluster_needs(component: str, minor: int) -> None:
    wanted = dict.fromkeys(ESSENTIAL[component].split(), "x")
    assert versions.flags(component, f"1.{minor}.0", wanted) == wanted


@pytest.mark.parametrize(
    "table",
    [*versions.FLAGS.values(), *versions.FIELDS.values()],
    ids=lambda table: str(len(table)),
)
def test_windows_are_within_the_table_and_not_empty(table) -> None:
    for name, (since, until) in table.items():
        assert since is None or versions.FIRST_MINOR < since <= versions.LAST_MINOR, name
        assert until is None or versions.FIRST_MINOR <= until < versions.LAST_MINOR, name
        assert since is None or until is None or since <= until, name


@pytest.mark.parametrize("component", COMPONENTS)
def test_flags_come_and_go_once(component: str) -> None:
    for flag in versions.FLAGS[component]:
        seen = [versions.has_flag(component, f"1.{minor}.0", flag) for minor in MINORS]
        assert any(seen), flag
        assert sum(a != b for a, b in itertools.pairwise(seen)) <= 1, flag


@pytest.mark.parametrize(
    ("component", "flag"), [(c, flag) for c, names in GONE_BY_36.items() for flag in names]
)
def test_flags_that_were_seen_to_go(component: str, flag: str) -> None:
    assert versions.has_flag(component, "1.20.2", flag)
    assert not versions.has_flag(component, "1.36.2", flag)


@pytest.mark.parametrize(
    ("component", "flag", "last"),
    [
        ("kube-apiserver", "kubelet-https", 21),
        ("kube-apiserver", "insecure-port", 23),
        ("kube-apiserver", "cloud-provider", 32),
        ("kube-apiserver", "logtostderr", 25),
        ("kube-controller-manager", "port", 23),
        ("kube-controller-manager", "pod-eviction-timeout", 26),
        ("kube-scheduler", "algorithm-provider", 21),
        ("kube-scheduler", "policy-config-file", 22),
        ("kubelet", "network-plugin", 23),
        ("kubelet", "container-runtime", 26),
        ("kubelet", "pod-infra-container-image", 34),
    ],
)
def test_last_release_of_a_flag(component: str, flag: str, last: int) -> None:
    assert versions.has_flag(component, f"1.{last}.0", flag)
    assert not versions.has_flag(component, f"1.{last + 1}.0", flag)


@pytest.mark.parametrize(
    ("component", "flag", "first"),
    [
        ("kube-apiserver", "encryption-provider-config-automatic-reload", 26),
        ("kube-apiserver", "shutdown-watch-termination-grace-period", 27),
        ("kube-apiserver", "authentication-config", 29),
        ("kube-apiserver", "authorization-config", 29),
        ("kubelet", "seccomp-default", 22),
        ("kube-proxy", "logging-format", 28),
    ],
)
def test_first_release_of_a_flag(component: str, flag: str, first: int) -> None:
    assert not versions.has_flag(component, f"1.{first - 1}.0", flag)
    assert versions.has_flag(component, f"1.{first}.0", flag)


def test_a_flag_outside_its_window_is_dropped() -> None:
    wanted = {"port": "0", "secure-port": "10259"}
    assert versions.flags("kube-scheduler", "1.23.17", wanted) == wanted
    assert versions.flags("kube-scheduler", "1.24.0", wanted) == {"secure-port": "10259"}


def test_null_removes_a_flag() -> None:
    assert versions.flags("kubelet", "1.30.1", {"v": None, "config": "/x"}) == {"config": "/x"}


def test_a_renamed_flag_is_translated_where_the_old_name_is_gone() -> None:
    wanted = {"lock-object-name": "lease"}
    assert versions.flags("kube-scheduler", "1.27.0", wanted) == wanted
    translated = versions.flags("kube-scheduler", "1.28.0", wanted)
    assert translated == {"leader-elect-resource-name": "lease"}


def test_a_successor_that_is_given_too_keeps_its_own_value() -> None:
    wanted = {"lock-object-name": "old", "leader-elect-resource-name": "new"}
    assert versions.flags("kube-scheduler", "1.36.0", wanted) == {
        "leader-elect-resource-name": "new"
    }


@pytest.mark.parametrize("component", COMPONENTS)
def test_successors_outlive_their_predecessors(component: str) -> None:
    for old, new in versions.SUCCESSORS.get(component, {}).items():
        until = versions.FLAGS[component][old][1]
        assert until is not None
        for minor in range(until + 1, versions.LAST_MINOR + 1):
            assert versions.has_flag(component, f"1.{minor}.0", new)


def test_a_misspelt_flag_is_refused_by_its_key() -> None:
    with pytest.raises(ValueError, match=r"overrides\.kubelet\.flags\.node-lables: .*spelling"):
        versions.flags("kubelet", "1.36.0", {"node-lables": "x"})


def test_a_misspelt_flag_is_refused_even_when_it_is_removed() -> None:
    with pytest.raises(ValueError, match="node-lables"):
        versions.flags("kubelet", "1.36.0", {"node-lables": None})


def test_an_unknown_component_is_refused() -> None:
    with pytest.raises(ValueError, match="kube-dns"):
        versions.flags("kube-dns", "1.36.0", {})


@pytest.mark.parametrize("release", ["1.19.16", "1.37.0", "2.20.0", "0.36.1"])
def test_a_release_outside_the_table_is_refused(release: str) -> None:
    with pytest.raises(ValueError, match=r"versions\.kubernetes: .*1\.20 to 1\.36"):
        versions.minor(release)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1.20.2", (1, 20, 2)),
        ("v1.36.3", (1, 36, 3)),
        ("3.9", (3, 9, 0)),
        ("1.7.1-flannel1", (1, 7, 1)),
        ("1.36.0-rc.1", (1, 36, 0)),
        ("1.36.3+k0s.0", (1, 36, 3)),
    ],
)
def test_parse(text: str, expected: tuple[int, int, int]) -> None:
    assert versions.parse(text) == expected


@pytest.mark.parametrize("text", ["", "latest", "1", "1.x", "1.2.3.4", "1.20.2 "])
def test_parse_refuses(text: str) -> None:
    with pytest.raises(ValueError, match="is not a release number"):
        versions.parse(text)


def test_resolve_fills_in_and_keeps_what_is_pinned() -> None:
    assert versions.resolve({}) == dict(versions.DEFAULTS)
    found = versions.resolve({"kubernetes": "v1.20.2", "etcd": "3.4.23"})
    assert (found["kubernetes"], found["etcd"]) == ("1.20.2", "3.4.23")
    assert found["runc"] == versions.DEFAULTS["runc"]


def test_resolve_names_the_wrong_key() -> None:
    with pytest.raises(ValueError, match=r"versions\.etc: no such part; known are .*etcd"):
        versions.resolve({"etc": "3.4.23"})
    with pytest.raises(ValueError, match=r"versions\.runc: version 'newest'"):
        versions.resolve({"runc": "newest"})
    with pytest.raises(ValueError, match=r"versions\.kubernetes"):
        versions.resolve({"kubernetes": "1.19.0"})


def test_the_default_is_a_release_of_the_newest_minor() -> None:
    assert versions.minor(versions.DEFAULTS["kubernetes"]) == versions.LAST_MINOR


@pytest.mark.parametrize(
    ("kind", "release", "expected"),
    [
        ("KubeletConfiguration", "1.20.2", "kubelet.config.k8s.io/v1beta1"),
        ("KubeletConfiguration", "1.36.2", "kubelet.config.k8s.io/v1beta1"),
        ("KubeProxyConfiguration", "1.36.2", "kubeproxy.config.k8s.io/v1alpha1"),
        ("KubeSchedulerConfiguration", "1.21.0", "kubescheduler.config.k8s.io/v1beta1"),
        ("KubeSchedulerConfiguration", "1.22.0", "kubescheduler.config.k8s.io/v1beta2"),
        ("KubeSchedulerConfiguration", "1.24.9", "kubescheduler.config.k8s.io/v1beta3"),
        ("KubeSchedulerConfiguration", "1.25.0", "kubescheduler.config.k8s.io/v1"),
        ("EncryptionConfiguration", "1.20.2", "apiserver.config.k8s.io/v1"),
        ("Policy", "1.20.2", "audit.k8s.io/v1"),
        ("AuthenticationConfiguration", "1.28.0", None),
        ("AuthenticationConfiguration", "1.29.0", "apiserver.config.k8s.io/v1alpha1"),
        ("AuthenticationConfiguration", "1.32.0", "apiserver.config.k8s.io/v1beta1"),
        ("AuthenticationConfiguration", "1.34.0", "apiserver.config.k8s.io/v1"),
        ("AuthorizationConfiguration", "1.32.0", "apiserver.config.k8s.io/v1"),
    ],
)
def test_api_versions(kind: str, release: str, expected: str | None) -> None:
    assert versions.api_version(kind, release) == expected


@pytest.mark.parametrize("kind", list(versions.API_VERSIONS))
def test_api_versions_are_in_the_order_of_releases(kind: str) -> None:
    minors = [since for since, _ in versions.API_VERSIONS[kind]]
    assert minors == sorted(set(minors))
    assert versions.api_version(kind, f"1.{versions.LAST_MINOR}.0")


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="KubeletConfig"):
        versions.api_version("KubeletConfig", "1.36.0")


@pytest.mark.parametrize(
    ("field", "first"),
    [("containerRuntimeEndpoint", 27), ("failCgroupV1", 31), ("seccompDefault", 22)],
)
def test_first_release_of_a_field(field: str, first: int) -> None:
    assert not versions.has_field("KubeletConfiguration", f"1.{first - 1}.0", field)
    assert versions.has_field("KubeletConfiguration", f"1.{first}.0", field)


def test_unknown_fields_and_kinds_are_refused() -> None:
    with pytest.raises(ValueError, match="clusterDns"):
        versions.has_field("KubeletConfiguration", "1.36.0", "clusterDns")
    with pytest.raises(ValueError, match="Kubelet"):
        versions.has_field("Kubelet", "1.36.0", "clusterDNS")
