"""Text as input of the classifier: an embedding of token ids, and a tokenizer trained here or elsewhere.

Code 0 means unseen or padding, as everywhere in the models, so the ids of a tokenizer are shifted by 1. A
text that is too long loses its beginning, because the head reads the last position.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from balancer.dependencies import require
from balancer.errors import CorruptFileError, InputError, reason_of
from balancer.files import write_text
from balancer.models.config import ModelConfig
from balancer.models.embedding import TransactionEmbedding

if TYPE_CHECKING:
    from tokenizers import Tokenizer as _Tokenizer

MOST_CODES = 1 << 24
"""From this number on float32 can't represent every code exactly."""
LEAST_CODES = 257
"""One code for each byte, and code 0."""


class TokenEmbedding(TransactionEmbedding):
    """Sum of the vectors of tokens and, in the form `rows`, positions; then dropout.

    Positions are counted back from the last. Maps a batch of codes as numbers (B, n, 1), as returned by
    `Tokenizer.batch`, to (B, n, d_model). The configuration has categorical_fields=("token",) and
    cardinalities=(Tokenizer.size,). A code outside the known range counts as code 0. Field dropout hides each
    token independently; hiding the field in the whole window would hide the whole text.

    Args:
        config: as for `TransactionEmbedding`.

    Raises:
        InputError: The configuration does not have exactly one categorical field, or has more codes than
            float32 can represent.
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
    """Convert texts to codes: the ids of a `tokenizers.Tokenizer`, plus 1.

    Create one by `train_tokenizer` or `load_tokenizer`.

    Args:
        inner: the tokenizer. Its padding and truncation are switched off, and its special tokens are not
            added.
    """

    def __init__(self, inner: _Tokenizer) -> None:
        inner.no_padding()
        inner.no_truncation()
        self.inner = inner

    @property
    def size(self) -> int:
        """Number of codes, including code 0: the cardinality of the token field."""
        return max(self.inner.get_vocab(with_added_tokens=True).values(), default=-1) + 2

    def batch(self, texts: Sequence[str], length: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Encode texts as left-aligned codes.

        Args:
            texts: B texts.
            length: maximum number of tokens; a longer text keeps its last `length` tokens.

        Returns:
            Codes (B, length, 1), zeros at padding, and the number of tokens (B,).

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
        """Write a tokenizer.json, which `load_tokenizer` and the `tokenizers` package can read.

        Raises:
            InputError: The file can't be written.
        """
        write_text(Path(file), self.inner.to_str(pretty=True))


def train_tokenizer(texts: Iterable[str], size: int) -> Tokenizer:
    """Train a byte-level byte-pair encoding.

    It can encode any text and gives frequent words a token of their own.

    Args:
        texts: training texts.
        size: maximum number of codes, including code 0. Few texts result in fewer codes; see
            `Tokenizer.size`.

    Raises:
        InputError: `size` is below 257.
        MissingDependencyError: The package `tokenizers` is not installed.
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
    """Read a tokenizer.json in the Hugging Face format.

    Raises:
        CorruptFileError: The file can't be read or is not a tokenizer.
        MissingDependencyError: The package `tokenizers` is not installed.
    """
    require("tokenizers", "a tokenizer")
    from tokenizers import Tokenizer as Inner

    try:
        content = Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CorruptFileError(
            f"{file} can't be read as a tokenizer ({reason_of(error)}): give a tokenizer.json in the Hugging Face format"
        ) from error
    try:
        return Tokenizer(Inner.from_str(content))
    except Exception as error:  # the package raises no narrower class
        raise CorruptFileError(f"{file} is not a tokenizer ({error}): give a tokenizer.json in the Hugging Face format") from error
