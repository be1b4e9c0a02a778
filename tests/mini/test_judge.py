"""The shipped picture-book judge does what its card says, learns from no other network, and can be made again."""

import cv2
import numpy as np
import pytest
import torch
from transformers import ResNetForImageClassification

from neuroclips.artefacts import file_hash, read_card
from neuroclips.evaluation.judges import load_judge
from neuroclips.mini import train_judge
from neuroclips.mini.train_judge import BLUR, NUMBER, batches, degraded, everywhere, held_out, room, sample, score
from neuroclips.pretrained.registry import shipped
from neuroclips.simulation.grounds import GROUNDS
from neuroclips.simulation.rendering import render
from neuroclips.simulation.scenes import Actor, Scene
from neuroclips.simulation.things import HELD_OUT_THINGS, THINGS, thing_named

FOLDER = shipped("judge")
CARD = read_card(FOLDER)
SEED = 1234  # not the card's: other scenes than its scores are from


@pytest.fixture(scope="module")
def seen():
    """The main things of 300 scenes, what the judge's probabilities are, and what they are of blurred frames."""
    assert CARD["seed"] != SEED
    frames, scenes = zip(*held_out(300, seed=SEED))
    blurred = [cv2.GaussianBlur(frame.transpose(1, 2, 0), (0, 0), BLUR).transpose(2, 0, 1) for frame in frames]
    judge = load_judge("picture-book")
    clear, worse = (judge.look(np.stack(x)[:, None], frames=1).classes[:, 0] for x in (frames, blurred))
    return np.array([NUMBER[scene.main.thing] for scene in scenes]), clear, worse


def test_it_is_small_and_says_what_it_is():
    judge = load_judge("picture-book")
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= 500_000
    assert judge.class_names == tuple(thing.name for thing in THINGS)
    assert judge.size == (64, 64)
    assert judge.weights == (file_hash(FOLDER / "model.safetensors"),)
    assert judge.trained_on == CARD["trained_on"]
    model = ResNetForImageClassification.from_pretrained(FOLDER)
    assert sum(p.numel() for p in model.parameters()) == CARD["parameters"]


def test_it_names_the_main_thing_as_often_as_its_card_says(seen):
    main, clear, worse = seen
    for name, said in (("", clear), ("blurred_", worse)):
        expected = CARD["scores"][f"{name}top1_main_thing"]
        assert (said.argmax(1) == main).mean() == pytest.approx(expected, abs=0.08)  # 3 standard errors of 300
        assert expected > 50 * CARD["scores"]["chance"]
        assert (np.roll(said, 1, axis=0).argmax(1) == main).mean() < 0.03


def test_it_knows_things_and_places_that_no_other_network_met(seen):
    main, clear, _ = seen
    unseen = np.isin(main, [NUMBER[thing] for thing in HELD_OUT_THINGS])
    assert unseen.sum() > 20
    assert (clear.argmax(1) == main)[unseen].mean() > 0.4
    assert everywhere(thing_named("dog")) == tuple(GROUNDS)


def test_a_label_is_each_things_share_of_the_room():
    frames, labels = sample(np.random.default_rng(3), 5)
    assert frames.shape == (5, 3, 64, 64)
    assert labels.shape == (5, len(THINGS))
    np.testing.assert_allclose(labels.sum(axis=1), 1, rtol=1e-5)
    # A small thing in full sight beside one twice as wide that is half out of the frame: 1 to 4 / 2.
    actors = (Actor(thing_named("dog"), "rest", 0.3, 0.5, 0.2), Actor(thing_named("cat"), "rest", 1.0, 0.5, 0.4))
    taken, visible = room(Scene("grass", "day", actors, 4.0), np.array([0.0, 1.0, 2.0]))
    np.testing.assert_allclose(taken[1] / taken[0], [2, 2, 2])
    np.testing.assert_allclose(visible[1], [0.5, 0.5, 0.5])


def test_degraded_frames_lose_detail_and_stay_themselves():
    scene = Scene("brick", "day", (Actor(thing_named("dog"), "rest", 0.5, 0.5, 0.6),), 4.0)
    frame = render(scene, [0.0], 64)[0]
    rng = np.random.default_rng(0)
    others = np.stack([degraded(frame, rng) for _ in range(60)])
    assert others.dtype == np.uint8
    assert others.shape == (60, 3, 64, 64)
    smooth = cv2.GaussianBlur(frame.transpose(1, 2, 0), (0, 0), 3).transpose(2, 0, 1)
    alike = [np.corrcoef(cv2.GaussianBlur(x.transpose(1, 2, 0), (0, 0), 3).transpose(2, 0, 1).ravel(),
                         smooth.ravel())[0, 1] for x in others]  # fmt: skip
    assert np.median(alike) > 0.85
    assert len(np.unique(others.reshape(60, -1), axis=0)) == 60


def test_batches_come_by_their_number_and_scored_scenes_are_others(monkeypatch):
    monkeypatch.setattr(train_judge, "SCENES_A_CHUNK", 4)
    train_judge.chunk.cache_clear()
    make = batches(8, seed=5)
    first, fifth = make(0, torch.Generator()), make(4, torch.Generator())  # a chunk holds two batches
    train_judge.chunk.cache_clear()
    again = batches(8, seed=5)(4, torch.Generator())
    assert first["pixels"].shape == (8, 3, 64, 64)
    assert torch.equal(fifth["pixels"], again["pixels"])
    assert torch.equal(fifth["labels"], again["labels"])
    assert not torch.equal(first["pixels"], fifth["pixels"])
    others = batches(8, seed=6)(0, torch.Generator())
    assert not torch.equal(first["pixels"], others["pixels"])
    train_judge.chunk.cache_clear()


@pytest.mark.usefixtures("unchecked_types")  # the loop's curve counts steps in int where its annotation says float
def test_training_runs_resumes_and_writes_what_loads(tmp_path, monkeypatch, capsys):
    """Cut after two steps, before anything is written; the same call goes on to the third, to the same weights."""
    monkeypatch.setattr(train_judge, "SCENES_A_CHUNK", 2)

    def train(name, steps):
        train_judge.chunk.cache_clear()
        return train_judge.main(tmp_path / name, steps=steps, minutes=60.0, batch=4, seed=5, device="cpu")

    def cut(*_, **how):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(train_judge, "score", cut)
        with pytest.raises(KeyboardInterrupt):
            train("judge", 2)
    assert [path.name for path in tmp_path.iterdir()] == ["judge.checkpoint.pt"]
    monkeypatch.setattr(train_judge, "score", lambda model, *, seed: score(model, n=40, seed=seed))
    card = train("judge", 3)
    assert "resuming judge.checkpoint.pt at step 2" in " ".join(capsys.readouterr().err.split())
    assert [path.name for path in tmp_path.iterdir()] == ["judge"]
    assert read_card(tmp_path / "judge") == card
    assert set(card) == set(CARD)
    assert set(card["scores"]) == set(CARD["scores"])
    assert all(0 <= value <= 1 for value in card["scores"].values())
    judge = load_judge(str(tmp_path / "judge"))
    assert judge.look(np.zeros((2, 5, 3, 40, 56), np.uint8)).classes.shape == (2, 3, len(THINGS))
    train_judge.chunk.cache_clear()
