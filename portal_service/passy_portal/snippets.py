"""What to paste where, with the address of this gateway filled in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

HIDDEN = "sk-passy-…"


class Snippet(NamedTuple):
    name: str
    text: str


def snippets(origin: str, key: str = HIDDEN, model: str = "echo") -> Sequence[Snippet]:
    """``origin``: ``https://llm.example.com``."""
    base = f"{origin}/v1"
    return (
        Snippet(
            "curl",
            f"curl {base}/chat/completions \\\n"
            f"  -H 'Authorization: Bearer {key}' \\\n"
            "  -H 'Content-Type: application/json' \\\n"
            f"""  -d '{{"model":"{model}","messages":[{{"role":"user","content":"hello"}}]}}'""",
        ),
        Snippet(
            "Python",
            "from openai import OpenAI\n\n"
            f'client = OpenAI(base_url="{base}", api_key="{key}")\n'
            "answer = client.chat.completions.create(\n"
            f'    model="{model}", messages=[{{"role": "user", "content": "hello"}}]\n'
            ")\nprint(answer.choices[0].message.content)",
        ),
        Snippet(
            "Node",
            'import OpenAI from "openai";\n\n'
            f'const client = new OpenAI({{ baseURL: "{base}", apiKey: "{key}" }});\n'
            "const answer = await client.chat.completions.create({\n"
            f'  model: "{model}",\n'
            '  messages: [{ role: "user", content: "hello" }],\n'
            "});\nconsole.log(answer.choices[0].message.content);",
        ),
        Snippet(
            "Claude Code",
            f"export ANTHROPIC_BASE_URL={origin}\n"
            f"export ANTHROPIC_AUTH_TOKEN={key}\n"
            f"export ANTHROPIC_MODEL={model} ANTHROPIC_SMALL_FAST_MODEL={model}\n"
            "claude",
        ),
        Snippet(
            "Codex",
            "# ~/.codex/config.toml\n"
            f'model = "{model}"\n'
            'model_provider = "passy"\n\n'
            "[model_providers.passy]\n"
            'name = "passy"\n'
            f'base_url = "{base}"\n'
            'env_key = "PASSY_KEY"\n'
            'wire_api = "responses"\n\n'
            "# in the shell\n"
            f"export PASSY_KEY={key}",
        ),
        Snippet(
            "opencode",
            "// opencode.json\n"
            "{\n"
            '  "$schema": "https://opencode.ai/config.json",\n'
            '  "provider": {\n'
            '    "passy": {\n'
            '      "npm": "@ai-sdk/openai-compatible",\n'
            '      "name": "passy",\n'
            f'      "options": {{ "baseURL": "{base}", "apiKey": "{key}" }},\n'
            f'      "models": {{ "{model}": {{}} }}\n'
            "    }\n  }\n}",
        ),
    )
