"""A delta made here and applied by the device's own code: the new blob, byte by byte, or an error."""

import io

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from edge_agent.delta import MAGIC, BadDelta, apply
from edgesdk import delta


def applied(old: bytes, size: int, packed: bytes, piece: int = 1 << 16) -> bytes:
    return b"".join(apply(io.BytesIO(old), size, (packed[at : at + piece] for at in range(0, len(packed), piece))))


def weights(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(count).astype(np.float32)


BLOCKS = st.lists(st.sampled_from([bytes([i]) * 70 + bytes(range(64)) for i in range(6)]) | st.binary(max_size=200), max_size=12).map(b"".join)


@given(old=BLOCKS, new=BLOCKS, piece=st.integers(1, 100))
@example(old=b"a" * 200, new=b"b" * 100 + b"a" * 200, piece=7)
@example(old=bytes(range(200)), new=bytes(range(50, 200)) + bytes(range(200)), piece=100)
def test_any_two_blobs(old: bytes, new: bytes, piece: int) -> None:
    packed = delta.between(old, new)
    if packed is not None:
        assert applied(old, len(new), packed, piece) == new


@given(old=st.binary(min_size=1, max_size=300), changes=st.lists(st.tuples(st.integers(0, 299), st.integers(0, 255)), max_size=20))
def test_two_of_equal_length(old: bytes, changes: list[tuple[int, int]]) -> None:
    new = bytearray(old * 10)
    for place, value in changes:
        new[place % len(new)] = value
    packed = delta.between(old * 10, bytes(new))
    if packed is not None:
        assert applied(old * 10, len(new), packed) == new


def test_one_percent_of_the_weights_costs_about_that() -> None:
    old = weights(500_000)
    scattered, contiguous = old.copy(), old.copy()
    places = np.random.default_rng(1).choice(len(old), len(old) // 100, replace=False)
    scattered[places] *= np.float32(1.001)
    contiguous[1000 : 1000 + len(old) // 100] = weights(len(old) // 100, 2)
    for new, most in ((scattered, 0.012), (contiguous, 0.0105)):
        packed = delta.between(old.tobytes(), new.tobytes())
        assert packed is not None
        assert len(packed) <= most * new.nbytes
        assert applied(old.tobytes(), new.nbytes, packed) == new.tobytes()


def test_what_moved_is_found() -> None:
    old = weights(100_000).tobytes()
    new = old[200_000:] + b"a header of another length" + old[:200_000] + old[5_001:90_000]
    packed = delta.between(old, new)
    assert packed is not None
    assert len(packed) < 200
    assert applied(old, len(new), packed) == new


def test_what_shares_nothing_is_sent_whole() -> None:
    assert delta.between(weights(10_000).tobytes(), weights(10_000, 1).tobytes()) is None
    assert delta.between(weights(10_000).tobytes(), weights(10_001, 1).tobytes()) is None
    assert delta.between(b"", b"abc") is None


@given(st.binary(max_size=200), st.integers(0, 5000))
@example(b"\x00\x00\x00" * 60, 10)
def test_any_bytes_are_a_delta_or_a_sentence(data: bytes, size: int) -> None:
    import zlib

    for packed in (data, MAGIC + data, MAGIC + b"\0" + data, MAGIC + b"\0" + zlib.compress(data), MAGIC + b"\1" + zlib.compress(data)):
        try:
            assert len(applied(bytes(range(256)), size, packed)) == size
        except BadDelta as error:
            assert str(error)


def test_no_more_comes_out_than_was_said() -> None:
    """A bomb: a small delta that says that it makes much."""
    import zlib

    made = 0
    bomb = MAGIC + b"\1" + zlib.compress(b"\x00\xff\xff\xff\x7f\x00" + bytes(1 << 24))
    with pytest.raises(BadDelta, match="more than it says"):
        for piece in apply(io.BytesIO(b"base"), 1000, [bomb]):
            made += len(piece)
    assert made == 0


def test_a_base_that_cannot_help_is_not_searched(monkeypatch: pytest.MonkeyPatch) -> None:
    """A large model after a small one, or one that shares nothing: the search would take minutes, and the receiver's patience end."""
    random = np.random.default_rng(7)
    small, large, other = (random.bytes(count) for count in (100_000, 2_000_000, 1_900_000))

    def searched(*_: object) -> None:
        raise AssertionError("it was searched")

    monkeypatch.setattr(delta, "_packed", searched)
    assert delta.between(other, large) is None
    monkeypatch.setattr(delta, "_moved", searched)
    assert delta.between(small, large) is None
    with pytest.raises(AssertionError):
        delta.between(other, large)
