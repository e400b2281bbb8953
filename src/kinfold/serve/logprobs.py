"""Log-probabilities in the two forms that OpenAI has: of completions, and of chats."""

from __future__ import annotations

from collections.abc import Sequence

from kinfold.serve.replies import ChatLogprobs, CompletionLogprobs, TokenLogprob, TopLogprob
from kinfold.serve.request import Chunk

LEAST = -9999.0  # JSON has no infinity; OpenAI writes this


def of_completion(chunks: Sequence[Chunk], offset: int = 0) -> CompletionLogprobs:
    """Of the tokens in `chunks`, whose text begins `offset` characters into the answer."""
    found = CompletionLogprobs()
    for chunk in chunks:
        if chunk.token is not None and chunk.logprob is not None:
            token, logprob = chunk.piece, max(chunk.logprob, LEAST)
            top: dict[str, float] = {}
            for text, value in chunk.top:  # two tokens may read alike; the likelier is told
                top[text] = max(value, top.get(text, LEAST))
            found.tokens.append(token)
            found.token_logprobs.append(logprob)
            found.top_logprobs.append({token: logprob} | top)
            found.text_offset.append(offset)
        offset += len(chunk.text)
    return found


def of_chat(chunks: Sequence[Chunk]) -> ChatLogprobs:
    content = [
        TokenLogprob(
            **_entry(chunk.piece, chunk.logprob).model_dump(),
            top_logprobs=[_entry(text, value) for text, value in chunk.top],
        )
        for chunk in chunks
        if chunk.token is not None and chunk.logprob is not None
    ]
    return ChatLogprobs(content=content)


def _entry(text: str, logprob: float) -> TopLogprob:
    return TopLogprob(token=text, logprob=max(logprob, LEAST), bytes=list(text.encode("utf-8", "replace")))
