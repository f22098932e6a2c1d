"""The servers that may have the counters, and how one of them comes to be trusted."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Sequence
from typing import Protocol

from passy_plugins.stores.redis.link import Link
from passy_plugins.stores.redis.place import Place
from passy_plugins.stores.redis.resp import Refused, pack
from passy_plugins.stores.redis.script import DIGEST, SOURCE

NO_ANSWER = "what it says is no answer"
AGAIN = 0.002
"""Seconds until what is asked of keys on their way to another node is asked again."""
MOST_HOPS = 6

Lost = Callable[[Link], None]


class Caller(Protocol):
    """Who has the decisions made."""

    def hello(self) -> tuple[Sequence[bytes], bytes]:
        """Keys and input of a call that a server must answer before it is trusted."""
        ...

    def heard(self, reply: bytes) -> bool:
        """Whether this is an answer to it."""
        ...

    def turned(self, up: bool) -> None:
        """The server is away, or there is a new connection: perhaps to another one, which knows
        nothing."""
        ...


def command(link: Link, keys: Sequence[bytes], input: bytes, whole: bool = False) -> bytes:
    """A run of the script; ``whole`` sends its text along."""
    what = (b"EVAL", SOURCE) if whole or link.whole else (b"EVALSHA", DIGEST)
    return pack((*what, b"%d" % len(keys), *keys, input))


def unknown(link: Link, why: str) -> bool:
    """Whether a refusal means that the text of the script has to be sent: this time, or always,
    where proxies and access lists do not let EVALSHA pass."""
    if why.startswith("NOSCRIPT"):
        return True
    if link.whole or not why.startswith(("NOPERM", "ERR unknown command")):
        return False
    link.whole = True
    return True


class Nodes:
    """``seeds`` are those of the settings; a Cluster's tell of the others."""

    def __init__(
        self,
        seeds: Sequence[Place],
        trusted: ssl.SSLContext | None,
        connecting: float,
        timeout: float,
    ) -> None:
        """``connecting`` and ``timeout``: seconds for a connection, and for a decision."""
        self._seeds = list(seeds)
        self._others: list[Place] = []
        self._trusted = trusted
        self._connecting = connecting
        self.timeout = timeout

    async def link(self, place: Place, lost: Lost) -> Link:
        async with asyncio.timeout(self._connecting):
            return await Link.to(place, lost, self._trusted)

    async def reach(self, first: Place | None, caller: Caller, lost: Lost) -> Link:
        """A link to whoever decides, and in time. OSError says why there is none."""
        why = ""
        for place in dict.fromkeys([*filter(None, [first]), *self._seeds, *self._others]):
            try:
                return await self._greeted(place, caller, lost)
            except TimeoutError:
                why = f"{place}: no answer in time"
            except (OSError, Refused) as error:
                why = f"{place}: {error}"
        raise OSError(why)

    async def _greeted(self, place: Place, caller: Caller, lost: Lost) -> Link:
        """Connect, and go on to whom it names."""
        link = await self.link(place, lost)
        try:
            whole = False
            for _ in range(MOST_HOPS):
                async with asyncio.timeout(self.timeout):
                    (reply,) = await link.ask((), command(link, *caller.hello(), whole))
                if not isinstance(reply, Refused):
                    if type(reply) is not bytes or not caller.heard(reply):
                        raise OSError(NO_ANSWER)
                    await self._learn(link)
                    return link
                why = str(reply)
                if why.startswith("MOVED"):
                    link.close()
                    link = await self.link(place.at(why.split()[2]), lost)
                elif why.startswith(("ASK", "TRYAGAIN")):
                    await asyncio.sleep(AGAIN)
                elif unknown(link, why) and not whole:
                    whole = True
                else:
                    raise reply
            raise Refused("it sends us round and round")
        except BaseException:
            link.close()
            raise

    async def _learn(self, link: Link) -> None:
        """What other nodes its Cluster has, if it is one: they are asked when it is gone."""
        async with asyncio.timeout(self._connecting):
            (reply,) = await link.ask([(b"CLUSTER", b"SLOTS")])
        if isinstance(reply, list):
            nodes = [node for _, _, *nodes in reply for node in nodes]
            found = [link.place.at(f"{(host or b'').decode()}:{port}") for host, port, *_ in nodes]
            self._others = list(dict.fromkeys(found))
