"""The command is started again once, with what it lacks; what users say stands."""

import subprocess
import sys

import pytest

from tests.support.runs import ROOT
from tssr_jax import runtime


@pytest.fixture
def policy(tmp_path, monkeypatch):
    path = tmp_path / "enabled"
    path.write_text("always [madvise] never\n")
    monkeypatch.setattr(runtime, "_POLICY", path)
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    return path


def test_the_setting_is_added_to_others(policy, monkeypatch):
    assert runtime.wanted_environment() == {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.arena_max=2")
    assert runtime.wanted_environment() == {
        "GLIBC_TUNABLES": "glibc.malloc.arena_max=2:glibc.malloc.hugetlb=1"
    }


def test_what_the_user_says_stands(policy, monkeypatch):
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.hugetlb=0")
    assert runtime.wanted_environment() == {}


@pytest.mark.parametrize("text", ["[always] madvise never", "always madvise [never]"])
def test_nothing_is_asked_for_where_it_is_given_or_refused(policy, text):
    policy.write_text(text)
    assert runtime.wanted_environment() == {}


def test_a_command_is_started_again_with_its_arguments(tmp_path):
    (tmp_path / "enabled").write_text("always [madvise] never\n")
    code = (
        "import os, sys; from pathlib import Path; from tssr_jax import runtime\n"
        "runtime._POLICY = Path(sys.argv[1])\n"
        "runtime.use_huge_pages()\n"
        "print(os.environ['GLIBC_TUNABLES'], sys.argv[2])"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "enabled"), "an argument"]
    done = subprocess.run(command, cwd=ROOT, env={}, capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[0] == "glibc.malloc.hugetlb=1 an argument"
