"""What a plan says, beside what was measured and what is counted in other ways; nothing of full size is allocated."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from neuroclips import cli, cli_plan, planning
from neuroclips.artefacts import write_json
from neuroclips.errors import RecipeError
from neuroclips.planning import networks
from neuroclips.planning.counts import count_run
from neuroclips.planning.ghost import count, ghost, inference_cost, like, training_cost
from neuroclips.planning.hardware import GIB, Hardware, this_machine
from neuroclips.planning.needs import Job, Need, needs
from neuroclips.planning.speed import Speed
from neuroclips.recipe import NetworksRecipe, load_recipe
from neuroclips.training.switches import switches

PAPER = networks.Sizes(13_447, (256, 1664), (6, 4, 28, 28), 1280, 224)
SMALL = {  # a recipe whose networks are walked through in a second
    "decoders.methods": ["ridge", "end-to-end"], "generate.video": None, "curves": None, "maps": None,
    "decoders.networks": {"width": 256, "hidden": 32, "prior_depth": 2, "prior_heads": 4, "channels": [16, 8]},
}  # fmt: skip
LARGE = Hardware(None, 64 * GIB, 1e12)


def peak_of_allocations(work):
    """The highest sum of what torch's CPU allocator gave out while ``work`` ran, in bytes."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        work()
    events = [e for e in found.profiler.kineto_results.events() if e.name() == "[memory]"]
    now, peak = 0, 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


def layers():
    return nn.Sequential(nn.Linear(300, 700), nn.GELU(), nn.LayerNorm(700), nn.Linear(700, 500))


def test_a_frozen_network_takes_its_weights_and_the_largest_two_neighbours():
    cost = inference_cost(ghost(lambda: nn.Sequential(nn.Linear(8, 1024), nn.Linear(1024, 16))), lambda: None, 32)
    assert cost.activations == 0
    module = ghost(lambda: nn.Sequential(nn.Linear(8, 1024), nn.Linear(1024, 16)))
    cost = inference_cost(module, lambda: module(like(32, 8)), 32)
    assert cost.parameters == 8 * 1024 + 1024 + 1024 * 16 + 16
    assert cost.activations == 4 * 32 * (1024 + 16 + 8)  # the input is made within the call
    assert cost.flops == 2 * 32 * (8 * 1024 + 1024 * 16)


def test_memory_of_a_training_is_that_of_torchs_own_allocator():
    batch, counted = 2000, ghost(layers)
    cost = training_cost(counted, lambda: counted(like(batch, 300)).square().mean(), batch, like_a_gpu=False)
    real = layers()
    weights = sum(p.nbytes for p in real.parameters())
    peak = peak_of_allocations(lambda: real(torch.randn(batch, 300)).square().mean().backward())
    assert cost.trained == sum(p.numel() for p in real.parameters())
    assert cost.weights == pytest.approx(4 * weights, rel=0.02)
    assert cost.peak == pytest.approx(3 * weights + peak, rel=0.02)  # gradients are in the peak
    with FlopCounterMode(display=False) as counter:
        real(torch.randn(batch, 300)).square().mean().backward()
    assert cost.flops == counter.get_total_flops()


def test_batches_of_one_step_add_a_second_gradient_and_keep_the_sum_of_work():
    module = ghost(lambda: nn.Linear(400, 900, bias=False))
    once, twice = (
        training_cost(module, lambda: module(like(10, 400)).sum(), 10, parts=parts) for parts in (1, 2)
    )  # fmt: skip
    assert twice.peak - once.peak == pytest.approx(4 * 400 * 900, rel=0.05)
    assert (twice.flops, twice.items) == (2 * once.flops, 20)


def test_shared_parameters_count_once():
    from transformers import GPT2Config, GPT2LMHeadModel

    settings = GPT2Config(n_embd=24, n_layer=1, n_head=2, vocab_size=70, n_positions=11)
    real = GPT2LMHeadModel(settings)  # its last layer is its first one, transposed
    assert count(ghost(lambda: GPT2LMHeadModel(settings))) == count(real)
    assert count(real) < sum(value.numel() for value in real.state_dict().values())


MEASURED = {  # GiB on one H100, docs/results.md; parameters of method.md
    ("semantics", 24): (30.6, 1_842_268_800), ("semantics", 240): (30.9, 1_842_268_800),
    ("prior", 64): (24.9, 259_865_200), ("perception", 40): (2.6, 85_864_555),
}  # fmt: skip


