"""A link without a key opens one file, for a while."""

from datetime import timedelta

from app.keyring import Keyring
from app.signed_urls import SignedUrls

DAY = timedelta(days=1)
TASK = "01a2043f266776f28f9f9ee2d1b50c4c"


def signed_urls(*keys: str, now: float = 1_700_000_000.0, base_url: str = "") -> SignedUrls:
    return SignedUrls(Keyring(*keys), base_url, DAY, lambda: now)


def parts_of(link: str) -> tuple[str, str]:
    query = dict(pair.split("=", 1) for pair in link.partition("?")[2].split("&"))
    return query["expires"], query["signature"]


def test_link_opens_its_own_clip_alone() -> None:
    ours = signed_urls("a key of sixteen or more")
    expires, signature = parts_of(ours.audio(TASK, 0))

    assert ours.is_valid(TASK, 0, expires, signature)
    assert not ours.is_valid(TASK, 1, expires, signature)
    assert not ours.is_valid(TASK.replace("c", "d"), 0, expires, signature)
    assert not ours.is_valid(TASK, 0, str(int(expires) + 1), signature)


def test_link_expires_to_the_second() -> None:
    expires, signature = parts_of(signed_urls("a key of sixteen or more").audio(TASK, 0))

    assert expires == "1700086400"
    assert signed_urls("a key of sixteen or more", now=1_700_086_399.9).is_valid(TASK, 0, expires, signature)
    assert not signed_urls("a key of sixteen or more", now=1_700_086_400.0).is_valid(TASK, 0, expires, signature)


def test_link_of_the_key_before_still_opens() -> None:
    expires, signature = parts_of(signed_urls("the key before this one").audio(TASK, 0))

    assert signed_urls("a newer key of the list", "the key before this one").is_valid(TASK, 0, expires, signature)
    assert not signed_urls("a newer key of the list").is_valid(TASK, 0, expires, signature)


def test_no_text_makes_a_check_fail() -> None:
    ours = signed_urls("a key of sixteen or more")
    for text in ("", "\0", "ä", "\ud800", "9" * 5000, "-1", "１"):
        assert not ours.is_valid(TASK, 0, text, text)


def test_link_begins_with_where_callers_reach_us() -> None:
    assert signed_urls("a key of sixteen or more").audio(TASK, 3).startswith(f"/v1/tasks/{TASK}/clips/3/audio?expires=")
    absolute = signed_urls("a key of sixteen or more", base_url="https://sounds.example.com").audio(TASK, 3)
    assert absolute.startswith(f"https://sounds.example.com/v1/tasks/{TASK}/clips/3/audio?expires=")
