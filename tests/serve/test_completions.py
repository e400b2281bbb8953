"""Completions and chats by OpenAI's own client over a real socket."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator

import httpx
import openai
import pytest
from fakes import FakeEngine, served, soon, words

from kinfold.serve import logprobs
from kinfold.serve.request import Chunk


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as found:
        yield found


def test_a_completion(client: openai.OpenAI) -> None:
    done = client.completions.create(model="movie", prompt="abc", max_tokens=3)
    assert done.choices[0].text == "movie3-0 movie3-1 movie3-2 "
    assert done.choices[0].finish_reason == "length"
    assert done.choices[0].logprobs is None
    assert (done.object, done.model, done.id[:5]) == ("text_completion", "movie", "cmpl-")
    assert done.usage is not None
    assert (done.usage.prompt_tokens, done.usage.completion_tokens, done.usage.total_tokens) == (3, 3, 6)


def test_sixteen_tokens_unless_asked_and_no_more_than_fit(client: openai.OpenAI, engine: FakeEngine) -> None:
    client.completions.create(model="movie", prompt="abc")
    client.completions.create(model="movie", prompt="x" * 190)
    assert [sampling.max_tokens for _, _, sampling in engine.seen[-2:]] == [16, 10]


@pytest.mark.parametrize(
    ("prompt", "lengths"),
    [("abc", [3]), (["abc", "d"], [3, 1]), ([5, 6], [2]), ([[5, 6], [7], [8, 9, 9]], [2, 1, 3])],
)
def test_every_form_of_a_prompt(client: openai.OpenAI, prompt: object, lengths: list[int]) -> None:
    done = client.completions.create(model="tweets", prompt=prompt, max_tokens=2)  # type: ignore[arg-type]
    assert [choice.text for choice in done.choices] == [f"tweets{n}-0 tweets{n}-1 " for n in lengths]
    assert [choice.index for choice in done.choices] == list(range(len(lengths)))
    assert done.usage is not None
    assert done.usage.prompt_tokens == sum(lengths)
    assert done.usage.completion_tokens == 2 * len(lengths)


def test_options_reach_the_engine(client: openai.OpenAI, engine: FakeEngine) -> None:
    client.completions.create(
        model="movie", prompt="q", max_tokens=4, temperature=0.5, top_p=0.9, stop="X", seed=7, n=2, best_of=2
    )
    one, two = (sampling for _, _, sampling in engine.seen[-2:])
    assert (one.max_tokens, one.temperature, one.top_p, one.stop, one.logprobs) == (4, 0.5, 0.9, ("X",), None)
    assert (one.seed, two.seed) == (7, 8)  # answers to one prompt differ, and are the same the next time
    client.completions.create(model="movie", prompt="q", max_tokens=1, stop=["a", "b"], extra_body={"ignore_eos": True})
    assert engine.seen[-1][2].stop == ("a", "b")
    assert engine.seen[-1][2].ignore_eos


def test_several_answers_to_each_prompt(client: openai.OpenAI) -> None:
    done = client.completions.create(model="movie", prompt=["a", "bb"], n=2, max_tokens=1)
    assert [choice.text for choice in done.choices] == ["movie1-0 ", "movie1-0 ", "movie2-0 ", "movie2-0 "]
    assert done.usage is not None
    assert (done.usage.prompt_tokens, done.usage.completion_tokens) == (3, 4)  # a prompt counts once


def test_logprobs_of_a_completion(client: openai.OpenAI) -> None:
    told = client.completions.create(model="movie", prompt="abc", max_tokens=2, logprobs=3).choices[0].logprobs
    assert told is not None
    assert told.tokens == ["movie3-0 ", "movie3-1 "]
    assert told.token_logprobs == [-0.5, -0.5]
    assert told.text_offset == [0, len("movie3-0 ")]
    assert told.top_logprobs == [
        {"movie3-0 ": -0.5, "other": -1.5, "never": -9999.0},
        {"movie3-1 ": -0.5, "other": -1.5, "never": -9999.0},
    ]
    alone = client.completions.create(model="movie", prompt="abc", max_tokens=1, logprobs=0).choices[0].logprobs
    assert alone is not None
    assert alone.top_logprobs == [{"movie3-0 ": -0.5}]


def test_a_stream_says_what_the_whole_says(client: openai.OpenAI) -> None:
    steps = list(client.completions.create(model="movie", prompt=["abc", "d"], max_tokens=4, stream=True, logprobs=0))
    texts, offsets, reasons = ["", ""], [[], []], [None, None]
    for step in steps:
        assert step.usage is None
        choice = step.choices[0]
        texts[choice.index] += choice.text
        reasons[choice.index] = choice.finish_reason or reasons[choice.index]
        offsets[choice.index] += choice.logprobs.text_offset
    whole = client.completions.create(model="movie", prompt=["abc", "d"], max_tokens=4, logprobs=0)
    assert texts == [choice.text for choice in whole.choices]
    assert offsets == [choice.logprobs.text_offset for choice in whole.choices]  # type: ignore[union-attr]
    assert reasons == ["length", "length"]
    assert len({step.id for step in steps}) == 1


def test_a_stream_ends_with_usage_and_done(url: str) -> None:
    body = {
        "model": "movie",
        "prompt": "abc",
        "max_tokens": 2,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    reply = httpx.post(f"{url}/v1/completions", json=body)
    assert reply.headers["content-type"].startswith("text/event-stream")
    events = [line.removeprefix("data: ") for line in reply.text.split("\n\n") if line]
    assert events[-1] == "[DONE]"
    last = json.loads(events[-2])
    assert last["choices"] == []
    assert last["usage"] == {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}


def test_a_chat(client: openai.OpenAI, engine: FakeEngine) -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    done = client.chat.completions.create(
        model="movie",
        messages=[{"role": "developer", "content": "be brief"}, {"role": "user", "content": parts}],  # type: ignore[list-item]
        max_completion_tokens=2,
        n=2,
    )
    assert engine.chats[-1] == [{"role": "system", "content": "be brief"}, {"role": "user", "content": "a\nb"}]
    length = len("system:be brief\nuser:a\nb\n")
    assert [choice.message.content for choice in done.choices] == ["".join(words("movie", range(length), 2))] * 2
    assert done.choices[0].message.role == "assistant"
    assert done.usage is not None
    assert (done.usage.prompt_tokens, done.usage.completion_tokens) == (length, 4)


def test_a_chat_goes_on_as_long_as_there_is_room(client: openai.OpenAI, engine: FakeEngine) -> None:
    client.chat.completions.create(model="movie", messages=[{"role": "user", "content": "hi"}])
    assert engine.seen[-1][2].max_tokens == engine.max_tokens - len("user:hi\n")
    client.chat.completions.create(model="movie", messages=[{"role": "user", "content": "hi"}], max_tokens=3)
    assert engine.seen[-1][2].max_tokens == 3


def test_a_token_is_told_by_its_own_text_whatever_ties_with_it_or_is_held_back() -> None:
    tied = Chunk("", 7, -0.5, (("other", -0.5), ("own", -0.5)), piece="own")
    alone = Chunk("own and more", 8, -0.25, (), "length", " more")
    told = logprobs.of_completion([tied, alone])
    assert (told.tokens, told.top_logprobs) == (["own", " more"], [{"other": -0.5, "own": -0.5}, {" more": -0.25}])
    content = logprobs.of_chat([tied, alone]).content
    assert [(entry.token, entry.bytes) for entry in content] == [("own", list(b"own")), (" more", list(b" more"))]


def test_logprobs_of_a_chat(client: openai.OpenAI) -> None:
    message = {"role": "user", "content": "hi"}
    told = client.chat.completions.create(
        model="movie",
        messages=[message],
        max_tokens=2,
        logprobs=True,
        top_logprobs=2,  # type: ignore[list-item]
    )
    assert told.choices[0].logprobs is not None
    first = (told.choices[0].logprobs.content or [])[0]
    word = words("movie", range(len("user:hi\n")), 1)[0]
    assert (first.token, first.logprob, first.bytes) == (word, -0.5, list(word.encode()))
    assert [(top.token, top.logprob) for top in first.top_logprobs] == [(word, -0.5), ("other", -1.5)]
    bare = client.chat.completions.create(model="movie", messages=[message], max_tokens=2, logprobs=True)  # type: ignore[list-item]
    assert bare.choices[0].logprobs is not None
    assert [len(entry.top_logprobs) for entry in bare.choices[0].logprobs.content or []] == [0, 0]


def test_a_streamed_chat(client: openai.OpenAI) -> None:
    steps = list(
        client.chat.completions.create(
            model="movie",
            messages=[{"role": "user", "content": "hi"}],
            max_tokens=3,
            stream=True,
            logprobs=True,
            stream_options={"include_usage": True},
        )
    )
    assert steps[0].choices[0].delta.role == "assistant"
    assert "".join(step.choices[0].delta.content or "" for step in steps[:-1]) == "".join(words("movie", range(8), 3))
    assert (
        sum(len((step.choices[0].logprobs.content if step.choices[0].logprobs else None) or []) for step in steps[:-1])
        == 3
    )
    assert steps[-2].choices[0].finish_reason == "length"
    assert steps[-1].choices == []
    assert steps[-1].usage is not None
    assert steps[-1].usage.completion_tokens == 3


def test_sixty_four_streams_at_once() -> None:
    engine = FakeEngine(delay=0.005)

    async def one(client: openai.AsyncOpenAI, number: int) -> str:
        stream = await client.completions.create(model="movie", prompt="x" * (number + 1), max_tokens=5, stream=True)
        return "".join([step.choices[0].text async for step in stream])

    async def all_of_them(url: str) -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
            return await asyncio.gather(*(one(client, number) for number in range(64)))

    with served(engine) as url:
        texts = asyncio.run(all_of_them(url))
    assert texts == ["".join(words("movie", range(number + 1), 5)) for number in range(64)]
    assert engine.most_running > 32
    assert engine.finished == 64


def test_a_client_that_leaves_a_stream_frees_its_place() -> None:
    engine = FakeEngine(slots=1, queue=0, delay=0.002, max_tokens=100_000)
    with served(engine) as url, openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        stream = client.completions.create(model="movie", prompt=["a"], max_tokens=90_000, stream=True)
        next(iter(stream))
        with pytest.raises(openai.RateLimitError):
            client.completions.create(model="movie", prompt="a", max_tokens=1)
        stream.close()
        assert soon(lambda: engine.closed_early == 1)
        assert client.completions.create(model="movie", prompt="a", max_tokens=1).choices[0].text == "movie1-0 "
        assert soon(lambda: 'status="499"' in httpx.get(f"{url}/metrics").text)
    assert engine.running == 0


def test_a_client_that_leaves_without_streaming_frees_its_places() -> None:
    engine = FakeEngine(slots=4, queue=0, delay=0.002, max_tokens=100_000)
    with served(engine) as url:
        body = {"model": "movie", "prompt": ["a", "b", "c"], "max_tokens": 90_000}
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{url}/v1/completions", json=body, timeout=0.3)
        assert soon(lambda: engine.closed_early == 3)
    assert engine.running == 0


def test_one_answer_that_fails_closes_the_others() -> None:
    engine = FakeEngine(slots=2, queue=0, delay=0.002, max_tokens=100_000)
    with served(engine) as url:
        reply = httpx.post(
            f"{url}/v1/completions", json={"model": "movie", "prompt": ["a", "b", "c"], "max_tokens": 90_000}
        )
        assert reply.status_code == 429
        assert soon(lambda: engine.running == 0)
    assert engine.finished == 0
