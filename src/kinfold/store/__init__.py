"""A content-addressed place for models, packs, families and adapters: a folder or any fsspec URL."""

from kinfold.store.many import Packed, PackedAll, pack_all, pack_into
from kinfold.store.store import Store

__all__ = ["Packed", "PackedAll", "Store", "pack_all", "pack_into"]
