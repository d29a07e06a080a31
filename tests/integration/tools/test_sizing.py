"""What the compiled step of devices that only exist as virtual ones needs."""

import sys

import jax
import pytest

from tests.support.runs import run_command
from tssr_jax.config import default
from tssr_jax.errors import UserError
from tssr_jax.tools.hlo import Traffic
from tssr_jax.tools.sizing import CHIPS, StepSize, find_devices, step_size


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


@pytest.mark.slow
def test_memory_of_the_ring_does_not_grow_with_the_devices():
    """As many rows on each device: all_gather keeps their scores with all others, ring does not."""
    config = default.get_config()
    config.model.update(max_length=2, d_model=16, d_ffn=16, num_cross_layers=1)
    temporary = {}
    for config.loss.negatives in ("ring", "all_gather"):
        for number in (2, 8):
            config.train.batch_size = 1024 * number
            size = step_size(config, find_devices(f"cpu:{number}"), 100, 8)
            temporary[config.loss.negatives, number] = size.temporary
            kind = {"ring": "collective-permute", "all_gather": "all-gather"}
            assert kind[config.loss.negatives] in size.traffic
    assert temporary["ring", 8] < 1.02 * temporary["ring", 2]
    assert temporary["all_gather", 8] > 1.5 * temporary["all_gather", 2]
    assert temporary["all_gather", 8] > 2 * temporary["ring", 8]


def test_a_step_with_drawn_negatives_needs_no_memory_for_the_other_items():
    """Compiled: beside the tables, ten times the items cost a table of chances and no more."""
    config = default.get_config()
    config.model.update(streams=("id",), max_length=4, d_model=32, num_unimodal_layers=1)
    config.train.batch_size = 16
    config.loss.update(next_item="sampled", num_negatives=64)
    config.optimizer.lazy_rows = True
    sizes = [step_size(config, find_devices("cpu:1"), n, 1) for n in (100_000, 1_000_000)]
    growth = sizes[1].held - sizes[0].held
    assert growth == pytest.approx(900_000 * 4 * (3 * (2 * 32 + 1) + 1), rel=0.01)
    assert sizes[1].temporary < sizes[0].temporary + 2**20


def test_memories_hold_their_tables():
    config = default.get_config()
    config.model.update(max_length=4, d_model=16, d_ffn=16, num_heads=1, num_cross_layers=1)
    config.train.batch_size, config.memory.neighbours = 16, 50
    held = []
    for config.model.memory in ((), ("co_occurrence", "words")):
        held.append(step_size(config, find_devices("cpu:2"), 20_000, 8).held)
    assert held[1] - held[0] == pytest.approx(2 * 20_001 * 50 * 8, rel=0.01)


@pytest.mark.parametrize(("split", "periods"), [("leave_one_out", 32), ("global_time", 33)])
def test_popularity_holds_its_periods(split, periods):
    config = default.get_config()
    config.model.update(max_length=4, d_model=16, d_ffn=16, num_heads=1, num_cross_layers=1)
    config.train.batch_size, config.evaluate.split = 16, split
    held = []
    for config.model.memory in ((), ("popularity",)):
        held.append(step_size(config, find_devices("cpu:2"), 20_000, 8).held)
    # And the classes' frequency; the gate and its rows are small.
    assert held[1] - held[0] == pytest.approx((periods + 1) * 20_001 * 4, rel=0.01)


@pytest.mark.parametrize("topology", ["cpu:64", "cpu:0", "cpu", "abacus:1x1"])
def test_devices_that_can_not_be_had(topology):
    assert len(jax.devices()) < 64
    with pytest.raises(UserError, match=f"--topology={topology}"):
        find_devices(topology)


def test_links_of_the_worst_placed_chip():
    """v4-8: a square, each corner has two links; v5e-256: a torus, everyone has four."""
    assert CHIPS["v4"].egress("2x2x1") == 2 * 50e9
    assert CHIPS["v4"].egress("4x4x4") == 6 * 50e9
    assert CHIPS["v5e"].egress("2x4") == 2 * 50e9
    assert CHIPS["v5e"].egress("16x16") == 4 * 50e9
    traffic = {"all-reduce": Traffic(1, 10_000_000), "all-gather": Traffic(2, 2**20)}
    size = StepSize(0, 0, [("jit(step)/dot", 3_000_000), ("", 6_619)], traffic)
    assert size.describe_traffic() == "all-reduce 9.5, all-gather 1.0"
    assert size.transfer_milliseconds("v5e:16x16") == "0.06 ms"
    assert size.transfer_milliseconds("cpu:8") == ""
    # v5e: 197 TFLOP/s by four units of 2 * 128^2 in a cycle are 1.503 GHz.
    assert size.compute_seconds(CHIPS["v5e"]) == pytest.approx(3_006_619 / 1.50299e9, rel=1e-4)


def test_the_report_of_the_command_line():
    """One line for each batch; numbers as `step_size` gives them."""
    finished = run_command(
        [
            sys.executable, "-m", "tssr_jax.main", "--mode=size", "--config=configs/paper.py",
            "--topology=cpu:2", "--global_batch=8", "--global_batch=16", "--num_items=1000",
            "--config.model.max_length=2", "--config.model.num_cross_layers=1",
            "--config.content.text.trained_layers=1",
        ]
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    rows = [line.split() for line in finished.stdout.splitlines() if "cpu:2" in line]
    assert [row[3] for row in rows] == ["8", "16"]
    config = default.get_config()
    config.model.update(max_length=2, num_cross_layers=1)
    config.train.batch_size = 8
    size = step_size(config, find_devices("cpu:2"), 1000, 384)
    assert rows[0][5] == f"{size.held / 2**30:.3f}" and "all-reduce" in rows[0]
    words = " ".join(finished.stdout.split())
    assert "v4 50, v5e 50, v5p 100" in words
    assert words.endswith(
        "Not in these numbers: the text encoder, which is trained (parameters, moments, "
        "activations)."
    )
