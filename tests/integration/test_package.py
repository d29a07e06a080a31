"""The built wheel: what it installs, and its command outside of a checkout."""

import os
import subprocess
import sys
import zipfile

import pytest

from tests.support.raw_data import write_csv
from tests.support.runs import ROOT


@pytest.fixture(name="installed", scope="module")
def fixture_installed(tmp_path_factory):
    """A folder with what the wheel installs, but for its dependencies."""
    folder = tmp_path_factory.mktemp("package")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    wheel = [*pip, "wheel", "--no-deps", "--wheel-dir", str(folder), str(ROOT)]
    subprocess.run(wheel, check=True, capture_output=True)
    (path,) = folder.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", str(folder / "site"), str(path)],
                   check=True, capture_output=True)  # fmt: skip
    return path, folder / "site"


def test_nothing_but_the_package_is_installed(installed):
    wheel, _ = installed
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.partition("/")[0] for name in names} == {
        "tssr_jax", f"{wheel.name.rsplit('-', 3)[0]}.dist-info"
    }  # fmt: skip
    assert {
        "tssr_jax/py.typed",
        "tssr_jax/config/shipped/hm.py",
        "tssr_jax/serving/page/page.js",
    } <= {*names}
    packages = {
        str(path.parent.relative_to(ROOT)) for path in (ROOT / "tssr_jax").rglob("__init__.py")
    }
    assert packages <= {name.rpartition("/")[0] for name in names}


def test_the_command_works_elsewhere_with_shipped_configurations(installed, tmp_path):
    """Beside folders of the user's own called configs and data_pipeline."""
    _, site = installed
    write_csv(tmp_path / "raw")
    for name in ("configs", "data_pipeline"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise ImportError('the user\\'s own')")
    command = [str(site / "bin" / "tssr"), "prepare", "--config=csv:raw"]
    command.append(f"--config.data.cache_dir={tmp_path / 'cache'}")
    environment = os.environ | {"PYTHONPATH": str(site), "PYTHONSAFEPATH": "1"}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "40 users, 20 items" in done.stdout
    where = [sys.executable, "-c", "import tssr_jax.config as c; print(c.shipped_file('hm'))"]
    found = subprocess.run(
        where, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert found.stdout.startswith(str(site))
