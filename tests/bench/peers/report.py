"""The table of all systems in Markdown, and the targets beside what was measured."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from tests.bench.peers.measure import CLIENTS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tests.bench.peers.measure import Plan, Result

_OURS, _OUR_EXACT = "cachesvc, proxy", "cachesvc, proxy, exact"
_SEMANTIC, _EXACT = "LiteLLM proxy, qdrant-semantic", "LiteLLM proxy, exact"
_PGVECTOR, _FAISS = "GPTCache, pgvector", "GPTCache, SQLite"


def show(results: list[Result], plan: Plan, *, seconds: float, load: float) -> None:
    print(
        f"\nStored: {plan.main_prompts:,} prompts in one scope, and the same "
        f"{plan.prompts_per_scope} in each of {plan.scopes}. Hits are paraphrases never asked "
        f"before (exact: the same words). Load average {load:.1f} before, "
        f"{os.getloadavg()[0]:.1f} after; {seconds:.0f} s; {os.cpu_count()} cores for system, "
        "load, stub and upstream.\n"
    )
    heads = ["system", "told apart by", "stored", "hit p50 / p99 ms"]
    heads += [f"hits/s at {clients}" for clients in CLIENTS]
    heads += ["miss p50 / p99 ms", "stores/s at 8", "embeddings per miss", "RSS / PSS MB"]
    heads += ["found in scopes", "found in main", "wrong", "failed"]
    print(_row(heads))
    print(_row(["---"] * len(heads)))
    for result in results:
        print(_row(_cells(result)))
    for result in results:
        if result.failure:
            print(f"\n{result.name}: e.g. {result.failure!r}")
    print()
    for line in verdicts(results):
        print(line)


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cells(result: Result) -> list[str]:
    per_miss = result.embeddings_per_miss
    return [
        result.name,
        result.told_apart,
        f"{result.stored:,}",
        f"{result.hit_p50:.1f} / {result.hit_p99:.1f}",
        *(f"{result.hits[clients]:,.0f}" for clients in CLIENTS),
        f"{result.miss_p50:.1f} / {result.miss_p99:.1f}",
        f"{result.stored_per_second:,.0f}",
        "given" if per_miss is None else f"{per_miss:.2f}",
        f"{result.rss:.0f} / {result.pss:.0f}",
        f"{result.found:.1%}",
        f"{result.found_main:.1%}",
        str(result.wrong),
        str(result.failed),
    ]


def verdicts(results: list[Result]) -> list[str]:
    """One line per target and per column, PASS or BEHIND."""
    lines = []
    ours = _find(results, _OURS)
    if ours is not None:
        per_miss = ours.embeddings_per_miss or 0.0
        lines.append(_line("embeddings per miss", per_miss, "<=", 1.0, f"{per_miss:.2f}"))
        if (litellm := _find(results, _SEMANTIC)) is not None:
            lines += _against_litellm(ours, litellm)
        for name in (_PGVECTOR, _FAISS, _SEMANTIC):
            if (peer := _find(results, name)) is not None:
                lines += _every_column(ours, peer)
    exact, their_exact = _find(results, _OUR_EXACT), _find(results, _EXACT)
    if exact is not None and their_exact is not None:
        lines += _every_column(exact, their_exact)
    return lines


def _find(results: list[Result], name: str) -> Result | None:
    found = [one for one in results if one.name == name]
    found += [one for one in results if one.name.startswith(name)]
    return found[0] if found else None


def _against_litellm(ours: Result, litellm: Result) -> list[str]:
    best, theirs = max(ours.hits.values()), max(litellm.hits.values())
    share = ours.hit_p50 / litellm.hit_p50
    detail = f"{best:,.0f}/s against {theirs:,.0f}/s"
    return [
        _line("hits/s, best, of LiteLLM's semantic", best / theirs, ">=", 15.0, detail),
        _line("hit p50, of LiteLLM's semantic", share, "<=", 0.25, f"{ours.hit_p50:.1f} ms"),
    ]


def _every_column(ours: Result, peer: Result) -> list[str]:
    """Each column as how many times better we are: 1 and more is ahead or even."""
    columns = {
        "hit p50": peer.hit_p50 / ours.hit_p50,
        "hit p99": peer.hit_p99 / ours.hit_p99,
        **{f"hits/s at {n}": ours.hits[n] / peer.hits[n] for n in CLIENTS},
        "miss p50": peer.miss_p50 / ours.miss_p50,
        "miss p99": peer.miss_p99 / ours.miss_p99,
        "stores/s": ours.stored_per_second / peer.stored_per_second,
        "RSS": peer.rss / ours.rss,
        "PSS": peer.pss / ours.pss,
        "found in scopes": ours.found / peer.found if peer.found else float("inf"),
        "found in main": ours.found_main / peer.found_main if peer.found_main else float("inf"),
    }
    if ours.embeddings_per_miss:
        columns["embeddings per miss"] = (peer.embeddings_per_miss or 0) / ours.embeddings_per_miss
    title = f"{ours.name} against {peer.name}"
    return [_line(f"{title}: {name}", ratio, ">=", 1.0) for name, ratio in columns.items()]


def _line(name: str, value: float, sign: str, bound: float, detail: str = "") -> str:
    # To two decimals, as it is shown: what is even is not behind.
    met = round(value, 2) <= bound if sign == "<=" else round(value, 2) >= bound
    more = f" ({detail})" if detail else ""
    return f"{'PASS  ' if met else 'BEHIND'} {name}: {value:.2f}{more}, wanted {sign} {bound:g}"
