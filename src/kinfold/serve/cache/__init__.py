"""KV caches that take less room in long contexts: low-rank with a basis that follows the text, and by sentences."""

from kinfold.serve.cache.attach import activate, switched
from kinfold.serve.cache.base import KVCache
from kinfold.serve.cache.basis import KVBasis
from kinfold.serve.cache.calibrate import calibrate
from kinfold.serve.cache.drift import DriftReport, drift
from kinfold.serve.cache.lowrank import OjaKVCache
from kinfold.serve.cache.lowrank_config import OjaKVConfig
from kinfold.serve.cache.quant import QuantKVCache, QuantKVConfig
from kinfold.serve.cache.report import KVReport
from kinfold.serve.cache.sentence import SentenceKVCache
from kinfold.serve.cache.sentence_config import SentenceKVConfig
from kinfold.serve.cache.sentences import sentence_stop_ids
from kinfold.serve.cache.spec import CacheSpec, attached, parse_cache, parse_caches

__all__ = [
    "CacheSpec",
    "DriftReport",
    "KVBasis",
    "KVCache",
    "KVReport",
    "OjaKVCache",
    "OjaKVConfig",
    "QuantKVCache",
    "QuantKVConfig",
    "SentenceKVCache",
    "SentenceKVConfig",
    "activate",
    "attached",
    "calibrate",
    "drift",
    "parse_cache",
    "parse_caches",
    "sentence_stop_ids",
    "switched",
]
