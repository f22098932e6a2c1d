"""S10: no text of a client or a tenant is evaluated, imported, run, or made the name of a file."""

from __future__ import annotations

import ast
import json
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from harness.catalogue import entries, raw
from harness.client import send
from harness.people import People
from harness.upstream import Hit, RawUpstream, Step

if TYPE_CHECKING:
    from harness.gateway import Gateway, Serve

ROOT = Path(__file__).parents[2]
SOURCES = sorted(
    file
    for folder in ("proxy/passy_proxy", "plugins/passy_plugins", "portal_service/passy_portal")
    for file in (ROOT / folder).rglob("*.py")
)

# What the code is made of.

CALLS = {
    "eval", "exec", "compile", "__import__", "execfile", "input", "breakpoint",
    "os.system", "os.popen", "os.startfile", "pty.spawn", "commands.getoutput",
    "pickle.load", "pickle.loads", "pickle.Unpickler", "cPickle.loads", "dill.loads",
    "marshal.load", "marshal.loads", "shelve.open", "jsonpickle.decode",
    "yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.full_load",
    "ast.literal_eval", "code.interact", "importlib.import_module", "import_module",
    "runpy.run_path",
    "runpy.run_module", "imp.load_source", "tempfile.mktemp", "jinja2.Template",
    "string.Template",
}  # fmt: skip
MODULES = {"pickle", "cPickle", "dill", "shelve", "marshal", "jinja2", "mako", "imp", "pty", "code"}
ALLOWED = {
    # What is imported by name is named by the installation's own table of plugins.
    ("config/document.py", "yaml.load"): "with a loader that makes no objects",
    ("cli/__init__.py", "importlib.import_module"): "commands, which stand in a table",
    ("cli/bench.py", "importlib.import_module"): "one module, by its name",
    ("__init__.py", "import_module"): "what the package offers, which stands in a table",
}
MAY_IMPORT = {("view.py", "jinja2"): "pages of ours, from files"}
RUNS = {"subprocess.run", "subprocess.Popen", "subprocess.call", "subprocess.check_output",
        "subprocess.check_call", "os.execv", "os.execvp", "os.execve", "os.execl", "os.fork",
        "asyncio.create_subprocess_exec", "asyncio.create_subprocess_shell",
        "os.posix_spawn"}  # fmt: skip
MAY_RUN = {
    "cli/": "commands of an operator",
    "price_book.py": "the child process that reads the price list, which is fixed",
    "stores/sql/ready.py": "the same program, which migrates the tables",
    "supervisor.py": "worker processes of the same program",
}
QUERIES = {"execute", "executemany", "executescript", "text", "exec_driver_sql"}
MAY_FORMAT_SQL = {
    "stores/sql/": "names of tables and columns, from the schema",
}


def dotted(node: ast.expr) -> str:
    """``a.b.c`` of a call's function."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return "?"


@cache
def nodes(file: Path) -> list[ast.AST]:
    return list(ast.walk(ast.parse(file.read_text())))


def calls(file: Path) -> Iterator[tuple[str, ast.Call]]:
    for node in nodes(file):
        if isinstance(node, ast.Call):
            yield dotted(node.func), node


def name_of(file: Path) -> str:
    return str(file).partition("passy_")[2].partition("/")[2]


def test_S10_nothing_in_the_code_evaluates_a_text() -> None:
    assert len(SOURCES) > 100
    found = [
        f"{file}:{node.lineno}: {called}"
        for file in SOURCES
        for called, node in calls(file)
        if called in CALLS and (name_of(file), called) not in ALLOWED
    ]
    assert [] == found


def test_S10_nothing_in_the_code_imports_what_evaluates() -> None:
    found = []
    for file in SOURCES:
        for node in nodes(file):
            names = [one.name for one in node.names] if isinstance(node, ast.Import) else []
            names += (
                [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            )
            found += [
                f"{file}:{name}"
                for name in names
                if name.partition(".")[0] in MODULES and (name_of(file), name) not in MAY_IMPORT
            ]
    assert [] == found


def test_S10_no_text_becomes_a_template() -> None:
    made = ("from_string", "Template", "compile_expression", "DictLoader", "FunctionLoader")
    found = [
        f"{file}:{node.lineno}"
        for file in SOURCES
        for called, node in calls(file)
        if called.rpartition(".")[2] in made
    ]
    assert [] == found


def test_S10_processes_are_started_without_a_shell_and_in_few_places() -> None:
    for file in SOURCES:
        for called, node in calls(file):
            shell = next((one.value for one in node.keywords if one.arg == "shell"), None)
            assert shell is None or (isinstance(shell, ast.Constant) and shell.value is False)
            if called in RUNS:
                where = name_of(file)
                assert any(where.startswith(place) for place in MAY_RUN), f"{file}:{node.lineno}"
                assert "shell" not in called


def test_S10_no_query_is_made_of_text_by_formatting() -> None:
    for file in SOURCES:
        for called, node in calls(file):
            if called.rpartition(".")[2] in QUERIES and node.args:
                query = node.args[0]
                made = isinstance(query, ast.JoinedStr | ast.BinOp) or (
                    isinstance(query, ast.Call) and dotted(query.func).endswith(".format")
                )
                allowed = any(name_of(file).startswith(place) for place in MAY_FORMAT_SQL)
                assert not made or allowed, f"{file}:{node.lineno}"


def test_S10_formatted_queries_hold_names_of_the_schema_only() -> None:
    """Where SQL is put together, what goes into it is no value: it stands in upper or lower case
    names of this package, never in something that came in as an argument named like a value."""
    values = {"key", "digest", "model", "organisation", "value", "url", "id", "row", "email"}
    for file in SOURCES:
        if "stores/sql" not in str(file) or "migrations" in str(file):
            continue
        for called, node in calls(file):
            if called.rpartition(".")[2] in QUERIES and node.args:
                inside = [
                    one for one in ast.walk(node.args[0]) if isinstance(one, ast.FormattedValue)
                ]
                names = {
                    one.id for each in inside for one in ast.walk(each) if isinstance(one, ast.Name)
                }
                assert names.isdisjoint(values), f"{file}:{node.lineno}: {names}"


# What the process does.

GATEWAY = """
log: {level: debug, format: json}
connect: {tenants_may_reach: [127.0.0.1]}
stores: {books: {kind: sql, url: "sqlite:///.passy/passy.db"}}
upstreams:
  openai: {dialect: openai, url: "%(url)s/v1", credential: sk-of-the-operator}
  anthropic: {dialect: anthropic, url: "%(url)s", credential: sk-of-the-operator}
