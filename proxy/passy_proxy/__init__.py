"""What authors of plugins import. Everything here is public; the rest of the package is not.

Names are loaded on first use, so ``import passy_proxy`` costs nothing and a command that needs one
part does not pay for the others.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from passy_proxy import json as json
    from passy_proxy import keys as keys
    from passy_proxy.answer import failed_reply as failed_reply
    from passy_proxy.answer import made as made
    from passy_proxy.answer import single as single
    from passy_proxy.application import Application as Application
    from passy_proxy.attempt import Attempt as Attempt
    from passy_proxy.attempt import Dispatch as Dispatch
    from passy_proxy.config.settings import OptionalSecret as OptionalSecret
    from passy_proxy.config.settings import Secret as Secret
    from passy_proxy.config.settings import Settings as Settings
    from passy_proxy.config.settings import StrongSecret as StrongSecret
    from passy_proxy.config.settings import StrongSecretOrOff as StrongSecretOrOff
    from passy_proxy.config.settings import setting as setting
    from passy_proxy.connections import Connections as Connections
    from passy_proxy.dialect import Dialect as Dialect
    from passy_proxy.dialect import Tap as Tap
    from passy_proxy.estimate import prompt_estimate as prompt_estimate
    from passy_proxy.event import Event as Event
    from passy_proxy.event import Failure as Failure
    from passy_proxy.event import Head as Head
    from passy_proxy.event import Reply as Reply
    from passy_proxy.evidence import Proof as Proof
    from passy_proxy.exchange import Exchange as Exchange
    from passy_proxy.exchange import Outcome as Outcome
    from passy_proxy.exchange import Request as Request
    from passy_proxy.exchange import credentials as credentials
    from passy_proxy.filter import Filter as Filter
    from passy_proxy.filter import Terminal as Terminal
    from passy_proxy.hookspecs import hookimpl as hookimpl
    from passy_proxy.issue import Administered as Administered
    from passy_proxy.keyring import Keyring as Keyring
    from passy_proxy.log import LineWriter as LineWriter
    from passy_proxy.models import Model as Model
    from passy_proxy.models import Models as Models
    from passy_proxy.models import serves as serves
    from passy_proxy.prices import Price as Price
    from passy_proxy.prices import Prices as Prices
    from passy_proxy.records import AttemptRecord as AttemptRecord
    from passy_proxy.records import Credential as Credential
    from passy_proxy.records import CustomProvider as CustomProvider
    from passy_proxy.records import Limits as Limits
    from passy_proxy.records import Principal as Principal
    from passy_proxy.records import SetPrice as SetPrice
    from passy_proxy.records import Switch as Switch
    from passy_proxy.records import Usage as Usage
    from passy_proxy.records import UsageRecord as UsageRecord
    from passy_proxy.records import UsageRow as UsageRow
    from passy_proxy.remembered import Remembered as Remembered
    from passy_proxy.site import Site as Site
    from passy_proxy.stash import Stash as Stash
    from passy_proxy.stash import StashKey as StashKey
    from passy_proxy.stores import Alerts as Alerts
    from passy_proxy.stores import Allowance as Allowance
    from passy_proxy.stores import Books as Books
    from passy_proxy.stores import Changes as Changes
    from passy_proxy.stores import Claim as Claim
    from passy_proxy.stores import Counters as Counters
    from passy_proxy.stores import Directory as Directory
    from passy_proxy.stores import Grant as Grant
    from passy_proxy.stores import Ledger as Ledger
    from passy_proxy.stores import Room as Room
    from passy_proxy.stores import Store as Store
    from passy_proxy.stores import StoreUnavailable as StoreUnavailable
    from passy_proxy.stores import Switchboard as Switchboard
    from passy_proxy.stores import Tariff as Tariff
    from passy_proxy.stores import Vault as Vault
    from passy_proxy.tasks import Tasks as Tasks
    from passy_proxy.transport import Leg as Leg
    from passy_proxy.transport import Transport as Transport
    from passy_proxy.transport import TransportError as TransportError
    from passy_proxy.transport import UpstreamRequest as UpstreamRequest
    from passy_proxy.units import Count as Count
    from passy_proxy.units import Duration as Duration
    from passy_proxy.units import Rate as Rate
    from passy_proxy.units import RateSetting as RateSetting
    from passy_proxy.units import Size as Size
    from passy_proxy.units import duration as duration
    from passy_proxy.upstream import Target as Target
    from passy_proxy.upstream import Upstream as Upstream
    from passy_proxy.upstream import Upstreams as Upstreams
    from passy_proxy.vitals import Vitals as Vitals

_HOMES = {
    "answer": "failed_reply made single",
    "application": "Application",
    "attempt": "Attempt Dispatch",
    "config.settings": "OptionalSecret Secret Settings StrongSecret StrongSecretOrOff setting",
    "connections": "Connections",
    "dialect": "Dialect Tap",
    "estimate": "prompt_estimate",
    "event": "Event Failure Head Reply",
    "evidence": "Proof",
    "exchange": "Exchange Outcome Request credentials",
    "filter": "Filter Terminal",
    "hookspecs": "hookimpl",
    "issue": "Administered",
    "keyring": "Keyring",
    "log": "LineWriter",
    "models": "Model Models serves",
    "prices": "Price Prices",
    "records": "AttemptRecord Credential CustomProvider Limits Principal SetPrice Switch Usage"
    " UsageRecord UsageRow",
    "remembered": "Remembered",
    "site": "Site",
    "stash": "Stash StashKey",
    "stores": "Alerts Allowance Books Changes Claim Counters Directory Grant Ledger Room Store"
    " StoreUnavailable Switchboard Tariff Vault",
    "transport": "Leg Transport TransportError UpstreamRequest",
    "units": "Count Duration Rate RateSetting Size duration",
    "upstream": "Target Upstream Upstreams",
    "tasks": "Tasks",
    "vitals": "Vitals",
}
_HOME = {name: home for home, names in _HOMES.items() for name in names.split()}
_MODULES = ("json", "keys")

__version__ = "0.1.0"
__all__ = [*_HOME, *_MODULES]


def __getattr__(name: str) -> object:
    if name in _MODULES:
        return import_module(f"passy_proxy.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'passy_proxy' has no attribute {name!r}")
    value = getattr(import_module(f"passy_proxy.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
