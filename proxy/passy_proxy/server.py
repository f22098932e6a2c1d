"""Runs the gateway under uvicorn with our own edge: one process, or several on one address."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Coroutine, Mapping
from multiprocessing import parent_process
from typing import TYPE_CHECKING, Any, cast

import uvicorn
from uvicorn.config import STARTUP_FAILURE
from uvicorn.lifespan.on import LifespanOn
from uvicorn.supervisors.multiprocess import Multiprocess

from passy_proxy.app import App, Receive, Send
from passy_proxy.cli import Exit
from passy_proxy.config.document import environment
from passy_proxy.config.model import LogSettings
from passy_proxy.config.problem import ConfigInvalid, redacted
from passy_proxy.edge import Edge, EdgeLimits
from passy_proxy.edge import edge as edge_of
from passy_proxy.framing import HeadLimits
from passy_proxy.gateway import LIVE, READY, Gateway
from passy_proxy.keyring import Keyring, KeyringError
from passy_proxy.log import configure, flush
from passy_proxy.place import Place
from passy_proxy.site import Site
from passy_proxy.stores import StoreUnavailable

if TYPE_CHECKING:
    from types import FrameType

    from passy_proxy.config.model import Address, EdgeSettings, GatewayFile


def gateway_at(place: Place, log: LogSettings, variables: Mapping[str, str]) -> Gateway:
    """The gateway of a place, not started. Raises KeyringError."""
    keyring = Keyring.load(place.folder(), variables.get("PASSY_SECRET_KEYS"))
    level = variables.get("PASSY_LOG_LEVEL") or log.level
    format = variables.get("PASSY_LOG_FORMAT") or log.format
    logger = configure(level, format)
    return Gateway(
        Site(place.data, keyring, logger), variables, logger, path=place.path, text=place.text
    )


class Served(App):
    """The app of a process of ours; remembers why it could not start."""

    failure: Exception | None = None

    async def lifespan(self, receive: Receive, send: Send) -> None:
        try:
            await super().lifespan(receive, send)
        except Exception as exc:
            self.failure = exc
            raise
        finally:  # Not all processes get to run what is to be run at exit.
            flush()


class Lifespan(LifespanOn):
    """Says in one line why a start failed, and ends with a code of ours instead of uvicorn's."""

    async def startup(self) -> None:
        uvicorns = logging.getLogger("uvicorn.error")
        uvicorns.disabled = True
        try:
            await super().startup()
        finally:
            uvicorns.disabled = False
        if self.should_exit:
            failure = getattr(self.config.loaded_app, "failure", None)
            flush()
            sys.stderr.write(f"passy: {redacted(str(failure) or repr(failure))}\n")
            code = code_of(failure)
            ours = parent_process() is None or code is not Exit.failed
            raise SystemExit(code if ours else STARTUP_FAILURE)


class Serving(uvicorn.Config):
    """uvicorn's settings, with our way to start."""

    def load(self) -> None:
        super().load()
        self.lifespan_class = Lifespan
        if isinstance(self.loaded_app, App) and isinstance(self.http, Edge):
            self.loaded_app.gateway.gate = self.http


def code_of(failure: BaseException | None) -> Exit:
    """How a process ends that could not start."""
    causes = (failure, failure.__cause__ if failure else None)
    if any(isinstance(cause, ConfigInvalid | KeyringError) for cause in causes):
        return Exit.invalid_config
    missing = any(isinstance(cause, StoreUnavailable) for cause in causes)
    return Exit.unavailable if missing else Exit.failed


class Server(uvicorn.Server):
    """uvicorn's server; starts ``ready`` beside itself once it listens."""

    def __init__(
        self,
        config: uvicorn.Config,
        gateway: Gateway,
        ready: Callable[[Server], Coroutine[Any, Any, None]] | None = None,
    ) -> None:
        super().__init__(config)
        self._gateway = gateway
        self._when_ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self._when_ready is not None and not self.should_exit:
            self._gateway.tasks.start(self._when_ready(self))

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._gateway.draining = True
        if isinstance(self.config.http, Edge):
            self.config.http.draining = True
        if sig == signal.SIGTERM:
            # uvicorn would raise it once more after the end: who asks for an end in order gets a 0.
            self.should_exit = True
        else:
            super().handle_exit(sig, frame)

    @property
    def port(self) -> int:
        """The port it listens on, once started."""
        port: int = self.servers[0].sockets[0].getsockname()[1]
        return port


def server_config(app: Any, address: Address, file: GatewayFile, **more: Any) -> uvicorn.Config:
    """uvicorn's settings, with our own edge as its protocol class."""
    edge = file.settings.edge
    largest = max((int(route.settings.body_limit) for route in file.routes), default=0)
    return Serving(
        app,
        host=address.host,
        port=address.port,
        # Called like the classes uvicorn knows, which is all it asks of one.
        http=cast(Any, protocol(edge, largest)),
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=int(edge.keep_alive),
        timeout_graceful_shutdown=int(edge.shutdown_timeout),
        backlog=2048,
        **more,
    )


def protocol(edge: EdgeSettings, largest_body: int = 0) -> Edge:
    """What uvicorn takes as ``http``. ``largest_body`` in bytes; each route has its own limit
    below."""
    head = HeadLimits(int(edge.max_header_bytes), edge.max_headers, int(edge.max_url_bytes))
    return edge_of(
        EdgeLimits(
            head=head,
            body_bytes=max(largest_body, EdgeLimits().body_bytes),
            header_timeout=edge.header_timeout,
            body_rate=edge.body_rate,
            body_grace=edge.body_grace,
            keep_alive=edge.keep_alive,
            write_timeout=edge.write_timeout,
            write_rate=edge.write_rate,
            connections_per_ip=edge.max_connections_per_ip,
        ),
        spared=frozenset((*LIVE, READY)),
    )


HOPELESS = {STARTUP_FAILURE: Exit.failed} | {
    code.value: code for code in (Exit.unavailable, Exit.invalid_config)
}
"""How a worker ends that could not start. One that dies later may well end with 1."""


class Workers(Multiprocess):
    """uvicorn's supervisor: restarts a worker that died, passes SIGHUP on instead of restarting."""

    code = Exit.ok
    """How the whole ends."""

    def handle_int(self) -> None:
        self.code = Exit.interrupted
        super().handle_int()

    def keep_subprocess_alive(self) -> None:
        """A worker that could not start would fail the same way again: that is the end of all."""
        for process in self.processes:
            if process.exitcode in HOPELESS:
                self.code = HOPELESS[process.exitcode]
                self.should_exit.set()
                return
        super().keep_subprocess_alive()

    def handle_hup(self) -> None:
        for process in self.processes:
            if process.pid is not None:
                os.kill(process.pid, signal.SIGHUP)


def worker() -> Served:
    """The app of one of several processes; its place is in the environment it was started with."""
    variables = environment()
    place = Place.of(variables)
    try:
        log = place.file(variables).settings.log
    except ConfigInvalid:  # The gateway falls back to the last one that worked, and says so.
        log = LogSettings()
    return Served(gateway_at(place, log, variables))
