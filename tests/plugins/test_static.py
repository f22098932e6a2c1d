"""Fixed answers."""

from __future__ import annotations

import pytest

from passy_plugins.static import Static
from passy_proxy.config.problem import ConfigInvalid
from passy_proxy.testing import Recorded, run_filter

pytestmark = pytest.mark.anyio


async def test_it_answers_as_it_was_told() -> None:
    settings = {"status": 418, "body": "short and stout", "content_type": "text/plain"}
    ex = await run_filter(Static, settings)
    assert isinstance(ex.downstream, Recorded)
    assert (418, b"short and stout") == (ex.status, ex.downstream.answer)
    assert b"text/plain" == ex.downstream.header(b"content-type")
    assert b"15" == ex.downstream.header(b"content-length")
    assert ex.id.encode() == ex.downstream.header(b"x-request-id")
    assert [] == ex.attempts


async def test_it_is_an_empty_200_when_it_was_told_nothing() -> None:
    ex = await run_filter(Static)
    assert isinstance(ex.downstream, Recorded)
    assert (200, b"") == (ex.status, ex.downstream.answer)


@pytest.mark.parametrize("settings", [{"status": 99}, {"status": 600}, {"content_type": "a\r\nb"}])
async def test_what_could_not_be_sent_is_refused_when_it_is_read(
    settings: dict[str, object],
) -> None:
    with pytest.raises(ConfigInvalid):
        await run_filter(Static, settings)
