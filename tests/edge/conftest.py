from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.edge.pki import CA
from tests.edge.running import LOOPS

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(params=list(LOOPS))
def loop(request: pytest.FixtureRequest) -> str:
    """Each promise is kept on asyncio and on uvloop."""
    return str(request.param)


@pytest.fixture
def ca(tmp_path: Path) -> CA:
    return CA(tmp_path)
