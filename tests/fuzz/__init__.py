"""Fuzz targets. A module of this package with a ``check(data: bytes)`` is one: it raises for bytes
that show a fault, and for no others. ``SEEDS`` are inputs to begin with, ``WORDS`` names the
catalogues whose cases are more of them.

`run.py` drives one with atheris, `harness.fuzzing` finds them all; what was once found lies in
``crashes/<target>`` and is tried in every run.
"""
