"""How bodies are stored: as they came, or as one zstd frame (RFC 8878) where that is much smaller.

A streamed answer repeats the same event around every few letters and shrinks to a twentieth and
less; a whole one to a half. Level 1 takes microseconds for that. What is read is what was put, byte
for byte.
"""

from __future__ import annotations

import asyncio

import zstandard

from cachesvc.errors import StoreRefused

_FEWEST_BYTES = 1024  # shorter ones stay in the row as they are, beside a vector of that size
_LEVEL = 1
_LARGE_BYTES = 256 * 1024  # about a millisecond: longer ones must not hold up the loop
_DAMAGED = "the stored bytes of an answer are damaged"


async def packed(body: bytes) -> tuple[bytes, int | None]:
    """What is stored for `body`, and its length where that is a frame; else None."""
    if len(body) < _FEWEST_BYTES:
        return body, None
    if len(body) > _LARGE_BYTES:
        frame = await asyncio.to_thread(zstandard.compress, body, _LEVEL)
    else:
        frame = zstandard.compress(body, _LEVEL)
    # An eighth is the least that is worth a reading's work.
    return (frame, len(body)) if len(frame) <= len(body) * 7 // 8 else (body, None)


def unpacked(stored: bytes, inflated_bytes: int | None) -> bytes:
    """The body; never more than `inflated_bytes`. Raises StoreRefused for anything but all of it.

    The library takes the frame's own word for how much to reserve, so that is compared first.
    """
    if inflated_bytes is None:
        return stored
    try:
        if zstandard.frame_content_size(stored) != inflated_bytes:
            raise StoreRefused(_DAMAGED)
        return zstandard.ZstdDecompressor().decompress(stored, allow_extra_data=False)
    except zstandard.ZstdError as exc:
        raise StoreRefused(_DAMAGED) from exc
