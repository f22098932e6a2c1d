"""The Anthropic SDK against the gateway; its base URL has no /v1."""

from anthropic import Anthropic

answer = Anthropic().messages.create(
    model="echo", max_tokens=64, messages=[{"role": "user", "content": "hello"}]
)
print(answer.content[0].text)
