"""The self-test of a loaded variant: it must answer as its restored directory would, and not as the base."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from kinfold.errors import ServeError
from kinfold.pack.member import Member
from kinfold.pack.probe import probe_ids
from kinfold.serve.delta import LowRank
from kinfold.serve.live import LiveModel
from kinfold.serve.placing import Placement, values
from kinfold.serve.variant import Variant

SHARE = 0.1  # of the distance between variant and base that may be missed
ULPS = 4  # and as many roundings of the dtype, of the outputs' own size


def check(
    live: LiveModel, variant: Variant, member: Member, placement: Placement, stored: Mapping[str, Any] | None = None
) -> None:
    """Run the probe through the mixed path and compare.

    Args:
        live: the running base.
        variant: loaded from `member`, not yet served.
        member: gives the variant's own tensors for the reference.
        placement: where they belong.
        stored: what `probe_outputs` said of the restored variant; None takes a reference on the spot, from the
            variant's tensors put into the model whole.

    Raises:
        ServeError: a changed tensor was placed nowhere; the answers are not the variant's, or those of the base
            beside it are disturbed; both figures are told.
    """
    _check_count(member, placement)
    stored = stored or {}
    ids = torch.tensor([stored.get("ids") or probe_ids(live.vocabulary)], device=live.device)
    plain = live.plain(ids)[0]
    with live.mixer.rows([variant, None], ids.shape[1]), torch.inference_mode():
        pair = ids.expand(2, -1).contiguous()
        mixed, beside = live.features(live.core(input_ids=pair, attention_mask=torch.ones_like(pair)))
    told = stored.get("top")
    if told:
        spots = torch.tensor([spot for spot, _ in told], device=live.device)
        reference = torch.tensor([value for _, value in told], device=live.device)
        plain, mixed, beside = plain[spots], mixed[spots], beside[spots]
    elif placement.sources:
        reference = live.run_with(values(member, live, placement), ids)[0]
    else:
        reference = plain
    noise = ULPS * torch.finfo(live.dtype).eps * _size(reference)
    moved, missed = _distance(reference, plain), _distance(mixed, reference)
    share = SHARE + 2 * _rounding(variant, live, live.stored_dtype if told else live.dtype)
    stuck = variant.changes and moved > 0 and _distance(mixed, plain) <= SHARE * moved and (not told or moved > noise)
    if not missed <= share * moved + noise or stuck:  # `not <=` so that NaN is refused too
        raise ServeError(
            f"`{variant.name}` does not answer the probe as its restored weights do: off by {missed:.3g}, where the "
            f"variant is {moved:.3g} from the base",
            hint="kinfold restore and a server of its own serve it; please report this",
        )
    if not _distance(beside, plain) <= noise + 1e-6 * _size(plain):
        raise ServeError(f"`{variant.name}` disturbs the base's own answers by {_distance(beside, plain):.3g}")


def _check_count(member: Member, placement: Placement) -> None:
    told = {*placement.sources.values(), *placement.aside}
    lost = [own for own in (*(member.own[name] for name in member.changed), *member.whole) if own not in told]
    if lost:
        raise ServeError(f"`{member.name}` changes {', '.join(f'`{name}`' for name in lost[:5])}, placed nowhere")


def _rounding(variant: Variant, live: LiveModel, dtype: torch.dtype) -> float:
    """What rounding weights to `dtype` takes from the products added to them, as a share of the products' norm.

    The reference has rounded weights, the mixed path has not. A rounding error is uniform, 0.2 epsilon of a weight on
    average; norms of products come from the factors' Gram matrices.
    """
    weights = deltas = 0.0
    for module, parts in variant.changes.items():
        for parameter, change in parts.items():
            if isinstance(change, LowRank):
                inner, outer = change.inner.float(), change.outer.float()
                deltas += float(((inner.T @ inner) * (outer @ outer.T)).sum())
                weights += float(getattr(live.mixer.modules[module], parameter).float().square().sum())
    return 0.2 * torch.finfo(dtype).eps * (weights / deltas) ** 0.5 if deltas > 0 else 0.0


def _distance(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).double().norm())


def _size(values: torch.Tensor) -> float:
    """Norm of what is left without the mean, which means nothing among log-probabilities."""
    return float((values - values.mean()).double().norm())
