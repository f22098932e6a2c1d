"""The filter protocol: seven hooks, all optional, and the contract pluggy checks them against.

``None`` always means *carry on*. A hook may be ``async def``, or a plain function that returns its
result or, where it has to wait, something to await for it. A hook a filter does not define costs
nothing. What becomes of a hook that fails is in `faults.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

import pluggy

from passy_proxy.event import Event, Failure, Head, Reply

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

    from passy_proxy.attempt import Attempt, Dispatch
    from passy_proxy.exchange import Exchange

hookspec = pluggy.HookspecMarker("passy.exchange")


class ExchangeHooks:
    """The moments of an exchange, in order. What a filter may implement, and with which
    arguments."""

    @hookspec
    def on_request(self, ex: Exchange) -> Reply | None:
        """On the way in. A Reply turns round here: later filters are never entered."""

    @hookspec
    def on_attempt(self, ex: Exchange, attempt: Attempt) -> Failure | None:
        """Before each try. May change ``attempt.credential``; a Failure means: not this target."""

    @hookspec
    def on_attempt_end(self, ex: Exchange, attempt: Attempt) -> None:
        """After each try, once: answered, failed or given up."""

    @hookspec
    def on_response(self, ex: Exchange, head: Head) -> None:
        """On the way out, reversed, before anything is sent. May edit ``head``. Runs for replies
        too."""

    @hookspec
    def on_event(self, ex: Exchange, event: Event) -> Event | tuple[Event, ...] | None:
        """For each unit of the answer: replace it, expand it, or ``()`` to swallow it. A plain
        function."""

    @hookspec
    def on_end(self, ex: Exchange) -> None:
        """Reversed, exactly once, as soon as the outcome is known and before the last bytes of the
        answer are released: what it writes down is written before the client has all. A plain
        answer waits for it, and of a stream only its end mark; what it returns is awaited."""

    @hookspec
    def on_complete(self, ex: Exchange) -> None:
        """The end, reversed, exactly once for each filter the exchange entered, whatever
        happened."""


class Filter:
    """One feature of the gateway, as one link of a chain.

    A filter object is shared by all exchanges of a snapshot and does not change after ``start()``;
    what belongs to one exchange lives in ``ex.stash``. ``needs`` names what an earlier filter must
    provide (``principal``, ``targets``), or what it wants of the core: that it has read the
    ``body``, or to read the client's ``credentials``, which other filters are not shown.
    """

    name: ClassVar[str]
    needs: ClassVar[frozenset[str]] = frozenset()
    provides: ClassVar[frozenset[str]] = frozenset()
    on_error: ClassVar[Literal["closed", "open"]] = "closed"
    """What its failure means where ``on_error`` is not set: the exchange is answered with an error,
    or goes on without it. Open suits what only looks on."""
    vouches: ClassVar[bool] = False
    """What it makes of heads and of attempts can always be sent, and is not looked at again."""
    status: ClassVar[str] = "stable"
    config: Any
    """Subclasses annotate it: ``config: Config``; the loader reads that annotation."""

    def __init__(self, config: Any, log: FilteringBoundLogger) -> None:
        self.config = config
        self.log = log

    @property
    def when_away(self) -> str:
        """What becomes of exchanges while its store is away, in a few words for the status page;
        empty where it has none."""
        return ""

    @property
    def when_several(self) -> str:
        """What is other than written where several workers run, and what to do about it, for who
        starts them; empty where nothing is."""
        return ""

    async def start(self) -> None:
        """Called once, before the snapshot goes live."""

    async def stop(self) -> None:
        """Called once, after the last exchange of the snapshot; also after a failed ``start()``."""


class Terminal(Filter):
    """The last link of a chain: it owns the attempts."""

    needs: ClassVar[frozenset[str]] = frozenset({"body"})

    @property
    def closed(self) -> bool:
        """As it is set it refuses everybody, so that no listener need be opened for it."""
        return False

    async def route(self, ex: Exchange, dispatch: Dispatch) -> Attempt | Reply:
        """Make attempts until one will do. *Returning* one commits: no other can follow."""
        raise NotImplementedError
