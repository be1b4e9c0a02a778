"""Checks of what scores rest on: how many clips are independent, and which data chose the voxels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from neuroclips.data.selection import fisher_z, t_test
from neuroclips.evaluation.audit.finding import Finding, or_ok, standardised
from neuroclips.evaluation.intervals import n_effective
from neuroclips.shapes import Bool, Float, Int

FEW = 20  # effective clips below which an interval is a guess
VOXEL_SHARE = 0.01  # of voxels that may be odd before a whole run or selection is called so
EVIDENCE = 1e-3  # by which stored and recomputed reliability may differ: rounding is a thousand times smaller
T_EVIDENCE = 1e-2  # relative, median over voxels: t of two nearly equal segments is ill-conditioned
_SELECT = "Select voxels again, from training segments only (neuroclips prepare)."


def autocorrelation(parts: Sequence[Float[np.ndarray, "_ D"]], most: int) -> Float[np.ndarray, " K"]:
    """Correlation of rows k apart, k = 1 ... ``most``, pooled over columns and over parts in order of time.

    Columns are z-scored over all parts together. Lags that no part is long enough for are 0.
    """
    whole = standardised(np.concatenate(list(parts)))
    cut = np.split(whole, np.cumsum([len(p) for p in parts])[:-1])
    variance = float(np.mean(whole**2, dtype=np.float64))
    found = np.zeros(most)
    for k in range(1, most + 1):
        pairs = [(p[:-k], p[k:]) for p in cut if len(p) > k]
        if pairs and variance > 0:
            total = sum(float(np.sum(x * y, dtype=np.float64)) for x, y in pairs)
            found[k - 1] = total / sum(x.size for x, _ in pairs) / variance
    return found


def effective_n(n: int, rho: Float[np.ndarray, " K"]) -> float:
    """Independent rows that would say as much about a mean as ``n`` rows with autocorrelation ``rho`` at lags 1 ... K.

    n / (1 + 2 sum_k (1 - k / n) rho_k), the sum ending before the first value that is not positive; at most n.
    """
    ends = np.flatnonzero(rho <= 0)
    kept = rho[: ends[0]] if len(ends) else rho
    return float(n / (1 + 2 * np.sum((1 - np.arange(1, len(kept) + 1) / n) * kept)))


def check_independence(
    scene: Int[np.ndarray, " B"],
    responses: Sequence[Float[np.ndarray, "_ V"]],
    pictures: Sequence[Float[np.ndarray, "_ D"]],
) -> list[Finding]:
    """How many independent clips the test split is worth.

    Parameters
    ----------
    scene : of every test clip. responses, pictures : by test segment, rows in order of time.

    Three numbers: Kish's effective number of scenes, and what the autocorrelation of responses and of the film leaves.
    Warning: the smallest is below 20, when intervals are wide and hardly to be trusted.
    """
    check, most = "effective n", 30
    rho = {name: autocorrelation(parts, most) for name, parts in (("responses", responses), ("film", pictures))}
    sizes = {"scenes": n_effective(scene)} | {name: effective_n(len(scene), r) for name, r in rho.items()}
    text = (
        f"{len(scene)} test clips are worth {sizes['scenes']:.0f} by scenes, {sizes['responses']:.0f} by responses "
        f"(lag-1 autocorrelation {rho['responses'][0]:.2f}) and {sizes['film']:.0f} by film ({rho['film'][0]:.2f})"
    )
    numbers = {f"n_{name}": size for name, size in sizes.items()} | {f"rho_{k}": float(r[0]) for k, r in rho.items()}
    if min(sizes.values()) >= FEW:
        return [Finding(check, "ok", text, numbers=numbers)]
    do = "Test on more film: more scenes, not more repeats. Read intervals as rough."
    return [Finding(check, "warning", text, "the test split", do, numbers)]


def check_selection(
    mask: Bool[np.ndarray, " G"],
    p: Float[np.ndarray, " G"],
    t: Float[np.ndarray, " G"],
    reliability: Float[np.ndarray, " G"],
    train: Float[np.ndarray, "S V"],
    others: Mapping[str, Float[np.ndarray, "N V"]],
    usable: Bool[np.ndarray, " V"],
) -> list[Finding]:
    """Were the voxels chosen from training scans alone?

    Parameters
    ----------
    mask, p, t, reliability : as stored, for all G voxels; V of them are in the mask.
    train : correlation between repeats, by training segment and selected voxel, recomputed from the stored scans.
    others : the same for other splits, by name; only to say whose data the stored evidence fits.
    usable : (V,) voxels that are finite and vary in every training run; the others are not compared.

    Stored evidence is made from the training scans, so it must come out again. Fault: recomputed reliability differs
    from the stored one by more than 0.001 in more than 1 % of voxels, or t by more than 1 % in the median voxel.
    Fault: a voxel outside the mask has a smaller p than one inside, so that the mask was not made from this evidence.
    """
    check, found = "voxel selection", list[Finding]()
    stored, again = reliability[mask][usable], train.mean(axis=0)[usable]
    t_stored, t_again = t[mask][usable].astype(np.float64), t_test(fisher_z(train), 1)[0][usable]
    if len(again) == 0:
        return [Finding(check, "ok", "not checked: no voxel is sound in every training run")]

    def differ(r: np.ndarray) -> float:
        return float((np.abs(stored - r) > EVIDENCE).mean())

    with np.errstate(invalid="ignore"):  # infinite in both
        t_differs = float(np.nanmedian(np.abs(t_stored - t_again) / (1 + np.abs(t_again))))
    numbers = {"reliability_train": float(again.mean()), "differ": differ(again), "t_differs": t_differs}
    numbers |= {f"reliability_{name}": float(r.mean(axis=0)[usable].mean()) for name, r in others.items()}
    if differ(again) > VOXEL_SHARE or t_differs > T_EVIDENCE:
        made = {f"{name} segments": r for name, r in others.items()}
        made |= {f"training and {name} segments together": np.concatenate([train, r]) for name, r in others.items()}
        fits = [name for name, r in made.items() if differ(r.mean(axis=0)[usable]) <= VOXEL_SHARE]
        text = (
            f"stored evidence is not that of the training scans: reliability differs in {differ(again):.0%} of voxels "
            f"(mean {stored.mean():.3f}, recomputed {again.mean():.3f}), t by {t_differs:.1%} in the median"
        )
        text += f"; it is that of {fits[0]}" if fits else ""
        found.append(Finding(check, "fault", text, "voxels.safetensors", _SELECT, numbers))
    inside, outside = p[mask], p[~mask]
    if len(outside) and inside.max() > outside.min():
        wrong = int((outside < inside.max()).sum())
        text = (
            f"{wrong} voxels outside the mask have a smaller p than the weakest one inside ({inside.max():.2g}): the "
            "mask was not made from the stored evidence"
        )
        found.append(Finding(check, "fault", text, "voxels.safetensors", _SELECT, {"outside": wrong}))
    beside = ", ".join(f"{name} {numbers[f'reliability_{name}']:.3f}" for name in ("train", *others))
    text = f"{int(mask.sum())} voxels, from training scans alone; mean reliability: {beside}"
    return or_ok(check, found, text, numbers)
