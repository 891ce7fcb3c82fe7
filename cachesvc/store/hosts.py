"""A database URL that names several hosts, as one URL for each of them.

The driver gives all hosts one deadline together, so that one which swallows packets would keep it
from the others.
"""

from __future__ import annotations

import re
from urllib.parse import parse_qsl, urlencode

_URL = re.compile(r"([a-z]+://)((?:[^/?#]*@)?)([^/?#]*)((?:/[^?#]*)?)(?:\?([^#]*))?")


def each_host(url: str) -> list[str]:
    """`postgresql://a,b:2/db?x=y` as [`postgresql://a/db?x=y`, `postgresql://b:2/db?x=y`].

    Hosts may stand in the query, too, as sockets must: `?host=/a,/b&port=1,2`. A URL that cannot be
    read is given back as it is.
    """
    match = _URL.fullmatch(url)
    if match is None:
        return [url]
    scheme, user, netloc, path, query = match.groups()
    pairs = parse_qsl(query or "", keep_blank_values=True)
    told = dict(pairs)
    hosts = (netloc or told.get("host", "")).split(",")
    if len(hosts) == 1:
        return [url]
    ports = told.get("port", "").split(",")
    if len(ports) not in (1, len(hosts)):
        return [url]
    others = [(name, value) for name, value in pairs if name not in ("host", "port")]
    found = []
    for place, host in enumerate(hosts):
        port = ports[place if len(ports) > 1 else 0]
        where = [] if netloc else [("host", host)]
        where += [("port", port)] if port else []
        asked = urlencode(others + where)
        found.append(f"{scheme}{user}{host if netloc else ''}{path}{'?' + asked if asked else ''}")
    return found
