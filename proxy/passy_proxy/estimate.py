"""Token counts where nobody told any: rough, cheap, and always marked as estimates."""

from __future__ import annotations

from passy_proxy.records import Usage

METERED = frozenset(("chat", "completions", "embeddings", "responses", "messages"))
"""Operations that cost tokens. Of others nothing is guessed: counting tokens, say, is free."""

BYTES_PER_TOKEN = 4
"""English prose and code in JSON come to about four bytes a token."""


def prompt_estimate(body: bytes) -> int:
    """Input tokens of a request, from the size of its body."""
    return prompt_tokens(len(body))


def prompt_tokens(size: int) -> int:
    """The same for a body of ``size`` bytes."""
    return size // BYTES_PER_TOKEN + 1


def estimated(body: bytes, text_bytes: int) -> Usage:
    """Usage of an answer that told none: ``text_bytes`` of generated text were seen."""
    output = (text_bytes + BYTES_PER_TOKEN - 1) // BYTES_PER_TOKEN
    return Usage(prompt_estimate(body), output, estimated=True)
