"""What a benchmark has measured, a JSON line a point in the cache folder, so that a killed run goes on where it was."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kinfold.demo.sources import cache_dir, writable_folder

Point = dict[str, Any]


@contextmanager
def kept_points(name: str) -> Iterator[tuple[list[Point], Callable[[Point], None]]]:
    """The points of NAME.jsonl, and what adds one to them and to the file."""
    path = writable_folder(cache_dir() / "bench") / f"{name}.jsonl"
    points: list[Point] = []
    if path.exists():
        points += [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    with path.open("a", encoding="utf-8") as file:

        def keep(point: Point) -> None:
            points.append(point)
            file.write(json.dumps(point) + "\n")
            file.flush()

        yield points, keep


def is_measured(job: Point, points: list[Point]) -> bool:
    """Whether a point has all that a job says."""
    return any(job.items() <= point.items() for point in points)


def write_points(path: Path, content: dict[str, Any], points: Sequence[Point]) -> None:
    """JSON of `content` and `points`, thousands of them: a line each, four digits of every figure."""
    text = json.dumps(content, indent=1).removesuffix("\n}")
    lines = ",\n".join(f"  {json.dumps(_short(point))}" for point in points)
    path.write_text(f'{text},\n "points": [\n{lines}\n ]\n}}\n')


def _short(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _short(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_short(one) for one in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value
