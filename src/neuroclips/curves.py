"""The stage ``curves``: what a decoder's result depends on, and whether it knows when it is right.

Ridge from voxels to tokens predicts the test clips again, under other conditions: with fewer training minutes, through
fewer components, from earlier and later volumes. Nothing is chosen by these curves. Voxels and their scale come from
all training segments throughout, so points of few minutes are a little too good.

The method that makes the videos decodes every single presentation, too: agreement among them is its confidence.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from neuroclips.artefacts import ArrayWriter, Rows, in_parts, let_go, read_arrays
from neuroclips.data.clips import Clips, TrainingClips
from neuroclips.data.prepared import load_clips
from neuroclips.decoders.ridge import RidgeDecoder
from neuroclips.errors import DataError
from neuroclips.evaluation.agreement import mean_and_sd
from neuroclips.evaluation.curves import CurvePoint
from neuroclips.evaluation.floors import shuffled_orders
from neuroclips.evaluation.identification import candidate_pool, correlation_scores, identify
from neuroclips.evaluation.scores import score_identification
from neuroclips.evaluation.table import Score
from neuroclips.evaluation.uncertainty import AbstentionCurve, abstention_curve, sample_agreement
from neuroclips.recipe import Recipe
from neuroclips.reconstructor import Reconstructor
from neuroclips.shapes import Float, Float32
from neuroclips.stages import load_targets, progress_bar

CURVES = {"minutes": "training minutes", "components": "components", "lag": "lag"}  # by their name in files
_TARGETS_AT_ONCE = 4096
Fit = Callable[[Clips, np.ndarray | Rows], RidgeDecoder]
Whole = Callable[[], RidgeDecoder]  # fitted to all training clips
Predict = Callable[[], np.ndarray]  # (B, K, D) tokens of the test clips


def curves(run: Path, own: Path, recipe: Recipe, console: Console) -> dict[str, Any]:
    """Decode the test clips from the mean of all their presentations, under the conditions that the recipe names.

    tokens.safetensors : (B, K, D) float16 a point, named by curve and x, such as ``minutes-3.75``, ``components-10``
        and ``lag-2``. NaN where a clip's run has no volume at one of the lags.
    samples.safetensors : ``samples`` (S, B, K, D) float16, decoded by the last method from each clip's 1st, 2nd ... Sth
        presentation alone; S is the fewest that any clip has. Not there with S below 2.

    With too little data for a point, or for a curve, it is left out, and the card says so.
    """
    assert recipe.curves is not None
    prepared, tokens = load_clips(run / "prepare"), load_targets(run, "train").tokens
    # Frames play no part here, and chosen clips would be copied with them.
    train, test = (replace(clips, frames=clips.frames[:, :0]) for clips in (prepared.train, prepared.test))
    fit, responses = partial(_fit, recipe, own / ".ridge"), test.inputs()

    @cache
    def whole() -> RidgeDecoder:
        fitted = run / "fit" / "ridge" / "semantics"
        return RidgeDecoder.load(fitted) if fitted.exists() else fit(train, tokens)

    asked: dict[str, Sequence[float]] = {
        "minutes": recipe.curves.training_shares, "components": recipe.curves.components, "lag": recipe.curves.lags,
    }  # fmt: skip
    points: dict[str, Predict] = {}
    if len(np.unique(train.segment)) > 1:  # ridge chooses alpha across segments
        points |= _by_minutes(train, tokens, responses, recipe.curves.training_shares, fit, whole)
        points |= _by_components(train, tokens, responses, recipe.curves.components, whole)
        points |= _by_lag(train, test, tokens, recipe.curves.lags, prepared.delay_trs, fit)
    missing = [CURVES[name] for name, x in asked.items() if x and not any(p.startswith(name) for p in points)]
    if missing:
        console.print(f"  too little data for the curves {', '.join(missing)}")
    n_samples = int(test.present.sum(axis=1).min()) if recipe.curves.samples else 0
    n_samples = n_samples if n_samples > 1 else 0
    shape = (len(test), *tokens.shape[1:])
    with progress_bar(console) as report:
        with ArrayWriter(own / "tokens.safetensors", dict.fromkeys(points, (shape, "F16"))) as arrays:
            for done, (name, predict) in enumerate(points.items()):
                report(done, len(points) + n_samples, name)
                arrays[name][...] = predict()
                let_go(arrays[name])
        if n_samples:
            reconstructor = Reconstructor.load(run / "fit" / recipe.decoders.methods[-1])
            with ArrayWriter(own / "samples.safetensors", {"samples": ((n_samples, *shape), "F16")}) as arrays:
                for s in range(n_samples):
                    report(len(points) + s, len(points) + n_samples, f"presentation {s + 1}")
                    alone = _presentation(test, s)
                    for rows, found in reconstructor.decoded(reconstructor.decoders.inputs(alone), alone.ids):
                        arrays["samples"][s, rows] = found.tokens
                        let_go(arrays["samples"])
    shutil.rmtree(own / ".ridge", ignore_errors=True)
    return {"points": list(points), "samples": n_samples, "too_little_data_for": missing}


def _fit(recipe: Recipe, keep: Path, train: Clips, tokens: np.ndarray | Rows) -> RidgeDecoder:
    """A ridge whose dual weights lie in ``keep`` until the next is fitted."""
    assert isinstance(train, TrainingClips)
    return RidgeDecoder(recipe.ridge.alphas, recipe.ridge.targets_batch, keep).fit(train, tokens)


def _by_minutes(
    train: Clips, tokens: np.ndarray, responses: np.ndarray, shares: Sequence[float], fit: Fit, whole: Whole
) -> dict[str, Predict]:  # fmt: skip
    """Ridge fitted to whole segments, evenly spread over the training segments; alphas chosen anew each time."""
    segments = np.unique(train.segment)
    found: dict[str, Predict] = {}
    for n in sorted({min(len(segments), max(2, round(share * len(segments)))) for share in shares}):
        rows = np.flatnonzero(np.isin(train.segment, segments[((np.arange(n) + 0.5) * len(segments) / n).astype(int)]))

        def predict(rows: np.ndarray = rows) -> np.ndarray:
            ridge = whole() if len(rows) == len(train) else fit(train.take(rows), Rows(tokens, rows))
            return ridge.predict(responses)

        found[f"minutes-{len(rows) * train.t_r / 60:.4g}"] = predict
    return found


def _by_components(
    train: Clips, tokens: np.ndarray, responses: np.ndarray, components: Sequence[int], whole: Whole
) -> dict[str, Predict]:
    """The whole ridge through fewer and fewer numbers, and as it is: its rank is the number of its components."""
    rank = min(len(train) - 1, train.n_voxels * len(train.lags), int(np.prod(tokens.shape[1:])))
    squeezed = cache(lambda: bottleneck(whole(), responses))
    found: dict[str, Predict] = {
        f"components-{k}": lambda k=k: squeezed()(k) for k in sorted(set(components)) if k < rank
    }  # fmt: skip
    return found | {f"components-{rank}": lambda: whole().predict(responses)} if found else {}


def bottleneck(
    ridge: RidgeDecoder, responses: Float32[np.ndarray, "B V"]
) -> Callable[[int], Float32[np.ndarray, "B ..."]]:
    """What ``ridge`` predicts if each clip's response is first squeezed into k numbers: a function of k.

    Reduced-rank regression: with U_k the first k principal directions of the ridge's predictions W^T x of its own
    training clips (about their mean, in target space), the k numbers are U_k^T W^T x, and the prediction is

        mean + U_k U_k^T W^T x

    the best of rank k for the training clips. Few components that do as well as all mean that little is read from the
    brain; Mayo, Wang et al. (2024, BrainBits) train such a bottleneck, here it follows from the ridge.

    U_k is had from the (B, B) products of predictions, since there may be more targets than fit in memory twice.
    """
    n, v = ridge.x_.shape
    seen, asked = (x @ ridge.x_.T / v for x in (ridge.x_, responses - ridge.x_mean_))  # kernels
    products, shared = np.zeros((n, n)), np.zeros((len(asked), n))
    for part in in_parts(len(ridge.y_mean_), _TARGETS_AT_ONCE, ridge.dual_):
        # in double precision: small components are wanted, too
        known, predicted = ((kernel @ ridge.dual_[:, part]).astype(np.float64) for kernel in (seen, asked))
        products += known @ known.T
        shared += predicted @ known.T
    values, vectors = np.linalg.eigh(products)  # ascending

    def through(k: int) -> np.ndarray:
        top, squares = vectors[:, -k:], np.maximum(values[-k:], np.finfo(np.float64).tiny)
        weights = (shared @ top / squares) @ top.T  # of the training clips' predictions, (B, B_train)
        return ridge.combined((weights @ seen).astype(np.float32))

    return through


def _by_lag(
    train: Clips, test: Clips, tokens: np.ndarray, lags: Sequence[int], delay_trs: int, fit: Fit
) -> dict[str, Predict]:
    """Ridge on one volume so many TRs after each clip. Fitted and tried on the clips that have one at every lag."""
    train, test = replace(train, lags=(0,)), replace(test, lags=(0,))
    shifts = sorted({shift for shift in lags if delay_trs + shift >= 0})  # no response comes before its clip
    sources = [{shift: clips.neighbour(shift) for shift in shifts} for clips in (train, test)]
    inside = [np.flatnonzero(np.all([s >= 0 for s in source.values()], axis=0)) for source in sources]
    if len(shifts) < 2 or len(np.unique(train.segment[inside[0]])) < 2 or len(inside[1]) == 0:
        return {}

    def predict(shift: int) -> np.ndarray:
        known, tried = (
            _with_responses_of(clips, rows, source[shift][rows])
            for clips, rows, source in zip((train, test), inside, sources)
        )
        found = np.full((len(test), *tokens.shape[1:]), np.nan, np.float32)
        found[inside[1]] = fit(known, Rows(tokens, inside[0])).predict(tried.inputs())
        return found

    return {f"lag-{delay_trs + shift}": partial(predict, shift) for shift in shifts}


def _with_responses_of(clips: Clips, rows: np.ndarray, source: np.ndarray) -> Clips:
    """The clips ``rows`` with the responses of the clips ``source`` in place of their own."""
    return replace(clips.take(rows), bold=np.asarray(clips.bold[source]), present=np.asarray(clips.present[source]))


def _presentation(clips: Clips, s: int) -> Clips:
    """The clips with nothing but each one's existing presentation number ``s``, from 0."""
    number = np.argsort(~clips.present, axis=1, kind="stable")[:, s]
    bold = np.asarray(clips.bold[np.arange(len(clips)), number])[:, None]
    return replace(clips, bold=bold, present=np.ones((len(clips), 1), bool))


