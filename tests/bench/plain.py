"""The handlers that the ratios stand beside, as services are written: Starlette on uvicorn.

`python -m tests.bench.plain PORT DATABASE_URL` serves until it is told to stop, with uvicorn's own
server and protocol on uvloop and httptools: POST /constant reads its body and replies with a
constant; POST /one asks the database `select 1` through the service's own pool first.
"""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING

import uvicorn
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Route

from cachesvc.store.pool import connect
from tests.bench.floors import POOL_SIZE, REPLY

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.requests import Request

_MEDIA_TYPE = "application/msgpack"


@contextlib.asynccontextmanager
async def _database(app: Starlette) -> AsyncIterator[None]:
    app.state.database = await connect(sys.argv[2], size=POOL_SIZE, statement_timeout_ms=5000)
    yield
    await app.state.database.close()


async def _constant(request: Request) -> Response:
    await request.body()
    return Response(REPLY, media_type=_MEDIA_TYPE)


async def _one(request: Request) -> Response:
    await request.body()
    await request.app.state.database.rows("select 1")
    return Response(REPLY, media_type=_MEDIA_TYPE)


def _livez(_: Request) -> Response:
    return Response()


def main() -> None:
    routes = [
        Route(path, reply, methods=["POST"])
        for path, reply in (("/constant", _constant), ("/one", _one))
    ]
    app = Starlette(routes=[*routes, Route("/livez", _livez)], lifespan=_database)
    uvicorn.run(
        app,
        port=int(sys.argv[1]),
        loop="uvloop",
        http="httptools",
        access_log=False,
        log_level="warning",
    )


if __name__ == "__main__":
    main()
