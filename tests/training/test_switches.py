"""Presets beside the numbers of the paper and of the authors' README, typed in here by hand."""

import subprocess
import sys

import pytest
from pydantic import ValidationError

from neuroclips.errors import RecipeError
from neuroclips.training.switches import Switches, differences, switches

FACTS = {  # of stage 1, stage 2 and perception: batch, learning rate, epochs; then the weights of text in both stages
    "paper": ((240, 3e-4, 30), (64, 3e-4, 150), (40, 3e-4, 150), (1.0, 1.0)),
    "released": ((720, 1e-4, 30), (64, 3e-4, 150), (40, 3e-4, 80), (0.25, 1.0)),
}


@pytest.mark.parametrize("preset", FACTS)
def test_sizes_and_weights_are_those_written_down(preset):
    s = switches(preset)
    assert FACTS[preset] == (
        (s.semantics_batch, s.semantics_learning_rate, s.semantics_epochs),
        (s.prior_batch, s.prior_learning_rate, s.prior_epochs),
        (s.perception_batch, s.perception_learning_rate, s.perception_epochs),
        (s.text_weight, s.text_weight_prior),
    )
    assert (s.prior_weight, s.mse_weight, s.mixup_share_of_training) == (30, 0, 1)


def test_differences_are_the_rows_of_the_table():
    rows = {name: values for name, *values in differences()}
    assert rows["keyframe"] == ["random", "random", "alternate"]
    assert rows["perception_loss"] == ["centred", "paper", "released"]
    assert rows["semantics_learning_rate"] == ["0.0003", "0.0003", "0.0001"]
    assert rows["mixup_share_of_training"] == ["0.333", "1", "1"]
    for name, values in rows.items():
        assert len(set(values)) > 1
        for preset, value in zip(("corrected", "paper", "released"), values):
            ours = getattr(switches(preset), name)
            assert str(ours) == value or float(value) == pytest.approx(ours, rel=1e-2)
    same = {name for name in Switches.model_fields if name not in rows}
    assert switches("paper").model_dump(include=same) == switches("released").model_dump(include=same)


def test_the_default_is_the_corrected_preset():
    assert switches("corrected") == Switches()


def test_changes_are_laid_over_a_preset():
    changed = switches("released", keyframe="random", semantics_batch=8)
    assert (changed.keyframe, changed.semantics_batch, changed.text_weight) == ("random", 8, 0.25)
    assert switches("released").keyframe == "alternate"
    with pytest.raises(ValidationError):
        changed.keyframe = "alternate"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"text_wieght": 1.0}, "text_wieght.*text_weight_prior"),
        ({"keyframe": "first"}, "keyframe.*'alternate'"),
        ({"mixup_share_of_training": 1.2}, "mixup_share_of_training.*less than or equal to 1"),
        ({"prior_batch": 0, "prior_weight": float("nan")}, "prior_weight.*prior_batch"),
    ],
)
def test_unknown_switches_and_values_out_of_range_are_refused(change, named):
    with pytest.raises(RecipeError, match=named):
        switches("corrected", **change)


def test_unknown_presets_are_refused(unchecked_types):
    with pytest.raises(RecipeError, match=r"'fast'.*corrected, paper, released"):
        switches("fast")


def test_switches_load_no_torch():
    code = "import sys, neuroclips.training.switches; raise SystemExit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
