"""The documentation against the code: what it says, links to and shows is true."""

from __future__ import annotations

import ast
import asyncio
import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import click
import pytest
import structlog
import yaml

import passy_proxy
from passy_plugins import access_log
from passy_proxy import Settings, cli
from passy_proxy.config.build import Parts, build
from passy_proxy.config.document import parse
from passy_proxy.config.legacy import layers, to_yaml
from passy_proxy.registry import Registry
from passy_proxy.shared import Shared
from passy_proxy.site import Site
from passy_proxy.testing import KEYRING, Serving, serving

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "docs/examples"
PLUGIN = EXAMPLES / "prompt_cap/passy_prompt_cap.py"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
SHIPPED = ROOT / "config/gateway.yaml"


def tool(name: str) -> ModuleType:
    """A program of ``tools/``, as a module."""
    path = ROOT / f"tools/{name}.py"
    spec = importlib.util.spec_from_file_location(f"tools_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


reference = tool("reference")


class Sample(NamedTuple):
    """A fenced block of a page."""

    place: str
    language: str
    text: str


FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.M | re.S)


def samples(*languages: str) -> list[Any]:
    """The blocks in those languages, as parameters of a test."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for block in FENCE.finditer(text):
            line = text.count("\n", 0, block.start()) + 1
            place = f"{page.relative_to(ROOT)}:{line}"
            if block[1] in languages:
                found.append(pytest.param(Sample(place, block[1], block[2]), id=place))
    return found


def shown(page: Path) -> str:
    """A page without its blocks."""
    return FENCE.sub("", page.read_text(encoding="utf-8"))


# The generated reference


@pytest.mark.parametrize("name", reference.WRITERS)
def test_the_reference_says_what_the_code_does(name: str) -> None:
    path = reference.PAGES / name
    written = path.read_text(encoding="utf-8") if path.exists() else ""
    fresh = reference.WRITERS[name]()
    assert written == fresh, f"docs/reference/{name} is stale; run: {reference.COMMAND}"


def test_every_page_of_the_reference_is_generated() -> None:
    assert set(reference.WRITERS) == {path.name for path in reference.PAGES.iterdir()}


def test_an_undocumented_reply_is_noticed() -> None:
    [said] = reference.said_in("x.py", ast.parse("def f():\n    return Reply(418, 'teapot', '')"))
    assert ("teapot", 418) == (said.code, said.status)
    with pytest.raises(reference.Stale, match="no line for teapot"):
        reference.agree("REPLIES", {said.code}, ())


def test_a_reply_whose_code_is_not_constant_is_noticed() -> None:
    with pytest.raises(reference.Stale, match=r"x\.py:2"):
        list(reference.said_in("x.py", ast.parse("def f(code):\n    return Reply(400, code, '')")))


def test_every_part_of_every_plugin_is_in_the_reference() -> None:
    page = (reference.PAGES / "filters.md").read_text(encoding="utf-8")
    for plugin in reference.installed():
        names = [one.name for one in (*plugin.filters, *plugin.dialects, *plugin.apps)]
        for name in (*names, *plugin.stores, *plugin.upstreams):
            assert f"\n### {name}\n" in page


# Docstrings and descriptions


def has_a_docstring(name: str) -> bool:
    """A class or function has it inside; any other name, as the text that follows it."""
    home = passy_proxy._HOME.get(name, name)
    thing = getattr(passy_proxy, name)
    if isinstance(thing, type | ModuleType) or callable(getattr(thing, "__get__", None)):
        return bool((thing.__doc__ or "").strip())
    module = import_module(f"passy_proxy.{home}")
    body = ast.parse(Path(module.__file__ or "").read_text(encoding="utf-8")).body
    for statement, following in pairwise(body):
        if isinstance(statement, ast.Assign) and name in map(ast.unparse, statement.targets):
            return isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
    return bool((type(thing).__doc__ or "").strip())


@pytest.mark.parametrize("name", passy_proxy.__all__)
def test_what_authors_import_has_a_docstring(name: str) -> None:
    assert has_a_docstring(name)


def every_settings_class(root: type[Settings] = Settings) -> Iterator[type[Settings]]:
    for below in root.__subclasses__():
        yield below
        yield from every_settings_class(below)


def test_every_setting_is_described_in_a_sentence() -> None:
    known = [one for one in every_settings_class() if one.__module__.startswith("passy_")]
    assert {"GatewaySettings", "HttpUpstream", "EdgeSettings"} <= {one.__name__ for one in known}
    for one in known:
        for name, field in one.model_fields.items():
            text = field.description or ""
            assert text.endswith((".", "…")), f"{one.__module__}.{one.__name__}.{name}: {text!r}"


# Samples


def completed(text: str) -> str:
    """A sample as a whole file: as it is if it has routes of its own, else over the shipped one."""
    said = yaml.load(text, yaml.BaseLoader)
    assert isinstance(said, dict)
    if {"routes", "chains", "upstreams"} <= said.keys():
        return text
    shipped = yaml.load(SHIPPED.read_text(encoding="utf-8"), yaml.BaseLoader)
    for name in ("chains", "upstreams", "models", "stores", "prices"):
        shipped[name] |= said.pop(name, {})
    shipped["routes"] = said.pop("routes", []) + shipped["routes"]
    return yaml.safe_dump({**shipped, **said}, sort_keys=False, allow_unicode=True)


@pytest.fixture
def parts(tmp_path: Path) -> Parts:
    registry = Registry()
    spec = importlib.util.spec_from_file_location("passy_prompt_cap", PLUGIN)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["passy_prompt_cap"] = module  # Its annotations are looked up there.
    spec.loader.exec_module(module)
    registry.add("prompt_cap", module)
    return Parts(registry, Shared(), Site(tmp_path, KEYRING), structlog.get_logger())


@pytest.mark.parametrize("sample", samples("yaml"))
def test_a_yaml_sample_can_run(sample: Sample, parts: Parts, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("a secret text")
    text = sample.text.replace("/run/secrets/odd_key", str(tmp_path / "secret"))
    variables = {name: f"sk-of-{name}-123" for name in re.findall(r"\$\{(\w+_KEY)\b", text)}
    file = layers(parse(completed(text), sample.place, variables), variables)
    assert build(file, parts, "docs").routes.all


@pytest.mark.parametrize("sample", samples("sh"))
def test_a_shell_sample_can_be_parsed(sample: Sample) -> None:
    text = sample.text.replace("<this repository>", "url")
    subprocess.run(["sh", "-n"], input=text, text=True, check=True, capture_output=True)


def statements(text: str) -> list[str]:
    """The statements of a Python text, each as it is written."""
    found = []
    for node in ast.parse(text).body:
        written = ast.get_source_segment(text, node) or ""
        for decorator in reversed(getattr(node, "decorator_list", [])):
            written = f"@{ast.get_source_segment(text, decorator)}\n{written}"
        found.append(written)
    return found


@pytest.mark.parametrize(
    "sample", [one for one in samples("python") if "docs/reference" not in one.id]
)
def test_a_python_sample_is_cut_from_an_example_that_is_run(sample: Sample) -> None:
    sources = [path.read_text(encoding="utf-8") for path in EXAMPLES.rglob("*.py")]
    for statement in statements(sample.text):
        assert any(statement in source for source in sources), statement


@pytest.mark.parametrize("sample", samples("js"))
def test_a_javascript_sample_is_cut_from_an_example(sample: Sample) -> None:
    assert any(sample.text in path.read_text(encoding="utf-8") for path in EXAMPLES.glob("*.mjs"))


def test_the_imported_yaml_is_what_the_command_prints() -> None:
    page = ROOT / "docs/guides/migrating-mini-llm.md"
    blocks = FENCE.findall(page.read_text(encoding="utf-8"))
    providers, routing = [text for language, text in blocks if language == "json"]
    [written] = [text for language, text in blocks if language == "yaml"]
    keys = {"MY_HOST_API_KEY": "sk-1234567890", "OPENAI_API_KEY": "sk-1234567890"}
    file = layers(None, {"MINI_LLM_PROVIDERS": providers, "MINI_LLM_ROUTING": routing, **keys})
    printed = yaml.load(to_yaml(file.upstreams.values(), file.models.values()), yaml.BaseLoader)
    for section, entries in yaml.load(written, yaml.BaseLoader).items():
        for name, entry in entries.items():
            assert entry == printed[section][name]


# Examples

CLIENTS = {
    "openai_client.py": "hello\n",
    "openai_stream.py": "echo/echo\nhello again\n2 tokens\n",
    "anthropic_client.py": "hello\n",
}
OPEN = """
upstreams:
  echo: {kind: echo}
