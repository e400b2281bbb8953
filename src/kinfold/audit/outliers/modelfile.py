"""A fitted TCCM in one safetensors file: arrays, and a JSON header. No training row and no pickle is in it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from kinfold.audit.outliers.nets import Model, Nets
from kinfold.checkpoint.atomic import atomic_file
from kinfold.checkpoint.header import TensorInfo, build_header, read_header
from kinfold.errors import AuditError

_KEY = "kinfold.tccm"
_VERSION = 1
_HINT = "fit it again, and save it with TCCM.save"
_FIELDS = {"mean": "F64", "scale": "F64", "decision_scores": "F64"}
_PARTS = ("w1", "b1", "w2", "b2", "w3", "b3")


def write(path: Path, model: Model, scores: np.ndarray, facts: Mapping[str, Any], overwrite: bool) -> None:
    """Write the file whole or not at all; the same model gives the same bytes.

    Raises:
        OutputError: the path exists and may not be replaced, or the disk cannot take it.
    """
    arrays = {"mean": model.mean, "scale": model.scale, "decision_scores": scores}
    arrays |= {part: getattr(model.nets, part) for part in _PARTS}
    kinds = {name: _FIELDS.get(name, "F32") for name in arrays}
    header = build_header(
        [(name, kinds[name], array.shape) for name, array in arrays.items()],
        {_KEY: json.dumps({"version": _VERSION, **facts}, sort_keys=True)},
    )
    with atomic_file(path, overwrite=overwrite) as temporary, temporary.open("wb") as file:
        file.write(header)
        for name, array in arrays.items():
            file.write(np.ascontiguousarray(array, dtype="<f8" if kinds[name] == "F64" else "<f4").tobytes())


def read(path: Path) -> tuple[Model, np.ndarray, dict[str, Any]]:
    """The model, its known scores, and the facts written with them.

    Raises:
        AuditError: no such file, or none that TCCM wrote: header, names, dtypes, shapes and values are checked, the
            first four before an array is read.
    """
    metadata, infos = read_header(path, AuditError)
    try:
        facts = json.loads(metadata[_KEY])
        if facts.pop("version") != _VERSION:
            raise ValueError("it was written by another version of Kinfold")
        _check_shapes(infos)
        arrays = {name: _array(info) for name, info in infos.items()}
        for name, array in arrays.items():
            if not np.isfinite(array).all():
                raise ValueError(f"`{name}` is not finite")
        if not (arrays["scale"] > 0).all():
            raise ValueError("`scale` is not above 0")
        for key in ("threshold", "lipschitz"):
            if not (type(facts[key]) is float and math.isfinite(facts[key])):
                raise ValueError(f"{key} is {facts[key]!r}")
        if not isinstance(facts["params"], dict):
            raise ValueError("it holds no parameters")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as cause:
        raise AuditError(f"`{path}` is no model that TCCM saved: {cause}", hint=_HINT) from cause
    nets = Nets(**{part: arrays[part] for part in _PARTS})
    return Model(arrays["mean"], arrays["scale"], nets), arrays["decision_scores"], facts


def _check_shapes(infos: Mapping[str, TensorInfo]) -> None:
    """All sides must agree with d, h and the number of nets, as `w1` and `w3` give them."""
    if infos.keys() != {*_FIELDS, *_PARTS}:
        raise ValueError(f"it holds {', '.join(infos) or 'nothing'}")
    if len(infos["w1"].shape) != 3 or min(infos["w1"].shape) < 1:
        raise ValueError(f"`w1` is {list(infos['w1'].shape)}")
    nets, columns, hidden = infos["w1"].shape
    wanted = {
        "mean": (columns,),
        "scale": (columns,),
        "decision_scores": infos["decision_scores"].shape[:1],
        "w1": (nets, columns, hidden),
        "b1": (nets, hidden),
        "w2": (nets, hidden, hidden),
        "b2": (nets, hidden),
        "w3": (nets, hidden, columns),
        "b3": (nets, columns),
    }
    for name, info in infos.items():
        if info.shape != wanted[name] or info.dtype != _FIELDS.get(name, "F32") or not info.nbytes:
            raise ValueError(f"`{name}` is {info.dtype} {list(info.shape)}, not {list(wanted[name])}")


def _array(info: TensorInfo) -> np.ndarray:
    kind = "<f8" if info.dtype == "F64" else "<f4"
    found = np.fromfile(info.file, dtype=kind, count=info.numel, offset=info.start)
    if found.size != info.numel:
        raise ValueError("it changed while it was read")
    return found.reshape(info.shape)
