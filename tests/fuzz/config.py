"""The loader of the configuration: whatever stands in the file, it is a snapshot or a list of
problems, each with its place; never another exception."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

import structlog

from passy_proxy.config.build import Parts, build
from passy_proxy.config.document import parse
from passy_proxy.config.legacy import layers
from passy_proxy.config.problem import ConfigInvalid
from passy_proxy.keyring import Keyring
from passy_proxy.registry import Registry
from passy_proxy.shared import Shared
from passy_proxy.site import Site

WORDS = ("config", "yaml", "ssrf", "url")
SHIPPED = Path(__file__).parents[2] / "config/gateway.yaml"
SEEDS = (
    SHIPPED.read_bytes(),
    b"{upstreams: {echo: {kind: echo}}, chains: {default: [alias, fallback]},"
    b" routes: [{match: POST /v1/chat/completions}]}",
    b"stores: {s: {kind: memory}}\nchains:\n  default:\n    - auth: {directory: s}\n    - alias\n"
    b"    - fallback: {attempts: 3, on_error: closed}\nroutes:\n  - {match: '* /v1/*',"
    b" chain: default, override: {auth: off}}\n",
    b"upstreams: {a: {url: 'https://a.example/v1', credential: '${KEY:-}', timeouts: {total: 5s},"
    b" headers: {x: y}}}\nmodels: {m: {targets: [a/b, {upstream: a, weight: 2}]}}\n",
    b"prices: {a/*: {input: 1, output: 2, per: 1M}}\nedge: {max_url_bytes: 8KiB}\nlisten: ':80'\n",
    b"a: &x [1, *x]\n<<: {b: c}\n? {d: e}\n: !!python/object:os.system f\n",
)

_folder = tempfile.TemporaryDirectory()
_registry = Registry()
_site = Site(Path(_folder.name), Keyring(["a key for tests only, of 32 bytes or more"]))


def check(data: bytes) -> None:
    """``data`` is the file."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return
    shared, problems = Shared(), []
    try:
        document = parse(text, "fuzz.yaml", {"KEY": "sk-fuzz-key-of-some-length"})
        snapshot = build(
            layers(document, {}), Parts(_registry, shared, _site, structlog.get_logger()), "fuzz"
        )
    except ConfigInvalid as invalid:
        problems = invalid.problems
    else:
        shared.forget(snapshot.held)
        return
    assert problems, "refused, and nothing is wrong"
    lines = len(re.findall("\r\n|[\r\n\x85\u2028\u2029]", text)) + 2
    for problem in problems:
        assert 0 <= problem.line <= lines, problem
        assert problem.message, problem
        problem.pretty()
    assert 0 == len(shared), "a configuration that is refused holds something"
