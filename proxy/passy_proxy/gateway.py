"""One gateway in one process: its snapshot, and how it is replaced."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import hashlib
import os
import signal
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from passy_proxy import json
from passy_proxy.config.build import Parts, building
from passy_proxy.config.document import MAX_BYTES, parse
from passy_proxy.config.legacy import layers
from passy_proxy.config.problem import ConfigInvalid, Problem
from passy_proxy.config.shown import Looked, shown
from passy_proxy.config.snapshot import Snapshot, StartFailed
from passy_proxy.faults import Faults
from passy_proxy.log import dropped
from passy_proxy.overload import Overload
from passy_proxy.place import LAST_GOOD
from passy_proxy.registry import Registry
from passy_proxy.resources import give_back_memory
from passy_proxy.shared import Shared
from passy_proxy.site import Site
from passy_proxy.tasks import Tasks, in_turns
from passy_proxy.transport.connect import AllowList, ConnectSettings

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

    from passy_proxy.config.model import ConnectionSettings, GatewayFile, GatewaySettings
    from passy_proxy.overload import Gate

STOP = 5.0
"""Seconds that exchanges may still take once the server has stopped."""
LIVE = ("/livez", "/healthz", "/health")
READY = "/readyz"
VERBOSE = b"verbose"
"""The query of `READY` that asks for what is no part of readiness."""
POLL = 1.0
"""Seconds between two looks at the configuration file."""
THOROUGHLY = 64
"""How many reloads there are to one after which the collector looks through everything, where the
configuration is larger than `LARGE`."""
LARGE = 128 * 1024
"""Bytes; what is made of less is looked through in some hundredths of a second."""
SETTLED = 0.1
"""Seconds that a file must stay as it is: half of one may well be a configuration."""


class Gateway:
    """Holds the live snapshot; loads, reloads and stops.

    ``path`` is the configuration file, or ``None`` for one given as ``text``. A reload that fails
    leaves the old snapshot serving; a start that fails falls back to the last configuration that
    worked, kept in the data folder.
    """

    def __init__(
        self,
        site: Site,
        variables: Mapping[str, str],
        log: FilteringBoundLogger,
        *,
        path: Path | None = None,
        text: str = "",
    ) -> None:
        self.site = site
        self.path = path
        self.log = log
        self._text = text.encode()
        self._variables = variables
        self.parts = Parts(Registry(), Shared(), site, log)
        self.tasks = Tasks(log)
        self._content = b""
        self._reloading = asyncio.Lock()
        self._leaving: list[Snapshot] = []
        """Replaced, and not yet left by their last exchange."""
        self.snapshot: Snapshot
        self.content = b""
        """The text of the configuration that runs."""
        self._begun: GatewaySettings
        """What the process was started with."""
        self.draining = False
        """It is about to end."""
        self.drained = False
        """Those who run it have it turn clients away for a while."""
        self.admin_listens = False
        """There is a listener of those who run the gateway."""
        self.gate: Gate | None = None
        """The edge before it, if it is ours: what the load may ask of it is set there."""
        self.overload: Overload | None = None
        self.problem: str = ""
        """Why the configuration on disk is not the one that runs; empty when it is."""
        self.problems: Sequence[Problem] = ()
        """The same, each with its place, where it is the file that is wrong."""
        self.tell_others: Callable[[bytes], object] | None = None
        """Has the workers beside this one do what a command of the supervisor's says, if there can
        be any."""
        self._reloads = {"taken": 0, "refused": 0}

    async def start(self) -> None:
        """Load and go live. Raises ConfigInvalid or StartFailed when nothing can serve."""
        try:
            self.snapshot = await self._started(await self._read())
        except (ConfigInvalid, StartFailed, OSError) as exc:
            good = self.site.data / LAST_GOOD
            if self.path is None or not good.exists():
                raise
            self.problem = str(exc)
            self.log.error("configuration_refused", using=str(good), problems=str(exc))
            self.content = content_of(good)
            self.snapshot = await self._started(self.content)
        else:
            self.content = self._content
            await self._keep()
        self._begun = self.snapshot.settings
        self.parts.connector.settings = connecting(self._begun.connect)
        self._took()
        self.log.info("plugins_loaded", distributions=self.parts.registry.provenance())
        self._be_counted()
        gc.freeze()
        if self.gate is not None:
            self.overload = Overload(self.gate, lambda: self.snapshot.settings.overload, self.log)
            self.overload.start()
        if self.path is not None:
            self.tasks.start(self._watch())
        with contextlib.suppress(RuntimeError, ValueError):  # Not the main thread: no signals here.
            loop = asyncio.get_running_loop()
            loop.add_signal_handler(signal.SIGHUP, lambda: self.tasks.start(self.reload()))

    async def stop(self) -> None:
        """Stop watching, let what runs end, stop everything."""
        with contextlib.suppress(RuntimeError, ValueError):
            asyncio.get_running_loop().remove_signal_handler(signal.SIGHUP)
        if self.overload is not None:
            self.overload.stop()
        await self.tasks.stop()
        await asyncio.gather(*(one.retire(STOP) for one in (*self._leaving, self.snapshot)))

    async def reload(self) -> bool:
        """Read the configuration again. False when it was refused: the old one goes on serving."""
        async with self._reloading:
            try:
                with undisturbed():
                    following = await self._started(await self._read(), self.snapshot)
                    gc.freeze()
            except Exception as exc:
                # Broad, since plugins run while a snapshot is made: whatever they do, the old
                # one goes on serving.
                expected = isinstance(exc, ConfigInvalid | StartFailed | OSError)
                self.problem = str(exc) or repr(exc)
                self.problems = exc.problems if isinstance(exc, ConfigInvalid) else ()
                self._reloads["refused"] += 1
                if (slot := self.site.vitals.slot) is not None:
                    slot.refuse()
                self.log.error(
                    "reload_refused", problems=self.problem, exc_info=None if expected else exc
                )
                self._tidy()
                return False
            before, self.snapshot = self.snapshot, following
            self.content = self._content
            self._leaving.append(before)
            self.tasks.start(self._retire(before))
            self.problem, self.problems = "", ()
            self._reloads["taken"] += 1
            self._took()
            self._tell_what_stays(following.settings)
            self.log.info("reloaded", config=following.hash.decode())
            await self._keep()
            return True

    @property
    def leaving(self) -> bool:
        """No client is to be sent here, be it for a while or for good."""
        return self.draining or self.drained

    def drain(self, away: bool) -> None:
        """Be a lame duck that need not end: readiness is denied and no connection of a client kept,
        but whoever comes is served. ``away`` False: be as before."""
        if (slot := self.site.vitals.slot) is not None:
            slot.drained = away
        if self.drained is away:
            return
        self.drained = away
        if self.gate is not None:
            self.gate.draining = self.leaving
        self.log.warning("drained" if away else "undrained")

    async def look(self, content: bytes) -> Looked:
        """What ``content`` would be as the configuration here, without starting any of it."""
        made = Snapshot(
            self.snapshot.settings, hash=hash_of(content), log=self.log, shared=self.parts.shared
        )
        text = ""
        async with self._reloading:
            try:
                name = str(self.path or "built-in")
                document = await asyncio.to_thread(parse, content, name, self._variables)
                try:
                    file = await asyncio.to_thread(layers, document, self._variables)
                    await in_turns(building(made, file, self.parts))
                finally:
                    self.parts.shared.forget(made.held)
                    text = shown(document.root)
            except ConfigInvalid as exc:
                return Looked(made.hash.decode(), text, exc.problems)
        return Looked(made.hash.decode(), text, tuple(made.warnings))

    def _took(self) -> None:
        if (slot := self.site.vitals.slot) is not None:
            slot.took(self.snapshot.hash.decode())

    def _be_counted(self) -> None:
        vitals = self.site.vitals
        vitals.count("reloads", lambda: {(how,): times for how, times in self._reloads.items()})
        vitals.count("filter_failures", Faults.by_filter)
        vitals.count("log_dropped", lambda: {(): dropped()})
        vitals.gauge("in_flight", lambda: {(): self.running})
        vitals.gauge("configuration", lambda: {(): 0 if self.problem else 1})
        vitals.gauge("draining", lambda: {(): 1 if self.leaving else 0})
        for count in ("opened", "reused"):
            vitals.count(f"upstream_{count}", partial(self._pools, count))
        for state in ("open", "idle", "waiting"):
            vitals.gauge(f"upstream_{state}", partial(self._pools, state))

    @property
    def running(self) -> int:
        """Exchanges that run now, on whatever snapshot they began with."""
        return sum(one.running for one in (*self._leaving, self.snapshot))

    def _pools(self, what: str) -> dict[tuple[str, ...], float]:
        upstreams = self.snapshot.upstreams.items()
        return {(name,): one.transport.stats().get(what, 0) for name, one in upstreams}

    def _tell_what_stays(self, settings: GatewaySettings) -> None:
        """What a reload cannot change is said, and not passed over in silence."""
        names = ("listen", "admin", "edge", "connect", "log")
        changed = [n for n in names if getattr(settings, n) != getattr(self._begun, n)]
        if self.snapshot.administered and not self.admin_listens and "admin" not in changed:
            changed.append("admin")
        if changed:
            self.log.warning("restart_needed", settings=changed)

    async def _retire(self, snapshot: Snapshot) -> None:
        await snapshot.retire()
        self._leaving.remove(snapshot)
        del snapshot
        self._tidy()

    def _tidy(self) -> None:
        """Free what a configuration left behind: the collector, which requests leave nothing to
        do, would come round to it after some hundred others."""
        due = len(self.content) <= LARGE or sum(self._reloads.values()) % THOROUGHLY == 0
        self.tasks.start(_collected(thoroughly=due))

    def health(self, path: str, query: bytes = b"") -> tuple[int, bytes] | None:
        """Status and body of the health paths; they ask nobody but this process."""
        if path in LIVE:
            return 200, b'{"status":"ok"}'
        if path == READY:
            checks = {
                "configuration": self.problem or "ok",
                "draining": self.leaving,
                "overload": self.overload.told if self.overload is not None else "ok",
                "log_lines_dropped": dropped(),
            }
            more = self.snapshot.dependencies() if query.startswith(VERBOSE) else {}
            status = "draining" if self.leaving else "ok"
            told = {"status": status, "checks": checks, **more}
            return 503 if self.leaving else 200, json.dumps(told)
        return None

    async def _read(self) -> bytes:
        if self.path is None:
            self._content = self._text
        else:
            # In a thread, as it may be on a network that hangs.
            self._content = await asyncio.to_thread(content_of, self.path)
        return self._content

    def _file(self, content: bytes) -> GatewayFile:
        document = parse(content, str(self.path or "built-in"), self._variables)
        return layers(document, self._variables)

    async def _started(self, content: bytes, before: Snapshot | None = None) -> Snapshot:
        # In a thread and in small steps: what is a megabyte takes a second, in which others have
        # something to say.
        file = await asyncio.to_thread(self._file, content)
        if before is not None and before.routes.all and not file.routes:
            # Nobody means that. It is a file that was emptied, perhaps to be written again.
            message = "there are no routes any more, so nobody would be answered"
            raise ConfigInvalid([Problem(str(self.path), 1, 1, message)])
        hash = hash_of(content)
        snapshot = Snapshot(file.settings, hash=hash, log=self.log, shared=self.parts.shared)
        await in_turns(building(snapshot, file, self.parts))
        for warning in snapshot.warnings:
            self.log.debug("configuration", problem=str(warning))
        if snapshot.apps_left_out:
            self.log.info("apps_left_out", apps=snapshot.apps_left_out)
        for mount in snapshot.mounts:
            mount.application.gateway = self
        await snapshot.start()
        return snapshot

    async def _keep(self) -> None:
        """Remember a configuration that worked."""
        if self.path is not None:
            await asyncio.to_thread(self._write, self._content)

    def _write(self, content: bytes) -> None:
        good = self.site.data / LAST_GOOD
        # Of its own, since the other workers are writing the same at this very moment.
        draft = good.with_suffix(f".{os.getpid()}.tmp")
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)
            draft.touch(0o600)  # Nobody else reads it, not even while it is being written.
            draft.write_bytes(content)
            draft.replace(good)

    async def _watch(self) -> None:
        """Reload when the file's content changes. Each worker looks for itself."""
        assert self.path is not None
        while True:
            await asyncio.sleep(POLL)
            with contextlib.suppress(OSError):
                content = await asyncio.to_thread(content_of, self.path)
                if content != self._content:
                    await asyncio.sleep(SETTLED)
                    settled = content == await asyncio.to_thread(content_of, self.path)
                    if settled and content != self._content:  # A signal may have been faster.
                        await self.reload()


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Without the collector, which would look through a half-made configuration again and again,
    and hold up everything meanwhile."""
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


async def _collected(*, thoroughly: bool) -> None:
    """In a task of its own, so that whoever let go of something is gone as well.

    While it serves a configuration is frozen: to look through a large one takes the collector a
    fifth of a second, and to count what is frozen a quarter of that. It holds no reference cycles
    itself; what else is tied into knots waits until all is looked through ``thoroughly``.

    Threads read configurations, and the system's allocator keeps for each what it once had: a
    large file, and there are always some, would be paid for as often as there are threads.
    """
    if thoroughly:
        gc.unfreeze()
    gc.collect()
    gc.freeze()
    await asyncio.to_thread(give_back_memory)


def connecting(written: ConnectionSettings) -> ConnectSettings:
    """What the connector goes by."""
    return ConnectSettings(
        dns_ttl=written.dns_ttl,
        dns_stale=written.dns_stale,
        dns_patience=written.dns_patience,
        dns_lookups=written.dns_lookups,
        allow=AllowList.of(written.tenants_may_reach),
    )


def hash_of(content: bytes) -> str:
    """Short: a configuration's text as ``x-passy-config`` names it."""
    return hashlib.sha256(content).hexdigest()[:8]


def content_of(path: Path) -> bytes:
    """A configuration file as it stands, or so much of it that it is seen to be too large. Raises
    OSError, also for what is no file: to open a pipe would be to wait for who writes into it."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(f"{path} is not a regular file")
    with path.open("rb") as file:
        return file.read(MAX_BYTES + 1)
