"""Errors of the gateway in words: what one means, and what to do about it."""

from __future__ import annotations

from collections.abc import Mapping

BY_CODE: Mapping[str, str] = {
    "address_not_allowed": "This key may be used from other addresses only. Its address ranges are "
    "on its page under Keys.",
    "budget_unavailable": "There is a hard budget, and what is left of it cannot be looked up now. "
    "Try again in a moment.",
    "directory_unavailable": "The gateway cannot look up this key now: its database does not "
    "answer. Keys that it knows go on working.",
    "draining": "The gateway was being stopped and could not wait for the end of this answer. "
    "Send it again.",
    "insufficient_quota": "A budget is used up, of the key, of its owner, of a team or of the "
    "whole organisation, or the account at the provider is empty. Somebody has to raise it, or its "
    "next period has to begin.",
    "internal_error": "Something failed in the gateway itself. The log has more, under this "
    "request's id.",
    "invalid_api_key": "The key is unknown, disabled or has expired. A key of the playground lives "
    "a quarter of an hour: sending again gets another one.",
    "invalid_json": "What was sent is no JSON that can be read.",
    "invalid_value": "A parameter has a value that cannot be; the message names it.",
    "loop_detected": "A provider's address leads back to this gateway.",
    "metering_unavailable": "Usage cannot be recorded now, so nothing is served. The disk of the "
    "gateway may be full.",
    "model_not_allowed": "The key, its owner, its team or the organisation is limited to other "
    "models.",
    "model_not_found": "Nothing here answers to that name. The message tells near ones if there "
    "are any.",
    "no_healthy_target": "No provider of this model can be asked: each is without a credential or "
    "left alone for a while because it kept failing.",
    "origin_not_allowed": "The gateway does not take requests from pages of this address. Name it "
    "under origins of cors in gateway.yaml.",
    "overloaded": "The gateway has more to do than it takes at once. Try again in a moment.",
    "own_key_missing": "The organisation uses its own providers' keys only, and has none for any "
    "provider of this model. Add one under Providers.",
    "own_key_refused": "The limit of the organisation's own key at the provider is used up.",
    "own_key_unreadable": "The organisation's own key is sealed with a secret key that the gateway "
    "was not given.",
    "price_unknown": "Under a hard budget nothing is asked whose price nobody knows. See Settings, "
    "Prices.",
    "rate_limit_exceeded": "A limit on requests, tokens or requests at once is used up: of the "
    "key, of a level above it, or at the provider, if one is named below.",
    "rate_limit_unavailable": "The store that counts cannot be asked, and the gateway was told to "
    "refuse then.",
    "request_body_timeout": "The request came too slowly to be read.",
    "request_too_large": "The request is longer than the gateway takes.",
    "too_many_parts": "The upload has more parts than the gateway takes.",
    "unsupported_parameter": "The only provider of this model speaks another language, which has "
    "no such parameter.",
    "upstream_broken": "The provider broke off in the middle of its answer. What came before is "
    "above.",
    "upstream_error": "No provider of this model could answer. The attempts in the error tell what "
    "each of them said.",
    "upstream_not_allowed": "The key may not reach the provider that answers this.",
    "upstream_timeout": "The provider did not answer in time.",
    "vault_unavailable": "The gateway cannot look up the organisation's own providers now. Try "
    "again in a moment.",
}
"""By the ``code`` of an error, which is stable."""

BY_STATUS: Mapping[str, str] = {
    "400": "The provider does not take the request as it is; the message is its own.",
    "401": "The provider does not take the key that the gateway showed to it.",
    "403": "It is not allowed.",
    "404": "There is nothing of that name.",
    "413": "The request is longer than the provider takes.",
    "422": "The provider does not take the request as it is; the message is its own.",
    "429": "A limit is used up, here or at the provider. Try again later.",
    "500": "The provider failed.",
    "502": "The provider could not be reached, or what it said was no answer.",
    "503": "The provider is not ready now. Try again in a moment.",
    "504": "The provider did not answer in time.",
    "529": "The provider has too much to do. Try again in a moment.",
}
"""By status, where the code is a provider's own."""

UNREACHED = (
    "The browser could not reach the gateway, or the gateway does not let pages of this address "
    "read its answers. Is it running, and does cors in gateway.yaml name this page's origin?"
)
"""A browser does not say which of them it is."""
