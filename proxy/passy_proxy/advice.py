"""What to look at when a trial did not go well: beside what its steps say themselves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from passy_proxy.trial import Trial


def advice(trial: Trial) -> Sequence[str]:
    """Empty where all is well."""
    authentication, listing, call = trial.steps
    said: list[str] = []
    if authentication.verdict == "refused":
        said += _OF_KEYS[authentication.status if authentication.status == 403 else 401]
    elif authentication.verdict == "failed":
        said += _OF_PLACES
    elif 404 in (authentication.status, listing.status):
        said += _OF_PATHS
    if "limited" in (authentication.verdict, call.verdict):
        said += _OF_CREDIT
    if call.verdict == "failed" and authentication.verdict not in ("refused", "failed"):
        said.append("Name a model that this key may use: the call may have asked for another one.")
    if "unclear" in (authentication.verdict, call.verdict):
        said.append("The provider may be in trouble: look at its status page, then test again.")
    if call.verdict == "skipped" and authentication.verdict == "ok":
        said.append("Name a model: the provider lists none, so that no call could be tried.")
    return said


_OF_KEYS = {
    401: (
        "Is the key whole, without a space or a line break?",
        "Was it revoked, or has it expired? The provider's console says so.",
        "Is it of this provider, and of the right region, project or organisation there?",
    ),
    403: (
        "May the key use this model and this path? Many are limited to some.",
        "Does the provider let in only certain addresses? It sees that of the gateway.",
    ),
}
_OF_PLACES = (
    "Is the address right? OpenAI's dialect mostly ends in /v1, Anthropic's has no /v1.",
    "Can the gateway reach it? Requests come from the gateway, not from your browser.",
    "Addresses on a private network have to be allowed by the operator: tenants_may_reach.",
)
_OF_PATHS = (
    "There is nothing at the address that was asked: does it end in /v1, or must it not?",
    "Is the dialect the one that is spoken there?",
)
_OF_CREDIT = (
    "The key is good. Its account has no credit, or its limit is used up: see the provider's "
    "billing page.",
)
