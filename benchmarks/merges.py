"""mergekit beside `kinfold merge`: the same tensors out of the same parameters, time and peak memory.

    python benchmarks/merges.py        # under a minute; results/merges.json

Three variants of a small Llama (hidden 64, 2 layers, random weights, made here), in float32 and in bfloat16. The
parameters go to both as one recipe. mergekit runs in the environment that `peers/mergekit_extract.py` makes on first
use; in bfloat16 its recipe says `dtype: float32, out_dtype: bfloat16`, so that both round once (without it mergekit
computes task_arithmetic and ties in bfloat16).

Compared per entry, in steps of the stored dtype: 1 is the distance to the next number at the largest of the base's,
the variants' and the result's magnitude there. In bfloat16 two results that round differently are 1 apart; in float32
each program rounds a few times on its way. `ties`
keeps an exact number of entries; where several are equal at the limit ours keeps all of them, mergekit some: those
entries are counted as `tied` and left out of the comparison.

`dare_linear`, `dare_ties`, `della` and `della_linear` draw, each program from its own stream: compared are the share
of the entries that the merge changed, and the mean and the standard deviation of what it added. mergekit multiplies
what is kept by one factor that restores the sum of magnitudes, ours divides each entry by its probability, as the
papers do: the same for dare on average, another thing for della.

Times are of the two commands, start-up included, on the small model and on a wide one (hidden 768), one run each.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    os.environ.update(OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1")
    sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
import yaml
from transformers.utils.logging import disable_progress_bar

import kinfold
from fleet import machine
from grid import RESULTS
from kinfold.checkpoint import Checkpoint
from peers.mergekit_extract import environment, versions

MEMBERS = 3
WEIGHTS = (1.0, 0.5, 0.8)
EXACT: dict[str, dict[str, Any]] = {
    "linear": {},
    "task_arithmetic": {"lambda": 0.4},
    "ties": {"density": 0.2, "lambda": 0.7},
    "slerp": {"t": 0.3},
}
DRAWN: dict[str, dict[str, Any]] = {
    "dare_linear": {"density": 0.5, "lambda": 0.5},
    "dare_ties": {"density": 0.5, "lambda": 0.5},
    "della": {"density": 0.5, "epsilon": 0.2, "lambda": 0.5},
    "della_linear": {"density": 0.5, "epsilon": 0.2, "lambda": 0.5},
}
TIMED = "ties"
SIZES = {"small": {"hidden": 64, "vocabulary": 512}, "wide": {"hidden": 768, "vocabulary": 16000}}
RUNNER = """
import json, sys
from mergekit.scripts.run_yaml import main
for arguments in json.load(open(sys.argv[1])):
    main(arguments, standalone_mode=False)
"""

# `getrusage` will not do: a child inherits its parent's peak through fork and exec
WATCHED = """
import atexit, sys
def peak():
    status = open("/proc/self/status").read().split("VmHWM:")[1]
    open(sys.argv[1], "w").write(status.split()[0])
atexit.register(peak)
"""


def models(folder: Path, dtype: torch.dtype, hidden: int = 64, vocabulary: int = 512) -> list[Path]:
    """A base and its variants; deltas a tenth of the weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    model: Any = LlamaForCausalLM(config)
    start = {name: value.clone() for name, value in model.state_dict().items()}
    paths = []
    for number in range(MEMBERS + 1):
        with torch.no_grad():
            for name, value in model.state_dict().items():
                value.copy_(start[name] + (0.002 * torch.randn(value.shape) if number else 0))
        paths.append(folder / f"{'base' if number == 0 else f'variant{number}'}")
        model.to(dtype).save_pretrained(paths[-1])
        model.float()
    return paths


def recipe(paths: list[Path], method: str, parameters: dict[str, Any], **dtypes: str) -> dict[str, Any]:
    """What both read."""
    if method == "slerp":
        return {
            "merge_method": method,
            "base_model": str(paths[1]),
            "models": [{"model": str(path)} for path in paths[1:3]],
            "parameters": parameters,
            **dtypes,
        }
    each = {key: value for key, value in parameters.items() if key != "lambda"}
    rows = zip(paths[1:], WEIGHTS, strict=True)
    entries = [{"model": str(path), "parameters": {"weight": weight, **each}} for path, weight in rows]
    base = {} if method == "linear" else {"base_model": str(paths[0])}
    rest = {"parameters": {"lambda": parameters["lambda"]}} if "lambda" in parameters else {}
    return {"merge_method": method, **base, "models": entries, **rest, **dtypes}


def measured(python: str | Path, entry: str, arguments: list[str | Path], folder: Path) -> dict[str, float]:
    """Wall seconds of a command, start-up included, and its peak resident set."""
    started = time.perf_counter()
    command = [python, "-c", f"{WATCHED}\nfrom {entry} import main\nmain(sys.argv[2:])", folder / "peak", *arguments]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - started
    if done.returncode:
        raise RuntimeError(done.stderr)
    return {"wall_seconds": seconds, "peak_mb": int((folder / "peak").read_text()) * 1024 / 1e6}


def theirs(programs: Path, jobs: list[list[str]], folder: Path) -> None:
    """All of mergekit's merges in one process: its imports take five seconds."""
    (folder / "jobs.json").write_text(json.dumps(jobs))
    command = [programs / "python", "-c", RUNNER, folder / "jobs.json"]
    subprocess.run([str(part) for part in command], check=True, capture_output=True)


