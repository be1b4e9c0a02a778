"""What differs between the paper, its released code and what we recommend: one switch a difference (method g.1).

    switches("corrected")                   what this package recommends, at the paper's sizes
    switches("paper", text_weight=0.25)     the paper, but for one thing
    switches("released")                    the command lines of the authors' README

Where the paper says nothing, "paper" takes the corrected value. Rows of g.1 that are no matter of training have no
switch here: the delay is prepared with the data, and theta, the keyframe's start and fusion belong to generators.
The subject's layer has no switch either: ``NeuralDecoders`` solve it by ridge, as the paper writes (row 6).
Temporal upsampling has one form (``decoders.perception``), but for the position. No preset brings back what nobody can
want: backbones that cannot learn, attention across clips, clips in unshuffled order, choice on the test set (g.2, items
1, 4 and 6).
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from neuroclips.errors import RecipeError

Preset = Literal["corrected", "paper", "released"]


class Switches(BaseModel):
    """How to train, as far as paper and released code disagree or a user may. The defaults are the corrected values.

    Parameters
    ----------
    keyframe : which frame of a clip its tokens are from, with which of its repeats. "random" draws both, each by
        itself, and takes the caption of that frame if there is one for every candidate. "alternate" takes, of the
        candidates, the earlier middle one (frame 2 of 6) with the first repeat on even epochs, the later (3) with the
        second on odd ones, and the caption of the earlier always (g.1 row 1; g.2, item 19).
    repeats : "mix" feeds one repeat a step. "mean" feeds the mean of those that exist, which has less variance than one
        (g.2, item 20): scaling it is the caller's.
    text_weight : mu of the text loss beside the contrastive one (g.1 row 3). text_weight_prior : beside the prior's.
    prior_weight : delta of the prior's squared error (c.1).
    mse_weight : of the tokens' squared error, in units of their variance. Ours: neither paper nor code has one.
    mixup_share_of_training : share of the training with BiMixCo before SoftCLIP takes over; a third is MindEye2's.
    mixup_fixed_points : targets of samples that are mixed with themselves (g.2, item 13), see ``mixup_targets``.
    perception_loss : "paper" is equation 1, "centred" the same on each frame's deviation from its clip's mean, which
        does not exaggerate motion (``frame_contrastive``), "released" distils a teacher's maps (g.1 row 5).
    perception_contrast_weight : of the second term of "paper" and "centred"; that of "released" is 0.1 whatever is
        written here.

    The rest is used by the estimators, not by the objectives:

    prior_condition : "tokens" after the projector, or those of the "backbone" before it, as MindEye2's prior has them.
        The paper's words, the fMRI embedding, are read as the tokens that it compares with CLIP's (g.1 row 10).
    prior_tokens : what the prior gives to the keyframe generator: half its "expected" tokens and half their condition,
        or one "sample", as paper and code have it.
    temporal_position : whether temporal attention knows the order of frames (g.4, item 4).
    decay_all : whether norms and biases decay, too (c.1); the paper does not say.
    ..._batch, ..._learning_rate, ..._epochs : clips a step, highest rate, and visits of every clip (c.1 to c.3; g.1
        rows 2 and 4).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    keyframe: Literal["random", "alternate"] = "random"
    repeats: Literal["mix", "mean"] = "mix"
    text_weight: float = Field(1.0, ge=0)
    text_weight_prior: float = Field(1.0, ge=0)
    prior_weight: float = Field(30.0, gt=0)
    mse_weight: float = Field(1.0, ge=0)
    mixup_share_of_training: float = Field(1 / 3, ge=0, le=1)
    mixup_fixed_points: Literal["safe", "released"] = "safe"
    perception_loss: Literal["paper", "centred", "released"] = "centred"
    perception_contrast_weight: float = Field(1.0, ge=0)

    prior_condition: Literal["tokens", "backbone"] = "tokens"
    prior_tokens: Literal["expected", "sample"] = "expected"
    temporal_position: bool = True
    decay_all: bool = False
    semantics_batch: int = Field(240, ge=1)
    semantics_learning_rate: float = Field(3e-4, gt=0)
    semantics_epochs: int = Field(30, ge=1)
    prior_batch: int = Field(64, ge=1)
    prior_learning_rate: float = Field(3e-4, gt=0)
    prior_epochs: int = Field(150, ge=1)
    perception_batch: int = Field(40, ge=1)
    perception_learning_rate: float = Field(3e-4, gt=0)
    perception_epochs: int = Field(150, ge=1)


_CHANGES: dict[str, dict[str, Any]] = {
    "corrected": {},
    "paper": {
        "mse_weight": 0.0,
        "mixup_share_of_training": 1.0,
        "perception_loss": "paper",
        "prior_tokens": "sample",
        "temporal_position": False,
    },
    "released": {
        "keyframe": "alternate",
        "text_weight": 0.25,
        "mse_weight": 0.0,
        "mixup_share_of_training": 1.0,
        "mixup_fixed_points": "released",
        "perception_loss": "released",
        "perception_contrast_weight": 0.1,
        "prior_tokens": "sample",
        "temporal_position": False,
        "decay_all": True,
        "semantics_batch": 720,
        "semantics_learning_rate": 1e-4,
        "perception_epochs": 80,
    },
}


def switches(preset: Preset, **changes: Any) -> Switches:
    """The switches of a preset, with ``changes`` laid over it.

    Raises ``RecipeError`` for an unknown preset or switch, and for a value out of range.

    >>> switches("released").keyframe, switches("released", keyframe="random").text_weight
    ('alternate', 0.25)
    """
    if preset not in _CHANGES:
        raise RecipeError(f"switches: preset is {preset!r}; expected one of {', '.join(_CHANGES)}")
    try:
        return Switches(**_CHANGES[preset] | changes)
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise RecipeError(f"switches: {faults}; expected {', '.join(Switches.model_fields)}") from error


def differences() -> list[tuple[str, str, str, str]]:
    """Rows of (switch, corrected, paper, released) where not all three are the same, for documents."""
    columns = [Switches(**changes).model_dump() for changes in _CHANGES.values()]
    rows = [(name, *(_written(column[name]) for column in columns)) for name in Switches.model_fields]
    return [row for row in rows if len(set(row[1:])) > 1]


def _written(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
