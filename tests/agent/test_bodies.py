from __future__ import annotations

import socket
import threading
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.bodies import HttpError, Pace, Source


def read(data: bytes, *, length: int | None = None, limit: int = 1 << 20, leftover: int = 0, pace: Pace | None = None) -> tuple[bytes, bytes]:
    """The body, and what came behind it. ``leftover``: how much of the data had come along with the head."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        source = Source(ours, data[:leftover], pace or Pace())
        source.begin(length)
        theirs.sendall(data[leftover:])
        theirs.shutdown(socket.SHUT_WR)
        body = source.body(limit)
        rest = source.rest()
        while more := ours.recv(1 << 16):
            rest += more
        return bytes(body), rest


@given(st.lists(st.binary(min_size=1, max_size=300), max_size=6), st.sampled_from([b"", b";a", b';a="b c"']), st.integers(0, 2000), st.binary(max_size=20))
def test_chunks_are_joined_however_they_were_cut(parts: list[bytes], extension: bytes, leftover: int, behind: bytes) -> None:
    chunked = b"".join(f"{len(part):X}".encode() + extension + b"\r\n" + part + b"\r\n" for part in parts) + b"0\r\n\r\n" + behind
    assert read(chunked, leftover=leftover) == (b"".join(parts), behind)


@given(st.binary(max_size=3000), st.integers(0, 3000), st.binary(max_size=20))
def test_a_body_with_a_length_ends_there(body: bytes, leftover: int, behind: bytes) -> None:
    assert read(body + behind, length=len(body), leftover=leftover) == (body, behind)


@pytest.mark.parametrize(
    "chunked",
    [
        b"",
        b"5",
        b"5\r\nabcde",
        b"5\r\nabcde\r\n",
        b"5\r\nabcde\r\n0\r\n",
        b"5\nabcde\r\n0\r\n\r\n",
        b"5\r\nabcde\n0\r\n\r\n",
        b"5\r\nabcdefg\r\n0\r\n\r\n",
        b" 5\r\nabcde\r\n0\r\n\r\n",
        b"5 \r\nabcde\r\n0\r\n\r\n",
        b"+5\r\nabcde\r\n0\r\n\r\n",
        b"-5\r\nabcde\r\n0\r\n\r\n",
        b"0x5\r\nabcde\r\n0\r\n\r\n",
        b"5_0\r\nabcde\r\n0\r\n\r\n",
        b"\xb2\r\nab\r\n0\r\n\r\n",
        b"00000000000000005\r\nabcde\r\n0\r\n\r\n",
        b"5;a\x00\r\nabcde\r\n0\r\n\r\n",
        b"5;" + b"a" * 5000 + b"\r\nabcde\r\n0\r\n\r\n",
        b"0\r\nno header\r\n\r\n",
        b"0\r\n A: folded\r\n\r\n",
        b"0\r\n" + b"A: b\r\n" * 100 + b"\r\n",
        b"0\r\r\n",
    ],
)
def test_chunks_that_two_programs_could_read_differently_are_refused(chunked: bytes) -> None:
    with pytest.raises(HttpError) as caught:
        read(chunked)
    assert (caught.value.status, caught.value.close) == (400, True)


@pytest.mark.parametrize(("data", "length"), [(b"5\r\nabcde\r\n0\r\n\r\n", None), (b"FFFFFFFFFFFFFFFF\r\n", None), (b"abcde", 5)])
def test_a_body_beyond_the_limit_is_refused(data: bytes, length: int | None) -> None:
    with pytest.raises(HttpError) as caught:
        read(data, length=length, limit=4)
    assert caught.value.status == 413


@pytest.mark.parametrize(("first", "length"), [(b"100\r\n", None), (b"", 100)])
def test_who_sends_a_byte_now_and_then_is_cut_off(first: bytes, length: int | None) -> None:
    """Never idle for long, and yet too slow as a whole."""
    ours, theirs = socket.socketpair()
    done = threading.Event()

    def dribble() -> None:
        while not done.wait(0.02):
            theirs.send(b"a")

    with ours, theirs:
        source = Source(ours, first, Pace(idle_s=0.2, bytes_a_second=1 << 20))
        source.begin(length)
        dribbling = threading.Thread(target=dribble)
        dribbling.start()
        try:
            with pytest.raises(HttpError, match="too slowly") as caught:
                source.body(1 << 20)
        finally:
            done.set()
            dribbling.join()
    assert caught.value.status == 408


def test_memory_is_asked_for_before_it_is_used() -> None:
    taken: list[int] = []

    def take(size: int) -> None:
        taken.append(size)
        if sum(taken) > 6:
            raise HttpError(503, "full")

    ours, theirs = socket.socketpair()
    with ours, theirs:
        source: Any = Source(ours, b"4\r\nabcd\r\n4\r\nabcd\r\n0\r\n\r\n", Pace())
        source.begin(None)
        with pytest.raises(HttpError, match="full"):
            source.body(100, take)
    assert taken == [4, 4]


def test_the_deadline_grows_with_the_size() -> None:
    pace = Pace(idle_s=1, bytes_a_second=100)
    assert 10.9 < pace.deadline(1000) - time.monotonic() <= 11
