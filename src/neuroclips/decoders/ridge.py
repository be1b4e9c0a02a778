"""Ridge regression from voxels to any target: the field's honest baseline (method b.1, paper equation 3).

Solved in its dual form by himalaya, since there are more voxels than clips and more targets than both:

    K = X X^T / V,   a = (K + alpha I)^-1 (Y - mean),   prediction = (x X^T / V) a + mean

alpha is chosen for every target by cross-validation over whole runs, which share neither scene, drift nor noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from himalaya.backend import get_backend, set_backend
from himalaya.kernel_ridge import solve_kernel_ridge_cv_eigenvalues
from sklearn.model_selection import GroupKFold

from neuroclips.artefacts import read_arrays, read_json, write_arrays, write_json
from neuroclips.data.clips import Clips, Targets, TrainingClips, ValidationClips, refuse_test_clips
from neuroclips.decoders import Decoded, FirstLayer, Pathway
from neuroclips.errors import DataError
from neuroclips.shapes import Float, Float32, Int

ALPHAS = tuple(float(a) for a in np.logspace(-3, 3, 13))  # in units of a voxel's mean square, see ``K`` above
MAX_FOLDS = 5


def solve_ridge_cv(
    x: Float32[np.ndarray, "B V"],
    y: Float32[np.ndarray, "B Y"],
    runs: Int[np.ndarray, " B"],
    alphas: Sequence[float],
    targets_batch: int,
) -> tuple[Float32[np.ndarray, "B Y"], Float32[np.ndarray, " Y"]]:
    """Dual weights and the chosen alpha of every target; ``x`` and ``y`` are centred.

    Runs are never split between folds. With one run only, alpha cannot be chosen and is an error.
    """
    n_runs = len(np.unique(runs))
    if n_runs < 2:
        raise DataError(f"ridge chooses alpha across runs and needs at least 2 training runs; there is {n_runs}")
    folds = list(GroupKFold(min(MAX_FOLDS, n_runs)).split(x, groups=runs))
    kernel = (x @ x.T) / x.shape[1]
    previous = get_backend().name
    set_backend("numpy")
    try:
        best, dual, _ = solve_kernel_ridge_cv_eigenvalues(
            kernel, y, alphas=np.asarray(alphas, np.float32), cv=folds, n_targets_batch=targets_batch,
            n_targets_batch_refit=targets_batch,
        )  # fmt: skip
    finally:
        set_backend(previous)
    return dual.astype(np.float32), best.astype(np.float32)


class RidgeDecoder:
    """Ridge from the mean of a clip's repeats to its target, alpha per target by run-wise cross-validation.

    Parameters
    ----------
    alphas : candidates, in units of the mean squared response of a voxel.
    targets_batch : targets solved at a time; bounds memory at about ``3 B targets_batch`` floats.

    Attributes
    ----------
    x_ : (B, V) centred training responses; x_mean_ (V,); dual_ : (B, Y); y_mean_ : (Y,); alpha_ : (Y,).
    shape_ : shape of one clip's target.
    """

    def __init__(self, alphas: Sequence[float] = ALPHAS, targets_batch: int = 4096):
        self.alphas, self.targets_batch = tuple(alphas), targets_batch

    def fit(
        self,
        train: TrainingClips,
        targets: Float[np.ndarray, "B ..."],
        validation: ValidationClips | None = None,
        validation_targets: Float[np.ndarray, "Bv ..."] | None = None,
    ) -> RidgeDecoder:
        """Fit on training clips; validation clips are not needed, alphas are cross-validated inside training."""
        refuse_test_clips(train, validation)
        if len(targets) != len(train):
            raise DataError(f"ridge was given {len(train)} clips and {len(targets)} targets; expected as many")
        x = train.inputs()
        y = np.asarray(targets, np.float32).reshape(len(targets), -1)
        self.shape_ = targets.shape[1:]
        self.x_mean_, self.y_mean_ = x.mean(axis=0), y.mean(axis=0)
        self.x_ = x - self.x_mean_
        self.dual_, self.alpha_ = solve_ridge_cv(
            self.x_, y - self.y_mean_, train.segment, self.alphas, self.targets_batch
        )
        return self

    def predict(self, responses: Float32[np.ndarray, "B V"]) -> Float32[np.ndarray, "B ..."]:
        """Targets of clips with ``responses`` at unit variance (``Clips.inputs``)."""
        if responses.shape[1] != self.x_.shape[1]:
            raise DataError(f"responses have {responses.shape[1]} voxels; the decoder was fitted on {self.x_.shape[1]}")
        kernel = (responses - self.x_mean_) @ self.x_.T / self.x_.shape[1]
        return (kernel @ self.dual_ + self.y_mean_).reshape(len(responses), *self.shape_).astype(np.float32)

    def weights(self, voxels: slice | Int[np.ndarray, " N"] = slice(None)) -> Float32[np.ndarray, "N Y"]:
        """Weights per voxel (of all by default) and target, of the same regression."""
        return self.x_[:, voxels].T @ self.dual_ / self.x_.shape[1]

    def save(self, directory: Path) -> dict[str, Any]:
        names = ("x_", "x_mean_", "dual_", "y_mean_", "alpha_")
        write_arrays(directory / "ridge.safetensors", {name: getattr(self, name) for name in names})
        chosen, counts = np.unique(self.alpha_, return_counts=True)
        about = {
            "decoder": "ridge",
            "shape": list(self.shape_),
            "alphas": list(self.alphas),
            "targets_batch": self.targets_batch,
            "alpha_counts": {f"{a:g}": int(n) for a, n in zip(chosen, counts)},
        }
        write_json(directory / "decoder.json", about)
        return about

    @classmethod
    def load(cls, directory: Path) -> RidgeDecoder:
        about = read_json(directory / "decoder.json")
        decoder = cls(about["alphas"], about["targets_batch"])
        decoder.shape_ = tuple(about["shape"])
        for name, array in read_arrays(directory / "ridge.safetensors").items():
            setattr(decoder, name, np.asarray(array))
        return decoder


class RidgeDecoders:
    """Two ridges on the clip's own volume: one to its latents, one to its tokens."""

    name = "ridge"

    def __init__(self, alphas: Sequence[float] = ALPHAS, targets_batch: int = 4096):
        self.perception, self.semantics = (RidgeDecoder(alphas, targets_batch) for _ in range(2))

    def fit(
        self,
        train: TrainingClips,
        targets: Targets,
        validation: ValidationClips | None = None,
        validation_targets: Targets | None = None,
    ) -> RidgeDecoders:
        self.perception.fit(train, targets.latents, validation)
        self.semantics.fit(train, targets.tokens, validation)
        return self

    def inputs(self, clips: Clips, n_repeats: int | None = None) -> Float32[np.ndarray, "B X"]:
        """``Clips.responses``."""
        return clips.inputs(n_repeats)

    def decode(self, inputs: Float32[np.ndarray, "B X"], ids: list[str], *, prior: bool = True) -> Decoded:
        return Decoded(self.perception.predict(inputs), self.semantics.predict(inputs))

    def first_layer(self, pathway: Pathway) -> FirstLayer:
        """The whole regression: its outputs are the latents or the tokens."""
        ridge: RidgeDecoder = getattr(self, pathway)
        name = "latents" if pathway == "perception" else "tokens"
        return FirstLayer(
            rows=ridge.weights,
            output=lambda x: ridge.predict(x).reshape(len(x), -1),
            goal=lambda targets: np.asarray(getattr(targets, name), np.float32).reshape(len(targets.tokens), -1),
        )

    def save(self, directory: Path) -> dict[str, Any]:
        about: dict[str, Any] = {"decoders": self.name}
        for part in ("perception", "semantics"):
            about[part] = getattr(self, part).save(directory / part)
        return about

    @classmethod
    def load(cls, directory: Path) -> RidgeDecoders:
        decoders = cls()
        for part in ("perception", "semantics"):
            setattr(decoders, part, RidgeDecoder.load(directory / part))
        return decoders
