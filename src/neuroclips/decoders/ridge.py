"""Ridge regression from voxels to any target: the field's honest baseline (method b.1, paper equation 3).

Solved in its dual form by himalaya, since there are more voxels than clips and more targets than both:

    K = X X^T / V,   a = (K + alpha I)^-1 (Y - mean),   prediction = (x X^T / V) a + mean

alpha is chosen for every target by cross-validation over whole runs, which share neither scene, drift nor noise.
Targets are read, solved and predicted in parts: of the paper's tokens, all at once are 6 GB.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from himalaya.backend import get_backend, set_backend
from himalaya.kernel_ridge import solve_kernel_ridge_cv_eigenvalues
from sklearn.model_selection import GroupKFold

from neuroclips.artefacts import ArrayWriter, Rows, in_parts, read_arrays, read_json, write_arrays, write_json
from neuroclips.data.clips import Clips, Targets, TrainingClips, ValidationClips, refuse_test_clips
from neuroclips.decoders import Decoded, FirstLayer, Pathway
from neuroclips.errors import DataError
from neuroclips.shapes import Float, Float32, Int

ALPHAS = tuple(float(a) for a in np.logspace(-3, 3, 13))  # in units of a voxel's mean square, see ``K`` above
MAX_FOLDS = 5
FILE = "ridge.safetensors"
_SOLVED_AT_ONCE = 1 << 28  # numbers (clips x targets): 1 GB. Every part takes its own decompositions of the kernel
_READ_AT_ONCE = 1 << 26  # numbers of the dual weights


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
    return dual.astype(np.float32, copy=False), best.astype(np.float32, copy=False)


class RidgeDecoder:
    """Ridge from the mean of a clip's repeats to its target, alpha per target by run-wise cross-validation.

    Parameters
    ----------
    alphas : candidates, in units of the mean squared response of a voxel.
    targets_batch : targets that one product of matrices has; with A alphas it makes ``A B targets_batch`` floats.
    keep : folder where the dual weights are written as they are solved and stay, for targets that outgrow memory:
        B x Y floats, 6 GB for the paper's tokens. ``save`` to the same folder finishes it. None holds them in memory.

    Attributes
    ----------
    x_ : (B, V) centred training responses; x_mean_ (V,); dual_ : (B, Y); y_mean_ : (Y,); alpha_ : (Y,).
    shape_ : shape of one clip's target.
    """

    def __init__(self, alphas: Sequence[float] = ALPHAS, targets_batch: int = 4096, keep: Path | None = None):
        self.alphas, self.targets_batch, self.keep = tuple(alphas), targets_batch, keep

    def fit(
        self,
        train: TrainingClips,
        targets: Float[np.ndarray, "B ..."] | Float[Rows, "B ..."],
        validation: ValidationClips | None = None,
        validation_targets: Float[np.ndarray, "Bv ..."] | None = None,
    ) -> RidgeDecoder:
        """Fit on training clips; validation clips are not needed, alphas are cross-validated inside training.

        ``targets`` may be memory-mapped and larger than memory.
        """
        refuse_test_clips(train, validation)
        if len(targets) != len(train):
            raise DataError(f"ridge was given {len(train)} clips and {len(targets)} targets; expected as many")
        x, units = train.inputs(), int(np.prod(targets.shape[1:]))
        y = targets.reshape(len(train), units)
        self.shape_ = targets.shape[1:]
        self.x_mean_ = x.mean(axis=0)
        self.x_ = x - self.x_mean_
        self.y_mean_, self.alpha_ = np.empty(units, np.float32), np.empty(units, np.float32)
        with self._dual() as dual:
            for part in in_parts(units, _SOLVED_AT_ONCE // len(x), y, dual):
                values = np.array(y[:, part], np.float32)
                self.y_mean_[part] = values.mean(axis=0)
                values -= self.y_mean_[part]
                dual[:, part], self.alpha_[part] = solve_ridge_cv(
                    self.x_, values, train.segment, self.alphas, self.targets_batch
                )
        return self

    @contextmanager
    def _dual(self) -> Iterator[Float32[np.ndarray, "B Y"]]:
        """The dual weights, to be filled in: in memory, or in the file that ``save`` would write."""
        shape = (len(self.x_), len(self.y_mean_))
        if self.keep is None:
            self.dual_ = np.empty(shape, np.float32)
            yield self.dual_
            return
        known = ("x_", "x_mean_", "y_mean_", "alpha_")
        specs = {name: (getattr(self, name).shape, "F32") for name in known}
        with ArrayWriter(self.keep / FILE, {**specs, "dual_": (shape, "F32")}) as arrays:
            yield arrays["dual_"]
            for name in known:
                arrays[name][...] = getattr(self, name)
        self.dual_ = read_arrays(self.keep / FILE)["dual_"]

    def predict(self, responses: Float32[np.ndarray, "B V"]) -> Float32[np.ndarray, "B ..."]:
        """Targets of clips with ``responses`` at unit variance (``Clips.inputs``)."""
        if responses.shape[1] != self.x_.shape[1]:
            raise DataError(f"responses have {responses.shape[1]} voxels; the decoder was fitted on {self.x_.shape[1]}")
        kernel = (responses - self.x_mean_) @ self.x_.T / self.x_.shape[1]
        return self.combined(kernel)

    def combined(self, weights: Float32[np.ndarray, "B T"]) -> Float32[np.ndarray, "B ..."]:
        """Targets of clips that are told by their weights on the T training clips: ``weights @ dual_ + y_mean_``."""
        found = np.empty((len(weights), len(self.y_mean_)), np.float32)
        for part in self._parts():
            found[:, part] = weights @ self.dual_[:, part] + self.y_mean_[part]
        return found.reshape(len(weights), *self.shape_)

    def _parts(self) -> Iterator[slice]:
        return in_parts(len(self.y_mean_), _READ_AT_ONCE // len(self.x_), self.dual_)

    def weights(self, voxels: slice | Int[np.ndarray, " N"] = slice(None)) -> Float32[np.ndarray, "N Y"]:
        """Weights per voxel (of all by default) and target, of the same regression."""
        x = self.x_[:, voxels].T
        found = np.empty((len(x), len(self.y_mean_)), np.float32)
        for part in self._parts():
            found[:, part] = x @ self.dual_[:, part] / self.x_.shape[1]
        return found

    def save(self, directory: Path) -> dict[str, Any]:
        if self.keep is None or Path(directory).resolve() != Path(self.keep).resolve():
            names = ("x_", "x_mean_", "dual_", "y_mean_", "alpha_")
            write_arrays(directory / FILE, {name: getattr(self, name) for name in names})
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
        for name, array in read_arrays(directory / FILE).items():
            setattr(decoder, name, array if name == "dual_" else np.array(array))  # which may be larger than memory
        return decoder


class RidgeDecoders:
    """Two ridges on the clip's own volume: one to its latents, one to its tokens. Arguments as for ``RidgeDecoder``."""

    name = "ridge"

    def __init__(self, alphas: Sequence[float] = ALPHAS, targets_batch: int = 4096, keep: Path | None = None):
        self.perception, self.semantics = (
            RidgeDecoder(alphas, targets_batch, None if keep is None else keep / part)
            for part in ("perception", "semantics")
        )

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
