"""What the portal's OpenAPI document says is what is answered: tried by schemathesis.

The examples are the same in every run. Half of the good ones go to a key that is there.
"""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import schemathesis
from harness.gateway import Serve
from harness.office import VARIABLES
from harness.portal import CONFIGURATION, Browser, found
from hypothesis import HealthCheck, settings
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import (
    ignored_auth,
    negative_data_rejection,
    positive_data_acceptance,
)

from passy_portal.app import application
from passy_portal.door import csrf_of

ELSEWHERE = [
    ignored_auth,  # Who may what is tried of every route in test_portal_access.py.
    positive_data_acceptance,  # Not every text that looks like a cursor or a model is one.
    # What it takes for wrong may be right, since all is text in a URL and of a list the last one
    # arrives, or replaced by what is sent from here.
    negative_data_rejection,
]

document = application(None, "", None).openapi()
del document["security"]  # The session is there in every request, which could not be wrong then.
api = schemathesis.openapi.from_dict(document)
api.config.phases.coverage.enabled = False
api.config.request_timeout = 120.0
turns = itertools.count()


@pytest.fixture(scope="module")
def owner(serve: Serve) -> Browser:
    browser, _ = found(serve(CONFIGURATION, **VARIABLES))
    return browser


@api.parametrize()
@settings(max_examples=12, suppress_health_check=list(HealthCheck))
def test_the_portals_api_answers_as_it_is_described(case: Any, owner: Browser) -> None:
    good = case.meta.generation.mode == GenerationMode.POSITIVE
    if good and case.path_parameters and next(turns) % 2:
        kind = "/teams" if "/team" in case.operation.path else "/keys"
        made = owner.api("POST", kind, {"name": f"there {next(turns)}"}).json
        case.path_parameters["id"] = made["id"]
    if case.operation.path.endswith("/test"):
        case.body = {"model": "one"}  # It would be a real request to somewhere.
    headers = {
        "cookie": "; ".join(f"{name}={value}" for name, value in owner.cookies.items()),
        "x-csrf-token": csrf_of(owner.cookies["passy_session"]),
        "origin": owner.gateway.url,
    }
    base = f"{owner.gateway.url}/portal"
    case.call_and_validate(base_url=base, headers=headers, excluded_checks=ELSEWHERE)
