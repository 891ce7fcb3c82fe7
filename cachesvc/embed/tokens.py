"""WordPiece as all-MiniLM-L6-v2 reads it: every token of a text, or none at all."""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING

from tokenizers import Tokenizer

if TYPE_CHECKING:
    from pathlib import Path

MAX_TOKENS = 256  # [CLS] and [SEP] included
# The longest piece of the vocabulary has 18 characters, so 254 pieces hold at most 4,572 that the
# tokenizer keeps. What is left of the bound is for white space and the marks it drops.
MAX_CHARACTERS = 8192


# The tokenizer reads these as white space; every other control character it drops.
_SPACES = "\t\n\r"


def _drops(text: str) -> bool:
    """The tokenizer would drop a part of `text`: a mark on a character, or an invisible one.

    It takes texts apart (NFD) and forgets the marks, so that `≠` is read as `=`, `ñ` as `n`, and
    バ as ハ. An English model loses little by not being asked about those.
    """
    if text.isascii():
        return any((c < " " and c not in _SPACES) or c == "\x7f" for c in text)
    kinds = {
        unicodedata.category(c) for c in unicodedata.normalize("NFD", text) if c not in _SPACES
    }
    return "\ufffd" in text or any(kind == "Mn" or kind.startswith("C") for kind in kinds)


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

        That is when it is longer; when a word is outside the vocabulary (an emoji, a rare script,
        more than 100 characters without a break), since all such words are one token, [UNK]; or
        when it has something that the tokenizer drops. In each case two different questions would
        get one vector.
        """
        if len(text) > MAX_CHARACTERS or _drops(text):
            return None
        try:
            # `encode` holds the interpreter lock for as long as it takes; the batch call does not.
            ids: list[int] = self._tokenizer.encode_batch_fast([text])[0].ids
        except TypeError:  # a lone surrogate: not Unicode
            return None
        if len(ids) > MAX_TOKENS or self._unknown in ids:
            return None
        return ids
