"""Audio has the tempo, the key and the loop of its request, and equal requests give equal audio."""

import io
import itertools
import math
import time
import wave
from array import array
from dataclasses import replace

import pytest

from app.sandbox.audio import KEYS, PITCHES, SAMPLE_RATE, Sound, cover, synthesise

RAIN = Sound("soft rain", tempo=120, key="A", loop=False, take=0)


def samples_of(sound: Sound) -> "array[int]":
    with wave.open(io.BytesIO(synthesise(sound))) as file:
        return array("h", file.readframes(file.getnframes()))


def loudness_of(samples: "array[int]", hertz: float) -> float:
    """The level of this frequency (Goertzel algorithm)."""
    factor = 2 * math.cos(2 * math.pi * hertz / SAMPLE_RATE)
    last, before = 0.0, 0.0
    for sample in samples:
        last, before = sample + factor * last - before, last
    return math.sqrt(last**2 + before**2 - factor * last * before) / len(samples)


def test_equal_requests_give_equal_bytes() -> None:
    first = synthesise(RAIN)
    synthesise.cache_clear()

    assert synthesise(RAIN) == first


@pytest.mark.parametrize("other", [{"prompt": "wind"}, {"tempo": 121}, {"key": "Am"}, {"loop": True}, {"take": 1}])
def test_any_difference_in_the_request_changes_the_audio(other: dict[str, object]) -> None:
    assert synthesise(replace(RAIN, **other)) != synthesise(RAIN)  # type: ignore[arg-type]


@pytest.mark.parametrize("tempo", [30, 60, 90, 120, 240, 300])
def test_pulses_come_at_the_tempo(tempo: int) -> None:
    samples = samples_of(replace(RAIN, tempo=tempo, loop=True))
    beat = SAMPLE_RATE * 60 // tempo
    loud, quiet = (
        [max(map(abs, samples[at : at + SAMPLE_RATE // 50])) for at in range(start, len(samples) - beat // 2, beat)]
        for start in (0, beat - SAMPLE_RATE // 25)
    )

    assert len(loud) >= 2
    assert min(loud) > max(quiet)


@pytest.mark.parametrize(("key", "third", "absent"), [("A", 277.18, 261.63), ("Am", 261.63, 277.18)])
def test_key_is_the_chord(key: str, third: float, absent: float) -> None:
    samples = samples_of(replace(RAIN, key=key))

    for hertz in (220.0, third, 329.63):
        assert loudness_of(samples, hertz) > 20 * loudness_of(samples, absent)


def test_every_key_has_a_chord_of_its_own() -> None:
    chords = {Sound("rain", None, key, loop=False, take=0).chord for key in KEYS - {"Any"}}

    assert (len(KEYS), len(chords)) == (25, 24)
    assert {"Any", *PITCHES} < KEYS


def test_loop_has_no_seam_and_a_single_sound_fades() -> None:
    looped, single = samples_of(replace(RAIN, loop=True)), samples_of(RAIN)
    steps = [abs(a - b) for a, b in itertools.pairwise(looped)]

    assert abs(looped[-1] - looped[0]) <= max(steps)
    assert max(map(abs, looped[-50:])) > 1000
    assert max(map(abs, [*single[:20], *single[-20:]])) < 200


@pytest.mark.parametrize("tempo", [None, 1, 7, 29, 61, 120, 233, 300])
def test_duration_is_known_before_synthesis_and_is_a_few_seconds(tempo: int | None) -> None:
    sound = replace(RAIN, tempo=tempo)

    assert len(samples_of(sound)) == pytest.approx(sound.duration * SAMPLE_RATE, abs=SAMPLE_RATE * 0.01)
    assert 2 <= sound.duration <= 12


def test_synthesis_takes_little_cpu_time() -> None:
    spent = []
    for tempo in (1, 60, 61, 120, 300):
        started = time.process_time()
        synthesise(replace(RAIN, prompt="a prompt that is in no cache", tempo=tempo))
        spent.append(time.process_time() - started)

    assert min(spent) < 0.06


def test_covers_are_small_pictures_that_differ() -> None:
    assert cover("one").startswith(b"\x89PNG\r\n\x1a\n")
    assert cover("one") != cover("two")
    assert len(cover("one")) < 200
