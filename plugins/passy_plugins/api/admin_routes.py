"""The admin API put together: one area of it is one file."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from passy_plugins.api import (
    admin_keys,
    budgets,
    configuration,
    credentials,
    gateway,
    models,
    organisations,
    prices,
    providers,
    stats,
    switches,
    usage,
    users,
)
from passy_plugins.api.framework import api

if TYPE_CHECKING:
    from fastapi import FastAPI
    from structlog.typing import FilteringBoundLogger

    from passy_plugins.api.desk import Desk
    from passy_proxy.gateway import Gateway

AREAS = (
    organisations,
    users,
    admin_keys,
    providers,
    credentials,
    models,
    switches,
    prices,
    budgets,
    usage,
    gateway,
    stats,
    configuration,
)
ABOUT = "All that an operator of passy keeps in order, for the holder of the admin token."


def made(
    desk: Desk | None,
    log: FilteringBoundLogger | None,
    living: Callable[[], Gateway] | None = None,
) -> FastAPI:
    """The application; to be described only where it is given nothing. ``living`` gives the gateway
    it lives in."""
    app = api("passy admin API", ABOUT, log, {"admin": {"type": "http", "scheme": "bearer"}})
    app.state.desk = desk
    app.state.gateway = living
    for area in AREAS:
        app.include_router(area.router)
    return app