# --- scores: called by the stage ``evaluate``, which alone compares with the test film --------------------------------


def score_curves(run: Path, recipe: Recipe) -> tuple[list[CurvePoint], AbstentionCurve | None]:
    """Top-1 identification at every point, beside chance and predictions shuffled across scenes; and abstention.

    The abstention curve is of the last method's identification from all repeats, by ``clip_confidence``; None where
    there are no samples. Without the stage there is nothing.
    """
    if recipe.curves is None:
        return [], None
    test = load_clips(run / "prepare").test
    truth, (reference, _) = load_targets(run, "test").tokens, mean_and_sd(load_targets(run, "train").tokens)
    points = []
    for name, predicted in read_arrays(run / "curves" / "tokens.safetensors").items():
        curve, x = name.split("-")
        score = _top_1(recipe, test, predicted, truth, reference)
        let_go(predicted, truth)
        if score is not None:
            points.append(CurvePoint(CURVES[curve], float(x), score))
    confidence = clip_confidence(run)
    if confidence is None:
        return points, None
    main = run / "reconstruct" / f"{recipe.decoders.methods[-1]}-{test.bold.shape[1]}.safetensors"
    similarity = correlation_scores(read_arrays(main)["tokens"], truth, reference)
    found = identify(similarity, candidate_pool(test.segment, test.onset, recipe.evaluate.exclude_seconds))
    return points, abstention_curve(
        found.values["top-1"], confidence, np.asarray(test.scene), draws=recipe.evaluate.bootstrap, seed=recipe.seed
    )


