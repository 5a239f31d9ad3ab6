"""The example notebooks run from top to bottom in a kernel, as in front of a person."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.ipynb")), ids=lambda path: path.stem)
def test_notebook_runs(path: Path, tmp_path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "kept without outputs, which go stale"
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert not [each for each in shown if each.get("output_type") == "error"]
    html = "".join(each["data"].get("text/html", "") for each in shown if "data" in each)
    images = sum("image/png" in each["data"] for each in shown if "data" in each)
    assert images >= 1
    if path.stem == "quickstart":
        assert "The model beats unigram loss" in html, "a run shows its verdict"
        assert html.count("data:image/png") == 3, "and its plots"
