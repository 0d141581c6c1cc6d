"""Text for the same trunk: token ids to channels, and the tokenizer that makes them, trained here or by anyone else.

Special: code 0 stays what it is everywhere, unseen or padding, so the ids of a tokenizer are shifted by 1; and a text that is too long loses its
beginning, since the last position is what the head judges.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from balancer.dependencies import require
from balancer.errors import CorruptFileError, InputError
from balancer.files import write_text
from balancer.models.config import ModelConfig
from balancer.models.embedding import TransactionEmbedding

if TYPE_CHECKING:
    from tokenizers import Tokenizer as _Tokenizer

MOST_CODES = 1 << 24
"""From here on float32 has no exact place for every code."""
LEAST_CODES = 257
"""A code for each byte, and code 0."""


class TokenEmbedding(TransactionEmbedding):
    """One vector per token and, in the form `rows`, one per position counted back from the last, then dropout.

    Takes a batch of codes as numbers (B, n, 1), as `Tokenizer.batch` gives them, for a configuration with categorical_fields=("token",) and
    cardinalities=(Tokenizer.size,); gives (B, n, d_model). A code outside the known ones counts as code 0. Field dropout hides each token by
    itself: over the whole window it would hide the text.

    Args:
        config: as for `TransactionEmbedding`.

    Raises:
        InputError: The configuration has other fields than one categorical one, or more codes than float32 tells apart.
    """

    hides_whole_windows = False

    def __init__(self, config: ModelConfig) -> None:
        if config.numeric_fields or len(config.categorical_fields) != 1:
            names = ", ".join(config.numeric_fields + config.categorical_fields)
            raise InputError(f"embedding 'token' takes one categorical field, the token, and no numeric one; given {names}")
        if config.cardinalities[0] > MOST_CODES:
            raise InputError(f"cardinalities give {config.cardinalities[0]} tokens; embedding 'token' takes at most {MOST_CODES}")
        super().__init__(config)


class Tokenizer:
    """Texts to codes: the ids of a `tokenizers.Tokenizer` plus 1. `train_tokenizer` and `load_tokenizer` make one.

    Args:
        inner: the tokenizer; its own padding and truncation are switched off, its special tokens are not added.
    """

    def __init__(self, inner: _Tokenizer) -> None:
        inner.no_padding()
        inner.no_truncation()
        self.inner = inner

    @property
    def size(self) -> int:
        """Number of codes, code 0 included: the cardinality of the field of tokens."""
        return max(self.inner.get_vocab(with_added_tokens=True).values(), default=-1) + 2

    def batch(self, texts: Sequence[str], length: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Codes (B, length, 1), left-aligned, zeros after, and how many there are (B,); of longer texts the last `length`.

        Raises:
            InputError: `length` is below 1.
        """
        if length < 1:
            raise InputError(f"length must be at least 1, given {length}")
        values = np.zeros((len(texts), length, 1), np.float32)
        lengths = np.zeros(len(texts), np.int64)
        for row, encoded in enumerate(self.inner.encode_batch(list(texts), add_special_tokens=False)):
            ids = encoded.ids[-length:]
            values[row, : len(ids), 0] = ids
            values[row, : len(ids), 0] += 1
            lengths[row] = len(ids)
        return values, lengths

    def save(self, file: Path | str) -> None:
        """Write a tokenizer.json, which `load_tokenizer` and the `tokenizers` package read.

        Raises:
            InputError: The file can't be written.
        """
        write_text(Path(file), self.inner.to_str(pretty=True))


def train_tokenizer(texts: Iterable[str], size: int) -> Tokenizer:
    """Learn a byte-level byte-pair encoding: no text is outside it, in whatever script, and frequent words are one token.

    Args:
        texts: training texts only.
        size: most codes, code 0 included; few texts give fewer. `Tokenizer.size` tells how many there are.

    Raises:
        InputError: `size` is below 257, or the package `tokenizers` is not installed.
    """
    if size < LEAST_CODES:
        raise InputError(f"size must be at least {LEAST_CODES}, one code for each byte and code 0; given {size}")
    require("tokenizers", "a tokenizer")
    from tokenizers import Tokenizer as Inner
    from tokenizers import decoders, models, pre_tokenizers, trainers

    inner = Inner(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size - 1, initial_alphabet=alphabet, show_progress=False)
    inner.train_from_iterator(texts, trainer)
    return Tokenizer(inner)


def load_tokenizer(file: Path | str) -> Tokenizer:
    """Read a tokenizer.json of the Hugging Face format, trained here or elsewhere.

    Raises:
        InputError: The file is missing, damaged or no tokenizer, or the package `tokenizers` is not installed.
    """
    require("tokenizers", "a tokenizer")
    from tokenizers import Tokenizer as Inner

    try:
        content = Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CorruptFileError(
            f"{file} can't be read as a tokenizer ({error}): give a tokenizer.json of the Hugging Face format"
        ) from error
    try:
        return Tokenizer(Inner.from_str(content))
    except Exception as error:  # the package raises nothing narrower
        raise CorruptFileError(f"{file} is no tokenizer ({error}): give a tokenizer.json of the Hugging Face format") from error
