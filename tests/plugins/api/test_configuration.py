"""What the admin API says of the configuration and the plugins, and webhooks that are tried."""

from __future__ import annotations

import base64
import hmac
import json
from typing import Any

import pytest
from harness.gateway import Hire, Provider, Serve
from harness.office import CONFIGURATION, SECRET, TOKEN, VARIABLES, Office

CANARY = "sk-canary-of-the-operator-77c1d0"


@pytest.fixture(scope="module")
def receiver(hire: Hire) -> Provider:
    return hire()


@pytest.fixture(scope="module")
def office(serve: Serve) -> Office:
    more = f"""connect: {{tenants_may_reach: [127.0.0.1]}}
upstreams:
  real: {{url: "https://api.example.com/v1", credential: {CANARY}}}
  off: {{url: "https://off.example.com/v1", credential: "${{CANARY_KEY}}"}}
"""
    text = CONFIGURATION.replace("upstreams:\n", more)
    return Office(serve(text, **VARIABLES, CANARY_KEY=CANARY))


def told(office: Office) -> Any:
    asked = office.admin("GET", "/config")
    assert 200 == asked.status, asked.body
    for secret in (CANARY, SECRET, TOKEN):
        assert secret.encode() not in asked.body
    return asked.json


def test_W10_what_runs_is_told_and_how_the_file_differs_and_no_secret_is(office: Office) -> None:
    file, text = office.gateway.file, office.gateway.file.read_text()
    said = told(office)
    assert office.admin("GET", "/status").json["configuration"]["hash"] == said["hash"]
    assert str(file) == said["path"]
    assert "credential: •••" in said["text"]
    assert "credential: '${CANARY_KEY}'" in said["text"]
    assert "  one: [echo/echo]" in said["text"]
    assert (False, []) == (said["on_disk"]["differs"], said["on_disk"]["changes"])
    try:
        # Half a file is no file: the gateway does not take it up, and we hear why.
        file.write_text(text.replace("one: [echo/echo]", "one: [ecko/echo]"))
        there = told(office)["on_disk"]
        assert (True, False) == (there["differs"], there["runs"])
        [wrong] = [one for one in there["problems"] if one["severity"] == "error"]
        assert wrong["place"].startswith(f"{file}:")
        assert "did you mean 'echo'?" in wrong["message"]
        lines = [(one["kind"], one["text"].strip()) for one in there["changes"]]
        assert ("removed", "one: [echo/echo]") in lines
        assert ("added", "one: [ecko/echo]") in lines
        file.write_text(text + f"\n  broken: [{CANARY}")
        there = told(office)["on_disk"]
        assert (False, []) == (there["runs"], there["changes"])
        file.unlink()
        there = told(office)["on_disk"]
        assert (None, True, False) == (there["hash"], there["differs"], there["runs"])
    finally:
        file.write_text(text)
    assert said["hash"] == told(office)["hash"]
    assert 200 == office.admin("POST", "/reload").status


def test_a_reload_is_what_the_page_said_it_would_be(office: Office) -> None:
    file, text = office.gateway.file, office.gateway.file.read_text()
    for more in ("# a comment\n", ""):
        file.write_text(text + more)
        taken = office.admin("POST", "/reload").json["hash"]
        said = told(office)
        assert (taken, taken) == (said["hash"], said["on_disk"]["hash"])


def test_plugins_are_told_with_their_origin_and_whether_they_are_used(office: Office) -> None:
    rows = {one["name"]: one for one in office.admin("GET", "/plugins").json["rows"]}
    assert rows["usage"]["loaded"]
    assert {"kind": "filter", "name": "usage"} in rows["usage"]["brings"]
    assert not rows["rate_limit"]["loaded"]
    assert [] == rows["rate_limit"]["brings"]
    assert "passy-gateway" == rows["usage"]["distribution"]


def test_a_webhook_is_tried_signed_and_told_of_nothing_for_a_while(
    office: Office, receiver: Provider
) -> None:
    organisation = office.made("/organisations", {"name": "Acme"})["id"]
    wanted = {"organisation": organisation, "url": f"{receiver.url}/hook"}
    made = office.made("/webhooks", wanted)
    path = f"/webhooks/{made['id']}"
    receiver.forget()
    receiver.json({})
    assert {"taken": True, "status": 200, "reason": ""}.items() <= office.admin(
        "POST", f"{path}/test"
    ).json.items()
    [request] = receiver.requests
    id, at = request.headers["webhook-id"], request.headers["webhook-timestamp"]
    key = base64.b64decode(made["secret"].removeprefix("whsec_"))
    signed = b"%b.%b.%b" % (id.encode(), at.encode(), request.body)
    signature = base64.b64encode(hmac.digest(key, signed, "sha256")).decode()
    assert f"v1,{signature}" == request.headers["webhook-signature"]
    assert "webhook.test" == json.loads(request.body)["type"]
    receiver.json({}, 503)
    refused = office.admin("POST", f"{path}/test").json
    assert (False, 503) == (refused["taken"], refused["status"])
    assert [] == office.admin("PATCH", path, {"events": []}).json["events"]
    assert ["budget.alert"] == office.admin("PATCH", path, {"events": ["budget.alert"]}).json[
        "events"
    ]
    assert 422 == office.admin("PATCH", path, {"events": ["other"]}).status
    nowhere = office.made("/webhooks", wanted | {"url": "http://169.254.169.254/hook"})
    shut = office.admin("POST", f"/webhooks/{nowhere['id']}/test").json
    assert (False, 0) == (shut["taken"], shut["status"])
    assert shut["reason"]
