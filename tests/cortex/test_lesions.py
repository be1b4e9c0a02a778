import numpy as np

from neuroclips.cortex.lesions import lesion_losses
from neuroclips.cortex.regions import volume_regions
from neuroclips.decoders.ridge import RidgeDecoders
from neuroclips.evaluation.floors import shuffled_orders


def score(targets):
    """Squared error of either pathway, turned round."""

    def of(decoded):
        return {
            name: -np.square(getattr(decoded, name) - getattr(targets, name)).reshape(len(decoded.tokens), -1).mean(1)
            for name in ("latents", "tokens")
        }

    return of


def test_areas_that_carry_a_pathway_are_missed_by_it_alone(planted):
    decoders = RidgeDecoders().fit(planted.train, planted.train_targets)
    test, v = planted.test, planted.test.n_voxels
    regions = volume_regions({"picture": planted.kind == 0, "meaning": planted.kind == 1}, v)
    orders = shuffled_orders(test.scene, 1, 3)
    told = []
    inputs = decoders.inputs(test)
    lost = lesion_losses(
        decoders, inputs, test.ids, score(planted.test_targets), regions, [0, 1, 2], orders,
        lambda done, total, what: told.append((done, total, what)),
    )  # fmt: skip
    _, picture, meaning = lost["latents"].mean(axis=0)
    assert picture > 10 * abs(meaning)
    _, picture, meaning = lost["tokens"].mean(axis=0)
    assert meaning > 10 * abs(picture)
    # Without any voxel of its own a clip is decoded as the clip whose responses it got.
    decoded = decoders.decode(inputs, test.ids)
    intact = score(planted.test_targets)(decoded)["tokens"]
    goal = planted.test_targets.tokens
    shuffled = np.mean([-np.square(decoded.tokens[o] - goal).reshape(len(goal), -1).mean(1) for o in orders], axis=0)
    np.testing.assert_allclose(lost["tokens"][:, 0], intact - shuffled, rtol=1e-4, atol=1e-5)
    assert told[-1] == (8, 9, "without meaning")
