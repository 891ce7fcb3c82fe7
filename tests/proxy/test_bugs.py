"""A bug of ours, wherever it is, costs the caller nothing and is told loudly."""

from __future__ import annotations

import logging
from typing import NoReturn

import pytest

from cachesvc.proxy import capture, headers, judge, lookup, puts
from tests.proxy.rig import always, completion, rig
from tests.servers import answer

SECRET_TEXT = "never in a log"


def _boom(*args: object, **kwargs: object) -> NoReturn:
    raise KeyError(SECRET_TEXT)


@pytest.mark.parametrize(
    ("owner", "name", "status"),
    [
        pytest.param(judge, "exact_key", None, id="judging"),
        pytest.param(lookup, "_exact_request", "MISS", id="looking up"),
        pytest.param(headers.CacheHeaders, "of_pass", None, id="headers of a miss"),
        pytest.param(capture.Capture, "feed", "MISS", id="copying"),
        pytest.param(capture.Capture, "seal", "MISS", id="looking at the copy"),
        pytest.param(puts.Puts, "_request", "MISS", id="putting"),
    ],
)
async def test_the_request_goes_on_and_the_bug_is_counted(
    owner: object,
    name: str,
    status: str | None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    body = completion()
    async with rig(always(answer(body, framing="chunked"))) as proxy:
        monkeypatch.setattr(owner, name, _boom)
        with caplog.at_level(logging.ERROR):
            for _ in range(3):
                got = await proxy.chat(SECRET_TEXT)
                assert (got.status, got.body, got.clean) == (200, body, True)
                assert got["x-ai-cache-status"] == status
            while not (await proxy.metrics())['cachesvc_fail_open_total{cause="bug"}'] >= 3:
                pass
        assert proxy.service.puts == []
        told = [record for record in caplog.records if "a bug in cachesvc" in record.message]
        assert len(told) == 1
        assert "KeyError" in caplog.text
        assert SECRET_TEXT not in caplog.text


async def test_a_bug_in_looking_up_is_told_as_a_bug_and_not_as_a_miss_of_the_cache(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lookup, "_exact_request", _boom)
    async with rig() as proxy:
        got = await proxy.chat()
        assert got["cache-status"] == "cachesvc; fwd=bypass; fwd-status=200; detail=bug"
        counted = await proxy.metrics()
        sample = 'cachesvc_lookups_total{outcome="miss",policy="p",reason="bug",tier=""}'
        assert counted[sample] == 1


async def test_a_bug_in_replaying_goes_to_the_upstream(monkeypatch: pytest.MonkeyPatch) -> None:
    async with rig() as proxy:
        first = await proxy.chat()
        await proxy.kept(1)
        monkeypatch.setattr(headers.CacheHeaders, "of_hit", _boom)
        second = await proxy.chat()
        assert (second.status, second["x-ai-cache-status"]) == (200, "MISS")
        assert second.body != first.body
