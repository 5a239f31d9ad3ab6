"""`python -m marble_sweep.sample RUN_DIR --prompt "..."`: what a trained model writes, or its next tokens."""

import argparse
import contextlib
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor

from marble_sweep import config as schema
from marble_sweep.checks import CheckError, require, wrong_value
from marble_sweep.config import Config
from marble_sweep.data.tokenizer import load_tokenizer
from marble_sweep.model.transformer import Transformer
from marble_sweep.run import build_model
from marble_sweep.runs import layout
from marble_sweep.runs.damage import DamageError, open_file, read_text, read_yaml
from marble_sweep.runs.files import user_path
from marble_sweep.runs.removed import require_kept
from marble_sweep.terminal import printable, use_replacements
from marble_sweep.training.precision import POLICIES


def load_model(directory: Path) -> Transformer:
    """A run's model, on the CPU in the dtype it was trained in.

    Raises ValueError where the directory holds no trained model, or a file in it is damaged.
    """
    require_kept(directory / layout.MODEL)
    for name in (layout.CONFIG, layout.MODEL):
        exists = (directory / name).is_file()
        require(exists, "RUN_DIR", directory, f"a run directory with a {name}")
    config = read_config(directory)
    # A RuntimeError is what torch raises for weights of other names or shapes.
    with naming(directory / layout.MODEL, CheckError, OSError, SafetensorError, RuntimeError):
        weights = load_file(directory / layout.MODEL)
        embedding = weights.get("embedding.weight", torch.empty(0))
        if embedding.ndim != 2 or embedding.shape[1] != config.model.hidden_dim:
            raise CheckError(f"must hold an embedding.weight of width {config.model.hidden_dim}")
        model = build_model(config, vocab_size=len(embedding))
        model.to(POLICIES[config.precision.name].param_dtype).load_state_dict(weights)
        if not all(bool(weight.isfinite().all()) for weight in model.parameters()):
            raise CheckError("its weights must be finite; those of a run that diverged are not")
    return model.eval()


def read_config(directory: Path) -> Config:
    """A run's config. Raises ValueError that names the file where it is damaged or missing."""
    path = directory / layout.CONFIG
    with naming(path, OSError, DamageError):
        read_yaml(path)  # first: it does not wait for a pipe, and refuses anything but a mapping
        return schema.load(path)