def spread(one: torch.Tensor, two: torch.Tensor, inputs: list[torch.Tensor]) -> torch.Tensor:
    """Distance in steps of the dtype at the largest magnitude that went in or came out."""
    larger = torch.stack([tensor.double().abs() for tensor in (one, two, *inputs)]).amax(0)
    info = torch.finfo(one.dtype)
    step = torch.exp2(torch.floor(torch.log2(larger.clamp_min(info.tiny)))) * info.eps
    return (one.double() - two.double()).abs() / step


def tied(paths: list[Path], name: str, density: float) -> torch.Tensor:
    """Entries whose magnitude equals the limit of some variant's trimming, where not all such can be kept."""
    base = Checkpoint.open(paths[0]).read(name).float()
    found = torch.zeros(base.shape, dtype=torch.bool)
    for path in paths[1:]:
        size = (Checkpoint.open(path).read(name).float() - base).abs()
        keep = int(density * size.numel())
        limit = size.flatten().sort(descending=True).values[keep - 1]
        if int((size >= limit).sum()) > keep:
            found |= size == limit
    return found


def exact_row(one: Path, two: Path, paths: list[Path], method: str) -> dict[str, Any]:
    first, second = Checkpoint.open(one), Checkpoint.open(two)
    inputs = [Checkpoint.open(path) for path in paths]
    assert first.tensors.keys() == second.tensors.keys()
    apart, skipped = [], 0
    for name in first.tensors:
        distance = spread(first.read(name), second.read(name), [source.read(name) for source in inputs])
        if method == "ties":
            mask = tied(paths, name, EXACT["ties"]["density"])
            skipped += int(mask.sum())
            distance = distance[~mask]
        apart.append(distance.flatten())
    every = torch.cat(apart)
    return {
        "entries": len(every),
        "tied": skipped,
        "most_steps_apart": float(every.max()),
        "share_equal": float((every == 0).double().mean()),
    }


def drawn_facts(base: Path, directory: Path) -> dict[str, float]:
    start, found = Checkpoint.open(base), Checkpoint.open(directory)
    added = torch.cat([(found.read(n).double() - start.read(n).double()).flatten() for n in start.tensors])
    return {"changed": float((added != 0).double().mean()), "mean": float(added.mean()), "std": float(added.std())}


def merged(programs: Path, folder: Path, dtype: str) -> list[dict[str, Any]]:
    """Every method on one family: what the two make of it."""
    paths = models(folder, getattr(torch, dtype))
    methods = EXACT | (DRAWN if dtype == "float32" else {})
    jobs = []
    for method, parameters in methods.items():
        content = recipe(paths, method, parameters)
        kinfold.merge_recipe(written(folder / f"{method}.yaml", content), folder / f"ours-{method}")
        file = written(folder / f"{method}-theirs.yaml", content | {"dtype": "float32", "out_dtype": dtype})
        jobs.append([str(file), str(folder / f"theirs-{method}"), "--quiet", "--random-seed", "1"])
    theirs(programs, jobs, folder)
    rows = []
    for method in methods:
        pair = folder / f"theirs-{method}", folder / f"ours-{method}"
        facts: dict[str, Any]
        if method in EXACT:
            facts = exact_row(*pair, paths, method)
        else:
            facts = dict(zip(("mergekit", "kinfold"), (drawn_facts(paths[0], one) for one in pair), strict=True))
        rows.append({"method": method, "dtype": dtype, **facts})
        print(json.dumps(rows[-1]), flush=True)
    return rows


def written(file: Path, content: dict[str, Any]) -> Path:
    file.write_text(yaml.safe_dump(content))
    return file


def timed(programs: Path, folder: Path, **size: int) -> dict[str, Any]:
    """Both commands on one recipe in bfloat16."""
    paths = models(folder, torch.bfloat16, **size)
    file = written(folder / "r.yaml", recipe(paths, TIMED, EXACT[TIMED], dtype="float32", out_dtype="bfloat16"))
    ours = ["merge", "--recipe", file, "-o", folder / "ours"]
    return {
        "method": TIMED,
        **size,
        "model_bytes": Checkpoint.open(paths[0]).nbytes,
        "mergekit": measured(
            programs / "python", "mergekit.scripts.run_yaml", [file, folder / "theirs", "--quiet"], folder
        ),
        "kinfold": measured(sys.executable, "kinfold.cli", ours, folder),
    }


def main() -> None:
    torch.set_num_threads(1)
    disable_progress_bar()
    programs = environment()
    rows, costs = [], []
    with tempfile.TemporaryDirectory() as name:
        for label in ("float32", "bfloat16", "small", "wide"):
            folder = Path(name) / label
            folder.mkdir()
            if label in ("float32", "bfloat16"):
                rows += merged(programs, folder, label)
                continue
            costs.append(timed(programs, folder, **SIZES[label]))
            print(json.dumps(costs[-1], indent=1), flush=True)
    content = {
        "machine": machine(),
        "load_average": os.getloadavg()[0],  # what else the machine did
        "kinfold": kinfold.__version__,
        "peer": versions(programs),
        "threads": 1,
        "members": MEMBERS,
        "weights": WEIGHTS,
        "rows": rows,
        "commands": costs,
    }
    (RESULTS / "merges.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