def clip_confidence(run: Path) -> Float[np.ndarray, " B"] | None:
    """How well the tokens decoded from each test clip's single presentations agree; None without at least two.

    The truth plays no part in it. See ``sample_agreement``.
    """
    path = run / "curves" / "samples.safetensors"
    if not path.exists():
        return None
    reference, _ = mean_and_sd(load_targets(run, "train").tokens)
    return sample_agreement(read_arrays(path)["samples"], reference)


def _top_1(
    recipe: Recipe, test: Clips, predicted: np.ndarray, truth: np.ndarray, reference: np.ndarray
) -> Score | None:
    """The row of one point, over the clips that have a prediction; None where they are too few to choose among.

    Ridge treats every clip by itself, so shuffling its predictions is shuffling the fMRI.
    """
    rows = np.flatnonzero(np.isfinite(predicted[:, 0, 0]))
    of_these, seconds = test.take(rows), recipe.evaluate.exclude_seconds
    if len(rows) == 0 or candidate_pool(of_these.segment, of_these.onset, seconds).sum(axis=1).min() < 2:
        return None
    try:
        orders = shuffled_orders(of_these.scene, recipe.seed, recipe.evaluate.shuffles)
    except DataError:  # one scene dominates: there is no such control
        orders = []
    of_rows = predicted[rows]
    found = score_identification(
        "ridge", of_rows, truth[rows], reference=reference, ids=of_these.ids, scene=of_these.scene,
        segment=of_these.segment, onset=of_these.onset, exclude_seconds=seconds, n_repeats=test.bold.shape[1],
        floors={"shuffled": [Rows(of_rows, order) for order in orders]} if orders else {},
        draws=recipe.evaluate.bootstrap, seed=recipe.seed,
    )  # fmt: skip
    return next(score for score in found.scores if score.metric == "top-1")
