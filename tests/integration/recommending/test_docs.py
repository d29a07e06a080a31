"""The worked example of docs/guides/recommending.md."""

import re

from tests.support.runs import ROOT


def test_the_example_runs(workdir, tmp_path, monkeypatch, capsys):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "mine").symlink_to(workdir)
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs" / "guides" / "recommending.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    exec(compile(code, "docs/guides/recommending.md", "exec"), {})
    told = capsys.readouterr().out
    assert told.count("ids weigh 0.") == 3 and "content cross 1 [" in told
