"""Synthesis of audio and covers: a pulse at the tempo over a chord in the key, from the request alone."""

import hashlib
import io
import math
import random
import struct
import wave
import zlib
from array import array
from dataclasses import dataclass
from functools import lru_cache

SAMPLE_RATE = 24_000
PITCHES = ("C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B")
KEYS = frozenset({"Any", *PITCHES, *(f"{pitch}m" for pitch in PITCHES)})

_SECONDS = 4.0  # the usual duration of a clip
_MAX_BEAT = 8.0  # seconds; at slower tempos one pulse would take a clip of a minute
_C3 = 130.81
_TABLE_BITS = 10
_SINE = [round(3400 * math.sin(2 * math.pi * i / 2**_TABLE_BITS)) for i in range(2**_TABLE_BITS)]
_PHASE_BITS = 16  # bits below one table step, so that a tone drifts by far less than one sample over a clip
_PULSE = SAMPLE_RATE // 8
_FADE = SAMPLE_RATE // 10


@dataclass(frozen=True)
class Sound:
    """The parameters of a clip. Equal parameters give equal bytes."""

    prompt: str
    tempo: int | None
    key: str
    loop: bool
    take: int

    @property
    def beat(self) -> int:
        """Samples from one pulse to the next."""
        tempo = self.tempo or 70 + self._digest[0] % 70
        return round(SAMPLE_RATE * min(60 / tempo, _MAX_BEAT))

    @property
    def bed(self) -> int:
        """Samples of the repeated chord: a fraction of a slow beat, or several quick beats."""
        if self.beat > SAMPLE_RATE:
            return self.beat // math.ceil(self.beat / SAMPLE_RATE)
        return self.beat * math.ceil(SAMPLE_RATE / 2 / self.beat)

    @property
    def beds(self) -> int:
        """Number of whole beds in the clip; a slow beat is completed, so that a loop keeps its tempo."""
        per_beat = max(1, round(self.beat / self.bed))
        beats = max(1, round(SAMPLE_RATE * _SECONDS / (self.bed * per_beat)))
        return beats * per_beat

    @property
    def duration(self) -> float:
        """The duration in seconds."""
        return round(self.bed * self.beds / SAMPLE_RATE, 2)

    @property
    def chord(self) -> tuple[float, float, float]:
        """The three frequencies in Hz; each take of a request is an octave above the previous one."""
        key = self.key if self.key != "Any" else PITCHES[self._digest[1] % 12] + "m" * (self._digest[2] % 2)
        third = 3 if key.endswith("m") else 4
        root = _C3 * 2**self.take * 2 ** (PITCHES.index(key.removesuffix("m")) / 12)
        return root, root * 2 ** (third / 12), root * 2 ** (7 / 12)

    @property
    def _digest(self) -> bytes:
        return hashlib.sha256(self.prompt.encode()).digest()


@lru_cache(maxsize=32)
def synthesise(sound: Sound) -> bytes:
    """A mono 16-bit WAV file. Takes about 10 ms of CPU, so call it from a thread."""
    quiet = _chord_bed(sound)
    pulsed = _with_pulses(quiet, sound)
    per_beat = max(1, round(sound.beat / sound.bed))
    beat = pulsed + quiet * (per_beat - 1)
    samples = beat * (sound.beds // per_beat)
    if not sound.loop:
        _fade(samples)
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(SAMPLE_RATE)
        out.writeframes(samples.tobytes())
    return file.getvalue()


def cover(seed: str) -> bytes:
    """A small PNG in one colour that depends on the seed."""
    side = 16
    row = b"\0" + hashlib.sha256(seed.encode()).digest()[:3] * side
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(row * side)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )


def _chord_bed(sound: Sound) -> "array[int]":
    length = sound.bed
    # A whole number of cycles per bed, so that repeating the bed, or looping the clip, makes no click.
    cycles = [round(pitch * length / SAMPLE_RATE) for pitch in sound.chord]
    steps = [(count << (_TABLE_BITS + _PHASE_BITS)) // length for count in cycles]
    phases = [range(0, step * length, step) for step in steps]
    hiss = random.Random(f"{sound.prompt}/{sound.take}").randbytes(length)  # noqa: S311 - noise, not a secret
    table, shift, mask = _SINE, _PHASE_BITS, 2**_TABLE_BITS - 1
    return array(
        "h",
        [
            table[p >> shift & mask] + table[q >> shift & mask] + table[r >> shift & mask] + (noise << 2) - 512
            for p, q, r, noise in zip(*phases, hiss, strict=False)
        ],
    )


def _with_pulses(bed: "array[int]", sound: Sound) -> "array[int]":
    low = 2 * math.pi * sound.chord[0] / 2 / SAMPLE_RATE
    pulse = [int(15_000 * math.exp(-i / (_PULSE / 6)) * math.sin(low * i)) for i in range(_PULSE)]
    pulsed = array("h", bed)
    for start in range(0, len(bed), sound.beat):
        for i, level in enumerate(pulse):
            pulsed[start + i] += level
    return pulsed


def _fade(samples: "array[int]") -> None:
    last = len(samples) - 1
    for i in range(_FADE):
        samples[i] = samples[i] * i // _FADE
        samples[last - i] = samples[last - i] * i // _FADE
