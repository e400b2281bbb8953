"""Many variants of one base: fold and unfold, merge, adapters out."""
