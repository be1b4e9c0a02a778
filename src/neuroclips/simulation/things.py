"""The nameable things of the picture-book world: OpenMoji pictures, names from Unicode, a few attributes each.

One thing in six of every category is held out: it appears in no training film and no shipped model has seen it, so a
test can ask what happens with the truly new.
"""

from __future__ import annotations

from dataclasses import dataclass

ATTRIBUTES = ("animate", "human", "natural", "edible", "moves", "flies", "water", "indoor", "big", "round")


@dataclass(frozen=True)
class Thing:
    """One thing. ``codepoint`` names its OpenMoji picture; ``attributes`` follow ``ATTRIBUTES``, each in [0, 1]."""

    name: str
    codepoint: str
    category: str
    attributes: tuple[float, ...]
    held_out: bool


# What most things of a category are like; "+" and "-" after a name below set an attribute to 1 or 0.
_CATEGORIES = {
    "animal": "animate natural moves",
    "vehicle": "moves big",
    "food": "natural edible round indoor",
    "plant": "natural",
    "person": "animate human moves",
    "building": "big",
    "object": "indoor",
    "sky": "natural big flies",
}

# name:codepoint, then attributes that differ from the category's; "*" marks the held-out ones.
_TABLE = {
    "animal": """
        dog:1F415 | cat:1F408 +indoor | horse:1F40E +big | cow:1F404 +big | pig:1F416 | sheep:1F411 | *goat:1F410 |
        elephant:1F418 +big | rabbit:1F407 | *fox:1F98A | lion:1F981 | tiger:1F405 +big | bear:1F43B +big |
        panda:1F43C +big | *koala:1F428 | frog:1F438 +water | turtle:1F422 +water | fish:1F41F +water | shark:1F988 +water +big |
        *dolphin:1F42C +water | whale:1F433 +water +big | octopus:1F419 +water | crab:1F980 +water | butterfly:1F98B +flies |
        bee:1F41D +flies | *ladybug:1F41E +round | snail:1F40C | duck:1F986 +flies +water | owl:1F989 +flies |
        *parrot:1F99C +flies | penguin:1F427 +water | giraffe:1F992 +big | zebra:1F993 +big | hedgehog:1F994 +round""",
    "vehicle": """
        car:1F697 | taxi:1F695 | bus:1F68C | *ambulance:1F691 | fire engine:1F692 | police car:1F693 | truck:1F69A |
        tractor:1F69C | *racing car:1F3CE | bicycle:1F6B2 -big | scooter:1F6F5 -big | train:1F686 | locomotive:1F682 |
        *tram:1F68B | airplane:2708 +flies | helicopter:1F681 +flies | rocket:1F680 +flies | sailboat:26F5 +water |
        ship:1F6A2 +water | *speedboat:1F6A4 +water | canoe:1F6F6 +water -big""",
    "food": """
        apple:1F34E | *pear:1F350 | orange:1F34A | lemon:1F34B | banana:1F34C -round | watermelon:1F349 | grapes:1F347 |
        strawberry:1F353 | *pineapple:1F34D | carrot:1F955 -round | corn:1F33D -round | bread:1F35E -natural | cheese:1F9C0 -natural |
        pizza:1F355 -natural | hamburger:1F354 -natural | *hot dog:1F32D -natural -round | cake:1F370 -natural |
        doughnut:1F369 -natural | ice cream:1F368 -natural | *egg:1F95A""",
    "plant": """
        tree:1F333 +big | pine:1F332 +big | palm:1F334 +big | *cactus:1F335 | tulip:1F337 | rose:1F339 |
        sunflower:1F33B +round | *blossom:1F33C +round | hibiscus:1F33A +round | clover:1F340 | maple leaf:1F341 |
        mushroom:1F344 +edible | *seedling:1F331 | herb:1F33F +edible""",
    "person": """
        runner:1F3C3 | dancer:1F483 | *surfer:1F3C4 +water | swimmer:1F3CA +water | cyclist:1F6B4 | skier:26F7 | snowboarder:1F3C2 |
        walker:1F6B6 | baby:1F476 +round +indoor | *farmer:1F9D1-200D-1F33E | cook:1F9D1-200D-1F373 +indoor | pilot:1F9D1-200D-2708-FE0F +flies |
        astronaut:1F9D1-200D-1F680 +flies | firefighter:1F9D1-200D-1F692 | *wizard:1F9D9 | mermaid:1F9DC-200D-2640-FE0F +water |
        santa:1F385 | climber:1F9D7""",
    "building": """
        house:1F3E0 | school:1F3EB | hospital:1F3E5 | *church:26EA | castle:1F3F0 | temple:1F6D5 | factory:1F3ED |
        tent:26FA -big | *stadium:1F3DF +round | bridge:1F309 | hut:1F6D6 +natural -big | tower:1F5FC | *ferris wheel:1F3A1 +round +moves |
        statue:1F5FD | fountain:26F2 +water""",
    "object": """
        ball:26BD +round +moves -indoor | basketball:1F3C0 +round +moves | *balloon:1F388 +round +flies | kite:1FA81 +flies -indoor |
        guitar:1F3B8 | trumpet:1F3BA | *drum:1F941 +round | book:1F4D5 | pencil:270F | umbrella:2602 -indoor | key:1F511 |
        *clock:23F0 +round | lamp:1F4A1 | candle:1F56F | chair:1FA91 | gift:1F381 | *hat:1F3A9 | shoe:1F45F | crown:1F451 |
        teapot:1FAD6 | scissors:2702 | *teddy:1F9F8 +round""",
    "sky": """
        sun:2600 +round | moon:1F319 | star:2B50 | *comet:2604 +moves | cloud:2601 | rainbow:1F308 | lightning:26A1 -big | snowflake:2744 -big |
        *tornado:1F32A +moves | planet:1FA90 +round | snowman:26C4 -flies +round | volcano:1F30B -flies""",
}


def _parse(entry: str, category: str) -> Thing:
    words = entry.strip().split()
    changes = [w for w in words if w[0] in "+-"]
    name, codepoint = " ".join(w for w in words if w[0] not in "+-").split(":")
    present = set(_CATEGORIES[category].split())
    for change in changes:
        (present.add if change[0] == "+" else present.discard)(change[1:])
    return Thing(
        name=name.lstrip("*"), codepoint=codepoint, category=category,
        attributes=tuple(float(a in present) for a in ATTRIBUTES), held_out=name.startswith("*"),
    )  # fmt: skip


THINGS = tuple(_parse(entry, category) for category, table in _TABLE.items() for entry in table.split("|"))
CATEGORIES = tuple(_CATEGORIES)
