"""S14: what reads the bytes of strangers is fuzzed, with a second opinion where there is one.

The same checks three ways: hypothesis in every run, what was once found in every run, and atheris
for as many seconds as `passy test --fuzz` says.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
from harness.fuzzing import CRASHES, TARGETS, crashes, seeds, target
from hypothesis import example, given, settings
from hypothesis import strategies as st

ROOT = Path(__file__).parents[2]
CORPUS = ROOT / ".passy/fuzz"
SECONDS = int(os.environ.get("PASSY_FUZZ", 0))

TOKENS = {
    "edge": (
        *(b"GET ", b"POST ", b"/", b"/v1/x", b"http://a/", b"?a=b", b"%2e", b" HTTP/1.1\r\n"),
        *(b" HTTP/1.0\r\n", b"host: a\r\n", b"Host:a\r\n", b"content-length: 2\r\n", b"\r\n"),
        *(b"transfer-encoding: chunked\r\n", b"connection: close\r\n", b"{}", b"2\r\n{}\r\n"),
        *(b"0\r\n\r\n", b"2;a=b\r\nab\r\n", b"\n", b"\r", b" ", b"\t", b"x-y: z\r\n", b":", b"\0"),
        *(b"expect: 100-continue\r\n", b"content-length: 0\r\n", b"0\r\nx: y\r\n\r\n", b"\xff"),
        *(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\n{}",),
        *(b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n",),
        *(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n",),
    ),
    "sse": (
        *(b"data: ", b"data:", b"event: ", b"\n\n", b"\r\n\r\n", b"\r", b"\n", b"\r\n", b"[DONE]"),
        *(b": ping\n\n", b'{"choices":[{"index":0,"delta":{"content":"a"}}]}', b"\xef\xbb\xbf"),
        *(b'{"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2}}', b"\xff", b"\0"),
        *(b'{"error":{"message":"x"}}', b'{"type":"message_stop"}', b'"usage"', b"message_stop"),
        *(b'{"type":"response.completed","response":{"usage":{"input_tokens":1}}}', b"{", b"}"),
        *(
            b'{"type":"message_start","message":{"usage":{"input_tokens":3}}}',
            b"response.completed",
        ),
    ),
    "splice": (
        *(b"{", b"}", b"[", b"]", b",", b":", b" ", b'"model":', b'"model"', b'"m"', b'"a":1'),
        *(b'"stream":true', b'"stream_options":{"include_usage":false}', b'"n":2', b'"', b"\\"),
        *(b'"max_tokens":5', b'"mod\\u0065l":"x"', b'{"model":"m"}', b"null", b"true", b"-0"),
        *(b"1e5", b"1.0", b"\xff", b'"\\ud83d"', b'"\\ud83d\\ude00"', b"\n", b'{"model":"m",'),
    ),
    "config": (
        *(b"upstreams", b"models", b"chains", b"routes", b"stores", b": ", b"\n", b"\n  ", b"- "),
        *(b"{", b"}", b"[", b"]", b", ", b"echo", b"kind: echo", b"default", b"alias", b"fallback"),
        *(b"auth", b"match: POST /v1/chat/completions", b"&a ", b"*a", b"<<: ", b"!!python ", b"'"),
        *(
            b'"',
            b"? ",
            b"|\n ",
            b"${KEY}",
            b"${NO:-x}",
            b"on_error: open",
            b"1e9",
            b"5s",
            b"#",
            b"\t",
        ),
        *(
            b"prices",
            b"edge",
            b"listen: ':80'",
            b"url: http://a",
            b"off",
            b"null",
            b"~",
            b"\0",
            b"%",
        ),
    ),
}
TOKENS["journal"] = (*(bytes([at >> 8, at & 255]) for at in range(0, 700, 37)), b"\0\0", b"\1\n")
EXAMPLES = {"config": 60}


def inputs(name: str) -> st.SearchStrategy[bytes]:
    """Noise, words of the language in any order, and seeds with a piece replaced."""
    words = st.sampled_from(TOKENS.get(name, (b"a",)))
    text = st.lists(words | st.binary(max_size=3), max_size=24).map(b"".join)
    steered = st.binary(min_size=2, max_size=2).flatmap(lambda two: text.map(lambda t: two + t))
    spoilt = st.builds(
        lambda seed, at, size, new: seed[: at % len(seed)] + new + seed[at % len(seed) + size :],
        st.sampled_from([seed for seed in target(name).SEEDS if seed]),
        st.integers(0, 1 << 12),
        st.integers(0, 12),
        words | st.binary(max_size=3),
    )
    return st.binary(max_size=64) | steered | text | spoilt


@pytest.mark.parametrize("name", TARGETS)
def test_S14_hostile_bytes_show_no_fault(name: str) -> None:
    check = target(name).check
    known = seeds(name)
    own = len(target(name).SEEDS)
    # All cases of the catalogues are for the fuzzer: here a few, as they have their own tests.
    short = [seed for seed in known[own:] if len(seed) <= 2_000]
    for seed in known if SECONDS else known[:own] + short[:: len(short) // 50 + 1]:
        check(seed)
    for path in crashes(name):
        check(path.read_bytes())
    more = SECONDS * 20
    most = settings(max_examples=max(EXAMPLES.get(name, 300), more), deadline=None, database=None)
    most(given(inputs(name))(example(b"")(check)))()


@pytest.mark.fuzz
@pytest.mark.parametrize("name", TARGETS)
def test_S14_a_fuzzer_finds_no_fault(name: str) -> None:
    if importlib.util.find_spec("atheris") is None:
        pytest.skip(
            "ATHERIS IS NOT INSTALLED, NOTHING WAS FUZZED: it has wheels for x86-64 Linux only"
        )
    corpus = CORPUS / name  # Kept: the next run goes on where this one ended.
    corpus.mkdir(parents=True, exist_ok=True)
    for seed in seeds(name) + [path.read_bytes() for path in crashes(name)]:
        (corpus / hashlib.sha256(seed).hexdigest()[:16]).write_bytes(seed)
    found = CRASHES / name
    found.mkdir(parents=True, exist_ok=True)
    options = [f"-max_total_time={SECONDS or 10}", "-max_len=65536", "-timeout=20"]
    command = [sys.executable, ROOT / "tests/fuzz/run.py", name, corpus, *options]
    ran = subprocess.run(
        [*command, f"-artifact_prefix={found}/"], capture_output=True, text=True, errors="replace"
    )
    end = "\n".join((ran.stdout + ran.stderr).splitlines()[-60:])
    assert 0 == ran.returncode, f"kept in {found}; mend it, and keep the file\n{end}"
