"""How a listening socket comes to its end without a client being reset.

Who has connected waits in its queue, and closing it resets them, their requests perhaps on the
way. Looking into the queue once more before does not help: somebody may come in between. So first
the system is told to begin no more connections there, by a filter that drops packets of that kind
(SYN). Those half made come into the queue still. Who tries meanwhile is not answered, tries again a
second later, as TCP does by itself, and is refused in order: whoever listens by then serves them.
"""

from __future__ import annotations

import contextlib
import ctypes
import socket
import struct
import sys

FROM_AFAR = 0.25
"""Seconds in which a connection is made that has begun: the longest way there and back."""
FROM_NEAR = 0.005
"""The same where there is no time."""

_ATTACH_FILTER = 26  # SO_ATTACH_FILTER of Linux, which Python does not name
_FLAGS = 13  # byte of a TCP header
_SYN = 0x02
_BEGINS_NO_CONNECTION = [
    (0x30, 0, 0, _FLAGS),  # load the byte
    (0x45, 0, 1, _SYN),  # is this bit of it set?
    (0x06, 0, 0, 0),  # then keep nothing of the packet
    (0x06, 0, 0, 0xFFFFFFFF),  # else all of it
]


def let_none_begin(sock: socket.socket) -> None:
    """Have no more connections begin at a listening socket. For good, and for all who share it, so
    only for one that nobody will go on with. Elsewhere than on Linux nothing happens."""
    if sys.platform != "linux" or sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    code = b"".join(struct.pack("HBBI", *step) for step in _BEGINS_NO_CONNECTION)
    steps = ctypes.create_string_buffer(code)
    filter = struct.pack("HP", len(_BEGINS_NO_CONNECTION), ctypes.addressof(steps))
    with contextlib.suppress(OSError):  # A sandbox may forbid it.
        sock.setsockopt(socket.SOL_SOCKET, _ATTACH_FILTER, filter)
