"""What is written for tools, and what is said when it can't be."""

import pytest
from etils import epath

from tssr_jax.errors import UserError
from tssr_jax.reporting import MetricWriter


def test_a_full_disk_is_named_with_the_file(tmp_path):
    writer = MetricWriter(epath.Path(tmp_path), from_step=0)
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(UserError, match=r"metrics.jsonl can't be written \(No space left"):
        writer.write(1, {"loss": 1.0})
