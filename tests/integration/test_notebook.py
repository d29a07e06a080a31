"""examples/quickstart.ipynb runs, and is kept with what it showed."""

import nbformat
from nbclient import NotebookClient

from tests.support.runs import ROOT

PATH = ROOT / "examples" / "quickstart.ipynb"


def pictures(notebook):
    outputs = [out for cell in notebook.cells for out in cell.get("outputs", [])]
    return sum("image/png" in out.get("data", {}) for out in outputs)


def test_it_runs():
    """With fewer users and epochs than a reader's."""
    notebook = nbformat.read(PATH, as_version=4)
    for there, shorter in (("range(1500)", "range(200)"), ('"num_epochs": 8', '"num_epochs": 1')):
        (cell,) = [cell for cell in notebook.cells if there in cell.source]
        cell.source = cell.source.replace(there, shorter)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": ROOT}}).execute()
    assert pictures(notebook) == 2
    told = "".join(o.get("text", "") for c in notebook.cells for o in c.get("outputs", []))
    assert "NDCG@10" in told and "\x1b" not in told


def test_it_is_kept_with_its_outputs():
    notebook = nbformat.read(PATH, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert pictures(notebook) == 2
