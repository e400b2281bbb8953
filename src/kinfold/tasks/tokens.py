"""Rows as a model reads them: token ids, and which of them a loss is over."""

from __future__ import annotations

from typing import Any

from kinfold.errors import CalibrationError
from kinfold.tasks.rows import Row, completion_of, has_completion, prompt_of

MAX_TOKENS = 512


def is_causal(model: Any) -> bool:
    """Whether a model's class is that of a causal LM."""
    return type(model).__name__.endswith(("CausalLM", "LMHeadModel"))


def tokens_of(model: Any, tokenizer: Any, row: Row, most: int) -> tuple[list[int], int]:
    """Token ids of a row, and the place of the first that a causal LM's loss counts.

    A causal LM reads a prompt with its completion, else `input_ids`, else `text`, and the loss is over the completion,
    else over all tokens but the first. Other models read no prompts.

    Args:
        model: of transformers.
        tokenizer: None where there is none, which `input_ids` do not need.
        row: as `read_rows` gives it.
        most: tokens; longer rows are cut to them, or to what the model can read at once.

    Raises:
        CalibrationError: the row has no tokens, needs a tokenizer that is not there, or is of another model.
    """
    limit = min(most, getattr(model.config, "max_position_embeddings", None) or most)
    paired = is_causal(model) and has_completion(row)
    first = 1
    if row.get("input_ids") and not (paired and tokenizer):
        ids = row["input_ids"][:limit]
    elif tokenizer is None:
        raise CalibrationError(
            "the rows are texts, but the model directory has no tokenizer",
            hint="add the tokenizer's files, or give rows of `input_ids`",
        )
    elif paired:
        ids, first = completed(tokenizer, prompt_of(row), completion_of(row))
        ids = ids[:limit]
    elif isinstance(row.get("text"), str):
        ids = tokenizer(row["text"], truncation=True, max_length=limit)["input_ids"]
    else:
        raise CalibrationError(f"the row {row} has no `text`; prompts with completions are for causal language models")
    if not ids:
        raise CalibrationError(f"the row {row} has no tokens", hint="remove rows of empty text")
    known = model.get_input_embeddings().num_embeddings
    if max(ids) >= known:
        raise CalibrationError(
            f"a row has token {max(ids)}, the model knows those below {known}",
            hint="make `input_ids` with the tokenizer of this model",
        )
    return ids, first


def completed(tokenizer: Any, prompt: str, completion: str) -> tuple[list[int], int]:
    """Token ids of a prompt and its completion, and the place of the first that is predicted.

    They are tokenised apart, so that the completion begins at a token; an end that the tokenizer puts behind the
    prompt is left out.
    """
    ids = tokenizer(prompt, add_special_tokens=True, verbose=False)["input_ids"]
    if len(ids) > 1 and ids[-1] == getattr(tokenizer, "eos_token_id", None):
        own = tokenizer(prompt, add_special_tokens=False, verbose=False)["input_ids"]
        if ids[len(ids) - 1 - len(own) : -1] == own:  # the end was added, and is not the prompt's own
            ids = ids[:-1]
    more = tokenizer(completion, add_special_tokens=False, verbose=False)["input_ids"]
    return [*ids, *more], max(1, len(ids))
