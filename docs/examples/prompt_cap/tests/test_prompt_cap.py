import pytest
from passy_prompt_cap import PromptCap

from passy_proxy import Outcome
from passy_proxy.testing import Run

pytestmark = pytest.mark.anyio


async def test_a_long_prompt_is_refused_and_nobody_is_asked(run: Run) -> None:
    ex = await run(PromptCap, {"max_chars": 3}, body={"messages": [{"content": "four"}]})
    assert Outcome.replied("prompt_too_long") == ex.outcome
    assert [] == ex.attempts


async def test_a_short_prompt_is_answered(run: Run) -> None:
    ex = await run(PromptCap, {"max_chars": 4}, body={"messages": [{"content": "four"}]})
    assert "ok" == ex.outcome.kind
