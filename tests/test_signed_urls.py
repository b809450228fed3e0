"""A link without a key opens one file, for a while."""

from datetime import timedelta

from app.keyring import Secrets
from app.signed_urls import Links

DAY = timedelta(days=1)
TASK = "01a2043f266776f28f9f9ee2d1b50c4c"


def links(*keys: str, now: float = 1_700_000_000.0, base_url: str = "") -> Links:
    return Links(Secrets(*keys), base_url, DAY, lambda: now)


def parts_of(link: str) -> tuple[str, str]:
    query = dict(pair.split("=", 1) for pair in link.partition("?")[2].split("&"))
    return query["expires"], query["signature"]


def test_link_opens_its_own_clip_alone() -> None:
    ours = links("a key of sixteen or more")
    expires, signature = parts_of(ours.audio(TASK, 0))

    assert ours.is_valid(TASK, 0, expires, signature)
    assert not ours.is_valid(TASK, 1, expires, signature)
    assert not ours.is_valid(TASK.replace("c", "d"), 0, expires, signature)
    assert not ours.is_valid(TASK, 0, str(int(expires) + 1), signature)


def test_link_expires_to_the_second() -> None:
    expires, signature = parts_of(links("a key of sixteen or more").audio(TASK, 0))

    assert expires == "1700086400"
    assert links("a key of sixteen or more", now=1_700_086_399.9).is_valid(TASK, 0, expires, signature)
    assert not links("a key of sixteen or more", now=1_700_086_400.0).is_valid(TASK, 0, expires, signature)


def test_link_of_the_key_before_still_opens() -> None:
    expires, signature = parts_of(links("the key before this one").audio(TASK, 0))

    assert links("a newer key of the list", "the key before this one").is_valid(TASK, 0, expires, signature)
    assert not links("a newer key of the list").is_valid(TASK, 0, expires, signature)


def test_no_text_makes_a_check_fail() -> None:
    ours = links("a key of sixteen or more")
    for text in ("", "\0", "ä", "\ud800", "9" * 5000, "-1", "１"):
        assert not ours.is_valid(TASK, 0, text, text)


def test_link_begins_with_where_callers_reach_us() -> None:
    assert links("a key of sixteen or more").audio(TASK, 3).startswith(f"/v1/tasks/{TASK}/clips/3/audio?expires=")
    absolute = links("a key of sixteen or more", base_url="https://sounds.example.com").audio(TASK, 3)
    assert absolute.startswith(f"https://sounds.example.com/v1/tasks/{TASK}/clips/3/audio?expires=")
