"""Of a link nothing can be changed: whatever was, it gets the response of a link to a task that does not exist."""

import asyncio
import random
import string
from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta
from functools import partial
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.types import Scope

from app.enums import LinkScope
from app.errors import NotAuthenticated
from app.keyring import Keyring
from app.signed_urls import SignedUrls
from app.tasks.links.reading import check_links
from tests.links.making import make_links, plant
from tests.support.service import Service

NOW = 1_700_000_000
TASK, OTHER_TASK = "01a2043f266776f28f9f9ee2d1b50c4c", "01a2043f266776f28f9f9ee2d1b50c4d"
OURS = SignedUrls(Keyring("a key of sixteen or more", "the key before this one"), "", timedelta(days=1), lambda: NOW)
SHUFFLED = (("audio", "events", "task"), ("task", "audio"), ("task", "task"))
LETTERS = string.ascii_letters + string.digits + "-._~!$&'()*+,;=:@%/?"
STRANGE = ("%00", "%ff", "%", "%2", "%zz", "é", "％", "\u2024", "\ud800", "İ", "\x00", " ", "\t", "+", "&", "#")


def links_of(task_id: str, ours: SignedUrls = OURS) -> list[str]:
    """Every link to a task that there can be, of each scope."""
    scopes = [[each] for each in LinkScope] + [list(LinkScope), [LinkScope.task, LinkScope.audio]]
    made = []
    for scope in scopes:
        link = ours.browser(scope, 900)
        files = [ours.file(link, task_id, index, name) for index in (0, 1) for name in ("audio", "image")]
        made += [ours.task(link, task_id), ours.events(link, task_id), *files]
    return [*filter(None, made), ours.audio(task_id, 0), ours.audio(task_id, 1)]


MADE = frozenset(links_of(TASK) + links_of(OTHER_TASK))


def changed(link: str, rng: random.Random) -> Iterator[str]:
    """What somebody could make of a link."""
    path, _, query = link.partition("?")
    pairs = query.split("&")
    names = dict(pair.split("=", 1) for pair in pairs)
    start = len("/v1/tasks/")
    for at in range(start, len(link)):
        yield link[:at] + rng.choice(LETTERS) + link[at + 1 :]
        yield link[:at] + link[at + 1 :]
        yield link[:at] + rng.choice(LETTERS) + link[at:]
        yield link[:at] + link[at].swapcase() + link[at + 1 :]
        yield link[:at] + f"%{ord(link[at]):02x}" + link[at + 1 :]
        yield link[:at] + rng.choice(STRANGE) + link[at + 1 :]
        yield link[:at] + link[at : at + 2][::-1] + link[at + 2 :]
    yield from (link.upper(), f"{path}?{query.upper()}", link[:start] + link[start:].lower().replace("e", "E", 1))
    yield from (f"{link}&", f"{link}&&", f"{path}?&{query}", f"{link}&x=1", f"{path}?x=1&{query}", f"{link}&{query}")
    yield from (f"{path}?{'&'.join(pairs[::-1])}", f"{path}?{'&'.join(pairs[1:] + pairs[:1])}", f"{path}//?{query}")
    for pair in pairs:
        yield from (f"{link}&{pair}", f"{path}?{pair}&{query}", f"{path}?{query.replace(pair, '')}", f"{link}%26{pair}")
    for shift in (1, -1, 900, 10**9):
        later = int(names["expires"]) + shift
        yield link.replace(f"expires={names['expires']}", f"expires={later}")
    yield link.replace("expires=", "expires=0")
    for other in ("task", "events", "audio", "task.events.audio", "task.audio", *map(".".join, SHUFFLED), "", "admin"):
        yield link.replace(f"scope={names.get('scope')}", f"scope={other}")
        yield f"{path}?expires={names['expires']}&scope={other}&signature={names['signature']}"
    yield f"{path}?expires={names['expires']}&signature={names['signature']}"
    for other in (
        TASK,
        OTHER_TASK,
        TASK.upper(),
        "0" * 32,
        f"{TASK[:8]}-{TASK[8:12]}-{TASK[12:16]}-{TASK[16:20]}-{TASK[20:]}",
    ):
        yield link.replace(TASK, other)
    for place in ("", "/events", "/clips/0/audio", "/clips/0/image", "/clips/1/audio", "/clips/00/audio", "/callbacks"):
        yield f"/v1/tasks/{TASK}{place}?{query}"


