"""The lab leaves nothing on the machine."""

from __future__ import annotations

import pytest
from conftest import KEEP
from indigo_lab.lab import machine_is_clean


@pytest.mark.skipif(KEEP, reason="INDIGO_KEEP_LAB is set")
def test_down_leaves_nothing_on_the_machine(stage):
    stage.down()
    assert machine_is_clean() == []
