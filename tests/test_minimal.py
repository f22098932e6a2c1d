"""The gateway with its fewest dependencies: slower, and whole."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from passy_plugins.access_log import Line

PROGRAM = '''
import importlib.abc, sys

# What is promised, and what these bring along themselves.
FEW = {"uvicorn", "h11", "httpcore", "anyio", "pluggy", "yaml", "redis", "structlog", "pydantic"}
THEIRS = {"click", "_yaml", "pydantic_core", "annotated_types", "typing_extensions",
          "typing_inspection", "certifi", "idna", "sniffio"}
OURS = {"passy_proxy", "passy_plugins"}
KNOWN = FEW | THEIRS | OURS | set(sys.stdlib_module_names)

class Few(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top not in KNOWN and not top.startswith("_sysconfigdata"):
            raise ModuleNotFoundError(f"there is no {name} here", name=name)
        return None

sys.meta_path.insert(0, Few())
for name in ("orjson", "msgspec", "httptools", "uvloop", "rich", "cryptography", "sqlalchemy"):
    try:
        __import__(name)
    except ModuleNotFoundError:
        continue
    raise SystemExit(f"{name} could be imported")

import asyncio, json, urllib.request
from pathlib import Path
import structlog, uvicorn
from passy_proxy.app import App
from passy_proxy.gateway import Gateway
from passy_proxy.keyring import Keyring
from passy_proxy.keys import new_key
from passy_proxy.site import Site
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
import threading

class Provider(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        body = json.dumps({"asked": asked, "usage": {"prompt_tokens": 3, "completion_tokens": 4}})
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())
    def log_message(self, *_): ...

provider = ThreadingHTTPServer(("127.0.0.1", 0), Provider)
threading.Thread(target=provider.serve_forever, daemon=True).start()
KEY = new_key()
TEXT = """
stores: {all: {kind: memory, keys: [{key: %s, requests: 60/min}]}}
upstreams:
  echo: {kind: echo}
  real: {url: "http://127.0.0.1:%d/v1", credential: a-credential}
models: {fast: [real/named-there]}
chains:
  default:
    - access_log
    - usage: {ledger: all}
    - cors: {origins: ["*"]}
    - auth: {directory: all}
    - rate_limit: {counters: all}
    - byok: {vault: all}
    - alias
    - fallback
  list: [auth: {directory: all}, models]
routes: [{match: POST /v1/chat/completions}, {match: GET /v1/models, chain: list}]
""" % (KEY, provider.server_port)

def ask(port, **body):
    url = f"http://127.0.0.1:{port}/v1/" + ("chat/completions" if body else "models")
    headers = {"authorization": "Bearer " + KEY, "content-type": "application/json"}
    data = json.dumps(body).encode() if body else None
    with urllib.request.urlopen(urllib.request.Request(url, data, headers), timeout=90) as answer:
        return answer.read()

async def main():
    import logging; logging.basicConfig()
    site = Site(Path(sys.argv[1]), Keyring(["a key for tests only, of 32 bytes or more"]))
    gateway = Gateway(site, {}, structlog.get_logger(), text=TEXT)
    config = uvicorn.Config(App(gateway), "127.0.0.1", 0, lifespan="on", log_config=None)
    server = uvicorn.Server(config)
    running = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    messages = [{"role": "user", "content": "Hello"}]
    plain = json.loads(await asyncio.to_thread(ask, port, model="echo", messages=messages))
    assert plain["choices"][0]["message"]["content"], plain
    streamed = await asyncio.to_thread(ask, port, model="echo", messages=messages, stream=True)
    assert streamed.endswith(b"data: [DONE]\\n\\n"), streamed
    passed = json.loads(await asyncio.to_thread(ask, port, model="fast", messages=messages))
    assert passed["asked"] == {"model": "named-there", "messages": messages}, passed
    assert b"echo" in await asyncio.to_thread(ask, port)
    records = gateway.snapshot.stores["all"].records
    assert [(r.input, r.output) for r in records][-1] == (3, 4), records
    server.should_exit = True
    await running
    print("answered by", config.http_protocol_class.__module__)

asyncio.run(main())
'''


def test_the_gateway_answers_with_its_fewest_dependencies(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROGRAM, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert 0 == ended.returncode, ended.stderr[-3000:]
    assert "answered by uvicorn.protocols.http.h11_impl" in ended.stdout
    lines = [json.loads(line) for line in ended.stdout.splitlines() if line.startswith("{")]
    assert [(200, 3, 4)] == [(line["status"], line["input"], line["output"]) for line in lines][2:]
    assert all(list(Line.__struct_fields__[:-1]) == list(line) for line in lines)
