"""Encoding models: from what a film shows to what each voxel does, and which part of that a feature space explains.

    y_bv = sum_s sum_d  x_s(b - d) . w_sdv  +  noise          spaces s, delays d in TRs, a ridge penalty for each space

Rows are clips, one a TR, in order of time within each run. Row b of the responses is the volume paired with clip b,
which is centred about 5 s after the clip began. **Delay d is the film d TRs before the paired clip**: 0 is the clip
itself, 1 the clip before it, -1 the clip after it.

Scans are standardised within each run, which takes the run's mean off. It is taken off features, predictions and
measured responses here as well, so there is no intercept, and a run's level is not part of any score.

The penalties of the spaces are chosen for every voxel across whole runs (banded ridge, by himalaya; Dupre la Tour et
al. 2022, NeuroImage 264:119728), so a space that says nothing about a voxel does not dilute one that does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from himalaya.backend import get_backend, set_backend
from himalaya.kernel_ridge import generate_dirichlet_samples, solve_multiple_kernel_ridge_random_search
from sklearn.model_selection import GroupKFold

from neuroclips.data.clips import Clips, shifted
from neuroclips.decoders.ridge import MAX_FOLDS
from neuroclips.errors import DataError
from neuroclips.evaluation.pixels import Videos, as_unit_float
from neuroclips.shapes import Bool, Float, Float32, Int

DELAYS = (0, 1, 5)  # the rise of the response and its undershoot; of 20 sets the best across the demo's training runs
ALPHAS = tuple(float(a) for a in np.logspace(-1, 4, 11))  # in units of a clip's mean squared features
MIXTURES = 10  # of the spaces' kernels that are tried: each space alone, all alike, and drawn ones
_FEATURES_AT_ONCE = 1 << 13  # of 4,320 clips in float32: 140 MB
_ALPHAS_AT_ONCE = 4  # each is a matrix of clips by clips
_LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)

Spaces = Mapping[str, Float[np.ndarray, "B _"]]


@dataclass(frozen=True)
class Principal:
    """The leading principal components of training clips' features, to be found in any clips.

    Components keep their relative sizes, so that ridge shrinks small ones first, and are divided by one number, so that
    the training clips' have a mean squared length of 1: parts that are put side by side in a space weigh alike.

    mean : (P,) of the flattened features.  axes : (A, P) rows are orthogonal and of equal length.
    """

    mean: Float32[np.ndarray, " P"]
    axes: Float32[np.ndarray, "A P"]

    def encode(self, values: Float[np.ndarray, "B ..."]) -> Float32[np.ndarray, "B A"]:
        flat = values.reshape(len(values), -1)
        if flat.shape[1] != len(self.mean):
            raise DataError(f"a clip has {flat.shape[1]} features; these components were made for {len(self.mean)}")
        found = np.zeros((len(flat), len(self.axes)), np.float32)
        for part in _feature_parts(flat):
            found += (flat[:, part].astype(np.float32) - self.mean[part]) @ self.axes[:, part].T
        return found


def principal(train: Float[np.ndarray, "B ..."], n: int) -> Principal:
    """The n leading components of training clips, at most as many as there are clips (less one) or features.

    From the products of clips with each other: features are read in parts, for full-size tokens of all training clips
    are larger than memory in float32.
    """
    flat = train.reshape(len(train), -1)
    n = min(n, len(flat) - 1, flat.shape[1])
    mean, products = np.empty(flat.shape[1], np.float32), np.zeros((len(flat), len(flat)))
    for part in _feature_parts(flat):
        values = flat[:, part].astype(np.float32)
        mean[part] = values.mean(axis=0)
        products += (values - mean[part]) @ (values - mean[part]).T
    squares, vectors = np.linalg.eigh(products)
    squares, vectors = squares[::-1][:n].clip(min=0), vectors[:, ::-1][:, :n].astype(np.float32)
    length = np.sqrt(squares.sum() / len(flat))
    # V = X^T U / s has unit columns; components of which only rounding is left get none.
    known = squares > 1e-10 * max(float(squares.max(initial=0)), np.finfo(np.float64).tiny)
    scale = np.where(known, 1 / (np.sqrt(np.where(known, squares, 1)) * (length if length > 0 else 1)), 0)
    axes = np.empty((n, flat.shape[1]), np.float32)
    for part in _feature_parts(flat):
        axes[:, part] = (vectors * scale.astype(np.float32)).T @ (flat[:, part].astype(np.float32) - mean[part])
    return Principal(mean, axes)


def _feature_parts(flat: np.ndarray) -> Iterator[slice]:
    for start in range(0, flat.shape[1], _FEATURES_AT_ONCE):
        yield slice(start, start + _FEATURES_AT_ONCE)


def contrast_and_change(videos: Videos, cells: int = 8) -> Float32[np.ndarray, "B _"]:
    """How strong edges and changes are in each of ``cells`` x ``cells`` parts of the picture: (B, 2 cells²).

    The first half is the standard deviation of luminance within a part, the second the mean absolute difference of
    luminance between neighbouring frames, each averaged over a clip's frames. Neurons of early visual areas signal
    both, whatever the sign of the edge, and neither is linear in pixels or in latents of a VAE: without them in the
    low-level space, what they explain would be credited to any other space that goes with them.
    """
    if videos.shape[1] < 2:
        raise DataError(f"videos have {videos.shape[1]} frame; change needs at least 2")

    def parts(picture: np.ndarray) -> np.ndarray:
        return cv2.resize(picture, (cells, cells), interpolation=cv2.INTER_AREA)

    found = np.empty((len(videos), 2, cells, cells), np.float32)
    for i in range(len(videos)):
        frames = as_unit_float(videos[i : i + 1])[0].transpose(0, 2, 3, 1) @ _LUMINANCE  # (F, H, W)
        variance = [parts(np.square(frame)) - np.square(parts(frame)) for frame in frames]
        found[i, 0] = np.sqrt(np.clip(variance, 0, None)).mean(axis=0)
        found[i, 1] = parts(np.abs(np.diff(frames, axis=0)).mean(axis=0))
    return found.reshape(len(videos), -1)


def mean_responses(clips: Clips, n_repeats: int | None = None) -> Float32[np.ndarray, "B V"]:
    """Mean over the first ``n_repeats`` presentations (all by default), in standard deviations of a single one.

    ``Clips.responses`` has unit variance for any number of presentations, so the film's part of it grows with their
    number. Here that part stays the same: models fitted to means of 2 can be judged on means of 10.
    """
    return clips.means(n_repeats)[0].astype(np.float32)


def centred_in_runs(values: Float[np.ndarray, "B _"], segment: Int[np.ndarray, " B"]) -> Float32[np.ndarray, "B _"]:
    """``values`` less their mean over the clips of the same run."""
    found = np.array(values, np.float32)
    for run in np.unique(segment):
        found[segment == run] -= found[segment == run].mean(axis=0)
    return found


def delayed(
    features: Float[np.ndarray, "B P"], segment: Int[np.ndarray, " B"], delays: Sequence[int] = DELAYS
) -> Float32[np.ndarray, "B DP"]:
    """Features of the film ``delays`` TRs before each clip, one delay after the other; 0 beyond the ends of a run.

    A positive delay looks back, as the haemodynamic response does. 0 is the mean of centred features.

    >>> delayed(np.array([[1.0], [2.0], [3.0], [4.0]]), np.array([0, 0, 0, 1]), (0, 1, -1)).tolist()
    [[1.0, 0.0, 2.0], [2.0, 1.0, 3.0], [3.0, 2.0, 0.0], [4.0, 0.0, 0.0]]
    """
    found = np.zeros((len(features), len(delays), features.shape[1]), np.float32)
    for place, delay in enumerate(delays):
        source = shifted(segment, -delay)
        found[source >= 0, place] = features[source[source >= 0]]
    return found.reshape(len(features), -1)


@dataclass(frozen=True)
class EncodingModel:
    """A linear model from feature spaces to V voxels; every result is centred within runs.

    delays : TRs, see ``delayed``.
    weights : of each space, (D P, V): on the features at the first delay, then on those at the second, and so on.
    mixture : of each space, (V,) its share of the kernel, in [0, 1]; over spaces they sum to 1.
    alpha : (V,) penalty, in units of a clip's mean squared (delayed) features.
    """

    delays: tuple[int, ...]
    weights: Mapping[str, Float32[np.ndarray, "_ V"]]
    mixture: Mapping[str, Float32[np.ndarray, " V"]]
    alpha: Float32[np.ndarray, " V"]

    @property
    def n_voxels(self) -> int:
        return len(self.alpha)

    def contributions(
        self, spaces: Spaces, segment: Int[np.ndarray, " B"], voxels: slice = slice(None)
    ) -> dict[str, Float32[np.ndarray, "B V"]]:
        """What each space adds to the prediction of whole runs. Because of the delays, neighbouring clips matter."""
        found = {}
        for name, weights in self.weights.items():
            if name not in spaces:
                raise DataError(f"no features of {name!r} were given; got {', '.join(spaces) or 'none'}")
            x = _design(name, spaces[name], segment, self.delays)
            if x.shape[1] != len(weights):
                raise DataError(
                    f"{name} has {spaces[name].shape[1]} features; the model was fitted on "
                    f"{len(weights) // len(self.delays)}"
                )
            found[name] = x @ weights[:, voxels]
        return found

    def predict(
        self, spaces: Spaces, segment: Int[np.ndarray, " B"], voxels: slice = slice(None)
    ) -> Float32[np.ndarray, "B V"]:
        """Responses to whole runs: the sum of ``contributions``. Spaces that the model does not know are ignored."""
        first, *rest = self.contributions(spaces, segment, voxels).values()
        for part in rest:
            first += part
        return first


def fit_encoding(
    spaces: Spaces,
    segment: Int[np.ndarray, " B"],
    responses: Float[np.ndarray, "B V"],
    *,
    delays: Sequence[int] = DELAYS,
    alphas: Sequence[float] = ALPHAS,
    mixtures: int = MIXTURES,
    seed: int = 0,
    voxels_batch: int = 2048,
) -> EncodingModel:
    """Banded ridge from feature spaces to voxels, mixture and alpha per voxel by cross-validation over whole runs.

    Each space has the kernel K_s = X_s X_s^T / (mean of its diagonal) of its delayed features; a voxel's kernel is
    sum_s gamma_s K_s. The mixtures gamma that are tried are each space alone, all spaces alike, and draws from a flat
    Dirichlet distribution. Voxels share the decompositions of the kernels and are solved ``voxels_batch`` at a time,
    which changes nothing but memory: a few times the responses and the weights (``D P V`` floats a space).

    Parameters
    ----------
    spaces : name to (B, P) features of training clips. Columns are not rescaled: larger ones are shrunk less.
    segment : (B,) run of each clip; its clips are neighbours, in order of time.
    responses : (B, V) of the volumes paired with the clips, such as ``mean_responses``.
    mixtures : how many are tried, if there are several spaces; at least one more than there are spaces.

    Raises
    ------
    DataError
        Rows differ in number, values are not finite, a space does not vary, or there is only one run.
    """
    n_runs, n_spaces = len(np.unique(segment)), len(spaces)
    if n_runs < 2 or not n_spaces:
        raise DataError(f"an encoding model needs at least 2 training runs and 1 space; got {n_runs} and {n_spaces}")
    y = centred_in_runs(_checked("responses", responses, segment), segment)
    designs = {name: _design(name, features, segment, delays) for name, features in spaces.items()}
    scales = {name: float(np.square(x).sum(axis=1).mean()) for name, x in designs.items()}
    if flat := [name for name, scale in scales.items() if not scale > 0]:
        raise DataError(f"features of {flat[0]} are the same in all clips of a run; expected some that vary")
    xs = [x / np.float32(np.sqrt(scales[name])) for name, x in designs.items()]
    tried = _mixtures(n_spaces, mixtures, seed)
    folds = list(GroupKFold(min(MAX_FOLDS, n_runs)).split(y, groups=segment))
    previous = get_backend().name
    # Torch, because numpy's BLAS wastes many times the processor time on these sizes when other processes are busy.
    backend = set_backend("torch")
    try:
        deltas, found, _, alpha = solve_multiple_kernel_ridge_random_search(
            backend.asarray(np.stack([x @ x.T for x in xs])), backend.asarray(y), Xs=[backend.asarray(x) for x in xs],
            n_iter=backend.asarray(tried), alphas=backend.asarray(np.array(alphas, np.float32)), cv=folds,
            return_weights="primal", return_alphas=True, n_targets_batch=voxels_batch, n_alphas_batch=_ALPHAS_AT_ONCE,
            progress_bar=False,
        )  # fmt: skip
    finally:
        set_backend(previous)
    parts = np.split(found.numpy(), np.cumsum([x.shape[1] for x in xs])[:-1])
    weights = {name: part / np.float32(np.sqrt(scales[name])) for name, part in zip(designs, parts)}
    mixture = dict(zip(designs, np.exp(deltas.numpy()) * alpha.numpy()))  # deltas are the logarithms of gamma / alpha
    return EncodingModel(tuple(delays), weights, mixture, alpha.numpy())


def _mixtures(n_spaces: int, n: int, seed: int) -> Float32[np.ndarray, "N S"]:
    """Shares of the spaces that are tried, each row summing to 1; the ones that may win a tie come first."""
    if n_spaces == 1:
        return np.ones((1, 1), np.float32)
    if n <= n_spaces:
        raise DataError(f"{n} mixtures of {n_spaces} spaces; expected at least {n_spaces + 1}: each alone, all alike")
    fixed = np.concatenate([np.full((1, n_spaces), 1 / n_spaces), np.eye(n_spaces)])
    drawn = generate_dirichlet_samples(n, n_spaces, concentration=[1.0], random_state=seed)
    return np.concatenate([fixed, drawn])[:n].astype(np.float32)


def _design(name: str, features: np.ndarray, segment: np.ndarray, delays: Sequence[int]) -> Float32[np.ndarray, "B DP"]:
    centred = centred_in_runs(_checked(f"features of {name}", features, segment), segment)
    return centred_in_runs(delayed(centred, segment, delays), segment)


def _checked(what: str, values: np.ndarray, segment: np.ndarray) -> np.ndarray:
    if values.ndim != 2 or len(values) != len(segment):
        raise DataError(f"{what} have shape {values.shape}; expected ({len(segment)}, ...), a row for each clip")
    if not np.isfinite(values).all():
        raise DataError(f"{what} hold values that are not finite; expected finite numbers")
    return values


@dataclass(frozen=True)
class Parts:
    """Variance that models of two feature spaces explain, and how they divide it among themselves.

    total : of the joint model.
    alone : of a model of each space by itself.
    unique : of each space, what the joint model explains beyond the other space alone.
    shared : what either space explains: alone + alone - total = total - unique - unique.
    product : of each space within the joint model, sum_b y_s (2 y - y_joint) with its contribution y_s (the product
        measure). The two sum to ``total``, but what is shared goes to one or the other by the penalties.

    On held-out clips all of them can be below 0, by chance or because a model fits noise. ``shared`` also is where one
    space hides what the other explains (suppression).
    """

    total: Float[np.ndarray, ...]
    alone: Mapping[str, Float[np.ndarray, ...]]
    unique: Mapping[str, Float[np.ndarray, ...]]
    shared: Float[np.ndarray, ...]
    product: Mapping[str, Float[np.ndarray, ...]]


@dataclass(frozen=True)
class VariancePartition:
    """``Parts`` per voxel, and per clip and area.

    voxels : (V,) shares of a voxel's variance over the clips; NaN for a voxel that does not change.
    explained : (B, A) sums over an area's voxels of each clip's explained squares.
    squares : (B, A) sums of squares that there are to explain.

    The share of area a is ``explained[:, a].sum() / squares[:, a].sum()``. Over draws of scenes, too, it is
    ``boot.of(explained[:, a]).draws / boot.of(squares[:, a]).draws``, with ``SceneBootstrap``.
    """

    voxels: Parts
    explained: Parts
    squares: Float[np.ndarray, "B A"]


def variance_partition(
    joint: EncodingModel,
    alone: Mapping[str, EncodingModel],
    spaces: Spaces,
    segment: Int[np.ndarray, " B"],
    measured: Float[np.ndarray, "B V"],
    areas: Bool[np.ndarray, "A V"] | None = None,
    *,
    voxels_batch: int = 2048,
) -> VariancePartition:
    """How much of held-out responses two feature spaces explain, alone and together.

    The measure is R² = 1 - sum_b (y_b - predicted_b)² / sum_b y_b², both sides centred within each run over these
    clips: the reference is the run's own mean, which no model was told, so a model that found nothing scores 0 or less.
    Unlike a squared correlation it is a ratio of sums over clips, hence of sums over clips *and* voxels for an area,
    and it counts a prediction of the wrong size as wrong. Therefore ``measured`` must be in the unit of the responses
    that the models were fitted to, whatever the number of repeats: ``mean_responses``. A mean of k repeats holds noise
    that no model explains; R² / ``split_half(bold, present, k)`` is the share of what can be explained.

    Parameters
    ----------
    joint, alone : fitted to both spaces, and to each of the two by itself.
    spaces, segment, measured : of clips that no model was fitted to, whole runs in order of time.
    areas : which voxels lie in each of A areas; by default one area of all voxels.
    voxels_batch : voxels at a time; bounds memory at about ``6 B voxels_batch`` floats, and changes nothing else.
    """
    names = tuple(alone)
    if len(names) != 2 or set(joint.weights) != set(names) or any(set(alone[n].weights) != {n} for n in names):
        raise DataError(
            f"a partition needs a joint model of two spaces and one of each alone; got {', '.join(joint.weights)} and "
            f"{', '.join(names)}"
        )
    y, n_voxels = _checked("measured responses", measured, segment), measured.shape[1]
    areas = np.ones((1, n_voxels), bool) if areas is None else areas
    for n in (areas.shape[1], joint.n_voxels, *(model.n_voxels for model in alone.values())):
        if n != n_voxels:
            raise DataError(f"areas or models have {n} voxels, measured responses {n_voxels}; expected as many")
    kinds = ("total", *names, "product")
    maps, sums = np.zeros((4, n_voxels)), np.zeros((4, len(y), len(areas)))
    whole, squares = np.zeros(n_voxels), np.zeros((len(y), len(areas)))
    for start in range(0, n_voxels, voxels_batch):
        v = slice(start, start + voxels_batch)
        here = centred_in_runs(y[:, v], segment)
        first, second = (joint.contributions(spaces, segment, v)[name] for name in names)
        both = first + second
        explained = {"total": both * (2 * here - both), "product": first * (2 * here - both)}
        for name in names:
            predicted = alone[name].predict(spaces, segment, v)
            explained[name] = predicted * (2 * here - predicted)  # y^2 - (y - predicted)^2
        member = areas[:, v].T.astype(np.float32)
        whole[v] = np.square(here).sum(axis=0, dtype=np.float64)
        squares += np.square(here) @ member
        for k, kind in enumerate(kinds):
            maps[k, v] = explained[kind].sum(axis=0, dtype=np.float64)
            sums[k] += explained[kind] @ member
    shares = np.divide(maps, whole, out=np.full_like(maps, np.nan), where=whole > 0)
    return VariancePartition(_parts(names, *shares), _parts(names, *sums), squares)


def _parts(names: Sequence[str], total: np.ndarray, one: np.ndarray, other: np.ndarray, product: np.ndarray) -> Parts:
    def both(first: np.ndarray, second: np.ndarray) -> dict[str, np.ndarray]:
        return dict(zip(names, (first, second)))

    return Parts(
        total=total,
        alone=both(one, other),
        unique=both(total - other, total - one),
        shared=one + other - total,
        product=both(product, total - product),
    )
