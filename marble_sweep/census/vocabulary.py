"""What the ids of an embedding stand for, and which of them no text can produce."""

from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer, models

from marble_sweep.checks import CheckError, require
from marble_sweep.data.tokenizer import load_tokenizer
from marble_sweep.runs import layout
from marble_sweep.runs.damage import DamageError, open_file

YES, NO, FRAGMENT, NO_ENTRY = "yes", "no", "fragment", "no entry"  # whether a text produces a token
NEVER = (NO, NO_ENTRY)
# What may stand before a token: some tokens are only found inside a word, at its start, or at the start of a line.
CONTEXTS = ("", "a", "0", ".", "(", " ", "\n")
REPLACEMENT = "\ufffd"  # what a decoder writes for bytes that are no character


def read_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer in a file, or in a folder's tokenizer.json. Raises CheckError where it is none."""
    path = path / layout.TOKENIZER if path.is_dir() else path
    try:
        with open_file(path) as file:
            return load_tokenizer(file.read().decode())
    except FileNotFoundError:
        raise CheckError(f"tokenizer = {path}: must be a tokenizer.json or a folder with one") from None
    except DamageError as error:
        raise CheckError(f"{path}: {error}") from None
    except Exception as error:  # tokenizers raise nothing more specific
        raise CheckError(f"{path}: must be a tokenizer.json ({' '.join(str(error).split())})") from None


def num_tokens(tokenizer: Tokenizer) -> int:
    """One more than its largest id: added tokens count, and ids that are left out."""
    return max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1


def require_fit(tokenizer: Tokenizer, num_rows: int) -> None:
    """Raise CheckError for a tokenizer with more ids than the embedding has rows. Fewer are usual: rows are padded."""
    size = num_tokens(tokenizer)
    require(size <= num_rows, "tokenizer", f"{size:,} tokens", f"one of at most {num_rows:,}, the embedding's rows")


def token_text(tokenizer: Tokenizer, token: int) -> str:
    """What a token stands for: what it decodes to or, if that is no text, how the tokenizer spells it."""
    text: str = tokenizer.decode([token], skip_special_tokens=False)
    return (tokenizer.id_to_token(token) or "") if not text or REPLACEMENT in text else text


def produced(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    """Whether a text produces each token: decode it, encode the text again, and compare.

    YES: a text was encoded to it, its own or that behind one of CONTEXTS. NO: none was. FRAGMENT: it is part of a
    character, so it has no text of its own, and its model does give it for its bytes; NO if the model does not (byte
    pair encoding merges the bytes of a token in the same order wherever they stand). NO_ENTRY: the tokenizer lacks it.
    """
    return [_produced(tokenizer, token) for token in ids]


def _produced(tokenizer: Tokenizer, token: int) -> str:
    name = tokenizer.id_to_token(token)
    if name is None:
        return NO_ENTRY
    text: str = tokenizer.decode([token], skip_special_tokens=False)
    if REPLACEMENT in text and REPLACEMENT not in name:
        model = tokenizer.model
        merges = [piece.id for piece in model.tokenize(name)] if isinstance(model, models.BPE) else [token]
        return FRAGMENT if merges == [token] else NO
    inside = tokenizer.decode([*tokenizer.encode("a", add_special_tokens=False).ids, token], skip_special_tokens=False)
    texts = [*(context + text for context in CONTEXTS), inside]
    return YES if any(token in tokenizer.encode(text, add_special_tokens=False).ids for text in texts) else NO
