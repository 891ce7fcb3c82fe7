"""WordPiece as all-MiniLM-L6-v2 reads it: every token of a text, or none at all."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokenizers import Tokenizer

if TYPE_CHECKING:
    from pathlib import Path

MAX_TOKENS = 256  # [CLS] and [SEP] included
# The longest piece of the vocabulary has 18 characters, so 254 pieces hold at most 4,572 that the
# tokenizer keeps. What is left of the bound is for white space and the marks it drops.
MAX_CHARACTERS = 8192


class Tokens:
    """The tokenizer of one `tokenizer.json`."""

    def __init__(self, path: Path) -> None:
        self._tokenizer = Tokenizer.from_file(str(path))
        # The file asks for padding to 128 tokens and for cutting at 128: a short prompt would cost
        # as much as a long one, and two prompts with one beginning would get one vector.
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        # "[SEP]" typed by a caller is text.
        self._tokenizer.encode_special_tokens = True
        self._unknown = self._tokenizer.token_to_id("[UNK]")

    def read(self, text: str) -> list[int] | None:
        """The token ids of the whole text, at most 256, or None when the model cannot read it all.

        That is when it is longer, or when a word is outside the vocabulary (an emoji, a rare
        script, more than 100 characters without a break): all such words are one token, [UNK], so
        two different questions would get one vector.
        """
        if len(text) > MAX_CHARACTERS:
            return None
        try:
            # `encode` holds the interpreter lock for as long as it takes; the batch call does not.
            ids: list[int] = self._tokenizer.encode_batch_fast([text])[0].ids
        except TypeError:  # a lone surrogate: not Unicode
            return None
        if len(ids) > MAX_TOKENS or self._unknown in ids:
            return None
        return ids
