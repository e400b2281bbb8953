"""Rivals that the benchmarks measure beside Kinfold's own codecs; importing this makes `kinfold` find them.

They are written anew from their papers, and get what `kinfold` has and the papers do not: budgets that count
every byte of the file, seeded masks that take no room, steps of least squared error. Ratios printed in the
papers therefore do not carry over; recovered gain at equal bytes is what may be compared.
"""

from kinfold.codec.base import BUILTIN

BUILTIN.update(
    {
        "ultradelta": "peers.ultradelta:UltraDelta",
        "deltacome": "peers.deltacome:DeltaCome",
    }
)
