"""Measure passy next to Envoy, nginx and a stock stack, or measure a URL (in a checkout)."""

from __future__ import annotations

import importlib
import sys

import click

from passy_proxy.cli._checkout import checkout

sys.path.append(str(checkout() / "bench"))  # `passy_bench` is no part of the installed package
command: click.Command = importlib.import_module("passy_bench.command").command
