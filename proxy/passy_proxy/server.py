"""Runs the gateway in one process, under uvicorn with our own edge."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import sys
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any, cast

import uvicorn
from uvicorn.lifespan.on import LifespanOn

from passy_proxy.app import App, Receive, Send
from passy_proxy.cli import Exit
from passy_proxy.config.problem import ConfigInvalid, redacted
from passy_proxy.door import Door
from passy_proxy.edge import Edge, EdgeLimits
from passy_proxy.edge import edge as edge_of
from passy_proxy.framing import HeadLimits
from passy_proxy.gateway import LIVE, READY, Gateway
from passy_proxy.keyring import KeyringError
from passy_proxy.last_call import FROM_AFAR, FROM_NEAR, let_none_begin
from passy_proxy.log import configured, flush
from passy_proxy.place import Place
from passy_proxy.pulse import Pulse, Slot
from passy_proxy.site import Site
from passy_proxy.stores import StoreUnavailable
from passy_proxy.supervisor import AWAY, BACK, HURRY, INTERRUPT, RELOAD, heard
from passy_proxy.timers import NEVER
from passy_proxy.vitals import Vitals

if TYPE_CHECKING:
    from types import FrameType

    from passy_proxy.board import Board
    from passy_proxy.config.model import Address, EdgeSettings, GatewayFile, LogSettings


INTERRUPTED = 3.0
"""Seconds that running answers may take after Ctrl-C."""
LAST_WORDS = 2.0
"""Seconds for what cut answers still have to say, to their clients and to the books."""
TICK = 0.05


def gateway_at(
    place: Place,
    log: LogSettings,
    variables: Mapping[str, str],
    vitals: Vitals | None = None,
    board: Board | None = None,
) -> Gateway:
    """The gateway of a place, not started. Raises KeyringError."""
    keyring = place.keyring(variables)
    logger = configured(log, variables)
    site = Site(place.data, keyring, logger, vitals or Vitals([Slot()]), board)
    return Gateway(site, variables, logger, path=place.path, text=place.text)


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
        await super().startup()  # Who is told to stop meanwhile has nothing more to say.
        uvicorns.disabled = False
        if self.should_exit:
            failure = getattr(self.config.loaded_app, "failure", None)
            sys.stderr.write(f"passy: {redacted(str(failure) or repr(failure))}\n")
            raise SystemExit(code_of(failure))


class Serving(uvicorn.Config):
    """uvicorn's settings for one listener, with our own edge as its protocol class, and our way to
    start."""

    def __init__(self, app: App, address: Address, file: GatewayFile) -> None:
        self.allowed = allowed = file.settings.edge
        largest = max((int(route.settings.body_limit) for route in file.routes), default=0)
        self.edge = protocol(allowed, largest)
        super().__init__(
            app,
            host=address.host,
            port=address.port,
            # Called like the classes uvicorn knows, which is all it asks of one.
            http=cast(Any, self.edge),
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=int(allowed.keep_alive),
            timeout_graceful_shutdown=int(allowed.shutdown_timeout),
            backlog=2048,
        )

    def load(self) -> None:
        super().load()
        self.lifespan_class = Lifespan
        # What is asked by those who run the gateway is answered whatever the load.
        if isinstance(self.loaded_app, Served):
            self.loaded_app.gateway.gate = self.edge


def code_of(failure: BaseException | None) -> Exit:
    """How a process ends that could not start."""
    causes = (failure, failure.__cause__ if failure else None)
    if any(isinstance(cause, ConfigInvalid | KeyringError) for cause in causes):
        return Exit.invalid_config
    missing = any(isinstance(cause, StoreUnavailable) for cause in causes)
    return Exit.unavailable if missing else Exit.failed


class Server(uvicorn.Server):
    """uvicorn's server, with our own end: in four steps, so that nobody loses a request.

    1. *Lame duck*: ``/readyz`` says 503, every answer asks to close, all who come are served.
    2. No more connections begin at the listening socket. It closes once those were let in that had
       begun. Idle connections close, once it is unlikely that a request is on its way.
    3. Running answers may end.
    4. What is left is told and cut, each with its record.

    `drain` takes all four steps, `hurry` ends the present one. An interrupt comes from a person at
    a terminal: it skips the first step and leaves little time for the third. Signals mean these,
    but for a worker it is ``line``, the supervisor's, that does.

    ``ready`` runs beside the server once it listens. ``admin`` is the listener of those who run the
    gateway, with a socket of its own: it begins and ends with that of clients. ``dead``: seconds
    after which a process whose loop is held up ends itself; 0 is never.
    """

    def __init__(
        self,
        config: Serving,
        gateway: Gateway,
        ready: Callable[[Server], Coroutine[Any, Any, None]] | None = None,
        *,
        dead: float = 0.0,
        line: socket.socket | None = None,
        admin: tuple[Serving, socket.socket] | None = None,
    ) -> None:
        super().__init__(config)
        self._main = config
        self._admin = admin
        self._gateway = gateway
        gateway.admin_listens = admin is not None
        self._edge = config.allowed
        self._dead = dead
        self._pulse: Pulse | None = None
        self._when_ready = ready
        self._line = line
        self._lame_until = NEVER
        self._patience: float = config.allowed.shutdown_timeout
        self._waiting = False  # for running answers
        self._forsaken = line is None
        """Nobody will listen any more where it does. A worker may end alone."""
        self._last_call = FROM_AFAR if config.allowed.lame_duck else FROM_NEAR
        self._starting: asyncio.Task[None] | None = None
        self._listening: list[tuple[Serving, socket.socket]] = []
        self._doors: list[tuple[Serving, Door]] = []

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._starting = asyncio.current_task()
        try:
            await self._started(sockets)
        except asyncio.CancelledError:
            if not self._gateway.draining:
                raise
            self.should_exit = True  # A store was waited for, and is no more.
        finally:
            self._starting = None

    async def _started(self, sockets: list[socket.socket] | None) -> None:
        vitals = self._gateway.site.vitals
        if self._line is not None:
            self._line.setblocking(False)
            asyncio.get_running_loop().add_reader(self._line, self._commanded, self._line)
            self._gateway.tell_others = self._line.send
        sides = [(self._main, sock) for sock in sockets or ()]
        if self._admin is not None:
            self._admin[0].load()
            sides.append(self._admin)
        if self._line is None:
            # What is closed with a server is its own copy: ours is for those who wait at the end.
            self._listening = [(config, sock.dup()) for config, sock in sides]
            await super().startup(sockets)
            if self._admin is not None:
                self.servers.append(await self._serving(*self._admin))
        else:
            await super().startup([])
            self._doors = [
                (config, Door(sock, partial(self._connect, config), vitals.slots, vitals.number))
                for config, sock in sides
            ]
        if self.should_exit:
            return
        for _, door in self._doors:
            door.open()
        if self._when_ready is not None:
            self._gateway.tasks.start(self._when_ready(self))
        self._be_watched()

    def _be_watched(self) -> None:
        gateway, state = self._gateway, self.server_state
        vitals = gateway.site.vitals
        if vitals.slot is not None:
            self._pulse = pulse = Pulse(
                vitals.slot, gateway.parts.registry, gateway.log, self._edge.loop_lag, self._dead
            )
            pulse.connections = state.connections
            pulse.start()
            worker = (str(vitals.number),)
            vitals.count("loop_blocked", lambda: {(): pulse.blocked})
            vitals.count("loop_blocked_seconds", lambda: {(): pulse.blocked_seconds})
            vitals.gauge("loop_lag", lambda: {worker: pulse.lag})
            vitals.slot.ready = True
        if len(vitals.slots) > 1:
            gateway.tasks.start(vitals.publish())
        vitals.gauge("connections", lambda: {(): len(state.connections)})
        vitals.count("edge_refused", self._refused)

    def _edges(self) -> list[Edge]:
        return [self._main.edge] + ([self._admin[0].edge] if self._admin is not None else [])

    def _refused(self) -> dict[tuple[str, ...], float]:
        """How many the listeners have refused, by code."""
        sums: dict[tuple[str, ...], float] = {}
        for edge in self._edges():
            for code, times in edge.refused.items():
                sums[code,] = sums.get((code,), 0) + times
        return sums

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        interrupted = sig == signal.SIGINT
        if interrupted and not self._captured_signals:
            # uvicorn raises it once more after the end, which makes the exit code.
            self._captured_signals.append(sig)
        # Whoever asks a group of processes to stop means the supervisor, but reaches its workers
        # too: that must not count as asking twice.
        if self._gateway.draining and self._line is None:
            self.hurry()
        else:
            self.drain(interrupted=interrupted)

    def drain(self, *, interrupted: bool = False) -> None:
        """Begin to stop."""
        wait: float = self._edge.lame_duck
        if interrupted:
            wait, self._patience = 0.0, min(self._patience, INTERRUPTED)
            self._last_call = FROM_NEAR
        self._gateway.draining = True
        if self._starting is not None:
            self._starting.get_loop().call_soon_threadsafe(self._give_up)
        for edge in self._edges():
            edge.draining = True
        self._lame_until = min(self._lame_until, monotonic() + wait)

    def _give_up(self) -> None:
        if self._starting is not None:
            self._starting.cancel()

    def hurry(self) -> None:
        """Make an end of what the end waits for."""
        if self._waiting:
            self.force_exit = True
        self._last_call = FROM_NEAR
        self._lame_until = 0.0

    def _commanded(self, line: socket.socket) -> None:
        commands = heard(line)
        for number in commands:
            command = bytes([number])
            if command == RELOAD:
                if self.started:
                    self._gateway.tasks.start(self._gateway.reload())
            elif command in (AWAY, BACK):
                self._gateway.drain(command == AWAY)
            elif command == HURRY:
                self.hurry()
            else:
                self._forsaken = True
                self.drain(interrupted=command == INTERRUPT)
        if not commands:  # Its end: there is nobody any more to start another.
            self._forsaken = True
            asyncio.get_running_loop().remove_reader(line)
            self.drain()

    async def on_tick(self, counter: int) -> bool:
        return await super().on_tick(counter) or monotonic() >= self._lame_until

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._waiting = True
        await self._stop_listening(sockets or [])
        state, log = self.server_state, self._gateway.log
        for connection in list(state.connections):
            connection.shutdown()
        await self._emptied(monotonic() + self._patience)
        if state.tasks:
            log.warning("answers_cut", count=len(state.tasks))
            for task in list(state.tasks):
                task.cancel()
        self.force_exit = False
        await self._emptied(monotonic() + LAST_WORDS)
        for connection in list(state.connections):
            if (transport := getattr(connection, "transport", None)) is not None:
                transport.abort()
        await self.lifespan.shutdown()
        if self._pulse is not None:
            await self._pulse.stop()

    async def _emptied(self, end: float) -> None:
        """Wait until nobody is here any more, or until ``end``; `hurry` ends it too."""
        state = self.server_state
        while not self.force_exit and monotonic() < end:
            if not (state.connections or state.tasks):
                break
            await asyncio.sleep(TICK)

    async def _stop_listening(self, sockets: list[socket.socket]) -> None:
        """Close the listening sockets. Who has got through to one of them is served: closing it
        would reset whoever is in its queue."""
        if self._forsaken:
            for _, sock in self._listening:
                let_none_begin(sock)
            for _, door in self._doors:
                let_none_begin(door.sock)
            await asyncio.sleep(self._last_call)
        for server in self.servers:
            server.close()
        if not self._doors:
            for sock in sockets:
                sock.close()
        late = [(config, sock) for config, door in self._doors for sock in door.close()]
        for config, sock in self._listening:
            sock.setblocking(False)
            with contextlib.suppress(OSError):
                while True:
                    late.append((config, sock.accept()[0]))
            sock.close()
        for config, sock in late:
            with contextlib.suppress(OSError):
                await self._connect(config, sock)

    async def _serving(self, config: Serving, sock: socket.socket) -> asyncio.Server:
        """Serve whoever connects there."""
        loop = asyncio.get_running_loop()
        made = partial(self._connection, config)
        return await loop.create_server(made, sock=sock, ssl=config.ssl, backlog=config.backlog)

    async def _connect(self, config: Serving, sock: socket.socket) -> None:
        """Serve a connection that was accepted by us."""
        loop = asyncio.get_running_loop()
        made = partial(self._connection, config)
        await loop.connect_accepted_socket(made, sock, ssl=config.ssl)

    def _connection(self, config: Serving) -> asyncio.Protocol:
        kind: Any = config.http_protocol_class
        return kind(  # type: ignore[no-any-return]
            config=config, server_state=self.server_state, app_state=self.lifespan.state
        )

    @property
    def port(self) -> int:
        """The port it listens on, once started."""
        port: int = self.servers[0].sockets[0].getsockname()[1]
        return port


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
