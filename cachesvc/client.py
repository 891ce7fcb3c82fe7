"""The service's client library, on httpx: what operators' scripts and the command line use."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote, urlencode

import httpx
import msgspec

from cachesvc import wire, wire_admin
from cachesvc.core.policy import Policy
from cachesvc.errors import ConfigError, ServiceError, ServiceUnavailable

if TYPE_CHECKING:
    from types import TracebackType

_MEDIA_TYPE = "application/msgpack"
_T = TypeVar("_T")
_Answered = TypeVar("_Answered", wire.LookupReply, wire_admin.EntryReply)


class CacheClient:
    """Calls to a cachesvc service.

        with CacheClient("http://127.0.0.1:8700") as cache:
            reply = cache.lookup(LookupRequest(policy_id="default", exact_key=key))

    Under mTLS give `ca_file`, `cert_file` and `key_file`. Every method raises ServiceError with the
    service's status, code and message, or ServiceUnavailable when there was no answer at all.
    """

    def __init__(
        self,
        url: str,
        *,
        ca_file: str = "",
        cert_file: str = "",
        key_file: str = "",
        timeout_seconds: float = 30.0,
    ) -> None:
        self._http = httpx.Client(
            base_url=url.rstrip("/"),
            verify=_context(ca_file, cert_file, key_file) if cert_file or ca_file else True,
            timeout=timeout_seconds,
            trust_env=False,
            headers={"accept": _MEDIA_TYPE},
        )

    def __enter__(self) -> CacheClient:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def lookup(self, request: wire.LookupRequest) -> wire.LookupReply:
        """Ask for an answer; a miss is a reply, not an error. `response` is its JSON text."""
        return _in_json(self._call("POST", "/cache/lookup", wire.LookupReply, request))

    def put(self, request: wire.PutRequest) -> wire.PutReply:
        """Keep an answer; `stored: false` is a reply, not an error."""
        return self._call("POST", "/cache/put", wire.PutReply, request)

    def feedback(self, request: wire.FeedbackRequest) -> wire.FeedbackReply:
        """Judge an answer; a wrong one answers nobody any more."""
        return self._call("POST", "/cache/feedback", wire.FeedbackReply, request)

    def purge(self, request: wire_admin.PurgeRequest) -> wire_admin.PurgeReply:
        """Remove what the selectors select, or count it (`dry_run`)."""
        return self._call("POST", "/cache/purge", wire_admin.PurgeReply, request)

    def policies(self) -> list[Policy]:
        """The tenant's policies, every default written out."""
        return self._call("GET", "/policies", wire.PolicyList).policies

    def policy(self, policy_id: str) -> Policy:
        """One policy."""
        return self._call("GET", f"/policies/{quote(policy_id, safe='')}", Policy)

    def save_policy(self, policy_id: str, fields: dict[str, Any]) -> Policy:
        """Replace a policy whole; fields not given take their defaults."""
        return self._call("PUT", f"/policies/{quote(policy_id, safe='')}", Policy, fields)

    def delete_policy(self, policy_id: str) -> None:
        """Remove a policy and what it holds."""
        self._send("DELETE", f"/policies/{quote(policy_id, safe='')}")

    def entries(self, query: wire_admin.EntryFilter) -> wire_admin.EntryList:
        """One page, newest first; its `next_cursor` is the next one's `cursor`, None at the end."""
        fields = msgspec.structs.asdict(query).items()
        given = {name: value for name, value in fields if value is not None}
        return self._call(
            "GET", f"/cache/entries?{urlencode(given, doseq=True)}", wire_admin.EntryList
        )

    def entry(self, entry_id: str) -> wire_admin.EntryReply:
        """One entry, whole. `response` is its JSON text."""
        path = f"/cache/entries/{quote(entry_id, safe='')}"
        return _in_json(self._call("GET", path, wire_admin.EntryReply))

    def delete_entry(self, entry_id: str) -> None:
        """Remove one entry with its aliases."""
        self._send("DELETE", f"/cache/entries/{quote(entry_id, safe='')}")

    def stats(self) -> wire_admin.StatsReply:
        """What each policy holds, and what was done with it."""
        return self._call("GET", "/stats", wire_admin.StatsReply)

    def _call(self, method: str, path: str, reply: type[_T], body: Any = None) -> _T:
        answer = self._send(method, path, body)
        try:
            return msgspec.msgpack.decode(answer.content, type=reply)
        except msgspec.MsgspecError as exc:
            raise ServiceUnavailable(f"{method} {path}: the reply is not the service's") from exc

    def _send(self, method: str, path: str, body: Any = None) -> httpx.Response:
        content = None if body is None else msgspec.msgpack.encode(body)
        headers = {} if body is None else {"content-type": _MEDIA_TYPE}
        try:
            answer = self._http.request(method, path, content=content, headers=headers)
        except httpx.TransportError as exc:
            url = self._http.base_url
            raise ServiceUnavailable(f"no answer from the service at {url}: {exc}") from exc
        if answer.status_code >= 300:
            raise _refusal(answer)
        return answer


def _in_json(reply: _Answered) -> _Answered:
    """A reply whose `response` came as a MessagePack bin that holds JSON text."""
    if not isinstance(reply.response, msgspec.UnsetType):
        text = msgspec.msgpack.decode(reply.response, type=bytes)
        reply.response = msgspec.Raw(text)
    return reply


def _refusal(answer: httpx.Response) -> ServiceError:
    kind = ServiceUnavailable if answer.status_code >= 500 else ServiceError
    try:
        error = msgspec.msgpack.decode(answer.content, type=wire.ErrorReply).error
    except (msgspec.MsgspecError, UnicodeDecodeError):
        message = f"the service answered {answer.status_code} without an error envelope"
        return kind(message, status=answer.status_code)
    return kind(error.message, status=answer.status_code, code=error.code)


def _context(ca_file: str, cert_file: str, key_file: str) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=ca_file or None)
        if cert_file:
            context.load_cert_chain(cert_file, key_file or None)
    except (OSError, ssl.SSLError) as exc:
        raise ConfigError(f"ca_file, cert_file or key_file cannot be used: {exc}") from exc
    return context
