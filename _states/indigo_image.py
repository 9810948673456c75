"""Images that every node has without asking a registry."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

try:
    from salt.exceptions import CommandExecutionError
except ImportError:
    CommandExecutionError = RuntimeError  # type: ignore[assignment,misc]


def __virtual__() -> bool | tuple[bool, str]:
    if "indigo_image.import" not in __salt__:
        return False, "indigo_image states need the execution module indigo_image"
    return True


def imported(name: str, archives: Iterable[Mapping[str, str]], ctr: str = "ctr") -> dict[str, Any]:
    """The images of verified archives are in containerd.

    Args:
        name: A plain English sentence.
        archives: ``[{"name": text, "source": URL, "hash": "sha256:hex"}]``.
        ctr: Path of containerd's client.

    Returns:
        A state result; ``changes`` maps each archive to the images that it brought.

    Example:
        .. code-block:: yaml

            The node's images are imported:
              indigo_image.imported:
                - archives:
                  - {name: pause, source: 'https://example.org/pause.tar', hash: 'sha256:...'}
                - ctr: /opt/indigo/containerd-2.3.2/ctr
    """
    ret: dict[str, Any] = {"name": name, "result": True, "changes": {}, "comment": ""}
    archives = list(archives)
    test = bool(__opts__.get("test"))
    try:
        why = __salt__["indigo_image.missing"](archives, ctr)
    except CommandExecutionError as error:
        if not test:
            return {**ret, "result": False, "comment": str(error)}
        # On a bare host nobody can say which images containerd will have.
        why = {archive["name"]: "containerd does not run yet" for archive in archives}
    if not why:
        return {**ret, "comment": f"All images of {len(archives)} archives are there"}
    if test:
        told = "; ".join(f"{archive}: {reason}" for archive, reason in why.items())
        comment = f"Would be imported: {told}"
        return {**ret, "result": None, "changes": dict(why), "comment": comment}
    problems = []
    for archive in archives:
        if archive["name"] not in why:
            continue
        try:
            ret["changes"][archive["name"]] = __salt__["indigo_image.import"](archive, ctr)
        except CommandExecutionError as error:
            problems.append(str(error))
    if problems:
        return {**ret, "result": False, "comment": "\n".join(problems)}
    return {**ret, "comment": f"Imported: {', '.join(ret['changes'])}"}