chains:
  default: [alias, fallback]
routes:
  - {match: POST /v1/chat/completions, chain: default}
  - {match: POST /v1/messages, dialect: anthropic, chain: default}
"""


def test_every_example_is_run() -> None:
    assert set(CLIENTS) == {path.name for path in EXAMPLES.glob("*.py")}


@pytest.mark.anyio
@pytest.mark.parametrize("name", CLIENTS)
async def test_an_example_prints_what_it_should(name: str, tmp_path: Path) -> None:
    async with serving(OPEN, tmp_path) as gateway:
        assert CLIENTS[name] == await printed(EXAMPLES / name, gateway)


async def printed(program: Path, gateway: Serving) -> str:
    """What a program writes that is pointed at the gateway."""
    url = gateway.url.removesuffix("/v1")
    here = {"OPENAI_BASE_URL": f"{url}/v1", "ANTHROPIC_BASE_URL": url}
    given = {**here, "OPENAI_API_KEY": "sk-any", "ANTHROPIC_API_KEY": "sk-any"}
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        program,
        env={"PATH": os.environ["PATH"], **given},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    said, complained = await asyncio.wait_for(child.communicate(), 120)
    assert 0 == child.returncode, complained.decode()
    return said.decode()


# Links, names, paths


def slugs(page: Path) -> set[str]:
    """The anchors of a page's headings."""
    headings = re.findall(r"^#+ (.*)$", shown(page), re.M)
    return {re.sub(r"[^\w -]", "", one.lower()).replace(" ", "-") for one in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_internal_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", shown(page)):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page.name}: {link}"
        if anchor:
            assert anchor in slugs(target), f"{page.name}: {link}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_path_of_somebody_s_machine_is_named(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert [] == re.findall(r"(?:/home|/Users|/root|/work|/tmp)/\S*", text)


def commands_named() -> list[str]:
    """``passy …`` as the pages write it, in code."""
    found = set()
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        spans = [block[2] for block in FENCE.finditer(text)]
        spans += re.findall(r"`([^`\n]+)`", shown(page))
        for span in spans:
            found |= set(re.findall(r"(?:^|[\s`])(?:\./)?(passy [a-z][^\n`|#&>\\]*)", span))
    return sorted(found)


@pytest.mark.parametrize("line", commands_named())
def test_a_command_that_is_named_exists(line: str) -> None:
    words = re.split(r"[\s,\[\]]+", line)[1:]
    command: click.Command = cli.cli
    context = click.Context(cli.cli)
    for word in words:
        if isinstance(command, click.Group):
            below = command.get_command(context, word)
            if below is None and command is not cli.cli:
                assert word in ("/", ""), line  # `create / list / show`
                continue
            assert below is not None, line
            command = below
        elif word.startswith("--") and command.name != "test":
            options = {name for option in command.params for name in option.opts}
            assert word in options | {"--help"}, line


def test_the_tests_that_prove_the_invariants_exist() -> None:
    page = (ROOT / "docs/explanation/invariants.md").read_text(encoding="utf-8")
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", page)
    assert 12 <= len(named)
    assert 10 == len(re.findall(r"^\d+\. \*\*", page, re.M))
    for path, name in named:
        tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
        functions = (ast.FunctionDef, ast.AsyncFunctionDef)
        assert name in {node.name for node in tree.body if isinstance(node, functions)}


def test_the_flags_of_the_log_are_the_ones_the_guide_names() -> None:
    guide = (ROOT / "docs/guides/running.md").read_text(encoding="utf-8")
    replied = {flag for code, flag in access_log.CODES.items() if code in reference.REPLIES}
    made = {*access_log.FLAGS.values(), *replied, "FB", "DC", "LR"}
    assert made == set(re.findall(r"`([A-Z]{2})`", guide))


def test_every_decision_is_listed_with_its_title() -> None:
    listed = (ROOT / "docs/decisions/README.md").read_text(encoding="utf-8")
    for page in sorted((ROOT / "docs/decisions").glob("0*.md")):
        number, title = page.read_text(encoding="utf-8").splitlines()[0][2:].split(" ", 1)
        assert f"| [{number}]({page.name}) | {title} |" in listed


def test_every_page_can_be_reached_from_the_index() -> None:
    index = shown(ROOT / "docs/README.md")
    linked = {(ROOT / "docs" / link).resolve() for link in re.findall(r"\]\(([^)\s]+)\)", index)}
    kinds = ("guides", "reference", "explanation")
    for page in (page for kind in kinds for page in (ROOT / "docs" / kind).glob("*.md")):
        assert page in linked


# Guarantees


PROMISE = re.compile(r"\bdef (test_([A-Z]\d+)_\w+)")


def promises_tried() -> dict[str, set[str]]:
    """Promise → the tests that have its id in their names."""
    found: dict[str, set[str]] = {}
    for file in (ROOT / "tests").rglob("test_*.py"):
        for name, _ in PROMISE.findall(file.read_text(encoding="utf-8")):
            for id in re.findall(r"_([A-Z]\d+)(?=_)", name):
                found.setdefault(id, set()).add(name)
    return found


def test_every_guarantee_has_the_tests_it_names_and_every_promise_tried_is_one() -> None:
    page = (ROOT / "docs/explanation/guarantees.md").read_text(encoding="utf-8")
    tests = promises_tried()
    written = set().union(*tests.values())
    rows = [line.split("|") for line in page.splitlines() if re.match(r"\| [A-Z]\d", line)]
    told = {id for row in rows for id in row[1].replace(" ", "").split(",")}
    assert set(tests) == told
    for row in rows:
        named = re.findall(r"`(test_\w+)`", row[3])
        assert named, row
        assert set() == set(named) - written, row
