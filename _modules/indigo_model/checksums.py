"""Published checksums of upstream's downloads. Generated; see docs/versions.md for the sources."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

CHECKSUMS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {}
