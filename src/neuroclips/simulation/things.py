"""The vocabulary of the picture book: nameable things, what they are like, and which of them training never sees.

A `Thing` is an English name, an OpenMoji picture and a few hand-authored attributes. The attributes are the simulated
subject's semantics: two things that share them are alike to it, however their pictures differ. About one thing in six
of every category is held out: it occurs in no training film and in the training of no shipped model but the judge's,
from which nothing learns, so that a test scene of it asks whether a decoder generalises to a thing it was never shown.
"""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["ATTRIBUTES", "CATEGORIES", "HELD_OUT_THINGS", "THINGS", "TRAINING_THINGS", "Thing", "thing_named"]

ATTRIBUTES = ("animate", "human", "moves", "edible", "natural", "size", "indoor", "airborne", "aquatic")
"""Attribute names, each a float in [0, 1]. `size` is the real-world size: 0 an insect, 0.5 a person, 1 a castle."""


@dataclass(frozen=True)
class Thing:
    """One entry of the vocabulary.

    `name` is an English noun phrase of one or two words, after the Unicode name of the picture; `codepoint` is the
    file stem of the OpenMoji picture; `attributes` maps every name of `ATTRIBUTES` to a float in [0, 1].
    """

    name: str
    codepoint: str
    category: str
    attributes: dict[str, float] = field(hash=False)
    held_out: bool = False