@pytest.mark.parametrize("what", MEASURED, ids=str)
def test_trainings_of_the_papers_size_are_within_a_tenth_of_an_h100(what):
    part, batch = what
    cost = networks.training(part, NetworksRecipe(precision="bf16"), PAPER, switches("corrected"), batch, True)
    peak, parameters = MEASURED[what]
    assert cost.trained == parameters
    assert cost.peak / GIB == pytest.approx(peak, rel=0.1)


@pytest.mark.parametrize(("direction", "peak"), [("encode", 8.1), ("decode", 11.9)])
def test_the_autoencoder_is_within_a_tenth_of_an_h100(direction, peak):
    cost = networks.vae("sd-vae", "vae", direction, 224, 64, "fp32", True)
    assert cost.parameters == 83_653_863
    assert cost.peak / GIB == pytest.approx(peak, rel=0.1)


def test_activations_that_are_computed_twice_take_less_memory_and_more_time():
    settings = NetworksRecipe(prior_depth=3, prior_heads=4)
    sizes = networks.Sizes(50, (16, 64), (3, 2, 8, 4), None, 32)
    kept, again = (
        networks.training("prior", settings.model_copy(update={"checkpoint_activations": on}), sizes,
                          switches("corrected"), 32, True)
        for on in (False, True)
    )  # fmt: skip
    assert again.peak < 0.75 * kept.peak
    assert again.flops > 1.2 * kept.flops


def test_counts_of_known_studies_and_of_a_prepared_run(tmp_path):
    tensors = load_recipe("tensors", {"data.root": "nowhere", "data.subject": 2})
    found = count_run(tensors, tmp_path)
    assert (found.train, found.validation, found.test) == (3600, 720, 1200)
    assert (found.repeats, found.test_repeats, found.voxels) == (2, 10, 14_828)
    assert found.presentations == 4320 * 2 + 1200 * 10
    assert "assumed" in found.source
    smoke = count_run(load_recipe("smoke"), tmp_path)
    assert (smoke.train, smoke.validation, smoke.test, smoke.voxels) == (60, 20, 40, 1500)
    with pytest.raises(RecipeError, match="not known before `neuroclips prepare`"):
        count_run(load_recipe("table", {"data.root": "nowhere"}), tmp_path)
    split = {"clips": 11, "repeats": 3, "segments": [{}, {}]}
    splits = {"train": split, "validation": {**split, "clips": 7}, "test": {**split, "clips": 5, "repeats": 4}}
    said = {"splits": splits, "selection": {"selected": 123, "of": 456}}
    write_json(tmp_path / "prepare" / "card.json", {"summary": said})
    counted = count_run(tensors, tmp_path)
    assert (counted.train, counted.validation, counted.test, counted.test_repeats) == (11, 7, 5, 4)
    assert (counted.voxels, counted.space, counted.segments) == (123, 456, (2, 6))


def test_stages_are_those_of_the_pipeline(tmp_path):
    from neuroclips.pipeline import plan as stages

    recipe = load_recipe("demo")
    found = planning.plan(recipe, tmp_path, LARGE)
    named = [row.need.stage for row in found.rows]
    without_networks = {"survey", "report"}
    assert list(dict.fromkeys(named)) == [s.name for s in stages(recipe) if s.name not in without_networks]
    assert found.fits
    assert not found.settings
    assert not found.missing
    assert all(row.gpu == 0 for row in found.rows)


def test_disk_of_arrays_is_what_their_shapes_say(tmp_path):
    """Against the demo's own files (docs/results.md): films 92 MB, prepare 147, targets 23, all as in its cards."""
    recipe = load_recipe("demo")
    counts = replace(count_run(recipe, tmp_path), voxels=11_730)
    disk: dict[str, float] = {}
    for need in needs(Job.made(recipe, counts, False)):
        disk[need.stage] = disk.get(need.stage, 0) + need.disk / 1e6
    for stage, megabytes in {
        "films": 92.2,
        "prepare": 146.5,
        "targets": 23.0,
        "reliability": 8.6,
        "curves": 25.8,
    }.items():
        assert disk[stage] == pytest.approx(megabytes, rel=0.02), stage


