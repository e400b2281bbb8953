"""Real weights and tasks that a package index can bring: what `kinfold demo` and the benchmarks use."""
