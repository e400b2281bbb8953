"""A content-addressed place for models, packs, families and adapters: a folder or any fsspec URL."""

from kinfold.store.store import Store

__all__ = ["Store"]
