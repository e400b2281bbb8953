"""Rows, models and losses: what calibration, auditing and forgetting ask of a model."""

from kinfold.tasks.losses import TASKS, Answers, divergence, drawn_loss, kind_of, labelled_loss, row_losses
from kinfold.tasks.model import (
    BATCH_TOKENS,
    TOKENIZER_FILES,
    Task,
    device_of,
    model_class,
    quiet_transformers,
    tokenizer_of,
)
from kinfold.tasks.rows import (
    Row,
    completion_of,
    has_completion,
    is_encodable,
    json_lines,
    prompt_of,
    read_rows,
    text_of,
)
from kinfold.tasks.tokens import MAX_TOKENS, completed

__all__ = [
    "BATCH_TOKENS",
    "MAX_TOKENS",
    "TASKS",
    "TOKENIZER_FILES",
    "Answers",
    "Row",
    "Task",
    "completed",
    "completion_of",
    "device_of",
    "divergence",
    "drawn_loss",
    "has_completion",
    "is_encodable",
    "json_lines",
    "kind_of",
    "labelled_loss",
    "model_class",
    "prompt_of",
    "quiet_transformers",
    "read_rows",
    "row_losses",
    "text_of",
    "tokenizer_of",
]