def test_what_does_not_fit_names_settings_that_make_it_fit(tmp_path):
    changes = {**SMALL, "targets.processes": 4}
    whole = planning.plan(load_recipe("demo", changes), tmp_path, replace(LARGE, gpu=80 * GIB, name="large"))
    assert whole.fits
    assert not whole.settings
    first, *others = sorted(whole.rows, key=lambda row: -row.gpu)
    assert first.need.stage == "targets"  # four processes with networks of their own on one card
    small = replace(LARGE, gpu=(first.gpu + others[0].gpu) / 2, name="small")
    found = planning.plan(load_recipe("demo", changes), tmp_path, small)
    row = next(row for row in found.rows if row.need.stage == "targets")
    assert not row.fits
    assert row.verdict == "fits with --set targets.processes=1"
    assert found.fits
    assert found.settings == {"targets.processes": 1}
    again = planning.plan(load_recipe("demo", {**changes, **found.settings}), tmp_path, small)
    assert all(row.fits for row in again.rows)


def test_what_cannot_fit_is_named(tmp_path):
    recipe = load_recipe("demo", {**SMALL, "decoders.methods": ["ridge"]})
    tiny = Hardware(0.61 * GIB, 64 * GIB, 1e12, "a card")
    found = planning.plan(recipe, tmp_path, tiny)
    assert not found.fits
    assert "targets, autoencoder and CLIP" in found.cannot
    assert planning.plan(recipe, tmp_path, LARGE).fits
    assert (
        "GB short; choose another run directory"
        in planning.plan(recipe, tmp_path, replace(LARGE, disk=1e6)).disk_verdict
    )


def test_a_machine_without_a_gpu_needs_the_networks_memory_itself(tmp_path):
    recipe = load_recipe("demo", SMALL)
    rows = [
        next(r for r in planning.plan(recipe, tmp_path, hardware).rows if r.need.what == "semantics")
        for hardware in (LARGE, replace(LARGE, gpu=80 * GIB))
    ]
    assert rows[0].gpu == 0
    assert rows[1].gpu > 0
    assert rows[0].ram > rows[1].ram + 12 * rows[1].need.trained


def test_hardware_by_name_and_by_size():
    here = this_machine(Path("no/such/folder"))
    assert min(here.ram, here.disk) > 0
    assert here.with_gpu("24").gpu == 24 * GIB
    assert here.with_gpu("a100").gpu == 79 * GIB
    assert here.with_gpu("h100").speed == 1
    assert here.with_gpu("none").gpu is None
    for wrong in ("h1000", "0", "-4"):
        with pytest.raises(RecipeError, match="expected GiB of memory"):
            here.with_gpu(wrong)


def test_time_comes_from_measured_rates_and_says_so(tmp_path):
    h100 = LARGE.with_gpu("h100")
    recipe = load_recipe("tensors", {"data.root": "nowhere"})
    job = Job.made(recipe, count_run(recipe, tmp_path), True)
    cost, (whole, steps) = job.train("semantics"), job.steps("semantics")
    assert (whole, steps) == (240, 450)
    speed = Speed.of_card(h100)
    step = cost.flops / speed.rates["semantics"] + cost.trained * speed.adamw
    assert 1 / step == pytest.approx(13.9, rel=0.1)  # steps a second, docs/results.md
    slower = Speed.of_card(LARGE.with_gpu("a100"))
    assert slower.rates["semantics"] < speed.rates["semantics"]
    assert "H100" in slower.source
    assert Speed.of_card(LARGE).seconds(Need("fit", "semantics", flops=1e12, kind="semantics"))[1] == "not measured"


def test_the_command_prints_a_table_and_fails_where_nothing_helps(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    less = [f"--set={key}={json.dumps(value)}" for key, value in SMALL.items()]
    asked = ["plan", "demo", "-o", str(tmp_path), "--ram", "32", "--disk", "100", *less]
    said = CliRunner().invoke(cli.app, [*asked, "--gpu", "none"])
    assert said.exit_code == 0
    for word in ("semantics", "verdict", "counts", "machine", "disk"):
        assert word in said.stdout
    said = CliRunner().invoke(cli.app, [*asked, "--set=decoders.methods=[ridge]", "--gpu", "0.61", "--json"])
    assert said.exit_code == 1
    found = json.loads(said.stdout)
    assert found["fits"] is False
    assert "targets, autoencoder and CLIP" in found["cannot"]
    assert {row["stage"] for row in found["rows"]} >= {"targets", "fit", "reconstruct", "evaluate"}


def test_a_recipe_that_wants_data_is_planned_without_them():
    assert cli_plan.loaded("cc2017", None, {}).scale == "paper"
    with pytest.raises(RecipeError, match="no recipe"):
        cli_plan.loaded("nosuch", None, {})
