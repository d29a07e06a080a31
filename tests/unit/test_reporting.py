"""What is written for tools, and what is said when it can't be."""

import pytest
from etils import epath

from tssr_jax.errors import UserError
from tssr_jax.reporting import MetricWriter, make_console, metrics_table, pairs_table


def test_square_brackets_are_what_they_are(capsys):
    console = make_console()
    console.print("pip install '.[search]' [source locations='a.cc'] [/tmp/x]")
    console.print(pairs_table("runs/[a]", [("[b]", "[/c]")]))
    console.print(metrics_table("runs/[d]", ["test"], {"[e]": [1.0]}))
    told = capsys.readouterr().out
    assert "'.[search]' [source locations='a.cc'] [/tmp/x]" in told
    for text in ("[a]", "[b]", "[/c]", "[d]", "[e]"):
        assert text in told


def test_a_full_disk_is_named_with_the_file(tmp_path):
    writer = MetricWriter(epath.Path(tmp_path), from_step=0)
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(UserError, match=r"metrics.jsonl can't be written \(No space left"):
        writer.write(1, {"loss": 1.0})
