"""Rows as a model reads them: tokens, and which of them the loss is over."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from kinfold.errors import ForgetRowsError
from kinfold.forget.rows import EXPECTED, Given
from kinfold.tasks import completed, is_encodable


@dataclass(frozen=True)
class Tokens:
    """A row as the model reads it: the loss is over tokens from `first` on, or of `label`; `group` is its kind."""

    ids: tuple[int, ...]
    first: int = 1
    label: int | None = None
    group: str = ""

    @property
    def counted(self) -> int:
        """Tokens that the loss is a mean of."""
        return len(self.ids) - self.first if self.label is None else 1


@dataclass(frozen=True)
class Reader:
    """Turns rows into tokens.

    Attributes:
        tokenizer: None where the model's directory has none.
        kind: the task.
        classes: of a classifier.
        vocabulary: tokens that the model knows.
        context: tokens that it reads at once; None where nothing bounds them.
        cut: longer rows are cut to this many tokens, as when the variant was trained; None refuses them.
    """

    tokenizer: Any
    kind: str
    classes: int
    vocabulary: int
    context: int | None
    cut: int | None = None

    def tokens(self, rows: Iterable[Given]) -> list[Tokens]:
        """Tokens of every row.

        Raises:
            ForgetRowsError: a field is missing, a label is not the model's, or a row is too long; the row is named.
        """
        return [replace(self._row(one), group=str(one.row.get("group", ""))) for one in rows]

    def variants(self, one: Given) -> tuple[Tokens, list[Tokens]] | None:
        """The paraphrased (or own) answer of a causal LM's row and its perturbed ones; None where it has none.

        Raises:
            ForgetRowsError: they are not texts, or do not fit the model as a row does.
        """
        perturbed = one.row.get("perturbed")
        if self.kind != "causal-lm" or not perturbed or one.prompt is None:
            return None
        right = one.row.get("paraphrase") or one.completion
        listed = isinstance(perturbed, list) and all(isinstance(text, str) for text in perturbed)
        if not listed or not isinstance(right, str):
            raise ForgetRowsError(f"{one.place}: `perturbed` is a list of answers, and `paraphrase` one answer")
        named = replace(one, place=f"a perturbed or paraphrased answer of {one.place}")
        first, *wrong = [self._checked(self._answer(named, text), named) for text in (right, *perturbed)]
        return first, wrong

    def _row(self, one: Given) -> Tokens:
        if self.kind == "causal-lm":
            found = self._language(one)
        else:
            label = one.row.get("label")
            if type(label) is not int or not 0 <= label < self.classes:
                raise ForgetRowsError(
                    f"{one.place} has label {label!r}; the variant knows 0 to {self.classes - 1}",
                    hint=EXPECTED[self.kind],
                )
            found = Tokens(self._whole(one), label=label)
        return self._checked(found, one)

    def _language(self, one: Given) -> Tokens:
        if one.prompt is None and one.completion is None:
            return Tokens(self._whole(one))
        if not isinstance(one.prompt, str) or not isinstance(one.completion, str):
            raise self._missing(one)
        return self._answer(one, one.completion)

    def _answer(self, one: Given, text: str) -> Tokens:
        prompt = one.prompt or ""
        self._check_text(prompt + text, one)
        ids, first = completed(self.tokenizer, prompt, text)
        return Tokens(tuple(ids), first)

    def _whole(self, one: Given) -> tuple[int, ...]:
        ids, text = one.row.get("input_ids"), one.row.get("text")
        if isinstance(ids, list) and ids and all(type(token) is int and token >= 0 for token in ids):
            return tuple(ids)
        if isinstance(text, str):
            self._check_text(text, one)
            # what is cut off is the text's, not a closing special token
            cut = {} if self.cut is None else {"truncation": True, "max_length": self.cut}
            return tuple(self.tokenizer(text, verbose=False, **cut)["input_ids"])
        raise self._missing(one)

    def _check_text(self, text: str, one: Given) -> None:
        if self.tokenizer is None:
            raise ForgetRowsError(
                f"{one.place} is text, but the variant's directory has no tokenizer",
                hint="add the tokenizer's files, or give rows of `input_ids`",
            )
        if not is_encodable(text):
            raise ForgetRowsError(f"{one.place} has half of a surrogate pair, which is no character")

    def _checked(self, found: Tokens, one: Given) -> Tokens:
        if self.cut is not None and len(found.ids) > self.cut:
            found = Tokens(found.ids[: self.cut], found.first, found.label)
        if self.context is not None and len(found.ids) > self.context:
            raise ForgetRowsError(
                f"{one.place} has {len(found.ids)} tokens; the variant reads {self.context} at once",
                hint="cut the row, or pass --max-tokens as the variant was trained",
            )
        if len(found.ids) <= (found.first if self.kind == "causal-lm" else 0):
            raise ForgetRowsError(f"{one.place} has no tokens to predict", hint=EXPECTED[self.kind])
        if max(found.ids) >= self.vocabulary:
            raise ForgetRowsError(
                f"{one.place} has token {max(found.ids)}; the variant knows those below {self.vocabulary}",
                hint="make `input_ids` with the tokenizer of this model",
            )
        return found

    def _missing(self, one: Given) -> ForgetRowsError:
        return ForgetRowsError(f"{one.place} lacks what a {self.kind} reads", hint=EXPECTED[self.kind])
