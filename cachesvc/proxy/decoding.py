"""Undoing content codings (RFC 9110, 8.4), with output bounded: a bomb costs the bound, no more."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

import brotli
import zstandard

from cachesvc.errors import CacheError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_GZIP, _ZLIB, _RAW_DEFLATE = 31, 15, -15  # zlib's `wbits`
# RFC 9659: what a zstd content coding may ask of its reader.
_ZSTD_WINDOW = 8 * 1024 * 1024
# A zstd block of 4 bytes can stand for 128 KiB, and its reader gives all that a piece yields.
_ZSTD_PIECE = 32
# Members or frames after each other; real answers have one.
_MOST_FRAMES = 16


class Undecodable(CacheError):
    """The coding is unknown, one of several, or the bytes are not in it."""


class CutOff(CacheError):
    """The coded bytes end too early."""


class Oversize(CacheError):
    """The decoded bytes are over the bound."""


def decoded(codings: Sequence[str], body: bytes, most: int) -> bytes:
    """The body without its content coding, at most `most` bytes.

    `codings` are the values of Content-Encoding. Raises Undecodable, CutOff and Oversize.
    """
    names = [name.strip().lower() for value in codings for name in value.split(",")]
    names = [name for name in names if name not in ("", "identity")]
    if not names:
        return _bounded(body, most)
    decoder = _DECODERS.get(names[0])
    if len(names) > 1 or decoder is None:
        raise Undecodable
    return decoder(body, most)


def _bounded(body: bytes, most: int) -> bytes:
    if len(body) > most:
        raise Oversize
    return body


def _gzip(body: bytes, most: int) -> bytes:
    whole = b""
    for _ in range(_MOST_FRAMES):  # a gzip stream may have several members
        part, body = _inflate(body, most - len(whole), _GZIP)
        whole += part
        if not body:
            return whole
    raise Undecodable


def _deflate(body: bytes, most: int) -> bytes:
    # Some servers send raw deflate under this name, against RFC 9110, 8.4.1.2.
    is_zlib = len(body) > 1 and body[0] & 0x0F == 8 and (body[0] << 8 | body[1]) % 31 == 0
    whole, rest = _inflate(body, most, _ZLIB if is_zlib else _RAW_DEFLATE)
    if rest:
        raise Undecodable
    return whole


def _inflate(body: bytes, most: int, wbits: int) -> tuple[bytes, bytes]:
    reader = zlib.decompressobj(wbits)
    try:
        part = reader.decompress(body, most + 1)
    except zlib.error as exc:
        raise Undecodable from exc
    _bounded(part, most)
    if not reader.eof:
        raise CutOff
    return part, reader.unused_data


def _brotli(body: bytes, most: int) -> bytes:
    reader = brotli.Decompressor()
    whole = b""
    try:
        whole += reader.process(body, output_buffer_limit=most + 1)
        while not reader.can_accept_more_data() and len(whole) <= most:
            whole += reader.process(b"", output_buffer_limit=most + 1 - len(whole))
    except brotli.error as exc:
        raise Undecodable from exc
    _bounded(whole, most)
    if not reader.is_finished():
        raise CutOff
    return bytes(whole)


def _zstd(body: bytes, most: int) -> bytes:
    parts: list[bytes] = []
    size = 0
    for _ in range(_MOST_FRAMES):
        reader = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW).decompressobj()
        for at in range(0, len(body), _ZSTD_PIECE):
            try:
                parts.append(reader.decompress(body[at : at + _ZSTD_PIECE]))
            except zstandard.ZstdError as exc:
                raise Undecodable from exc
            size += len(parts[-1])
            if size > most:
                raise Oversize
            if reader.eof:
                body = reader.unused_data + body[at + _ZSTD_PIECE :]
                break
        if not reader.eof:
            raise CutOff
        if not body:
            return b"".join(parts)
    raise Undecodable


_DECODERS: dict[str, Callable[[bytes, int], bytes]] = {
    "gzip": _gzip,
    "x-gzip": _gzip,
    "deflate": _deflate,
    "br": _brotli,
    "zstd": _zstd,
}
