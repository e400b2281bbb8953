"""pytorch-ood's contract for detectors of features, without pytorch-ood."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kinfold.audit.outliers import RequestMonitor
from kinfold.errors import AuditError


def rows() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(160, 8, generator=generator)
    x[:130, 0] += 4
    x[130:, 1] += 4
    y = torch.randint(0, 3, (160,), generator=generator)
    y[80:] = -1
    return x, y


def test_larger_is_out_of_distribution_and_labels_below_0_are_the_log() -> None:
    x, y = rows()
    detector = RequestMonitor(filter="knn").as_pytorch_ood()
    assert detector.requires_fit
    assert detector.fit_features(x, y) is detector
    plain = RequestMonitor(filter="knn").fit(x[:80].double().numpy(), None, x[80:].double().numpy(), None)
    scores = detector.predict_features(x)
    assert scores.dtype == x.dtype
    np.testing.assert_allclose(scores.numpy(), plain.decision_function(x.numpy(), None), rtol=1e-5)
    assert scores[130:].mean() > scores[:130].mean()
    torch.testing.assert_close(detector(x), scores)
    torch.testing.assert_close(detector.predict(x), scores)


def test_a_loader_gives_the_same() -> None:
    x, y = rows()
    whole = RequestMonitor(filter="knn").as_pytorch_ood().fit_features(x, y)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=50)
    parts = RequestMonitor(filter="knn").as_pytorch_ood().fit(loader)
    torch.testing.assert_close(parts.predict(x), whole.predict(x))


def test_filters_that_need_logits_say_so() -> None:
    with pytest.raises(AuditError, match="needs logits"):
        RequestMonitor().as_pytorch_ood().fit_features(*rows())
