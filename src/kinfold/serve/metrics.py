"""What /metrics tells, in Prometheus' text form; every app has a registry of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from kinfold.serve.request import Engine

ROUTES = {
    *("/v1/completions", "/v1/chat/completions", "/v1/embeddings", "/v1/classify", "/v1/models"),
    *("/health", "/metrics"),
}
ROUTE_OF_A_MODEL = "/v1/models/{id}"
GROWING = {
    *("generated_tokens", "prompt_tokens", "encoded_tokens"),
    *("cache_hits", "cache_misses", "cache_evictions", "loads", "load_seconds"),
}
SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics:
    """Counts of one app.

    Labels take only values from the server's own lists, so that requests cannot make new ones.
    """

    def __init__(self, engine: Engine) -> None:
        self.registry = CollectorRegistry()
        self._engine = engine
        self._requests = Counter(
            "kinfold_requests", "Requests answered.", ["route", "model", "status"], registry=self.registry
        )
        self._seconds = Histogram(
            "kinfold_request_seconds", "Until the answer's end.", ["route"], buckets=SECONDS, registry=self.registry
        )
        self._first = Histogram(
            "kinfold_first_token_seconds", "Until the first token.", buckets=SECONDS, registry=self.registry
        )
        self._tokens = Counter("kinfold_tokens", "Tokens read and written.", ["kind", "model"], registry=self.registry)
        self.open = Gauge("kinfold_requests_open", "Requests that wait or run.", registry=self.registry)
        stats = getattr(engine, "stats", None)
        if stats is not None:
            self.registry.register(_EngineStats(stats))

    def answered(self, path: str, model: str | None, status: int, seconds: float) -> None:
        route = ROUTE_OF_A_MODEL if path.startswith("/v1/models/") else path if path in ROUTES else "other"
        self._requests.labels(route, self._label(model, status), str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def first_token(self, seconds: float) -> None:
        self._first.observe(seconds)

    def tokens(self, model: str, prompt: int, answer: int = 0) -> None:
        """Of a request that was answered, whole or in part."""
        self._tokens.labels("prompt", model).inc(prompt)
        self._tokens.labels("answer", model).inc(answer)

    def text(self) -> bytes:
        return generate_latest(self.registry)

    def _label(self, model: str | None, status: int) -> str:
        """The model's name once it is known to be one: an answer proves it."""
        if model is None or (status >= 400 and all(served.name != model for served in self._engine.models())):
            return ""
        return model


class _EngineStats(Collector):
    """The engine's own figures: `running`, `waiting`, what its memory for variants did."""

    def __init__(self, stats: Callable[[], Mapping[str, Any]]) -> None:
        self._stats = stats

    def collect(self) -> Iterator[Metric]:
        for name, value in self._stats().items():
            family = CounterMetricFamily if name in GROWING else GaugeMetricFamily
            yield family(f"kinfold_engine_{name}", f"The engine's `{name}`.", value=float(value))

    def describe(self) -> list[Metric]:
        return []
