"""A streamed answer, with its usage at the end and the gateway's headers at the beginning."""

from openai import OpenAI

stream = OpenAI().chat.completions.with_raw_response.create(
    model="echo",
    messages=[{"role": "user", "content": "hello again"}],
    stream=True,
    stream_options={"include_usage": True},
)
print(stream.headers["x-passy-upstream"])
for chunk in stream.parse():
    for choice in chunk.choices:
        print(choice.delta.content or "", end="")
    if chunk.usage:
        print(f"\n{chunk.usage.completion_tokens} tokens")
