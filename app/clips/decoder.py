"""
Decodes audio to the peaks of its waveform: a program of its own, which imports nothing of the service.

It reads a file from its standard input and prints JSON. What it decodes may be hostile, and the decoder is written in
C: memory and time are limited, and whatever happens here happens to this process alone.
"""

from __future__ import annotations

import json
import resource
import sys
from importlib import import_module
from itertools import starmap
from typing import IO, Any

# Between half as many and all of these are printed.
MAX_PEAKS = 1024
# Samples a second that are looked at, and samples of the narrowest peak: 4 ms, so that a short sound has many.
RATE, NARROWEST = 16_000, 64
# Samples that are decoded at a time.
BLOCK = 256 * NARROWEST
MAX_MEMORY, MAX_SECONDS = 512 * 2**20, 20
LIBRARY = "miniaudio"


def peaks_of(file: IO[bytes], decoder: Any) -> tuple[list[float], float]:
    """The loudest sample of each part of the audio, from 0 to 1, and the audio's duration in seconds."""

    class Source(decoder.StreamableSource):  # type: ignore[misc]  # the library has no types
        def read(self, num_bytes: int) -> bytes:
            return file.read(num_bytes)

        def seek(self, offset: int, origin: Any) -> bool:
            file.seek(offset, 0 if origin is decoder.SeekOrigin.START else 1)
            return True

    samples = 0
    width, peaks = NARROWEST, list[int]()
    for block in decoder.stream_any(Source(), nchannels=1, sample_rate=RATE, frames_to_read=BLOCK):
        samples += len(block)
        parts = (block[start : start + width] for start in range(0, len(block), width))
        peaks += [max(max(part), -min(part)) for part in parts]
        while len(peaks) > MAX_PEAKS and width < BLOCK:
            peaks, width = _halved(peaks), 2 * width
    while len(peaks) > MAX_PEAKS:
        peaks = _halved(peaks)
    return [min(1.0, round(peak / 32767, 3)) for peak in peaks], samples / RATE


def _halved(peaks: list[int]) -> list[int]:
    return list(starmap(max, zip(peaks[::2], [*peaks[1::2], 0], strict=False)))


def main() -> None:
    """Print the peaks, none for what cannot be decoded."""
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY, MAX_MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (MAX_SECONDS, MAX_SECONDS))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    decoder = import_module(LIBRARY)
    try:
        peaks, duration = peaks_of(sys.stdin.buffer, decoder)
    except (decoder.MiniaudioError, MemoryError, OSError, ValueError):
        peaks, duration = [], 0.0
    print(json.dumps({"duration": round(duration, 3), "peaks": peaks}, separators=(",", ":")))  # noqa: T201 - read by the caller


if __name__ == "__main__":
    main()
