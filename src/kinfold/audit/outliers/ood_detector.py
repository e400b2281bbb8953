"""A request monitor as pytorch-ood (0.4 and later) expects a detector of features; pytorch-ood is not needed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from kinfold.audit.outliers.monitor import RequestMonitor


class OodDetector:
    """pytorch-ood's `FeaturesDetector` by its methods: larger scores are more out of distribution.

    Features alone are known here, so the monitor's filter is `knn` (or `none`).

    Args:
        monitor: fitted or not.
    """

    requires_fit = True

    def __init__(self, monitor: RequestMonitor) -> None:
        self.monitor = monitor

    def fit_features(self, x: Any, y: Any) -> Self:
        """Fit on features: tensor (n, d) of both sets.

        Args:
            x: features.
            y: int64 (n,), below 0 for rows of the log, classes of the reference otherwise.

        Raises:
            AuditError, AuditOptionError: as `RequestMonitor.fit`.
        """
        wild = y < 0
        self.monitor.fit(_array(x[~wild]), None, _array(x[wild]), None)
        return self

    def predict_features(self, x: Any) -> Any:
        """Scores as a tensor (n,) in the dtype of `x`, on its device.

        Raises:
            NotFittedError, AuditError: as `RequestMonitor.decision_function`.
        """
        import torch

        return torch.from_numpy(self.monitor.decision_function(_array(x), None)).to(x)

    def fit(self, data_loader: Any) -> Self:
        """Fit on batches of features and labels: see `fit_features`."""
        import torch

        batches = list(data_loader)
        return self.fit_features(torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches]))

    def predict(self, x: Any) -> Any:
        """As `predict_features`."""
        return self.predict_features(x)

    __call__ = predict


def _array(tensor: Any) -> Any:
    return tensor.detach().cpu().double().numpy()
