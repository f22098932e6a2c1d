"""Telling people that a budget runs out: once for all hosts, signed, and never on the request path.

A message is a POST as the Standard Webhooks specification has it: ``webhook-id``,
``webhook-timestamp`` and ``webhook-signature``, the HMAC-SHA-256 of both and the body. It is sent
again with growing pauses until it is taken, each time with the same id, so that a receiver can tell
a repetition. Whoever begins to tell says so in the store first; should that process end, another
one begins after a while.

Tenants' URLs are reached under the SSRF rules. Redirects are not followed.
"""

from __future__ import annotations

import asyncio
import base64
import hmac
from binascii import Error as NoBase64
from datetime import UTC, datetime
from random import random
from secrets import token_hex
from time import monotonic, time
from typing import TYPE_CHECKING, Any, NamedTuple

from passy_proxy import Connections, StoreUnavailable, Tasks, TransportError, UpstreamRequest, json
from passy_proxy.stores import Alerts, Hook
from passy_proxy.transport import Timeouts

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

EVENT = "budget.alert"
TRIAL = "webhook.test"
PATIENCE = 900.0
"""Seconds that a process may take to tell it, before another one does."""
TRIES = 8
FIRST_PAUSE = 1.0
"""Seconds; it doubles with each try: four minutes for all of them."""
TIMEOUTS = Timeouts(connect=5.0, first_byte=10.0, idle=10.0, total=20.0)
MOST_KEPT = 10_000


class Alert(NamedTuple):
    """So much of a budget was used in one of its windows."""

    budget: str
    window: str
    percent: int
    organisation: str | None
    said: dict[str, Any]
    """What the message has about it."""

    @property
    def id(self) -> str:
        """The same for each repetition, on all hosts."""
        return f"{self.budget}:{self.window}:{self.percent}"


class Teller:
    """Tells alerts, beside the requests."""

    def __init__(
        self,
        alerts: Alerts,
        hooks: tuple[Hook, ...],
        connections: Connections,
        log: FilteringBoundLogger,
    ) -> None:
        """``hooks`` are the operator's, told of everything."""
        self._alerts = alerts
        self._hooks = hooks
        self._connections = connections
        self._log = log
        self._tasks = Tasks(log)
        self._quiet: dict[str, float] = {}
        """Id → until when the store need not be asked about it."""
        self._taken: set[tuple[str, str]] = set()
        """Alerts and webhooks that have taken them, while others have not."""

    async def stop(self) -> None:
        """What is not told by now is told by another process, or by the next one."""
        await self._tasks.stop()

    async def tell(self, alert: Alert) -> None:
        """Begin to tell, if nobody has. Raises `StoreUnavailable`."""
        if self._quiet.get(alert.id, 0.0) > monotonic():
            return
        mine = await self._alerts.raise_alert(*alert[:3], PATIENCE)
        if len(self._quiet) >= MOST_KEPT:
            self._quiet.clear()
        # Asked again after a while: whoever tells it may end before it is done.
        self._quiet[alert.id] = monotonic() + PATIENCE / 10
        if not mine:
            return
        self._log.warning("budget_alert", **alert.said)
        self._tasks.start(self._deliver(alert))

    async def _deliver(self, alert: Alert) -> None:
        try:
            theirs = await self._alerts.hooks(alert.organisation, EVENT)
            at = datetime.fromtimestamp(time(), UTC).isoformat(timespec="seconds")
            body = json.dumps({"type": EVENT, "timestamp": at, "data": alert.said})
            sent = await asyncio.gather(
                *(self._send(hook, alert.id, body, restricted=False) for hook in self._hooks),
                *(self._send(hook, alert.id, body, restricted=True) for hook in theirs),
            )
            if all(sent):
                await self._alerts.alerted(*alert[:3])
                self._taken = {each for each in self._taken if each[0] != alert.id}
        except StoreUnavailable as error:
            self._log.warning("alert_unsettled", alert=alert.id, reason=str(error))

    async def _send(self, hook: Hook, id: str, body: bytes, *, restricted: bool) -> bool:
        """Whether it was taken, or never will be."""
        if (id, hook.id) in self._taken:
            return True
        reason = ""
        for number in range(TRIES):
            if number:
                await asyncio.sleep(FIRST_PAUSE * 2 ** (number - 1) * (1 + random() / 4))
            try:
                status = await post(self._connections, hook, id, body, restricted=restricted)
            except TransportError as error:
                reason = str(error)
                if error.phase == "address":
                    break
            except ValueError as error:  # A URL that may not be used, now at least.
                reason = str(error)
                break
            else:
                if 200 <= status < 300:
                    self._taken.add((id, hook.id))
                    return True
                reason = f"status {status}"
                if status == 410:
                    break
        else:
            self._log.error("alert_undelivered", webhook=hook.id, alert=id, reason=reason)
            return False
        self._log.error("alert_refused", webhook=hook.id, alert=id, reason=reason)
        return True


class Sent(NamedTuple):
    """What came of one message."""

    status: int
    """Of the answer; 0 where there was none."""
    ms: int
    reason: str
    """Why there was none."""

    @property
    def taken(self) -> bool:
        return 200 <= self.status < 300


async def tried(connections: Connections, hook: Hook) -> Sent:
    """Send a stored webhook a message that means nothing, once, as an alert would reach it."""
    at = datetime.fromtimestamp(time(), UTC).isoformat(timespec="seconds")
    body = json.dumps({"type": TRIAL, "timestamp": at, "data": {"webhook": hook.id}})
    began = monotonic()
    status, reason = 0, ""
    try:
        status = await post(connections, hook, f"test_{token_hex(8)}", body, restricted=True)
    except (TransportError, ValueError) as error:
        reason = str(error)
    return Sent(status, round((monotonic() - began) * 1000), reason)


async def post(
    connections: Connections, hook: Hook, id: str, body: bytes, *, restricted: bool
) -> int:
    """The status that a message was answered with. Raises `TransportError`, and ValueError for a
    URL that may not be used, now at least."""
    transport = connections.transport(hook.url, restricted=restricted)
    try:
        at = str(int(time()))
        headers = [
            (b"content-type", b"application/json"),
            (b"user-agent", b"passy"),
            (b"webhook-id", id.encode("ascii", "backslashreplace")),
            (b"webhook-timestamp", at.encode()),
            (b"webhook-signature", signature(hook.secret.reveal(), id, at, body)),
        ]
        path = hook.url.partition("://")[2].partition("/")[2]
        target = b"/" + path.encode()
        request = UpstreamRequest("POST", target, headers, body, timeouts=TIMEOUTS)
        leg = await transport.open(request)
        try:
            return leg.status
        finally:
            leg.close()
    finally:
        await transport.aclose()


def signature(secret: str, id: str, at: str, body: bytes) -> bytes:
    """``v1,`` and the HMAC-SHA-256, by the key in ``secret``: base64 behind ``whsec_``, else the
    text itself. ValueError for an empty one."""
    key = secret.encode()
    if secret.startswith("whsec_"):
        try:
            key = base64.b64decode(secret.removeprefix("whsec_"), validate=True)
        except NoBase64:
            key = secret.encode()
    if not key:
        raise ValueError("the webhook has no secret to sign with")
    id_sent = id.encode("ascii", "backslashreplace")
    signed = b"%b.%b.%b" % (id_sent, at.encode(), body)
    return b"v1," + base64.b64encode(hmac.digest(key, signed, "sha256"))
