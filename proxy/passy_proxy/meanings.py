"""What the codes mean that clients, logs and books are told, for people. Markdown."""

from __future__ import annotations

REPLIES = {
    "admin_disabled": "The routing table is asked for, and no admin token is set.",
    "invalid_admin_token": "The routing table is asked for without the admin token.",
    "routing": "Not an error: the routing table.",
    "ambiguous_header": (
        "Two header names differ only in `_` and `-`, one of framing is spelled with `_`, or a "
        "header that shows a key, or `Content-Type`, is repeated."
    ),
    "directory_unavailable": "`auth` does not know the key yet and its store cannot be asked.",
    "encoding_not_supported": "The body has a `Content-Encoding`: it is never unpacked here.",
    "draining": (
        "The gateway was stopped, and its patience ended before the answer did. A stream ends with "
        "this event."
    ),
    "expectation_not_supported": "An `Expect` header other than `100-continue`.",
    "headers_too_large": "The request head exceeds `edge.max_header_bytes`.",
    "internal_error": (
        "A fault of the gateway's own, or of a filter that is `closed` "
        "(see [every filter](filters.md#every-filter)); 503 when that took too long. The message "
        "holds the request's id, the log the rest."
    ),
    "loop_detected": "The request has passed `connect.hops` gateways already.",
    "invalid_api_key": (
        "No key, an unknown one, a disabled one or an expired one: the message says which."
    ),
    "invalid_framing": (
        "The length of the body is told twice, wrongly, or in a way that is not supported."
    ),
    "invalid_host": (
        "`Host` is missing, repeated, no host name, or another than the one in the URL."
    ),
    "invalid_json": "The body is not a JSON object that can be read.",
    "invalid_multipart": "The `Content-Type` of a multipart upload has not one proper boundary.",
    "invalid_path": (
        "The path hides a separator, a dot segment, an empty segment or a control byte."
    ),
    "invalid_request": "The bytes are not an HTTP/1.1 request, or a line of its head is malformed.",
    "invalid_value": "A member of the body has the wrong type; `param` names it.",
    "key_in_url": "A key is in the query; with no key in a header it is `invalid_api_key`.",
    "method_not_allowed": "The path exists with other methods; `allow` lists them.",
    "method_not_supported": "A method that no route can have, such as TRACE or CONNECT.",
    "invalid_metrics_token": "The metrics are asked for without their token.",
    "metrics": "Not an error: the metrics.",
    "metrics_disabled": "The metrics are asked for, have no token and are not public.",
    "budget_unavailable": "A hard budget cannot be checked: its store cannot be asked.",
    "insufficient_quota": "What is left of a hard budget does not cover the request.",
    "price_unknown": "Under a hard budget: what the model or the path costs is not known.",
    "address_not_allowed": "The key may be used from other addresses only.",
    "model_not_allowed": "The key, or a level above it, is limited to other models or upstreams.",
    "upstream_not_allowed": "The key may not reach the provider that answers this path.",
    "model_not_found": "Nothing answers to this model; the message names the nearest ones.",
    "models": "Not an error: the list of models, or one of them.",
    "no_healthy_target": "The providers of the model, or of the path, have no credential here.",
    "origin_not_allowed": "A browser asks from an origin that `cors` does not name.",
    "preflight": "Not an error: the answer to a browser's question whether it may ask.",
    "rate_limit_exceeded": "A limit on requests, tokens or concurrency is used up.",
    "metering_unavailable": (
        "The disk for usage records is full, and `when_full` of `usage` is `refuse`."
    ),
    "rate_limit_unavailable": (
        "The store that counts cannot be asked, and `when_unavailable` is `refuse`."
    ),
    "request_body_timeout": "The body came more slowly than `edge.body_rate`.",
    "request_timeout": "The head took longer than `edge.header_timeout`.",
    "request_too_large": "The body exceeds the route's `body_limit`, or the edge's own 512 MiB.",
    "overloaded": "More than the process takes at once; see `overload:`. `retry-after` says when.",
    "static": "Not an error: the answer of a `static` filter.",
    "too_many_connections": "The address has `edge.max_connections_per_ip` connections already.",
    "too_many_parts": "A multipart upload has more parts than the route's `multipart_parts`.",
    "too_many_headers": "More header lines than `edge.max_headers`.",
    "unknown_url": "No route matches; the message names a likely one.",
    "unsupported_parameter": (
        "The only target speaks another dialect, and the request has no counterpart there."
    ),
    "upgrade_not_supported": "A protocol upgrade, such as WebSocket.",
    "upstream_broken": (
        "The provider broke off after its answer had begun: the stream ends with this event."
    ),
    "upstream_error": "Every attempt failed, or an organisation's own provider cannot be used.",
    "upstream_timeout": "The only attempt was not answered in time.",
    "url_too_long": "The request target exceeds `edge.max_url_bytes`.",
    "own_key_missing": (
        "The organisation uses its own keys only, and has none for any upstream that could answer."
    ),
    "own_key_refused": (
        "The limit of the organisation's own keys is used up, and only the operator's would be "
        "left."
    ),
    "own_key_unreadable": (
        "The organisation's own key cannot be opened; the message names the secret key it needs."
    ),
    "vault_unavailable": "`byok` cannot read the organisation's providers now.",
    "version_not_supported": "An HTTP version other than 1.0 and 1.1.",
}
"""Code → when a client gets it."""

OUTCOMES = {
    "ok": "Answered.",
    "upstream_status": "Answered with the provider's own refusal, in its own words.",
    "stream_error": "Answered, with an error event of the provider's inside its stream.",
    "upstream_broken": "The provider broke off after the answer had begun.",
    "shutdown": "The gateway was stopped while the answer ran.",
    "client_gone": "The client hung up; the access log shows status 499.",
    "write_timeout": "The client took too little of its answer for too long and was cut; also 499.",
    "internal_error": "A fault of the gateway's own.",
    "filter_failed": "A fault of a filter's that is `closed`.",
}
"""What the log and the books call the end of an exchange, beside the codes of replies."""
