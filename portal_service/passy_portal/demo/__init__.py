"""A month in the life of a small team, for who wants to see a portal in use: `passy demo`.

``cast`` says who they are and what they have, ``trouble`` how providers behave, ``traffic`` makes
the exchanges of a span of time, ``stage`` writes all of it into the books, ``command`` is the
command.
"""
