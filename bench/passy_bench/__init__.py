"""`passy bench`: what a request and a streamed chunk cost, next to Envoy, nginx, a stock stack.

Found from a checkout only. Each module is one part: `mock` and `load` are programs of their own on
one core, the target has the other; `targets` says how each target is started, `plan` which loads it
gets in which order, `results` what is kept of it, `command` is the command line.
"""
