"""The portal: where people sign in, keep keys in order and see what was spent.

It writes to the same store that gateways read, and no request of a client ever asks it.
"""
