"""PyOD's detectors on one table; `outliers_tables.py` runs this in an environment that has pyod.

    python pyod_scores.py TABLE.npz SEED METHOD... > LINES

TABLE.npz holds `train` (n, d) and `test` (m, d), standardised. A JSON line for each method: seconds, bytes of the
pickled model, and the scores of the test rows, larger for the more abnormal; or the error that it ended with.
"""

import json
import pickle
import random
import sys
import time
import warnings

import numpy as np
import torch
from pyod.models.deep_svdd import DeepSVDD  # pyright: ignore[reportMissingImports]
from pyod.models.ecod import ECOD  # pyright: ignore[reportMissingImports]
from pyod.models.iforest import IForest  # pyright: ignore[reportMissingImports]
from pyod.models.knn import KNN  # pyright: ignore[reportMissingImports]
from pyod.models.lunar import LUNAR  # pyright: ignore[reportMissingImports]


def detector(method: str, columns: int, seed: int):
    """Every one at its defaults."""
    return {
        "kNN": lambda: KNN(),
        "IForest": lambda: IForest(random_state=seed),
        "ECOD": lambda: ECOD(),
        "LUNAR": lambda: LUNAR(),
        "DeepSVDD": lambda: DeepSVDD(n_features=columns, random_state=seed, verbose=0),
    }[method]()


def main() -> None:
    path, seed, methods = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
    table = np.load(path)
    said = sys.stdout
    sys.stdout = sys.stderr  # some of them print as they learn
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    for method in methods:
        for sow in (random.seed, np.random.seed, torch.manual_seed):
            sow(seed)
        try:
            started = time.perf_counter()
            model = detector(method, table["train"].shape[1], seed).fit(table["train"])
            fitted = time.perf_counter()
            scores = model.decision_function(table["test"])
            done = time.perf_counter()
            line = {
                "fit_seconds": fitted - started,
                "score_seconds": done - fitted,
                "bytes": len(pickle.dumps(model)),
                "scores": np.asarray(scores, dtype=float).ravel().tolist(),
            }
        except Exception as error:  # what a rival cannot do is a result too
            line = {"error": f"{type(error).__name__}: {error}"[:300]}
        print(json.dumps({"method": method, **line}), file=said, flush=True)


if __name__ == "__main__":
    main()