def request_of(target: str) -> Scope:
    """What the server makes of a request for this target: the path decoded, the query as it came."""
    path, _, query = target.partition("?")
    raw = path.encode("utf-8", "surrogatepass")
    return {
        "type": "http",
        "method": "GET",
        "path": path,
        "raw_path": raw,
        "query_string": query.encode("utf-8", "surrogatepass"),
        "headers": [],
    }


def test_of_100_000_changed_links_none_opens() -> None:
    rng = random.Random(19)  # noqa: S311 - tests make the same changes each time
    check = check_links(OURS)
    tried = accepted = 0
    while tried < 100_000:
        for link in links_of(TASK):
            for forged in changed(link, rng):
                if forged in MADE:
                    continue
                scope = request_of(forged)
                tried += 1
                accepted += OURS.opened_by(scope["path"], scope["query_string"]) is not None
                # What no longer looks like a link is left to the route, which wants a key.
                with suppress(NotAuthenticated):
                    check(scope)
                accepted += any(key.startswith("soundpost.") for key in scope)

    assert (tried >= 100_000, accepted) == (True, 0)


def test_every_link_opens_its_own_path_alone() -> None:
    paths = {link.partition("?")[0] for link in MADE}

    for link in MADE:
        own, _, query = link.partition("?")
        opened = {path for path in paths if OURS.opened_by(path, query.encode()) is not None}
        assert opened == {own}


def test_link_expires_to_the_second() -> None:
    keyring = Keyring("a key of sixteen or more")
    for link in links_of(TASK):
        path, _, query = link.partition("?")
        ends = int(query.partition("expires=")[2].partition("&")[0])
        for now, is_open in ((ends - 0.1, True), (ends, False)):
            ours = SignedUrls(keyring, "", timedelta(), partial(float, now))
            assert (ours.opened_by(path, query.encode()) is not None) == is_open


@given(path=st.text(), query=st.binary())
def test_no_bytes_make_a_check_fail(path: str, query: bytes) -> None:
    assert OURS.opened_by(path, query) is None
    assert OURS.opened_by(f"/v1/tasks/{TASK}", b"expires=1800000000&scope=task&signature=" + query) is None


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_changed_expired_and_unknown_links_get_one_response(service: Service) -> None:
    task = await plant(service)
    links = await make_links(service, task.id)
    ours = service.services.signed_urls
    dead = ours.browser(list(LinkScope), -1)
    audio = links["audio_urls"][0]
    good = [links["task_url"], links["events_url"], audio, audio.replace("/audio?", "/image?")]
    expired = [ours.task(dead, task.id), ours.events(dead, task.id), ours.file(dead, task.id, 0, "audio")]
    unknown = [url.replace(task.id, "0" * 32) for url in good]
    rng = random.Random(7)  # noqa: S311 - tests make the same changes each time
    forged = {
        each.replace(TASK, task.id)
        for url in good[:3]
        for each in changed(_target(url).replace(task.id, TASK), rng)
        if each.isascii() and each.isprintable() and not set(each) & {" ", "#"} and is_like_a_link(each)
    }
    sent = [*map(_target, filter(None, expired)), *map(_target, unknown), *sorted(forged - set(map(_target, good)))]

    answers = await _ask_all(service, sent)

    kinds = {head for head, _ in answers.values() if "access-control" not in head}
    assert len(sent) > 2_000
    assert [target for target, (head, _) in answers.items() if head.split()[1] != "401"] == []
    assert len({body for _, body in answers.values()}) == 1
    assert len(kinds) == 1
    # Links to files answer pages of any origin, forged ones like good ones.
    assert len({head for head, _ in answers.values()} - kinds) == 1


def is_like_a_link(target: str) -> bool:
    """Whether a target still asks for a task by a signature; any other is 404 or 401 as it would be without one."""
    return target.startswith("/v1/tasks/") and "signature=" in target.lower()


def _target(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.path}?{parts.query}"


async def _ask_all(service: Service, targets: list[str]) -> dict[str, tuple[str, bytes]]:
    """The head, without time and number, and the body of each response, to requests that no client corrects."""
    url = service.client.base_url
    reader, writer = await asyncio.open_connection(url.host, url.port)
    answers = {}
    try:
        for target in targets:
            writer.write(f"GET {target} HTTP/1.1\r\nHost: {url.netloc.decode()}\r\n\r\n".encode())
            status, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().lower().splitlines()
            fields = sorted(line for line in lines if not line.startswith(("date:", "x-request-id:")))
            [length] = [int(line.split()[1]) for line in fields if line.startswith("content-length:")]
            answers[target] = "\n".join([status, *fields]), await reader.readexactly(length)
    finally:
        writer.close()
        await writer.wait_closed()
    return answers
