"""`python -m marble_sweep.sample RUN_DIR --prompt "..."`: what a trained model writes, or would write next."""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor

from marble_sweep import config as schema
from marble_sweep.data.tokenizer import load_tokenizer
from marble_sweep.model.transformer import Transformer
from marble_sweep.run import build_model
from marble_sweep.training.precision import POLICIES


def load_model(directory: Path) -> Transformer:
    """A run's model, on the CPU in the dtype it was trained in.

    Raises ValueError where the directory holds no trained model.
    """
    for name in ("config.yaml", "model.safetensors"):
        found = (directory / name).is_file()
        schema.require(found, "RUN_DIR", directory, f"a run directory with a {name}")
    config = schema.load(directory / "config.yaml")
    weights = load_file(directory / "model.safetensors")
    model = build_model(config, vocab_size=len(weights["embedding.weight"]))
    model.to(POLICIES[config.precision.name].param_dtype).load_state_dict(weights)
    return model.eval()


def read_tokenizer(directory: Path) -> Tokenizer:
    """A run's tokenizer. Raises ValueError where the directory holds none."""
    path = directory / "tokenizer.json"
    schema.require(path.is_file(), "RUN_DIR", directory, "a run directory with a tokenizer.json")
    return load_tokenizer(path.read_text(encoding="utf-8"))


@torch.no_grad()
def next_log_probs(model: Transformer, tokens: list[int]) -> Tensor:
    """Log-probabilities (V,) float32 of the token after `tokens`; the model sees the last seq_len of them."""
    seen = tokens[-model.positions.num_embeddings :]
    hidden = model(torch.tensor([seen]))[0, -1]
    return (hidden.float() @ model.embedding.weight.float().T).log_softmax(-1)


def generate(model: Transformer, tokens: list[int], num_tokens: int, temperature: float, seed: int) -> Iterator[int]:
    """Draw `num_tokens` more tokens one by one; temperature 0 takes the most probable."""
    generator = torch.Generator().manual_seed(seed)
    tokens = list(tokens)
    for _ in range(num_tokens):
        log_probs = next_log_probs(model, tokens)
        if temperature == 0:
            token = int(log_probs.argmax())
        else:
            token = int(torch.multinomial((log_probs / temperature).softmax(-1), 1, generator=generator))
        tokens.append(token)
        yield token


def generate_text(
    model: Transformer, tokenizer: Tokenizer, prompt: str, num_tokens: int, temperature: float, seed: int
) -> str:
    """The prompt and `num_tokens` more tokens as text. Raises ValueError for an empty prompt or a temperature < 0."""
    tokens = tokenizer.encode(prompt).ids
    schema.require(len(tokens) > 0, "prompt", repr(prompt), "text of at least one token")
    schema.require(temperature >= 0, "temperature", temperature, ">= 0")
    text: str = tokenizer.decode([*tokens, *generate(model, tokens, num_tokens, temperature, seed)])
    return text


def top_table(log_probs: Tensor, unigram: Tensor, tokenizer: Tokenizer, k: int) -> str:
    """The K most probable next tokens with their probabilities, the model's beside the unigram's."""
    columns = []
    for each in (log_probs, unigram):
        values, tokens = each.topk(k)
        pairs = zip(values.exp().tolist(), tokens.tolist(), strict=True)
        columns.append([f"{probability:7.2%}  {tokenizer.decode([token])!r}" for probability, token in pairs])
    rows = [("model", "unigram"), *zip(*columns, strict=True)]
    width = max(len(row[0]) for row in rows)
    return "\n".join(f"{left:<{width}}   {right}" for left, right in rows)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m marble_sweep.sample", description=__doc__)
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR")
    parser.add_argument("--prompt", required=True, help="the text to go on from")
    parser.add_argument("--top", type=int, metavar="K", help="show the K likeliest next tokens instead of writing")
    parser.add_argument("--tokens", type=int, default=100, help="how many to write (default 100)")
    parser.add_argument("--temperature", type=float, default=1.0, help="0 always takes the likeliest (default 1)")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    try:
        model, tokenizer = load_model(arguments.run_dir), read_tokenizer(arguments.run_dir)
        if arguments.top is not None:
            prompt = tokenizer.encode(arguments.prompt).ids
            schema.require(len(prompt) > 0, "prompt", repr(arguments.prompt), "text of at least one token")
            vocab_size = model.embedding.num_embeddings
            schema.require(1 <= arguments.top <= vocab_size, "--top", arguments.top, f"in [1, {vocab_size}]")
            unigram = load_file(arguments.run_dir / "unigram.safetensors")["log_probs"]
            print(top_table(next_log_probs(model, prompt), unigram, tokenizer, arguments.top))
            return
        wishes = arguments.prompt, arguments.tokens, arguments.temperature, arguments.seed
        print(generate_text(model, tokenizer, *wishes))
    except (ValueError, OSError, SafetensorError) as error:
        print(f"marble_sweep.sample: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
