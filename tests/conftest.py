"""What holds for every test: one thread each, and no network."""

import os
import socket

import pytest

# Before torch is imported: test processes run side by side, and more threads than cores wait for
# each other. Processes that tests start inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

_connect = socket.socket.connect


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse every connection that leaves this machine: the suite must pass without a network."""

    def connect(self: socket.socket, address: object) -> None:
        host = address[0] if isinstance(address, tuple) else "localhost"
        if host not in ("127.0.0.1", "::1", "localhost"):
            raise RuntimeError(f"A test tried to reach {host}. Use tests/local_hub.py instead.")
        _connect(self, address)  # type: ignore[arg-type]

    monkeypatch.setattr(socket.socket, "connect", connect)
