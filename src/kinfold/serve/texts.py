"""Tokenizers of the base and its variants, and text that grows token by token."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from kinfold.errors import ServeError
from kinfold.tasks import TOKENIZER_FILES, quiet_transformers

BESIDE = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "merges.txt")
TEMPLATES = ("chat_template.jinja", "chat_template.json")
_CUT = "\ufffd"  # what an unfinished UTF-8 sequence decodes to


def tokenizer_files(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """Those of a directory's files that make its tokenizer and chat template."""
    wanted = (*TOKENIZER_FILES, *BESIDE, *TEMPLATES)
    return {
        name: data for name, data in files.items() if name in wanted or name.startswith("additional_chat_templates/")
    }


class Tokens:
    """A tokenizer, loaded when first used; it may be used from several threads.

    It is loaded twice, once to read prompts and once to write answers: a long prompt takes its time, and the running
    batch must not wait for it.

    Args:
        name: of the model, for messages.
        files: contents by relative path.
        config: the model's `config.json`, which tells the tokenizer's class where nothing else does.
    """

    def __init__(self, name: str, files: Mapping[str, bytes], config: Mapping[str, bytes]) -> None:
        self.name, self.files, self._config = name, files, config
        self._reading, self._writing = threading.Lock(), threading.Lock()

    @property
    def there(self) -> bool:
        return any(name in self.files for name in TOKENIZER_FILES)

    @cached_property
    def tokenizer(self) -> Any:
        """Reads prompts. Raises ServeError where there is none, or its files are damaged."""
        return self._load()

    @cached_property
    def writer(self) -> Any:
        """Writes answers, in the worker's thread; the same tokenizer, loaded anew. Raises as `tokenizer`."""
        return self._load()

    def _load(self) -> Any:
        import transformers

        if not self.there:
            raise ServeError(
                f"`{self.name}` has no tokenizer, so no text can be taken",
                hint="add the tokenizer's files to the base, or send token ids",
            )
        with tempfile.TemporaryDirectory(prefix="kinfold-") as folder, quiet_transformers():
            for path, data in {**self._config, **self.files}.items():
                (Path(folder) / path).parent.mkdir(parents=True, exist_ok=True)
                (Path(folder) / path).write_bytes(data)
            try:
                return transformers.AutoTokenizer.from_pretrained(folder)
            except Exception as cause:  # of damaged files it raises whatever it runs into
                raise ServeError(f"the tokenizer of `{self.name}` cannot be loaded: {cause!r}") from cause

    def warm(self) -> None:
        """Load both now, if there is one: the running batch is not to wait for that.

        Raises:
            ServeError: its files are damaged.
        """
        with self._reading:
            _ = self.there and self.tokenizer
        with self._writing:
            _ = self.there and self.writer

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, with the special tokens that the tokenizer adds."""
        with self._reading:
            return list(self.tokenizer(text)["input_ids"])

    def chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Token ids of a conversation, ready for the answer.

        Raises:
            ServeError: there is no template, or it refuses the conversation.
        """
        with self._reading:
            tokenizer = self.tokenizer
            if not getattr(tokenizer, "chat_template", None):
                raise ServeError(
                    f"`{self.name}` has no chat template", hint="send a plain prompt to /v1/completions instead"
                )
            try:
                text = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
            except Exception as cause:  # templates raise what they like, jinja2's errors among it
                raise ServeError(f"the chat template of `{self.name}` refuses these messages: {cause}") from cause
            return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    def decode(self, ids: Sequence[int]) -> str:
        """The text of tokens, special ones left out; empty without a tokenizer."""
        if not self.there:
            return ""
        with self._writing:
            return self.writer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def piece(self, token: int) -> str:
        """The text of one token as alternatives are shown, special ones too."""
        if not self.there:
            return ""
        with self._writing:
            return self.writer.decode([token], clean_up_tokenization_spaces=False)


class Growing:
    """Text of an answer: what is certain comes out, what may still change or begin a stop text is held back.

    Args:
        tokens: the tokenizer.
        stop: texts that end the answer.
    """

    def __init__(self, tokens: Tokens, stop: Sequence[str] = ()) -> None:
        self._tokens, self._stop = tokens, [text for text in stop if text]
        self._ids: list[int] = []
        self._from = self._read = 0  # ids since the last sure border, and of those already turned into text
        self._held = ""
        self.stopped = False

    def add(self, token: int) -> str:
        """What became certain with this token; `stopped` says whether a stop text was met."""
        self._ids.append(token)
        before = self._tokens.decode(self._ids[self._from : self._read])
        now = self._tokens.decode(self._ids[self._from :])
        if now.endswith(_CUT) or len(now) <= len(before):
            return ""
        self._from, self._read = self._read, len(self._ids)
        return self._pass(now[len(before) :])

    def rest(self) -> str:
        """All that was held back, at the end of an answer without a stop text."""
        before = self._tokens.decode(self._ids[self._from : self._read])
        now = self._tokens.decode(self._ids[self._from :])
        self._read = len(self._ids)
        text = self._pass(now[len(before) :])
        held, self._held = self._held, ""
        return text + ("" if self.stopped else held)

    def _pass(self, text: str) -> str:
        text = self._held + text
        met = min((at for at in (text.find(stop) for stop in self._stop) if at >= 0), default=-1)
        if met >= 0:
            self.stopped, self._held = True, ""
            return text[:met]
        keep = max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - keep :] if keep else ""
        return text[: len(text) - keep] if keep else text


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if stop.startswith(text[-size:])), 0)
