"""Which file and which tensor is read: names, shards, folders, run directories; and every refusal in one line."""

import json
from pathlib import Path

import pytest
import torch
from census_files import NAME, census_of, write
from helpers import TINY
from safetensors.torch import save_file

import marble_sweep as ms
from marble_sweep.census.census import take_census
from marble_sweep.census.source import find_source
from marble_sweep.checks import CheckError

WEIGHTS = torch.randn(30, 4, generator=torch.Generator().manual_seed(0)).bfloat16()


def refusal(path: Path | str, **options: int) -> str:
    """The one line that refuses it."""
    with pytest.raises(CheckError) as caught:
        take_census(path, None, step=options.get("step"), as_bfloat16=bool(options.get("as_bfloat16")))
    message = str(caught.value)
    assert "\n" not in message
    return message


# ------------------------------------------------------------------------ the tensor


@pytest.mark.parametrize(
    "name",
    [
        "model.embed_tokens.weight",
        "transformer.wte.weight",
        "tok_embeddings.weight",
        "bert.embeddings.word_embeddings.weight",
        "gpt_neox.embed_in.weight",
        "embedding.weight",
        "shared.weight",
        "wte",
    ],
)
def test_an_embedding_is_known_by_its_name(name: str, tmp_path: Path) -> None:
    others = {
        "lm_head.weight": WEIGHTS + 1,
        "wpe.weight": WEIGHTS + 2,
        "embeddings.position_embeddings.weight": WEIGHTS + 3,
    }
    path = write(tmp_path / "a.safetensors", WEIGHTS, name, **others)
    assert find_source(path).tensor == name


def test_without_a_name_the_vocabulary_tells(tmp_path: Path) -> None:
    path = write(tmp_path / "a.safetensors", WEIGHTS, "first", second=WEIGHTS[:20].clone(), norm=WEIGHTS[0].clone())
    assert find_source(path, num_tokens=20).tensor == "second"
    (tmp_path / "config.json").write_text(json.dumps({"vocab_size": 30}))
    assert find_source(path).tensor == "first"
    (tmp_path / "config.json").write_text("[]")
    assert "TENSOR, one of first (30 x 4), second (20 x 4)" in refusal(path)
    assert find_source(write(tmp_path / "b.safetensors", WEIGHTS, "only")).tensor == "only"


def test_of_several_embeddings_none_is_guessed(tmp_path: Path) -> None:
    names = "encoder.embed_tokens.weight", "decoder.embed_tokens.weight"
    path = write(tmp_path / "a.safetensors", WEIGHTS, names[0], **{names[1]: WEIGHTS.clone(), "head": WEIGHTS.clone()})
    assert refusal(path).endswith(
        "TENSOR, one of decoder.embed_tokens.weight (30 x 4), encoder.embed_tokens.weight (30 x 4)"
    )
    assert find_source(f"{path}:{names[1]}").tensor == names[1]
    path = write(path, WEIGHTS, names[0], **{names[1]: WEIGHTS[:20].clone(), "head": WEIGHTS[:20].clone()})
    assert find_source(path, num_tokens=20).tensor == names[1], "the one of them that the vocabulary fits"


def test_a_path_may_have_colons(tmp_path: Path) -> None:
    path = write(tmp_path / "a:b.safetensors", WEIGHTS)
    assert find_source(path).file == path
    assert find_source(f"{path}:{NAME}").file == path


# -------------------------------------------------------------------- shards and folders


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    write(tmp_path / "model-00001-of-00002.safetensors", WEIGHTS, "lm_head.weight")
    write(tmp_path / "model-00002-of-00002.safetensors", WEIGHTS)
    shards = {"lm_head.weight": "model-00001-of-00002.safetensors", NAME: "model-00002-of-00002.safetensors"}
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": shards}))
    return index


def test_a_sharded_model(sharded: Path) -> None:
    for path in (sharded, sharded.parent, f"{sharded}:{NAME}"):
        source = find_source(path)
        assert (source.file.name, source.tensor) == ("model-00002-of-00002.safetensors", NAME)
    assert find_source(f"{sharded.parent}:lm_head.weight").file.name == "model-00001-of-00002.safetensors"
    assert census_of(sharded).summary["num_rows"] == 30


def test_an_index_of_what_is_not_there(sharded: Path) -> None:
    (sharded.parent / "model-00001-of-00002.safetensors").unlink()
    assert refusal(sharded) == f"{sharded}: must name shards that exist; model-00001-of-00002.safetensors is missing"
    sharded.write_text('{"weight_map": [1]}')
    assert refusal(sharded) == f"{sharded}: must hold a weight_map from tensors to files"
    sharded.write_text("{")
    assert refusal(sharded).startswith(f"{sharded}: must be JSON")


