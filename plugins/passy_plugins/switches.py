"""What people decided of the targets of aliases, as `alias` follows it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from passy_plugins.following import Decided, Following
from passy_proxy import Switch

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

    from passy_proxy import Remembered, Switchboard
    from passy_proxy.config.snapshot import Snapshot


def held(snapshot: Snapshot, store: object) -> bool:
    """Whether a configuration goes by what ``store`` says."""
    return any(getattr(one.config, "switchboard", None) is store for one in snapshot.filters)


def following(
    board: Switchboard,
    remembered: Remembered,
    hold: Callable[[Sequence[Switch]], None],
    log: FilteringBoundLogger,
) -> Following[Switch]:
    """Calls ``hold`` with all switches, at once where there are any and at each change."""

    def taken(switches: Sequence[Switch]) -> None:
        hold(switches)
        switched = {f"{one.model} → {one.target}": one.state for one in switches}
        log.info("targets_switched", targets=switched)

    return Following(Decided("switch", board, board.switches, Switch, taken), remembered, log)
