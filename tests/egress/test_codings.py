"""Bodies are read whatever a proxy made of them, and no coding makes them larger than they may be."""

import encodings
import gzip
import zlib
from functools import partial

import pytest

from app.egress import CodingBroken, InflatedTooLarge, codings_of, inflated
from app.egress.codings import PIECE, Inflater

# The same bytes at any time, so that tests have the same names in every process.
packed = partial(gzip.compress, mtime=0)

TEXT = b'{"code":200,"msg":"all is well"}' * 10
RAW = zlib.compressobj(wbits=-zlib.MAX_WBITS)
HEADERLESS = RAW.compress(TEXT) + RAW.flush()


@pytest.mark.parametrize(
    ("field", "codings"),
    [
        ("", []),
        ("identity", []),
        ("Identity, ", []),
        ("UTF-8", []),
        ("iso-8859-1", []),
        ("none", []),
        ("utf-8-sig", []),
        ("charset=UTF-8", []),
        ('charset="utf-8", gzip', ["gzip"]),
        ("gzip", ["gzip"]),
        (" X-GZip ", ["x-gzip"]),
        ("utf-8, gzip", ["gzip"]),
        ("deflate, gzip", ["gzip", "deflate"]),
        ("br", None),
        ("zstd", None),
        ("compress", None),
        ("gzip, br", None),
        ("gzip, gzip, gzip", None),
        ("something", None),
    ],
)
def test_codings_are_those_that_code_something(field: str, codings: list[str] | None) -> None:
    assert codings_of(field) == codings


@pytest.mark.parametrize(
    ("codings", "body"),
    [
        ([], TEXT),
        (["gzip"], packed(TEXT)),
        (["x-gzip"], packed(TEXT)),
        (["gzip"], packed(TEXT[:100]) + packed(TEXT[100:])),
        (["gzip"], packed(TEXT) + b"\0\0\0"),
        (["deflate"], zlib.compress(TEXT)),
        (["deflate"], HEADERLESS),
        (["gzip", "deflate"], packed(zlib.compress(TEXT))),
        # Said to be coded, and not so.
        (["gzip"], TEXT),
        (["deflate"], TEXT),
    ],
)
def test_body_is_what_was_coded(codings: list[str], body: bytes) -> None:
    assert inflated(body, codings, len(TEXT)) == TEXT


@pytest.mark.parametrize("body", [b"", b"x", b"\x1f"])
def test_body_too_short_for_a_coding_is_as_it_came(body: bytes) -> None:
    assert inflated(body, ["gzip"], 100) == body


@pytest.mark.parametrize("body", [packed(TEXT)[:-9], packed(TEXT)[:20] + b"\xff" * 40])
def test_broken_body_is_an_error(body: bytes) -> None:
    with pytest.raises(CodingBroken):
        inflated(body, ["gzip"], 1000)


@pytest.mark.parametrize(
    ("codings", "body"), [(["gzip"], packed(bytes(101))), (["deflate"], zlib.compress(bytes(10**7)))]
)
def test_limit_counts_what_comes_out(codings: list[str], body: bytes) -> None:
    with pytest.raises(InflatedTooLarge):
        inflated(body, codings, 100)


@pytest.mark.parametrize("cut", range(-3, 4))
def test_members_are_found_wherever_the_chunks_are_cut(cut: int) -> None:
    first, second = packed(TEXT), packed(TEXT[::-1])
    body, at = first + second, len(first) + cut
    inflater = Inflater("gzip")

    found = b"".join(piece for chunk in (body[:at], body[at:]) for piece in inflater.feed(chunk)) + inflater.finish()

    assert found == TEXT + TEXT[::-1]


def test_output_that_fills_a_piece_is_read_to_its_end() -> None:
    for size in (PIECE - 1, PIECE, PIECE + 1, 3 * PIECE):
        assert inflated(packed(bytes(size)), ["gzip"], size) == bytes(size)


def test_unknown_names_are_not_kept_by_python() -> None:
    before = len(encodings._cache)

    assert codings_of(",".join(f"x{number}" for number in range(1_000))) is None
    assert len(encodings._cache) == before