# One block a category: its default attributes (those not named are 0), then one thing a line as
# "name CODEPOINT [attribute value]...". A star marks a held-out thing.
_TABLE = {
    "animal": (
        "animate 1 moves 0.8 natural 1 size 0.5 edible 0.1",
        """
        dog 1F415 size 0.4 indoor 0.5
        *cat 1F408 size 0.3 indoor 0.6
        horse 1F40E size 0.65 moves 1
        cow 1F404 size 0.65 edible 0.4 moves 0.5
        pig 1F416 edible 0.4 moves 0.5
        sheep 1F411 edible 0.3 moves 0.5
        goat 1F410 edible 0.2
        elephant 1F418 size 0.85 moves 0.6
        lion 1F981 size 0.6
        tiger 1F405 size 0.6 moves 1
        bear 1F43B size 0.65
        panda 1F43C moves 0.4
        monkey 1F412 size 0.4 moves 1
        rabbit 1F407 size 0.25 moves 1
        mouse 1F401 size 0.1 indoor 0.5 moves 1
        fox 1F98A size 0.4
        *wolf 1F43A
        *zebra 1F993 size 0.6 moves 1
        giraffe 1F992 size 0.8
        camel 1F42A size 0.7 moves 0.6
        kangaroo 1F998 moves 1
        hedgehog 1F994 size 0.15 moves 0.4
        squirrel 1F43F size 0.2 moves 1
        crocodile 1F40A size 0.6 moves 0.5 aquatic 0.6
        *turtle 1F422 size 0.3 moves 0.2 aquatic 0.5
        snake 1F40D size 0.3
        frog 1F438 size 0.1 aquatic 0.5
        rhinoceros 1F98F size 0.8 moves 0.6
        gorilla 1F98D size 0.6
        sloth 1F9A5 size 0.4 moves 0.1
        raccoon 1F99D size 0.35
        """,
    ),
    "sea animal": (
        "animate 1 moves 0.8 natural 1 size 0.4 edible 0.4 aquatic 1",
        """
        fish 1F41F size 0.2 edible 0.8
        *tropical fish 1F420 size 0.15 edible 0.2
        shark 1F988 size 0.7 moves 1 edible 0.2
        whale 1F433 size 0.9 moves 0.6 edible 0.1
        dolphin 1F42C size 0.6 moves 1 edible 0
        octopus 1F419 size 0.4 moves 0.6
        *crab 1F980 size 0.2 moves 0.5 edible 0.7
        lobster 1F99E size 0.25 moves 0.4 edible 0.8
        shrimp 1F990 size 0.05 moves 0.5 edible 0.9
        squid 1F991 edible 0.7
        seal 1F9AD size 0.5 moves 0.6 edible 0.1
        jellyfish 1FABC size 0.2 moves 0.4 edible 0.1
        """,
    ),
    "flying animal": (
        "animate 1 moves 0.9 natural 1 size 0.2 airborne 0.9",
        """
        bird 1F426
        *owl 1F989 size 0.3
        eagle 1F985 size 0.4 moves 1 airborne 1
        duck 1F986 size 0.25 edible 0.4 aquatic 0.7 moves 0.6
        swan 1F9A2 size 0.4 aquatic 0.8 moves 0.5
        parrot 1F99C indoor 0.4
        flamingo 1F9A9 size 0.45 aquatic 0.5 moves 0.4
        peacock 1F99A size 0.4 airborne 0.3 moves 0.3
        rooster 1F413 size 0.25 edible 0.5 airborne 0.2
        bat 1F987 size 0.1 airborne 1 moves 1
        *butterfly 1F98B size 0.03 airborne 1
        bee 1F41D size 0.02 airborne 1 moves 1
        ladybug 1F41E size 0.01 airborne 0.6 moves 0.4
        """,
    ),
    "vehicle": (
        "moves 0.9 size 0.75",
        """
        red car 1F697
        taxi 1F695
        *black bus 1F68C size 0.85
        ambulance 1F691 size 0.8
        fire engine 1F692 size 0.85
        tractor 1F69C size 0.8 moves 0.5
        racing car 1F3CE moves 1
        *motorcycle 1F3CD size 0.6 moves 1
        bicycle 1F6B2 size 0.5 moves 0.6
        scooter 1F6F4 size 0.4 moves 0.5
        locomotive 1F682 size 0.9
        tram 1F68A size 0.9 moves 0.6
        airplane 2708 size 0.95 moves 1 airborne 1
        *helicopter 1F681 size 0.85 airborne 1
        rocket 1F680 size 0.9 moves 1 airborne 1
        sailboat 26F5 size 0.8 moves 0.5 aquatic 1
        ship 1F6A2 size 1 moves 0.4 aquatic 1
        canoe 1F6F6 size 0.6 moves 0.4 aquatic 1
        parachute 1FA82 size 0.7 moves 0.5 airborne 1
        flying saucer 1F6F8 size 0.8 moves 1 airborne 1
        """,
    ),
    "food": (
        "edible 1 size 0.12 indoor 0.8",
        """
        bread 1F35E
        croissant 1F950
        pretzel 1F968
        cheese 1F9C0 natural 0.2
        hamburger 1F354
        *pizza 1F355 size 0.2
        hot dog 1F32D
        taco 1F32E
        sandwich 1F96A
        fried egg 1F373 natural 0.3
        *doughnut 1F369
        birthday cake 1F382 size 0.25
        ice cream 1F366 indoor 0.4
        candy 1F36C size 0.03
        lollipop 1F36D size 0.06 indoor 0.5
        chocolate 1F36B
        honey pot 1F36F natural 0.5
        *pancake 1F95E
        sushi 1F363 size 0.05 natural 0.3
        popcorn 1F37F size 0.2
        coffee cup 2615 edible 0.8
        """,
    ),
    "fruit": (
        "edible 1 natural 0.9 size 0.1 indoor 0.5",
        """
        apple 1F34E
        pear 1F350
        lemon 1F34B edible 0.7
        *banana 1F34C
        watermelon 1F349 size 0.25
        grape 1F347
        *strawberry 1F353 size 0.04
        cherry 1F352 size 0.04
        peach 1F351
        pineapple 1F34D size 0.2
        kiwi fruit 1F95D size 0.07
        avocado 1F951
        tomato 1F345
        carrot 1F955
        *corn 1F33D size 0.15
        broccoli 1F966
        eggplant 1F346
        hot pepper 1F336 edible 0.8
        potato 1F954
        mushroom 1F344 edible 0.4 size 0.08 indoor 0.1
        """,
    ),
    "plant": (
        "natural 1 size 0.2 moves 0.1",
        """
        rose 1F339 indoor 0.3
        tulip 1F337 indoor 0.2
        *sunflower 1F33B size 0.45 edible 0.2
        daisy 1F33C size 0.1
        *cherry blossom 1F338 size 0.05
        cactus 1F335 size 0.5 indoor 0.2 moves 0
        palm tree 1F334 size 0.85
        pine tree 1F332 size 0.85
        tree 1F333 size 0.85
        seedling 1F331 size 0.05
        clover 2618 size 0.04
        *maple leaf 1F341 size 0.06 moves 0.4
        potted plant 1FAB4 size 0.3 indoor 1
        bouquet 1F490 indoor 0.8
        lotus 1FAB7 aquatic 0.7
        wheat 1F33E size 0.4 edible 0.6
        """,
    ),
    "person": (
        "animate 1 human 1 moves 0.7 natural 0.6 size 0.5 indoor 0.3",
        """
        runner 1F3C3 moves 1 indoor 0.1
        dancer 1F483 moves 0.9 indoor 0.7
        surfer 1F3C4 moves 1 aquatic 0.8 indoor 0
        *swimmer 1F3CA moves 0.8 aquatic 1
        cyclist 1F6B4 moves 1 indoor 0
        skier 26F7 moves 1 indoor 0
        *climber 1F9D7 moves 0.5
        juggler 1F939 moves 0.7 indoor 0.5
        police officer 1F46E moves 0.4
        *astronaut 1F9D1-200D-1F680 moves 0.4 airborne 0.5
        baby 1F476 size 0.3 moves 0.2 indoor 0.9
        princess 1F478 moves 0.3 indoor 0.7
        cook 1F9D1-200D-1F373 moves 0.4 indoor 1
        farmer 1F9D1-200D-1F33E moves 0.5 indoor 0
        painter 1F9D1-200D-1F3A8 moves 0.3 indoor 0.8
        doctor 1F9D1-200D-2695-FE0F moves 0.4 indoor 1
        mermaid 1F9DC human 0.7 aquatic 1 indoor 0
        weight lifter 1F3CB moves 0.5 indoor 0.8
        golfer 1F3CC moves 0.5 indoor 0
        horse rider 1F3C7 moves 1 size 0.65 indoor 0
        """,
    ),
    "building": (
        "size 0.9",
        """
        house 1F3E0 size 0.85 indoor 0.3
        castle 1F3F0 size 1
        *church 26EA size 0.95
        tent 26FA size 0.7
        factory 1F3ED size 1
        hospital 1F3E5 size 1 indoor 0.3
        school 1F3EB size 0.95 indoor 0.3
        japanese castle 1F3EF size 1
        mosque 1F54C size 0.95
        *fountain 26F2 size 0.7 aquatic 0.6 moves 0.3
        ferris wheel 1F3A1 size 0.95 moves 0.5
        carousel horse 1F3A0 size 0.6 moves 0.5
        tokyo tower 1F5FC size 1
        hut 1F6D6 size 0.8 natural 0.3
        *circus tent 1F3AA size 0.9
        """,
    ),
    "object": (
        "size 0.2 indoor 0.9",
        """
        chair 1FA91 size 0.4
        bed 1F6CF size 0.6
        *light bulb 1F4A1 size 0.1
        alarm clock 23F0
        red book 1F4D5 size 0.15
        pencil 270F size 0.05
        *hammer 1F528 indoor 0.6
        key 1F511 size 0.04
        *umbrella 2602 size 0.4 indoor 0.3
        camera 1F4F7 size 0.12 indoor 0.5
        telephone 260E
        television 1F4FA size 0.45
        gift 1F381 size 0.25
        candle 1F56F size 0.1
        basket 1F9FA size 0.25 indoor 0.5
        bucket 1FAA3 size 0.25 indoor 0.4
        broom 1F9F9 size 0.4
        *top hat 1F3A9 indoor 0.5
        boot 1F462 indoor 0.4
        blue dress 1F457 size 0.35 indoor 0.7
        crown 1F451 size 0.15
        handbag 1F45C indoor 0.6
        teapot 1FAD6 edible 0.2
        hourglass 23F3
        paper lantern 1F3EE indoor 0.4
        anchor 2693 size 0.5 indoor 0 aquatic 0.7
        magnet 1F9F2 size 0.08
        globe 1F30D size 0.3
        """,
    ),
    "toy": (
        "size 0.2 moves 0.5 indoor 0.6",
        """
        soccer ball 26BD moves 0.9 indoor 0.1
        *basketball 1F3C0 moves 0.9 indoor 0.5
        bowling pin 1F3B3 moves 0.6 indoor 1
        kite 1FA81 size 0.35 moves 0.8 indoor 0 airborne 1
        *teddy bear 1F9F8 size 0.25 indoor 0.9
        puzzle piece 1F9E9 size 0.02 indoor 0.9 moves 0.1
        robot 1F916 size 0.4 animate 0.4 indoor 0.7
        balloon 1F388 moves 0.6 airborne 0.9
        drum 1F941 size 0.3 moves 0.2
        guitar 1F3B8 size 0.35 moves 0.1
        *violin 1F3BB size 0.25 moves 0.1
        trumpet 1F3BA size 0.25 moves 0.1
        piano 1F3B9 size 0.6 moves 0 indoor 1
        saxophone 1F3B7 size 0.3 moves 0.1
        accordion 1FA97 size 0.3 moves 0.3
        bell 1F514 size 0.15 moves 0.4
        trophy 1F3C6 moves 0 indoor 0.8
        target 1F3AF size 0.35 moves 0.1
        snowman 26C4 size 0.45 moves 0 indoor 0 natural 0.4
        nesting doll 1FA86 size 0.12 moves 0.1 indoor 1
        """,
    ),
    "sky": (
        "natural 1 size 0.9 airborne 1 moves 0.4",
        """
        sun 2600 size 1
        *crescent moon 1F319 size 1 moves 0.2
        star 2B50 size 1 moves 0.1
        shooting star 1F320 moves 1
        cloud 2601
        *rainbow 1F308 moves 0
        lightning 26A1 moves 1
        snowflake 2744 size 0.01
        storm cloud 26C8 moves 0.6
        tornado 1F32A moves 1
        comet 2604 size 1 moves 0.9
        ringed planet 1FA90 size 1 moves 0.2
        water drop 1F4A7 size 0.02 aquatic 0.8 edible 0.3
        fire 1F525 size 0.5 moves 0.7 airborne 0.3
        *firework 1F386 moves 0.9 natural 0
        ocean wave 1F30A moves 0.9 airborne 0 aquatic 1
        """,
    ),
}


