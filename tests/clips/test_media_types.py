"""Audio and covers are recognised by their bytes."""

import io
import struct
import tempfile
import time

import pytest

from app.clips.media_types import measure_open, sniff, sniff_image
from app.sandbox.audio import Sound, cover, synthesise

WAV = synthesise(Sound("rain", 120, "Am", loop=False, take=0))


def mp3(seconds: int) -> bytes:
    """Silence at 128 kbit/s and 48 kHz: 24 ms a frame."""
    frame = b"\xff\xfb\x94\x64" + bytes(380)
    return frame * round(seconds / 0.024)


def flac(seconds: int) -> bytes:
    """A header that announces its duration, without frames."""
    rate, samples = 48_000, 48_000 * seconds
    packed = rate << 44 | 1 << 41 | 15 << 36 | samples
    return (
        b"fLaC\x80" + (34).to_bytes(3, "big") + struct.pack(">HH6x", 4096, 4096) + packed.to_bytes(8, "big") + bytes(16)
    )


def box(name: bytes, *contents: bytes) -> bytes:
    """One box of an MP4 file."""
    content = b"".join(contents)
    return struct.pack(">I", 8 + len(content)) + name + content


def m4a(seconds: int) -> bytes:
    """The boxes of an AAC file of 48 kHz, with no frames (ISO/IEC 14496-12 and -14)."""
    length = struct.pack(">II", 48_000, 48_000 * seconds)
    decoder = b"\x40\x15" + bytes(3) + struct.pack(">II", 128_000, 128_000)
    described = b"\x03\x12\x00\x01\x00" + b"\x04" + bytes([len(decoder)]) + decoder
    sound = struct.pack(">6xH8xHH4xI", 1, 2, 16, 48_000 << 16)
    sample = box(b"mp4a", sound, box(b"esds", bytes(4), described))
    table = box(b"stbl", box(b"stsd", struct.pack(">4xI", 1), sample))
    media = box(b"mdia", box(b"mdhd", bytes(12), length, bytes(4)), box(b"minf", table))
    movie = box(b"moov", box(b"mvhd", bytes(12), length, bytes(80)), box(b"trak", media))
    return box(b"ftyp", b"M4A ", bytes(4)) + movie + box(b"mdat", bytes(64))


def ogg(seconds: int) -> bytes:
    """The first and the last page of an Ogg file of Vorbis at 48 kHz (RFC 3533), with no frames."""
    rate = 48_000
    identification = b"\x01vorbis" + struct.pack("<IBIiiiBB", 0, 2, rate, 0, 128_000, 0, 0xB8, 1)

    def page(flags: int, position: int, number: int, packet: bytes) -> bytes:
        head = struct.pack("<4sBBqIII", b"OggS", 0, flags, position, 7, number, 0)
        return head + bytes([1, len(packet)]) + packet

    return page(2, 0, 0, identification) + page(4, rate * seconds, 1, bytes(100))


def duration_of(content: bytes) -> float | None:
    return measure_open(io.BytesIO(content))


@pytest.mark.parametrize(
    ("head", "media_type"),
    [
        (b"RIFF\0\0\0\0WAVEfmt ", "audio/wav"),
        (b"ID3\x04\0\0\0\0\0\0\0\0\0\0\0\0", "audio/mpeg"),
        (b"\xff\xfb\x94\x64" + bytes(12), "audio/mpeg"),
        (b"\0\0\0\x20ftypM4A \0\0\0\0", "audio/mp4"),
        (b"OggS\0\2" + bytes(10), "audio/ogg"),
        (b"fLaC\0\0\0\x22" + bytes(8), "audio/flac"),
        (b"<!DOCTYPE html><", None),
        (b"RIFF\0\0\0\0AVI LIST", None),
        (b"\xff\xd8\xff\xe0" + bytes(12), None),
        (b"", None),
    ],
)
def test_first_bytes_give_the_media_type_of_audio(head: bytes, media_type: str | None) -> None:
    assert sniff(head) == media_type


@pytest.mark.parametrize(
    ("head", "media_type"),
    [
        (cover("any")[:16], "image/png"),
        (b"\xff\xd8\xff\xe0" + bytes(12), "image/jpeg"),
        (b"RIFF\0\0\0\0WEBPVP8 ", "image/webp"),
        (b"GIF89a" + bytes(10), "image/gif"),
        (b'<svg xmlns="http', None),
        (WAV[:16], None),
    ],
)
def test_first_bytes_give_the_media_type_of_covers(head: bytes, media_type: str | None) -> None:
    assert sniff_image(head) == media_type


def test_duration_is_measured_in_every_format() -> None:
    assert duration_of(WAV) == pytest.approx(4, abs=0.5)
    assert duration_of(mp3(3)) == pytest.approx(3, abs=0.1)
    assert duration_of(flac(2)) == pytest.approx(2, abs=0.1)
    assert duration_of(m4a(5)) == pytest.approx(5, abs=0.1)
    assert duration_of(ogg(6)) == pytest.approx(6, abs=0.1)


def test_truncated_wav_is_not_playable() -> None:
    assert duration_of(WAV[: len(WAV) // 2]) is None
    unknown = WAV[:4] + b"\xff" * 4 + WAV[8:]
    assert duration_of(unknown) == pytest.approx(4, abs=0.5)


def test_no_bytes_make_the_parser_raise() -> None:
    heads = (
        WAV[:16],
        b"ID3\4\0\0\x7f\x7f\x7f\x7f",
        b"OggS" + bytes(24),
        b"fLaC",
        b"\0\0\0\1ftypM4A ",
        b"\0\0\0\x20ftypM4A ",
    )
    for head in heads:
        for tail in (b"", bytes(100), b"\xff" * 5000, WAV[20:400]):
            assert duration_of(head + tail) is None or head == WAV[:16]


def test_open_file_may_be_at_any_position() -> None:
    with tempfile.TemporaryFile() as file:
        file.write(WAV)
        assert measure_open(file) == duration_of(WAV)


def test_file_with_too_many_steps_for_the_parser_is_not_playable() -> None:
    endless = WAV[:4] + b"\xff" * 4 + WAV[8:36] + bytes(2_000_000)

    started = time.monotonic()
    assert duration_of(endless) is None
    assert time.monotonic() - started < 5


def test_bytes_after_the_end_of_a_wav_are_ignored() -> None:
    assert duration_of(WAV + bytes(2_000_000)) == duration_of(WAV)
