"""How far two sets of features lie apart as distributions, whichever clip belongs to which.

It says whether reconstructions look like film, not whether they look like the film that was seen: good videos of the
wrong clips score well. A judge stands beside it that knows which clip is which, such as identification.
"""

from __future__ import annotations

import numpy as np

from neuroclips.errors import DataError
from neuroclips.shapes import Float


def frechet_distance(features_a: Float[np.ndarray, "A D"], features_b: Float[np.ndarray, "N D"]) -> float:
    """Fréchet distance of the Gaussians with the means and covariances of two sets of features; 0 is best.

    |mu_a - mu_b|^2 + Tr(S_a + S_b - 2 (S_a S_b)^(1/2)), with sample covariances (n - 1): Dowson and Landau 1982 (J.
    Multivariate Analysis 12:450); Heusel et al. 2017 for images. In squared units of the features. With S_a = X' X and
    S_b = Y' Y of centred features, the trace of the root is the sum of the singular values of X Y', so no D x D matrix
    is made and fewer clips than features are no special case.

    It is biased: two sets drawn from one distribution are a positive distance apart, the more so the fewer they are
    and the wider the features. Compare only distances of equally many clips from one reference, and print the distance
    of one half of the truth from the other as what can be reached. Name it after its encoder, such as "Fréchet
    distance, EfficientNet-Lite0"; "FID" and "FVD" are those of Inception-v3 and I3D over many thousands of samples.

    >>> a = np.array([[0.0, 1.0], [2.0, 1.0], [4.0, 1.0]])
    >>> frechet_distance(a, a + [0.0, 3.0])
    9.0
    """
    if not features_a.ndim == features_b.ndim == 2 or features_a.shape[1] != features_b.shape[1]:
        raise DataError(f"features have shape {features_a.shape} and {features_b.shape}; expected (A, D) and (N, D)")
    mean_a, root_a = _mean_and_root(features_a, "first")
    mean_b, root_b = _mean_and_root(features_b, "second")
    overlap = np.linalg.svd(root_a @ root_b.T, compute_uv=False).sum()
    distance = np.square(mean_a - mean_b).sum() + np.square(root_a).sum() + np.square(root_b).sum() - 2 * overlap
    return max(0.0, float(distance))  # equal sets may come out below 0 by rounding


def _mean_and_root(features: np.ndarray, which: str) -> tuple[np.ndarray, np.ndarray]:
    """The mean (D,) and an X (at most D rows, D) whose X' X is the sample covariance."""
    n, width = features.shape
    if n < 2:
        raise DataError(f"the {which} set holds {n} clip; a covariance needs at least 2")
    if not np.isfinite(features).all():
        raise DataError(f"the {which} set of features holds values that are not finite; expected finite features")
    mean = features.mean(axis=0, dtype=np.float64)
    root = (features - mean) / np.sqrt(n - 1)
    return mean, np.asarray(np.linalg.qr(root, mode="r")) if n > width else root
