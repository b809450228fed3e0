"""Faults of the audio hosts."""

import httpx
import pytest

from tests.sandbox.running import create_task, poll_until_final, tasks_for, unreachable_url


async def links_of(client: httpx.AsyncClient, fault: str) -> list[str]:
    """The audio links of a finished task with this fault."""
    task_id = await create_task(client, f"rain [fault: drop-callbacks, {fault}]")
    return [clip["audioUrl"] for clip in (await poll_until_final(client, task_id))["response"]["sunoData"]]


@pytest.mark.parametrize("status", [403, 404, 410, 441, 500])
async def test_link_fails_as_often_as_the_fault_says(client: httpx.AsyncClient, status: int) -> None:
    first, second = await links_of(client, f"audio-{status}=1")
    answers = [await client.get(link) for link in (first, first, second, second)]

    assert [answer.status_code for answer in answers] == [status, 200, status, 200]


async def test_file_is_empty_html_or_cut_in_half(client: httpx.AsyncClient) -> None:
    contents = {}
    for fault in ("audio-empty=1", "audio-html=1", "audio-cut=1"):
        [link, _] = await links_of(client, fault)
        bad, good = await client.get(link), await client.get(link)
        assert (bad.status_code, good.content[:4]) == (200, b"RIFF")
        contents[fault] = len(bad.content) / len(good.content)
        assert fault != "audio-html=1" or bad.headers["content-type"].startswith("text/html")

    assert contents["audio-empty=1"] == 0
    assert 0.4 < contents["audio-cut=1"] < 0.6


async def test_connection_closes_after_half_of_the_content_length(client: httpx.AsyncClient) -> None:
    [link, _] = await links_of(client, "audio-truncated=1")
    async with client.stream("GET", link) as answer:
        chunks = answer.aiter_bytes(1)
        length = int(answer.headers["content-length"])
        for _ in range(length // 2):
            await anext(chunks)
        with pytest.raises(httpx.RemoteProtocolError):
            await anext(chunks)

    assert len((await client.get(link)).content) == length


async def test_audio_can_be_reset_or_left_hanging(client: httpx.AsyncClient) -> None:
    [link, _] = await links_of(client, "audio-reset")
    with pytest.raises((httpx.ReadError, httpx.RemoteProtocolError)):
        await client.get(link)
    [link, _] = await links_of(client, "audio-hang")
    with pytest.raises(httpx.ReadTimeout):
        await client.get(link, timeout=0.2)


async def test_large_and_slow_files(client: httpx.AsyncClient) -> None:
    [large, _] = await links_of(client, "audio-too-large=2")
    [slow, _] = await links_of(client, "audio-slow=0.3")
    slow_answer = await client.get(slow)

    assert len((await client.get(large)).content) == 2_000_000
    assert slow_answer.elapsed.total_seconds() > 0.2
    assert slow_answer.content[:4] == b"RIFF"


async def test_only_the_source_link_works(client: httpx.AsyncClient) -> None:
    task_id = await create_task(client, "rain [fault: audio-source-only]")
    clip = (await poll_until_final(client, task_id))["response"]["sunoData"][0]

    assert (await client.get(clip["audioUrl"])).status_code == 404
    assert (await client.get(clip["sourceAudioUrl"])).content[:4] == b"RIFF"


async def test_wav_file_is_served_as_mp3(client: httpx.AsyncClient) -> None:
    [link, _] = await links_of(client, "audio-mislabelled")
    answer = await client.get(link)

    assert link.endswith(".mp3")
    assert (answer.headers["content-type"], answer.content[:4]) == ("audio/mpeg", b"RIFF")


async def test_link_redirects_to_the_file(client: httpx.AsyncClient) -> None:
    [link, _] = await links_of(client, "audio-redirect")
    moved = await client.get(link)
    followed = await client.get(moved.headers["location"])

    assert (moved.status_code, followed.content[:4]) == (302, b"RIFF")


async def test_record_info_gives_a_fresh_link_once_the_expired_one_was_requested(client: httpx.AsyncClient) -> None:
    url = unreachable_url()
    task_id = await create_task(client, "rain [fault: audio-expired-then-fresh]", callBackUrl=url)
    links = []
    for _ in range(2):
        clip = (await poll_until_final(client, task_id))["response"]["sunoData"][0]
        links.append((clip["audioUrl"], (await client.get(clip["audioUrl"])).status_code))
    [task] = await tasks_for(client, url)

    assert [status for _, status in links] == [403, 200]
    assert links[0][0] != links[1][0]
    assert task["clips"][0] in links[1][0]