def read_tensors(path: Path, *names: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file, `names` among them. Raises ValueError that names the file where it is damaged.

    Raises FileNotFoundError where there is none.
    """
    with naming(path, CheckError, DamageError, SafetensorError):
        open_file(path).close()
        tensors = load_file(path)
        if missing := [name for name in names if name not in tensors]:
            raise CheckError(f"must hold {', '.join(missing)}")
    return tensors


def read_tokenizer(directory: Path, vocab_size: int) -> Tokenizer:
    """A run's tokenizer, of at most `vocab_size` tokens. Raises ValueError where the directory holds none."""
    path = directory / layout.TOKENIZER
    require(path.is_file(), "RUN_DIR", directory, "a run directory with a tokenizer.json")
    with naming(path, Exception):  # tokenizers raise nothing more specific
        tokenizer = load_tokenizer(read_text(path))
        if max(tokenizer.get_vocab().values(), default=0) >= vocab_size:
            raise CheckError(f"must have at most the {vocab_size:,} tokens that the model has")
    return tokenizer


def load_unigram(path: Path, vocab_size: int) -> Tensor:
    """Log-probabilities (V,) of the fitted unigram. Raises ValueError where the file does not hold them."""
    with naming(path, CheckError, OSError, SafetensorError):
        log_probs = load_file(path).get("log_probs", torch.empty(0))
        if log_probs.shape != (vocab_size,):
            raise CheckError(f"must hold {vocab_size:,} log-probabilities, as many as the model has tokens")
    return log_probs


@contextlib.contextmanager
def naming(path: Path, *errors: type[Exception]) -> Iterator[None]:
    """Turn errors that reading a file may raise into a CheckError of one line that names the file."""
    try:
        yield
    except errors as error:
        reason = error.strerror if isinstance(error, OSError) else None  # without the path, which str repeats
        raise CheckError(f"{path}: {' '.join((reason or str(error)).split())}") from error


@torch.no_grad()
def next_log_probs(model: Transformer, tokens: list[int]) -> Tensor:
    """Log-probabilities (V,) float32 of the token after `tokens`; the model sees the last seq_len of them."""
    seen = tokens[-model.positions.num_embeddings :]
    hidden = model(torch.tensor([seen]))[0, -1]
    return (hidden.float() @ model.head_weight.float().T).log_softmax(-1)


def generate(model: Transformer, tokens: list[int], num_tokens: int, temperature: float, seed: int) -> Iterator[int]:
    """Draw `num_tokens` more tokens one by one; temperature 0 takes the most probable."""
    generator = torch.Generator().manual_seed(seed)
    tokens = list(tokens)
    for _ in range(num_tokens):
        log_probs = next_log_probs(model, tokens)
        if temperature == 0:
            token = int(log_probs.argmax())
        else:
            # From the largest, and in float64: a tiny temperature then leaves it 0 and takes the others to -inf.
            scaled = (log_probs - log_probs.max()).double() / temperature
            token = int(torch.multinomial(scaled.softmax(-1).float(), 1, generator=generator))
        tokens.append(token)
        yield token


def encode_prompt(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """The ids of a prompt. Raises ValueError for a prompt without tokens, and for one that is not UTF-8."""
    require(is_utf8(prompt), "prompt", repr(prompt), "UTF-8")
    try:
        tokens: list[int] = tokenizer.encode(prompt).ids
    except Exception as error:  # the library raises nothing narrower
        raise wrong_value("prompt", repr(prompt), f"text that the tokenizer knows ({error})") from None
    require(len(tokens) > 0, "prompt", repr(prompt), "text of at least one token")
    return tokens


def generate_text(
    model: Transformer, tokenizer: Tokenizer, prompt: str, num_tokens: int, temperature: float, seed: int
) -> str:
    """The prompt and `num_tokens` more tokens as text. Raises ValueError for an argument out of its bounds."""
    require(0 <= temperature < math.inf, "temperature", temperature, "a finite number >= 0")
    require(num_tokens >= 0, "tokens", num_tokens, ">= 0")
    require(0 <= seed < 1 << 63, "seed", seed, "in [0, 2^63)")
    tokens = encode_prompt(tokenizer, prompt)
    text: str = tokenizer.decode([*tokens, *generate(model, tokens, num_tokens, temperature, seed)])
    return text


def top_table(log_probs: Tensor, unigram: Tensor, tokenizer: Tokenizer, k: int) -> str:
    """The K most probable next tokens with their probabilities, the model's beside the unigram's."""
    columns = []
    for distribution in (log_probs, unigram):
        values, tokens = distribution.topk(k)
        pairs = zip(values.exp().tolist(), tokens.tolist(), strict=True)
        columns.append([f"{probability:7.2%}  {tokenizer.decode([token])!r}" for probability, token in pairs])
    rows = [("model", "unigram"), *zip(*columns, strict=True)]
    width = max(len(row[0]) for row in rows)
    return "\n".join(f"{left:<{width}}   {right}" for left, right in rows)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m marble_sweep.sample", description=__doc__)
    parser.add_argument("run_dir", type=user_path, metavar="RUN_DIR")
    parser.add_argument("--prompt", required=True, help="the text to continue")
    parser.add_argument("--top", type=int, metavar="K", help="show the K most probable next tokens instead of text")
    parser.add_argument("--tokens", type=int, default=100, help="how many tokens to write (default 100)")
    parser.add_argument("--temperature", type=float, default=1.0, help="0: always the most probable token (default 1)")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    use_replacements()
    try:
        print(printable(answer(arguments), keep="\n\t"))
    except (CheckError, OSError) as error:
        print(f"marble_sweep.sample: {printable(str(error))}", file=sys.stderr)
        raise SystemExit(2) from None


def is_utf8(text: str) -> bool:
    """Whether a text has an encoding: bytes of a command line that are not UTF-8 become lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def answer(arguments: argparse.Namespace) -> str:
    """The text that the options ask for. Raises ValueError for an option out of its bounds."""
    require(is_utf8(arguments.prompt), "prompt", repr(arguments.prompt), "UTF-8")
    model = load_model(arguments.run_dir)
    vocab_size = model.embedding.num_embeddings
    tokenizer = read_tokenizer(arguments.run_dir, vocab_size)
    if arguments.top is None:
        options = arguments.prompt, arguments.tokens, arguments.temperature, arguments.seed
        return generate_text(model, tokenizer, *options)
    require(1 <= arguments.top <= vocab_size, "top", arguments.top, f"in [1, {vocab_size}]")
    unigram = load_unigram(arguments.run_dir / layout.UNIGRAM, vocab_size)
    log_probs = next_log_probs(model, encode_prompt(tokenizer, arguments.prompt))
    return top_table(log_probs, unigram, tokenizer, arguments.top)


if __name__ == "__main__":
    main()
