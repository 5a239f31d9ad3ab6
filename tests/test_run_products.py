"""A run's products in its header and metadata.json, from which a resumed run takes them."""

import json
from pathlib import Path

import pytest
import torch
from helpers import tiny_config
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from marble_sweep.model import products
from marble_sweep.model.products import DEFAULT
from marble_sweep.run import run
from marble_sweep.runs import layout
from marble_sweep.runs.state import read_info
from marble_sweep.runs.status import read_metadata
from marble_sweep.training.products import as_metadata

# On a GPU there are no products to choose from.
FIXED = "device=cpu", "device.matmul=bfloat16", "device.head=float32"


def test_a_run_records_its_products_and_goes_on_with_what_is_recorded(tmp_path: Path) -> None:
    config, directory = tiny_config("trainer.total_steps=2", "device=cpu"), tmp_path / "run"
    run(tiny_config("trainer.total_steps=2", *FIXED), directory, show=False)
    recorded = {"matmul": "bfloat16", "head": "float32"}
    assert read_metadata(directory)["products"] == recorded
    assert read_info(directory / layout.STATE, config)["products"] == recorded
    assert "products    layers bfloat16, head float32" in (directory / layout.LOG).read_text()
    (directory / layout.LOG).unlink()
    run(config, directory, resume=True, show=False)
    assert read_metadata(directory)["products"] == recorded
    assert "products    layers bfloat16, head float32" in (directory / layout.LOG).read_text()
    assert products.current() == DEFAULT, "what is used ends with the run"


@pytest.mark.parametrize("edited", [{"matmul": "float32", "head": "float32"}, None])
def test_a_state_of_other_products_than_the_metadata_names_is_refused(edited: object, tmp_path: Path) -> None:
    config, directory = tiny_config("trainer.total_steps=2", *FIXED), tmp_path / "run"
    run(config, directory, show=False)
    path = directory / layout.METADATA
    path.write_text(json.dumps(read_metadata(directory) | {"products": edited}))
    before = path.read_bytes()
    now = as_metadata(DEFAULT, torch.device("cpu")) if edited is None else edited
    with pytest.raises(ValueError, match="products") as raised:
        run(tiny_config("trainer.total_steps=2", "device=cpu"), directory, resume=True, show=False)
    assert str(raised.value) == (
        f"{path}: products = {json.dumps(now)}: must be "
        '{"matmul": "bfloat16", "head": "float32"}, as when state.safetensors was saved'
    )
    assert path.read_bytes() == before


def test_a_state_that_names_no_products_is_that_of_an_earlier_version(tmp_path: Path) -> None:
    config, directory = tiny_config("trainer.total_steps=2", *FIXED), tmp_path / "run"
    run(config, directory, show=False)
    path = directory / layout.STATE
    with safe_open(path, "pt") as file:
        info = json.loads(file.metadata()["info"])
    del info["products"]
    save_file(load_file(path), path, {"info": json.dumps(info)})
    assert run(config, directory, resume=True, show=False) == "finished"
    assert read_info(path, config)["products"] == {"matmul": "bfloat16", "head": "float32"}
