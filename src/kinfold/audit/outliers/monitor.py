"""Which requests of an unlabelled log are out of a variant's distribution, and a detector for later ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from kinfold.audit.outliers import arrays, monitorfile
from kinfold.audit.outliers.conformal import benjamini_hochberg
from kinfold.audit.outliers.contract import not_fitted
from kinfold.audit.outliers.filters import Rule, Term, Views, fit_terms, total
from kinfold.audit.outliers.firststage import Settings, pick
from kinfold.audit.outliers.head import Train, Unkept, cross_fitted, fit_linear, linear_trainer, seeded_folds
from kinfold.audit.outliers.threshold import p_values
from kinfold.errors import AuditError

if TYPE_CHECKING:
    from kinfold.audit.outliers.ood_detector import OodDetector

LEAST_REFERENCE, LEAST_WILD = 50, 20
FOLDS = 5


@dataclass(kw_only=True, eq=False)
class RequestMonitor(Settings):
    """A filter picks outliers from a log, a cross-fitted head learns them, conformal p-values say how far to trust it.

    Two stages as in Medix (arXiv 2510.06505); its median vote is one of the filters, and on our variants the weakest.
    A p-value holds on average over in-domain requests, and only if they resemble the reference.

    Args:
        filter: `sum` of energy and distance to neighbours, one of `energy`, `knn` and `msp`; `l2`, `sal` and `medix`,
            which need gradients; `none`: the whole log stands for outliers.
        head: `linear`: logistic regression on features, added to the energy; `none`: the filter's own score.
        k: rows of the log that the filter hands to the head: a number, a share, or `auto`: as many as are outliers by
            the p-values of its scores. Of `medix`, rows a round.
        max_rounds: of `medix`.
        eps: of `medix`: rounds end where the median's distance changes by less.
        gradient_reference: `median` or `mean` of the reference's gradients.
        false_alarm: share of in-domain requests that may be flagged.
        fdr: flag by Benjamini-Hochberg instead: at most this share of the flagged is in domain, on average.
        seed: of the folds.

    Attributes:
        scores_: float64 (n,), of the log, larger is more out of distribution.
        p_values_: float64 (n,).
        flagged_: bool (n,).
        parts_: the standardised terms whose sum `scores_` is, each float64 (n,).
        outliers_: bool (n,), rows that the filter handed to the head.
        share_: estimated share of outliers in the log, a lower bound.
        distinct_: rows of the log that are not copies of another.
        reference_scores_: float64, sorted, of the reference.
        facts_: of a monitor from a file, what was kept with it.
    """

    def fit(
        self,
        features_ref: Any,
        logits_ref: Any,
        features_wild: Any,
        logits_wild: Any,
        *,
        gradients_ref: Any = None,
        gradients_wild: Any = None,
        trainer: Train | None = None,
    ) -> Self:
        """Learn from a reference of in-domain rows and an unlabelled log; exact copies in the log count once.

        Args:
            features_ref: (n, d), pooled features, n >= 50.
            logits_ref: (n, c), c >= 2; energies (n,) of a model without classes; or None with the filter `knn`.
            features_wild: (m, d), of the log, 20 different rows or more.
            logits_wild: as `logits_ref`.
            gradients_ref: (n, g), for `l2`, `sal` and `medix`.
            gradients_wild: (m, g).
            trainer: of another head, from row numbers of the reference and of the log's distinct rows; cross-fitted in
                two folds, and not kept for later rows.

        Raises:
            AuditOptionError: a parameter is out of range.
            AuditError: too few rows, arrays that do not fit or are not finite, or what the filter needs is missing.
            DegenerateGradientError: of `medix`.
        """
        self.check()
        ref = arrays.views("reference", features_ref, logits_ref, gradients_ref)
        log = arrays.views("log", features_wild, logits_wild, gradients_wild)
        arrays.require_alike(ref, log)
        first, back = arrays.distinct(log)
        wild = arrays.rows(log, first)
        if len(ref.features) < LEAST_REFERENCE:
            raise AuditError(f"the reference has {len(ref.features)} rows; {LEAST_REFERENCE} or more are needed")
        if len(first) < LEAST_WILD:
            raise AuditError(f"the log has {len(first)} different rows; {LEAST_WILD} or more are needed")
        generator = np.random.default_rng(self.seed)
        folds = seeded_folds(len(ref.features), FOLDS, generator)
        picked = pick(self, ref, wild, folds)
        if self.head == "none":
            terms, parts = picked.terms, {t.name: t.of(wild) for t in picked.terms}
        else:
            beside = fit_terms("knn" if ref.energy is None else "energy", ref, wild, folds)
            head, found = self._second_stage(ref, wild, picked.outliers, folds, trainer, generator)
            terms, parts = (head, *beside), {"head": found, **{t.name: t.of(wild) for t in beside}}
        self._take(terms, np.sort(total(t.standardised(t.reference) for t in terms)), ref.features.shape[1])
        scores = total(parts.values())
        p = p_values(self.reference_scores_, scores)
        self.scores_, self.p_values_, self.flagged_ = scores[back], p[back], self.flags(p)[back]
        self.parts_ = {name: part[back] for name, part in parts.items()}
        self.outliers_, self.share_, self.distinct_ = picked.outliers[back], picked.share, len(first)
        return self

    def _second_stage(
        self,
        ref: Views,
        wild: Views,
        outliers: np.ndarray,
        folds: np.ndarray,
        trainer: Train | None,
        generator: np.random.Generator,
    ) -> tuple[Term, np.ndarray]:
        """The head as a term, and the standardised cross-fitted scores of the log."""
        count = FOLDS
        if trainer is not None:
            count, folds = 2, seeded_folds(len(folds), 2, generator)
        wild_folds = np.empty(len(outliers), dtype=np.int64)
        for group in (outliers, ~outliers):  # each fold has its part of the outliers
            wild_folds[group] = seeded_folds(int(group.sum()), count, generator)
        train = trainer or linear_trainer(ref.features, wild.features)
        own, found = cross_fitted(train, folds, wild_folds, outliers)
        rule: Rule = Unkept() if trainer else fit_linear(ref.features, wild.features[outliers])
        head = Term("head", rule, own)
        return head, head.standardised(found)

    def decision_function(self, features: Any, logits: Any) -> np.ndarray:
        """Scores of later rows, float64 (n,); larger is more out of distribution.

        Args:
            features: (n, d).
            logits: as in `fit`.

        Raises:
            NotFittedError: before `fit`.
            AuditError: arrays that do not fit or are not finite, or scores that later rows cannot be given.
        """
        return total(self.parts(features, logits).values())

    def parts(self, features: Any, logits: Any) -> dict[str, np.ndarray]:
        """The standardised terms whose sum the score of later rows is, each float64 (n,).

        Raises:
            NotFittedError, AuditError: as `decision_function`.
        """
        self._require_fitted()
        views = arrays.views("table", features, logits, None)
        if views.features.shape[1] != self.columns_:
            raise AuditError(f"rows have {views.features.shape[1]} features; the monitor was fitted on {self.columns_}")
        return {term.name: term.of(views) for term in self.terms_}

    def p_values(self, features: Any, logits: Any) -> np.ndarray:
        """(1 + reference rows that score as high) / (1 + n) of later rows, float64 (n,).

        Raises:
            NotFittedError, AuditError: as `decision_function`.
        """
        scores = self.decision_function(features, logits)
        return p_values(self.reference_scores_, scores)

    def flags(self, p: np.ndarray) -> np.ndarray:
        """Which p-values are small enough, bool (n,)."""
        return p <= self.false_alarm if self.fdr is None else benjamini_hochberg(p, self.fdr)

    def save(self, path: str | Path, *, variant: str = "", facts: Mapping[str, Any] | None = None) -> None:
        """Write what later rows are scored with to one safetensors file; with `knn`, features of the reference too.

        Args:
            path: of the file.
            variant: fingerprint of the model that the features come from.
            facts: JSON values to keep with it.

        Raises:
            NotFittedError: before `fit`.
            AuditError: scores that later rows cannot be given.
            OutputError: the path exists, or the disk cannot take it.
        """
        self._require_fitted()
        params = {field.name: getattr(self, field.name) for field in fields(Settings)}
        known = {"params": params, "variant": variant, "columns": self.columns_, "facts": dict(facts or {})}
        monitorfile.write(Path(path), self.terms_, self.reference_scores_, known)

    @classmethod
    def load(cls, path: str | Path, *, variant: str = "") -> Self:
        """A fitted monitor from its file.

        Args:
            path: of the file.
            variant: fingerprint of the model that later features come from; not compared if not given.

        Raises:
            AuditError: nothing there that `save` wrote, or it is another variant's.
        """
        terms, scores, known = monitorfile.read(Path(path))
        if variant and known["variant"] != variant:
            raise AuditError(
                f"`{path}` was fitted for a variant of fingerprint {known['variant'][:16] or 'unknown'}, this one is "
                f"{variant[:16]}",
                hint="fit a monitor for this variant: `kinfold audit outliers requests ... --save-monitor FILE`",
            )
        try:
            found = cls(**known["params"]).check()
        except (TypeError, AuditError) as cause:
            raise AuditError(f"`{path}` is no monitor that was saved: {cause}") from cause
        found._take(terms, scores, known["columns"], known["facts"])
        return found

    def as_pytorch_ood(self) -> OodDetector:
        """This monitor behind pytorch-ood's contract for detectors of features; pytorch-ood itself is not needed."""
        from kinfold.audit.outliers.ood_detector import OodDetector

        return OodDetector(self)

    def _take(
        self, terms: tuple[Term, ...], scores: np.ndarray, columns: int, facts: Mapping[str, Any] | None = None
    ) -> None:
        self.terms_, self.reference_scores_, self.columns_, self.facts_ = terms, scores, columns, dict(facts or {})

    def _require_fitted(self) -> None:
        if "terms_" not in vars(self):
            raise not_fitted()("This RequestMonitor is not fitted yet; call fit with a reference and a log first")
