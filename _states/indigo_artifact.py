"""Software from outside the packages, verified by checksum and kept as it was installed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

try:
    from salt.exceptions import CommandExecutionError
except ImportError:
    CommandExecutionError = RuntimeError  # type: ignore[assignment,misc]


def __virtual__() -> bool | tuple[bool, str]:
    if "indigo_artifact.install" not in __salt__:
        return False, "indigo_artifact states need the execution module indigo_artifact"
    return True


def installed(
    name: str,
    sources: Mapping[str, Mapping[str, str]],
    members: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """A folder holds the files of one verified download, unaltered.

    Args:
        name: The folder, one per version: ``/opt/indigo/kubelet-1.36.2``.
        sources: ``{architecture: {"source": URL, "hash": "sha256:hex"}}``. The URL is anything
            that ``cp.cache_file`` takes: ``https://``, ``salt://``, ``file://``.
        members: ``{file name: path inside the archive}``; ``""`` stands for the download itself,
            ``{arch}`` in a path for the architecture; none: everything in the archive.

    Returns:
        A state result; ``changes`` names the files installed and why they were.

    Example:
        .. code-block:: yaml

            kubelet is installed:
              indigo_artifact.installed:
                - name: /opt/indigo/kubelet-1.36.2
                - sources:
                    amd64: {source: 'https://dl.example.org/kubelet', hash: 'sha256:…'}
                - members: {kubelet: ''}
    """
    ret: dict[str, Any] = {"name": name, "result": True, "changes": {}, "comment": ""}
    try:
        source = __salt__["indigo_artifact.choose"](name, sources, __grains__["osarch"])
        why = __salt__["indigo_artifact.differences"](name, source["digest"], members)
        if not why:
            return {**ret, "comment": f"{name} is as it was installed"}
        ret["changes"] = {"reason": why}
        if __opts__.get("test"):
            comment = f"{name} would be installed from {source['source']}: {'; '.join(why)}"
            return {**ret, "result": None, "comment": comment}
        files = __salt__["indigo_artifact.install"](name, sources, members)
    except CommandExecutionError as error:
        return {**ret, "result": False, "changes": {}, "comment": str(error)}
    ret["changes"]["installed"] = files
    ret["comment"] = f"{name} was installed from {source['source']}: {'; '.join(why)}"
    return ret
