"""The OpenAI SDK against the gateway: OPENAI_BASE_URL and OPENAI_API_KEY say where and who."""

from openai import OpenAI

answer = OpenAI().chat.completions.create(
    model="echo", messages=[{"role": "user", "content": "hello"}]
)
print(answer.choices[0].message.content)
