"""Text as it is, for programs that read it: ``indigo.check`` and ``indigo.metrics``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import salt.output


def __virtual__() -> str:
    return "indigo_check"


def output(data: Any, **kwargs: Any) -> str:
    """The text, or, of anything else, what ``nested`` draws.

    >>> output({"text": "INDIGO OK", "retcode": 0})
    'INDIGO OK'
    """
    if isinstance(data, Mapping) and "data" in data:
        data = data["data"]
    if isinstance(data, Mapping) and "text" in data:
        return str(data["text"])
    return str(salt.output.out_format(data, "nested", __opts__))