def _values(words: list[str]) -> dict[str, float]:
    """`["size", "0.4", "moves", "1"]` as a mapping."""
    return {name: float(value) for name, value in zip(words[::2], words[1::2], strict=True)}


def _thing(line: str, category: str, defaults: dict[str, float]) -> Thing:
    words = line.removeprefix("*").split()
    # The code point is the first word in capitals and digits; what precedes it is the name.
    at = next(i for i, word in enumerate(words) if word == word.upper())
    attributes = dict.fromkeys(ATTRIBUTES, 0.0) | defaults | _values(words[at + 1 :])
    return Thing(" ".join(words[:at]), words[at], category, attributes, line.startswith("*"))


def _parse() -> tuple[Thing, ...]:
    return tuple(
        _thing(line.strip(), category, _values(defaults.split()))
        for category, (defaults, lines) in _TABLE.items()
        for line in lines.strip().splitlines()
    )


THINGS: tuple[Thing, ...] = _parse()
"""The whole vocabulary, in the order of the table."""
CATEGORIES: tuple[str, ...] = tuple(_TABLE)
TRAINING_THINGS: tuple[Thing, ...] = tuple(thing for thing in THINGS if not thing.held_out)
HELD_OUT_THINGS: tuple[Thing, ...] = tuple(thing for thing in THINGS if thing.held_out)

_BY_NAME = {thing.name: thing for thing in THINGS}


def thing_named(name: str) -> Thing:
    """The thing of this name.

    >>> thing_named("dog").category
    'animal'
    """
    if name not in _BY_NAME:
        raise ValueError(f"no thing is named {name!r}; the vocabulary is neuroclips.simulation.things.THINGS")
    return _BY_NAME[name]
