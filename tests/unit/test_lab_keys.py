"""Keys of the lab's minions, as Salt's own code then finds them."""

from __future__ import annotations

import pytest
import salt.cache
import salt.config
from lab.indigo_lab import saltenv


@pytest.fixture
def found(tmp_path):
    """What a Salt master has of a minion's key: its state and the key, or None."""
    opts = salt.config.master_config(None)
    pki = str(tmp_path / "pki/master")
    cache = salt.cache.Cache(opts, driver=opts["keys.cache_driver"], pki_dir=pki)
    return lambda name: cache.fetch("keys", name)


@pytest.mark.parametrize("folder", ["minions_pre", "minions_rejected"])
def test_an_earlier_machines_key_does_not_count_beside_the_accepted_one(tmp_path, found, folder):
    left = tmp_path / "pki/master" / folder / "node3"
    left.parent.mkdir(parents=True)
    left.write_text("earlier")
    assert found("node3")["pub"] == "earlier"
    saltenv.accept(tmp_path, "node3", "new")
    assert found("node3") == {"state": "accepted", "pub": "new"}
    left.write_text("earlier")
    saltenv.forget(tmp_path, "node3")
    assert found("node3") is None
