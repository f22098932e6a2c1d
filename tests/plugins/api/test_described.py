"""What the OpenAPI documents say is what is answered: tried by schemathesis, over real sockets.

The examples are the same in every run. Half of the good ones go to things that are there.
"""

from __future__ import annotations

import itertools
import re
from typing import Any

import pytest
import schemathesis
from harness.gateway import Serve
from harness.office import CONFIGURATION, SECRET, TOKEN, VARIABLES, Office
from hypothesis import HealthCheck, settings
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import (
    ignored_auth,
    negative_data_rejection,
    positive_data_acceptance,
)

from passy_plugins.api import admin_routes, keys_routes

FEW, MANY = 6, 60
ELSEWHERE = [
    ignored_auth,  # Who may what is tried of every route in test_who_may.py.
    positive_data_acceptance,  # Not every text that looks like a cursor, a URL or an id is one.
    # What it takes for wrong may be right, since all is text in a URL, or replaced by what is sent
    # from here. What is refused of which field stands in the tests of each route.
    negative_data_rejection,
]


@pytest.fixture(scope="module")
def office(serve: Serve) -> Office:
    return Office(serve(CONFIGURATION, **VARIABLES))


def described(document: dict[str, Any]) -> Any:
    schema = schemathesis.openapi.from_dict(document)
    schema.config.phases.coverage.enabled = False
    return schema


admin = described(admin_routes.made(None, None).openapi())
keys = described(keys_routes.made(None, None).openapi())
turns = itertools.count()


@pytest.fixture
def there(office: Office) -> dict[str, str]:
    """One of everything, made anew: part of a path → what leads to it."""
    organisation = office.made("/organisations", {"name": "Acme"})["id"]
    inside = f"/organisations/{organisation}"
    provider = {"name": "Own", "url": "https://llm.example.com/v1", "credential": "sk-of-theirs"}
    credential = {"upstream": "echo", "secret": "sk-of-theirs"}
    budget = {"kind": "organisation", "subject": organisation, "unit": "usd", "amount": 5}
    return {
        "/organisations/{id}": organisation,
        "/teams/{team_id}": office.made(f"{inside}/teams", {"name": "Team"})["id"],
        "/providers/{provider_id}": office.made(f"{inside}/providers", provider)["id"],
        "/credentials/{credential_id}": office.made(f"{inside}/credentials", credential)["id"],
        "/users/{id}": office.made("/users", {})["id"],
        "/members/{user_id}": office.made("/users", {})["id"],
        "/keys/{id}": office.made("/keys", {})["id"],
        "/budgets/{id}": office.made("/budgets", budget)["id"],
        "/webhooks/{id}": office.made("/webhooks", {"url": "https://example.com/hook"})["id"],
        "/routing/{alias}": "one",
        "/api/{key_id}": office.keys("POST", "/api", {}).json["id"],
    }


def sent_home(case: Any, there: dict[str, str]) -> None:
    """Every other request that is as described goes to what is there."""
    good = case.meta.generation.mode == GenerationMode.POSITIVE
    if good and case.path_parameters and next(turns) % 2:
        for place, id in there.items():
            if place in case.operation.path:
                [name] = re.findall(r"\{(\w+)\}", place)
                case.path_parameters[name] = id


def tried_admin(case: Any, office: Office, there: dict[str, str]) -> None:
    sent_home(case, there)
    if case.operation.path.endswith("/test"):
        case.body = {"model": "one"}  # It would be a real request to somewhere.
        case.path_parameters |= {"provider_id": "prov_0", "credential_id": "cred_0"}
    headers = {"authorization": f"Bearer {TOKEN}"}
    base = f"{office.gateway.admin_url}/admin/api"
    case.call_and_validate(base_url=base, headers=headers, excluded_checks=ELSEWHERE)


def tried_keys(case: Any, office: Office, there: dict[str, str]) -> None:
    sent_home(case, there)
    headers = {"x-emby-secure-key": SECRET, "x-authenticated-user": "user-1"}
    base = f"{office.gateway.url}/keys"
    case.call_and_validate(base_url=base, headers=headers, excluded_checks=ELSEWHERE)


few = settings(max_examples=FEW, suppress_health_check=list(HealthCheck))
many = settings(max_examples=MANY, suppress_health_check=list(HealthCheck))


@admin.parametrize()
@few
def test_the_admin_api_answers_as_it_is_described(
    case: Any, office: Office, there: dict[str, str]
) -> None:
    tried_admin(case, office, there)


@keys.parametrize()
@few
def test_the_keys_api_answers_as_it_is_described(
    case: Any, office: Office, there: dict[str, str]
) -> None:
    tried_keys(case, office, there)


@pytest.mark.large
@admin.parametrize()
@many
def test_the_admin_api_answers_many_as_it_is_described(
    case: Any, office: Office, there: dict[str, str]
) -> None:
    tried_admin(case, office, there)


@pytest.mark.large
@keys.parametrize()
@many
def test_the_keys_api_answers_many_as_it_is_described(
    case: Any, office: Office, there: dict[str, str]
) -> None:
    tried_keys(case, office, there)


@pytest.mark.parametrize("schema", [admin, keys], ids=["admin", "keys"])
def test_every_operation_has_its_words(schema: Any) -> None:
    for result in schema.get_all_operations():
        raw = result.ok().definition.raw
        assert raw["description"].endswith("."), raw["operationId"]
        assert "401" in raw["responses"], raw["operationId"]