models: {m: [openai/x], claude: [anthropic/x], "*": ["openai/*"]}
chains:
  default:
    - access_log
    - usage: {ledger: books}
    - auth: {directory: books}
    - byok: {vault: books}
    - alias
    - fallback
  through:
    - access_log
    - auth: {directory: books}
    - byok: {vault: books}
    - direct: {upstream: openai}
routes:
  - {match: POST /v1/chat/completions}
  - {match: POST /v1/messages, dialect: anthropic}
  - {match: "* /v1/*", chain: through, body: stream, root: /v1}
"""
SCRATCH = "PASSY-EVALUATED"
TOUCH = f"touch {SCRATCH}"
HOSTILE = [
    f"__import__('os').system('{TOUCH}')",
    f"{{{{ cycler.__init__.__globals__.os.popen('{TOUCH}') }}}}",
    f"${{jndi:ldap://127.0.0.1/{SCRATCH}}}",
    f"; {TOUCH} #",
    f"$({TOUCH})",
    f"`{TOUCH}`",
    f"| {TOUCH}",
    f"!!python/object/apply:os.system ['{TOUCH}']",
    f"cos\nsystem\n(S'{TOUCH}'\ntR.",
    "{0.__class__.__mro__[1].__subclasses__}",
    "%(url)s %n%s%x",
    "'; DROP TABLE usage; --",
    "' UNION SELECT digest FROM keys --",
    "../../../../etc/passwd",
    "/etc/passwd",
    "file:///etc/passwd",
    "..\\..\\windows",
    "con",
    "\u0000",
    "a" * 5000,
    "import os",
    "passy_plugins.echo:hookimpl",
    "lambda: 1",
    "os.system",
    "{config}",
    "${OPENAI_API_KEY}",
    "<%= 1 %>",
]


def answer(hit: Hit) -> list[Step]:
    """The hostile text comes back from the upstream as well, wherever a text may stand."""
    at = int((hit.header("user-agent") or "0").partition("-")[0])
    text = HOSTILE[at]
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": text}
    said = {"model": text, "choices": [choice],
            "usage": {"prompt_tokens": text, "completion_tokens": 1}, text: text}  # fmt: skip
    body = json.dumps(said)
    if (hit.header("user-agent") or "").endswith("stream"):
        body = f"event: {text}\ndata: {body}\n\ndata: [DONE]\n\n"
        kind = "text/event-stream"
    elif (hit.header("user-agent") or "").endswith("error"):
        body = json.dumps({"error": {"message": text, "type": text, "code": text}})
        head = (
            f"HTTP/1.1 500 x\r\ncontent-type: {text[:100]}\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        return [{"send": head + body}]
    else:
        kind = "application/json"
    head = f"HTTP/1.1 200 x\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\n\r\n"
    return [{"send": head + body}]


@pytest.fixture(scope="module")
def upstream() -> Iterator[RawUpstream]:
    with RawUpstream(script=answer) as upstream:
        yield upstream


@pytest.fixture(scope="module")
def audit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("audit") / "events"


@pytest.fixture(scope="module")
def gateway(upstream: RawUpstream, serve: Serve, audit: Path) -> Gateway:
    watched = serve(GATEWAY % {"url": upstream.url}, start=False)
    folder = str(ROOT / "tests/harness/watched")
    paths = [folder, watched.variables.get("PYTHONPATH", "")]
    watched.variables["PYTHONPATH"] = ":".join(filter(None, paths))
    watched.variables["PASSY_AUDIT"] = str(audit)
    return watched


def requests_of(text: str, number: int) -> Iterator[tuple[str, bytes, dict[str, str]]]:
    quoted = json.dumps(text)
    for kind in ("plain", "stream", "error"):
        agent = {"user-agent": f"{number}-{kind}"}
        stream = b',"stream":true' if kind == "stream" else b""
        for model in ('"m"', '"own"', quoted):
            body = f'{{"model":{model},"messages":[{quoted}],"user":{quoted},{quoted}:{quoted}'
            yield "/v1/chat/completions", body.encode() + stream + b"}", agent
        yield "/v1/messages", f'{{"model":"claude","system":{quoted}}}'.encode(), agent
        named = f'content-disposition: form-data; name="file"; filename="{text}"'
        part = f"--b\r\n{named}\r\n\r\n{text}\r\n"
        form = {**agent, "content-type": "multipart/form-data; boundary=b"}
        yield "/v1/files", (part + "--b--\r\n").encode(), form


def test_S10_hostile_texts_cause_nothing_but_traffic(
    gateway: Gateway, upstream: RawUpstream, audit: Path
) -> None:
    gateway.start()
    try:
        people = People(gateway)
        acme = people.organisation("acme")
        people.provider(acme, "own", f"{upstream.url}/v1", "a-key-that-acme-brought")
        key = people.key(acme)
        for path, body, more in requests_of(
            "warm", 0
        ):  # What is imported on first use is imported.
            ask(gateway, key, path, body, more)
        before = audit.stat().st_size
        for number, text in enumerate(HOSTILE):
            for path, body, more in requests_of(text, number):
                ask(gateway, key, path, body, more)
            for name in ("x-any", "authorization", "x-api-key", "cookie", "accept", "openai-beta"):
                plain = "".join(char for char in text if " " <= char <= "~")[:2000]
                ask(gateway, key, "/v1/files/f", b"", {"user-agent": "0-plain", name: plain})
            gateway.ask(f"/v1/{''.join(filter(str.isalnum, text))[:500]}%2e%2e", x_api_key=key)
        for case in entries("auth-inputs"):
            lines = b"\r\n".join(raw(line) for line in case["lines"])
            send(gateway.url, b"POST /v1/files HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n"
                 + lines + b"\r\nconnection: close\r\n\r\n", patience=10)  # fmt: skip
        events = audit.read_bytes()[before:].decode().splitlines()
    finally:
        code = gateway.stop()
    assert 0 == code
    assert [] == [event for event in events if not harmless(event, gateway)]
    assert [] == [file for file in gateway.folder.rglob("*") if SCRATCH in file.name]
    assert "Traceback" not in gateway.complaints(), gateway.complaints()


def ask(gateway: Gateway, key: str, path: str, body: bytes, more: dict[str, str]) -> None:
    from http.client import HTTPConnection

    connection = HTTPConnection(gateway.url.partition("//")[2], timeout=90)
    connection.request("POST", path, body, {"x-api-key": key, **more})
    assert connection.getresponse().read() is not None
    connection.close()


def harmless(event: str, gateway: Gateway) -> bool:
    """Whether an event is the gateway's own: reading its configuration, its books, its code."""
    kind, _, arguments = event.partition(" ")
    own = (str(gateway.folder), str(gateway.file), ".passy")
    vitals = ("/proc/self/", "/sys/fs/cgroup/")
    code = (sys.prefix, sys.base_prefix, str(ROOT), "<frozen")
    if kind in ("open", "os.rename", "os.remove", "os.mkdir", "os.listdir"):
        paths = re.findall(r"'(/[^']*|\.[^']*)'", arguments)
        return bool(paths) and all(path.startswith((*own, *code, *vitals)) for path in paths)
    if kind == "os.truncate":  # By descriptor: where a loop that is late writes down its stack.
        return re.fullmatch(r"\[\d+, 0\]", arguments) is not None
    if kind in ("exec", "import", "marshal.loads"):  # of a module that is needed for the first time
        return kind != "exec" or any(place in arguments for place in code)
    return False


def test_S10_the_watch_sees_what_it_watches_for(audit: Path, tmp_path: Path) -> None:
    import os
    import subprocess

    program = (
        "import os, pickle, subprocess\n"
        "eval('1'); exec('2'); compile('3', 'x', 'exec'); os.system('true')\n"
        "subprocess.run(['true']); open('/dev/null'); pickle.loads(b'cos\\nsystem\\n.')\n"
    )
    file = tmp_path / "events"
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(ROOT / "tests/harness/watched"),
        "PASSY_AUDIT": str(file),
    }
    subprocess.run([sys.executable, "-c", program], env=environment, check=True, timeout=30)
    seen = {line.split(" ")[0] for line in file.read_text().splitlines()}
    assert {"exec", "compile", "os.system", "subprocess.Popen", "open", "pickle.find_class"} <= seen
