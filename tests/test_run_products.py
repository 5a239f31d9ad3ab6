"""A run's products in its header and metadata.json, from which a resumed run takes them."""

import json
from pathlib import Path

from helpers import tiny_config

from marble_sweep.model import products
from marble_sweep.model.products import DEFAULT
from marble_sweep.run import run
from marble_sweep.runs import layout
from marble_sweep.runs.status import read_metadata


def test_a_run_records_its_products_and_goes_on_with_what_is_recorded(tmp_path: Path) -> None:
    config, directory = (
        tiny_config("device.matmul=bfloat16", "device.head=float32", "trainer.total_steps=2"),
        tmp_path / "run",
    )
    run(config, directory, show=False)
    assert read_metadata(directory)["products"] == {"matmul": "bfloat16", "head": "float32"}
    assert "products    layers bfloat16, head float32" in (directory / layout.LOG).read_text()
    metadata = read_metadata(directory) | {"products": {"matmul": "float32", "head": "bfloat16"}}
    (directory / layout.METADATA).write_text(json.dumps(metadata))
    run(config, directory, resume=True, show=False)
    assert read_metadata(directory)["products"] == metadata["products"]
    assert "products    layers float32, head bfloat16" in (directory / layout.LOG).read_text()
    assert products.current() == DEFAULT, "what is used ends with the run"
