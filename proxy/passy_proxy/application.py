"""Applications beside the routes: what answers people and services that are no model's clients.

An application is any ASGI application, mounted at a path by ``apps:`` in gateway.yaml, with
settings of its own. Its plugin brings a subclass of :class:`Application`, which makes the ASGI
application when it is started; so a gateway that names none imports none.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

    from passy_proxy.gateway import Gateway

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Asgi = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]


class Application:
    """One application of ``apps:``, shared by all configurations that say the same of it."""

    name: ClassVar[str]
    listener: ClassVar[Literal["main", "admin"]] = "main"
    """Where it is asked, unless ``apps:`` says otherwise."""
    short: ClassVar[Sequence[str]] = ()
    """Paths below it that are also found at the root of the listener of those who run the gateway,
    where it is there."""
    config: Any
    """Subclasses annotate it: ``config: Config``; stores arrive in it as in a filter's. Where a
    secret that it needs is ``off`` (see `StrongSecretOrOff`), the application is left out."""
    if TYPE_CHECKING:  # The loader reads what is annotated here, and would have to know it.
        gateway: Gateway
        """Where it lives, from its start on."""

    def __init__(self, config: Any, log: FilteringBoundLogger) -> None:
        self.config = config
        self.log = log
        self._served: Asgi
        self._life: Lifespan | None = None

    def asgi(self) -> Asgi:
        """Make the ASGI application: once, in a thread, before anything is served. Import here what
        it is made with."""
        raise NotImplementedError

    async def start(self) -> None:
        """Make the application and have it start up, if it has a lifespan."""
        self._served = await asyncio.to_thread(self.asgi)
        self._life = Lifespan(self._served, self.log)
        await self._life.start()

    async def stop(self) -> None:
        """Have it shut down; also after a failed ``start()``."""
        life, self._life = self._life, None
        if life is not None:
            await life.stop()

    async def greeting(self, url: str) -> Sequence[str]:
        """What whoever started the gateway is told on the console once it listens: where this is,
        then what there is to do. Nothing here. ``url``: of its path, as the gateway listens."""
        return ()

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """One request. ``scope["root_path"]`` ends in where the application is mounted;
        ``scope["state"]["request_id"]`` is what its client is told as ``x-request-id``."""
        assert self._life is not None
        scope["state"] = self._life.state | scope.get("state", {})
        await self._served(scope, receive, send)


class Lifespan:
    """ASGI's start and end of one application, as a server tells them."""

    def __init__(self, served: Asgi, log: FilteringBoundLogger) -> None:
        self.state: dict[str, Any] = {}
        """What the application wants to have in each request's scope."""
        self._served = served
        self._log = log
        self._told: asyncio.Queue[Message] = asyncio.Queue()
        self._answered: asyncio.Future[str | None]
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Raises RuntimeError where the application says that it cannot start."""
        if (failure := await self._tell("startup")) is not None:
            raise RuntimeError(failure)

    async def stop(self) -> None:
        """Raises RuntimeError where it says that it could not end well."""
        task = self._task
        # Where the loop ends in the middle of a start, it ends all tasks: nobody is left to tell.
        if task is None or task.done() or task.cancelling():
            return
        try:
            if (failure := await self._tell("shutdown")) is not None:
                raise RuntimeError(failure)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _tell(self, what: str) -> str | None:
        """What it says of its failure; ``None`` where it went well, or does not care."""
        self._answered = asyncio.get_running_loop().create_future()
        self._told.put_nowait({"type": f"lifespan.{what}"})
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run())
        return await self._answered

    async def _run(self) -> None:
        scope = {"type": "lifespan", "asgi": {"version": "3.0"}, "state": self.state}
        try:
            await self._served(scope, self._told.get, self._hear)
        except Exception as exc:  # How an application says that it knows of no lifespan.
            self._log.debug("application_has_no_lifespan", reason=repr(exc))
        finally:
            if not self._answered.done():
                self._answered.set_result(None)

    async def _hear(self, message: Message) -> None:
        if not self._answered.done():
            reason = message.get("message") or "it gives no reason"
            failed = message["type"].endswith(".failed")
            self._answered.set_result(reason if failed else None)
