"""Which test holds which of the catalogue's 95 cases: `python -m tests.behaviours.table` writes it.

A test says which cases it holds with `@pytest.mark.case(number)`. What is decided otherwise, or is
not for a cache beside a gateway, says so here.
"""

from __future__ import annotations

import ast
from pathlib import Path

FOLDER = Path(__file__).parent
README = FOLDER / "README.md"
CASES = {
    1: "a stored answer is found by its vector, with its tokens and similarity",
    2: "a miss is a 200 with the best similarity",
    3: "an unknown policy is a 404 with a code; the request is served all the same",
    4: "a put replies with an id and an expiry",
    5: "slashes behind a base URL are trimmed",
    6: "the second, closed sketch of the wire: 204 for a miss",
    7: "two identical requests: the second is a hit",
    8: "another model is another request",
    9: "tools, response_format, seed and the rest are in the key",
    10: "the order of keys makes no other request, at any depth",
    11: "the order of a list, as of tools, does",
    12: "temperature counts to a thousandth",
    13: "another image is another request",
    14: "so is another tool call, or another call's id, in the history",
    15: "a text never equals the writing of another form",
    16: "an explicit null is stable, and not absent",
    17: "stream false, null, 0 and absent are one",
    18: "a model that the operator forces replaces the caller's",
    19: "what the operator forces is in the key",
    20: "values with separators forge no other scope",
    21: "policies, generations and keys never share",
    22: "a paraphrase is a semantic hit, and exact from then on",
    23: "a miss costs one embedding call",
    24: "an unrelated question misses",
    25: "the threshold decides, both ways",
    26: "the nearest of several answers",
    27: "other sampling parameters are never compared",
    28: "an equal vector under another model is never an answer",
    29: "the same question about another document in the system prompt misses",
    30: "all outside the window must be equal",
    31: "the window counts messages back that are not ignored",
    32: "text blocks are joined, images are not text",
    33: "text never answers text with an image",
    34: "odd shapes do no harm",
    35: "tools and names: exact tier alone",
    36: "a turn cannot be forged inside a message",
    37: "white space is not embedded",
    38: "Responses: no semantic tier",
    39: "other dimensions and zero vectors never match",
    40: "another model with equal vectors starts afresh",
    41: "other dimensions start afresh, and are never compared",
    42: "another partition is invisible",
    43: "a namespace of one's own",
    44: "each key its own answers; shared on demand",
    45: "tenants by header, in both tiers",
    46: "two routes: apart, or shared by choice",
    47: "two environments on one store do not meet",
    48: "balanced instances have caches of their own",
    49: "a fallback's answer is not kept under the first one's key",
    50: "consumers are apart",
    51: "a disabled policy: no cache, no header",
    52: "a policy for one model",
    53: "a configured backend that is away: no silent local cache",
    54: "no-store and no-cache",
    55: "bypass by header rules",
    56: "the skip header",
    57: "after a purge only what is new is found",
    58: "a late writer from before a purge is dropped",
    59: "the policy's lifetime",
    60: "reads do not prolong it",
    61: "an alias is capped by its entry",
    62: "the oldest go when there are too many",
    63: "what has expired never matches",
    64: "only a 200 is kept",
    65: "only what is under the cap is kept",
    66: "null content stays null",
    67: "an output guardrail stops a hit",
    68: "a hit tells the tokens it saved",
    69: "the store is away: answered as a miss",
    70: "the embedder fails: the exact tier goes on",
    71: "a malformed vector is no vector",
    72: "no embedder at all: exact only",
    73: "replicas see each other's entries and purges",
    74: "a whole stream is replayed as one",
    75: "a cut stream is never kept",
    76: "what makes a stream whole",
    77: "bytes that are not what they are called",
    78: "stream and JSON never answer each other",
    79: "over the cap, although its end was seen",
    80: "a 400 in a stream's dress",
    81: "a failed first try spoils no second",
    82: "a stream that nobody asked for",
    83: "binary frames",
    84: "a paraphrase of a streamed question",
    85: "streams are never cached",
    86: "headers can be switched off",
    87: "wrong settings are refused",
    88: "semantic settings without the tier do nothing",
    89: "each outcome is counted once",
    90: "the tier is always a label",
    91: "unknown policy fields; defaults for old policies",
    92: "Azure gets its own key header only",
    93: "wrong settings stop the start; unreadable requests pass",
    94: "what is not AI traffic",
    95: "Anthropic Messages hit, too",
}
OTHERWISE = {
    6: "Decided otherwise: its author withdrew the sketch, whose fields name no policy. It is"
    " refused with a 400, and a miss is always a 200, since 204 breaks AISIX's clients.",
    38: "Decided otherwise: stateless Responses have a semantic tier; stateful ones are bypassed.",
    48: "Decided otherwise: a proxy has one upstream; each upstream has answers of its own.",
    49: "Not applicable: the proxy has no fallback; its upstream's name is in the key (case 47).",
    52: "Decided otherwise for unknown prefixes (52b): they are refused with a 422.",
    53: "Decided otherwise: under a policy whose store is away it is a miss (case 69); before"
    " any policy was read there is no header.",
    67: "Guardrails are the gateway's: a hit passes through it as any answer does. What a filter"
    " stopped is not kept.",
    82: "Decided otherwise: the key carries what was asked, and what came is what is replayed.",
    85: "Decided otherwise: streams are cached, unless the policy says `streaming = false`.",
    87: 'Decided otherwise for `["semantic"]` alone (87a), which is allowed.',
    91: "Decided otherwise: an unknown field is refused, so that a misspelt one is not ignored.",
    94: "Decided otherwise for `fail_mode` (94b): what is not ours is relayed, never refused.",
}


def held() -> dict[int, list[str]]:
    """The tests that hold each case, as `file::name`."""
    found: dict[int, list[str]] = {}
    for path in sorted(FOLDER.glob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.AsyncFunctionDef | ast.FunctionDef):
                for number in _cases(node):
                    found.setdefault(number, []).append(f"{path.name}::{node.name}")
    return found


def _cases(function: ast.AsyncFunctionDef | ast.FunctionDef) -> list[int]:
    marks = [mark for mark in function.decorator_list if isinstance(mark, ast.Call)]
    return [
        int(ast.literal_eval(mark.args[0]))
        for mark in marks
        if isinstance(mark.func, ast.Attribute) and mark.func.attr == "case"
    ]


def page() -> str:
    """The table as Markdown."""
    tests = held()
    lines = [
        "# The behaviours of three gateways' caches, and the tests that hold them",
        "",
        "The caches of AISIX, APISIX and Higress behave in 95 ways that their tests and issues",
        "tell. Each is held here by a test from outside, on a real Postgres, service and proxy, or",
        "the table says what we do instead. `python -m tests.behaviours.table` writes this file.",
        "",
        "| case | behaviour | held by |",
        "|---|---|---|",
    ]
    for number, told in CASES.items():
        cells = [f"[{_words(name)}]({name.partition('::')[0]})" for name in tests.get(number, [])]
        reason = OTHERWISE.get(number, "")
        lines.append(f"| {number} | {told} | {' '.join([reason, '; '.join(cells)]).strip()} |")
    return "\n".join(lines) + "\n"


def _words(name: str) -> str:
    return name.partition("::")[2].removeprefix("test_").replace("_", " ")


if __name__ == "__main__":
    README.write_text(page(), "utf-8")
