"""What the compiled step of devices that only exist as virtual ones needs."""

import jax
import pytest

from configs import default
from tssr_jax.errors import UserError
from tssr_jax.sizing import find_devices, step_size


def test_ten_million_items_lie_in_eighths_on_eight_devices():
    """Compiled, not run: table, head and bias, each with two moments of Adam."""
    config = default.get_config()
    config.model.update(streams=("id",), max_length=4)
    config.train.batch_size = 16
    config.model_devices = 8
    num_classes = 10_000_001
    size = step_size(config, find_devices("cpu:8"), num_classes - 1, feature_dim=1)
    whole = 3 * 4 * num_classes * (2 * config.model.d_model + 1)
    assert whole / 8 < size.held < whole / 8 * 1.001
    # The new state takes the place of the old one; gradients and a tile of scores come beside it.
    assert size.temporary < whole / 8


def test_ring_needs_less_than_all_gather():
    config = default.get_config()
    config.model.update(max_length=4, d_model=16, d_ffn=16, num_cross_layers=1)
    config.train.batch_size = 8192
    sizes = {}
    for config.loss.negatives in ("ring", "all_gather"):
        sizes[config.loss.negatives] = step_size(config, find_devices("cpu:8"), 100, 8)
    assert sizes["ring"].temporary < sizes["all_gather"].temporary / 2
    assert "collective-permute" in sizes["ring"].traffic
    assert "all-gather" in sizes["all_gather"].traffic


@pytest.mark.parametrize("topology", ["cpu:64", "cpu", "abacus:1x1"])
def test_devices_that_can_not_be_had(topology):
    assert len(jax.devices()) < 64
    with pytest.raises(UserError, match=f"--topology={topology}"):
        find_devices(topology)
