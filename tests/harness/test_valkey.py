"""The servers and the wire that tests break: each fault is the one that it says."""

from __future__ import annotations

import socket
import time

import hiredis
import pytest

from harness.valkey import Cluster, Valkey, Wire

PING = b"*1\r\n$4\r\nPING\r\n"


def asked(port: int, seconds: float = 90.0) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=seconds) as sock:
        sock.sendall(PING)
        return sock.recv(100)


def test_a_killed_server_comes_back_empty_on_its_port() -> None:
    with Valkey() as server:
        server.ask("SET", "a", "1")
        server.kill()
        with pytest.raises(ConnectionRefusedError):
            server.ask("GET", "a")
        server.start()
        assert server.ask("GET", "a") is None


def test_a_frozen_server_says_nothing_until_it_is_thawed() -> None:
    with Valkey() as server:
        server.freeze()
        with pytest.raises(TimeoutError):
            asked(server.port, 0.2)
        server.thaw()
        assert b"+PONG\r\n" == asked(server.port)


def test_a_server_with_a_password_is_asked_with_it() -> None:
    with Valkey(requirepass="pass word") as server:
        assert asked(server.port).startswith(b"-NOAUTH")
        assert "PONG" == server.ask("PING")


def test_a_wire_does_as_its_fault_says(valkey: Valkey) -> None:
    with Wire(valkey) as wire:
        assert b"+PONG\r\n" == asked(wire.port)
        wire.fault = "garbage"
        assert b"?+PONG\r\n" == asked(wire.port)
        wire.fault = b"-LOADING soon\r\n"
        assert b"-LOADING soon\r\n" == asked(wire.port)
        wire.fault = "hole"
        with pytest.raises(TimeoutError):
            asked(wire.port, 0.2)
        wire.fault = 0.3
        began = time.monotonic()
        assert b"+PONG\r\n" == asked(wire.port)
        assert time.monotonic() - began > 0.3
        wire.fault = "reset"
        with socket.create_connection(("127.0.0.1", wire.port), timeout=90) as sock:
            sock.sendall(PING)
            assert len(sock.recv(100)) < len(b"+PONG\r\n")
            with pytest.raises(ConnectionResetError):
                sock.recv(100)
        wire.fault = "refused"
        with pytest.raises(ConnectionRefusedError):
            asked(wire.port)
        wire.fault = None
        assert b"+PONG\r\n" == asked(wire.port)
        assert 7 == wire.connections


def test_three_nodes_share_the_slots_and_hand_them_on(cluster: Cluster) -> None:
    owner = cluster.owner("{a}")
    owner.ask("SET", "{a}", "1")
    other = next(node for node in cluster.masters if node is not owner)
    with pytest.raises(hiredis.ReplyError, match="MOVED"):
        other.ask("GET", "{a}")
    cluster.move("{a}", other)
    assert other is cluster.owner("{a}")
    assert "1" == other.ask("GET", "{a}")


def test_a_replica_takes_the_place_of_its_master() -> None:
    with Cluster(replicas=True) as cluster:
        owner = cluster.owner("a")
        owner.ask("SET", "a", "1")
        assert 1 == owner.ask("WAIT", 1, 90_000)
        replica = cluster.replicas[cluster.masters.index(owner)]
        replica.ask("CLUSTER", "FAILOVER", "TAKEOVER")
        assert "1" == replica.ask("GET", "a")
