"""Content-addressed objects over fsspec: bases, packs and families, with names, tags and lineage."""
