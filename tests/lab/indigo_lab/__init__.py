"""A cluster's hosts on one machine, for people (tests/lab/lab) and for tests (Lab)."""

from __future__ import annotations

from .base import LabError
from .lab import Lab, Options
from .topology import Host

__all__ = ["Host", "Lab", "LabError", "Options"]
