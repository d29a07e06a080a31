"""Every flag and every field of the configuration, frozen: a new one is a decision.

No option without a request or a measured gain (CONTRIBUTING.md). After a decision:

    python -m tests.unit.config.test_frozen_options
"""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tssr_jax.config import default_config, flattened
from tssr_jax.main import MODES

FROZEN = Path(__file__).with_name("frozen_options.txt")
MOST_FIELDS = 108
FLAGS = """
import importlib
from absl import flags
importlib.import_module({module!r})
own = {{"config"}} & set(flags.FLAGS)
for module, defined in flags.FLAGS.flags_by_module_dict().items():
    if module.startswith("tssr_jax"):
        own |= {{flag.name for flag in defined}}
print(*sorted(own))
"""


def options():
    """Lines "field NAME" and "flag MODE --NAME"."""
    fields = [f"field {name}" for name in sorted(flattened(default_config()))]
    flags = []
    for mode, (module, _) in MODES.items():
        command = [sys.executable, "-c", FLAGS.format(module=module)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        flags += [f"flag {mode} --{name}" for name in done.stdout.split()]
    return [*fields, *flags]


def test_options_are_the_frozen_ones():
    assert options() == FROZEN.read_text().splitlines()


@pytest.mark.parametrize("mode", MODES)
def test_help_shows_all_flags_of_a_mode(mode):
    command = [sys.executable, "-m", "tssr_jax.main", mode, "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    shown = re.findall(r"^  --(\w+)", done.stdout, re.MULTILINE)
    assert shown
    prefix = f"flag {mode} --"
    frozen = FROZEN.read_text().splitlines()
    assert shown == [line.removeprefix(prefix) for line in frozen if line.startswith(prefix)]


def test_there_are_few_fields():
    assert len(flattened(default_config())) <= MOST_FIELDS


if __name__ == "__main__":
    FROZEN.write_text("\n".join(options()) + "\n")