def test_a_folder(tmp_path: Path) -> None:
    assert refusal(tmp_path).endswith("must be a folder with a .safetensors file or a model.safetensors.index.json")
    write(tmp_path / "one.safetensors", WEIGHTS)
    assert find_source(tmp_path).file.name == "one.safetensors"
    write(tmp_path / "two.safetensors", WEIGHTS)
    assert refusal(tmp_path).endswith("as it has several: one.safetensors, two.safetensors")
    write(tmp_path / "model.safetensors", WEIGHTS)
    assert find_source(tmp_path).file.name == "model.safetensors"


# -------------------------------------------------------------------------- refusals


def test_what_cannot_be_read_is_refused_in_one_line(tmp_path: Path) -> None:
    path = write(tmp_path / "a.safetensors", WEIGHTS, ids=torch.arange(6).view(2, 3), cube=torch.ones(2, 2, 2))
    assert refusal(f"{path}:other") == f"tensor = other: must be one of {NAME} (30 x 4)"
    assert refusal(f"{path}:ids") == "tensor = ids: must be of dtype BF16, F16, F32, not I64"
    assert refusal(f"{path}:cube").startswith(
        "tensor = cube: must be a matrix with rows and columns; its shape is [2, 2, 2]"
    )
    assert refusal(path, as_bfloat16=1) == "as_bfloat16 = True: must be left out for a tensor of BF16"
    assert refusal(path, step=3) == "step = 3: must be left out: only a run has checkpoints"
    assert refusal(tmp_path / "no.safetensors").startswith(
        f"PATH = {tmp_path / 'no.safetensors'}: must be a .safetensors"
    )
    save_file({NAME: torch.ones(0, 4), "other": torch.ones(3)}, tmp_path / "empty.safetensors")
    assert "its shape is [0, 4]" in refusal(tmp_path / "empty.safetensors")
    save_file({"bias": torch.ones(3)}, tmp_path / "flat.safetensors")
    assert refusal(tmp_path / "flat.safetensors").endswith("a model with a matrix of BF16, F16, F32; it has none")


def test_damaged_files_are_refused_in_one_line(tmp_path: Path) -> None:
    path = write(tmp_path / "a.safetensors", WEIGHTS)
    whole = path.read_bytes()
    for content in (whole[:-1], whole[:20], b"", b"x" * 100):
        path.write_bytes(content)
        assert refusal(path).startswith(f"{path}: must be a whole safetensors file")
    torch.save({NAME: WEIGHTS}, tmp_path / "model.bin")
    assert refusal(tmp_path / "model.bin").startswith(f"{tmp_path / 'model.bin'}: must be a whole safetensors file")


# ----------------------------------------------------------------------------- runs


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> ms.Run:
    return ms.train(TINY, tmp_path_factory.mktemp("census") / "run")


def test_a_run_at_its_end_and_at_its_checkpoints(run: ms.Run) -> None:
    census = ms.inspect(run.path)
    assert census.summary["file"].endswith("model.safetensors")
    assert census.summary["num_black_holes"] == run.metadata["n_black_holes"]
    assert census.summary["num_identical"] == run.metadata["n_black_hole_tokens"]
    assert census.summary["num_dead"] == run.metadata["n_dead_tokens"]
    assert census.summary["num_tokens"] == census.summary["num_rows"]
    for index, step in enumerate(run.snapshots.steps.tolist()):
        embedding = run.snapshots.W[index]
        for path in (run.path, run.path / "checkpoints.safetensors"):
            census = ms.inspect(path, step=step)
            assert census.dimensions["max"].tolist() == embedding.float().amax(dim=0).tolist()
            assert census.summary["tensor_choice"] == f"the run's checkpoint of step {step}"
    assert refusal(run.path, step=3) == "step = 3: must be one of 0, 20, 40"


def test_a_run_without_its_model_yet(run: ms.Run, tmp_path: Path) -> None:
    for name in ("config.yaml", "checkpoints.safetensors"):
        (tmp_path / name).write_bytes((run.path / name).read_bytes())
    assert ms.inspect(tmp_path).summary["tensor_choice"] == "the run's checkpoint of step 40"
    (tmp_path / "checkpoints.safetensors").unlink()
    assert "must be a folder with" in refusal(tmp_path)


def test_a_folder_of_another_program_with_a_config(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("model: other")
    write(tmp_path / "model.safetensors", WEIGHTS)
    assert find_source(tmp_path).tensor == NAME


def test_checkpoints_of_another_vocabulary(run: ms.Run, tmp_path: Path) -> None:
    for name in ("config.yaml", "checkpoints.safetensors"):
        (tmp_path / name).write_bytes((run.path / name).read_bytes())
    write(tmp_path / "model.safetensors", WEIGHTS, "embedding.weight")
    assert refusal(tmp_path).endswith("must hold a dead_mask of 30 tokens, as many as the model has")
