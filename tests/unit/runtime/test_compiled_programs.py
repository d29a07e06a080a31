"""Where compiled programs are kept."""

import jax
import pytest

from tssr_jax.runtime import keep_compiled_programs

NAME = "jax_compilation_cache_dir"


@pytest.fixture
def setting():
    before = jax.config.values[NAME]
    yield lambda value: jax.config.update(NAME, value)
    jax.config.update(NAME, before)


def test_they_are_kept_in_the_cache_by_kind_of_processor(setting, tmp_path):
    setting(None)
    keep_compiled_programs(tmp_path)
    kept = jax.config.values[NAME]
    assert kept.startswith(f"{tmp_path}/compiled/") and len(kept.rsplit("/", 1)[1]) == 12


def test_a_folder_that_jax_was_told_stands(setting, tmp_path):
    setting(str(tmp_path / "own"))
    keep_compiled_programs(tmp_path)
    assert jax.config.values[NAME] == str(tmp_path / "own")
