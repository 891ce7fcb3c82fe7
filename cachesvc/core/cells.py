"""Cells: everything two prompts must share before their vectors may meet, as one short name.

An HNSW index filters after it walks. With the same prompts stored for many scopes, a walk over the
prompts' vectors alone ends among the entries of others. So a direction drawn from the cell, its
code, is appended to every indexed vector: what belongs together lies together, and inside a cell
the order of similarity stays as it was, for the code's share of the cosine is everywhere the same.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from cachesvc.core.vectors import Vector

CODE_DIMENSIONS = 16
_CELL_BYTES = 16
_CELLS_REMEMBERED = _CODES_REMEMBERED = 4096


@lru_cache(_CELLS_REMEMBERED)
def cell_of(
    tenant: str, policy_id: str, scope: str, space: str, dimensions: int, partition: bytes
) -> bytes:
    """The cell's name, 16 bytes of SHA-256 over the length-prefixed parts.

    It finds; what it finds is compared part by part, so two cells of one name leak nothing.
    """
    texts = [tenant, policy_id, scope, space, str(dimensions)]
    parts = [*(text.encode() for text in texts), partition]
    named = b"".join(len(part).to_bytes(4, "big") + part for part in parts)
    return hashlib.sha256(named).digest()[:_CELL_BYTES]


@lru_cache(_CODES_REMEMBERED)
def code_of(cell: bytes) -> Vector:
    """The cell's code, a unit vector, float64, shape (16,).

    Drawn from SHAKE-256 by the Box-Muller transform, so that codes are spread evenly over the
    sphere. Stored vectors carry it: a change of it needs a migration.
    """
    drawn = np.frombuffer(hashlib.shake_256(cell).digest(8 * CODE_DIMENSIONS), dtype=">u8")
    radius, angle = ((drawn.astype(np.float64) + 0.5) / 2.0**64).reshape(2, -1)
    radius = np.sqrt(-2.0 * np.log(radius))
    code = np.concatenate([radius * np.cos(2 * np.pi * angle), radius * np.sin(2 * np.pi * angle)])
    code /= np.linalg.norm(code)
    code.flags.writeable = False  # one array for all who ask
    return code
