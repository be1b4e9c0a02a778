"""Before a long run: what every stage takes, whether it fits, and which setting makes it fit.

    plan(load_recipe("cc2017", {"data.root": "FOLDER"}), Path("runs/cc2017"), hardware)

Neither data nor weights nor a GPU are needed. Kept apart: what a step of a network takes (``ghost``, ``networks``), how
much there is to do (``counts``), what a stage takes (``needs``), what is there (``hardware``), and how quick it is
(``speed``).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuroclips.planning.hardware import GIB, Hardware, this_machine
from neuroclips.recipe import Recipe

if TYPE_CHECKING:
    from neuroclips.planning.counts import Counts
    from neuroclips.planning.needs import Job, Need
    from neuroclips.planning.speed import Speed

CONTEXT = 0.6 * GIB  # of a GPU, that CUDA and its libraries take
RESERVE = 1.05  # what torch's allocator holds of a GPU for each byte in use: measured peaks are of bytes in use
OWN = 0.9  # of the machine's memory that a run may take

_NARROWER = tuple(  # weights of another width do not fit
    {"decoders.networks.width": width, "decoders.networks.initial": None} for width in (2048, 1024, 512)
)
# What makes a part of a stage smaller, the mildest first; each is tried together with those before it.
SMALLER: dict[tuple[str, str], tuple[dict[str, Any], ...]] = {
    ("targets", ""): ({"targets.processes": 1}, {"targets.dtype": "fp16"}),
    ("fit", "ridge"): ({"ridge.targets_batch": 1024},),
    ("fit", "prior"): (
        {"decoders.networks.checkpoint_activations": True},
        *({"decoders.networks.accumulate": parts} for parts in (2, 4, 8)),
    ),
    ("fit", ""): _NARROWER,
    ("reconstruct", ""): ({"decoders.prior_draws": 1}, *_NARROWER),
    ("generate", ""): (
        {"generate.video.dtype": "bf16"}, {"decoders.prior_draws": 1}, {"generate.video.batch": 1},
        {"generate.video.offload": True}, {"generate.video.caption": "git-large"}, *_NARROWER,
    ),
    ("curves", ""): ({"decoders.prior_draws": 1}, {"curves.samples": False}),
    ("maps", ""): ({"maps.encoding": False}, *_NARROWER),
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """A part of a stage: what it takes, whether it fits, and if not, what would.

    gpu, ram : bytes, with what cannot be seen added.  seconds, timed : how long, or None, and where that is from.
    verdict : "fits", "fits with --set ...", or what is missing.  settings : that make it fit.
    """

    need: Need
    gpu: float | int
    ram: float | int
    seconds: float | int | None
    timed: str
    verdict: str
    fits: bool
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """Rows of all stages, and what goes for all of them.

    disk, scratch : bytes that stay, and that are there beside them for a while, at most.  missing : published weights
    that are not here: bytes to download, and bytes when ready.  disk_verdict : what is missing of the disk, or empty.
    settings : that make stages fit, all together.  cannot : stages that do not fit even so, and what they lack.
    """

    rows: tuple[Row, ...]
    counts: Counts
    hardware: Hardware
    disk: float | int
    scratch: float | int
    missing: Mapping[str, tuple[float | int, float | int]]
    disk_verdict: str
    settings: Mapping[str, Any]
    cannot: Mapping[str, str]

    @property
    def fits(self) -> bool:
        """Whether every stage can run, with other settings where they are named."""
        return not self.disk_verdict and not self.cannot


def plan(recipe: Recipe, run: Path, hardware: Hardware | None = None, speed: Speed | None = None) -> Plan:
    """What a run of ``recipe`` in ``run`` would take on ``hardware``, by default this machine."""
    from neuroclips.planning.counts import count_run
    from neuroclips.planning.needs import Job, needs
    from neuroclips.planning.speed import Speed

    hardware = hardware or this_machine(run)
    counts = count_run(recipe, run)
    job = Job.made(recipe, counts, hardware.gpu is not None)
    speed = speed or Speed.of_card(hardware)
    wanted = list(needs(job))
    rows = tuple(_judged(job, need, hardware, speed) for need in wanted)
    disk = sum(need.disk for need in wanted)
    stays, scratch = 0.0, 0.0
    for need in wanted:
        stays += need.disk
        scratch = max(scratch, stays + need.scratch - disk)
    missing = dict(_missing(recipe))
    total = disk + scratch + sum(sum(sizes) for sizes in missing.values())
    said = "" if total <= hardware.disk else (
        f"{total / 1e9:.0f} GB of disk are needed and {hardware.disk / 1e9:.0f} GB are free: "
        f"{(total - hardware.disk) / 1e9:.0f} GB short; choose another run directory (-o), or another disk for weights "
        "(NEUROCLIPS_MODELS)"
    )  # fmt: skip
    settings = _together(row.settings for row in rows)
    left = needs(_changed(job, settings)) if settings else wanted
    cannot = {f"{need.stage}, {need.what}": short for need in left if (short := _short(need, hardware))}
    return Plan(rows, counts, hardware, disk, scratch, missing, said, settings, cannot)


def _together(several: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """All settings at once; of two values the one that takes less."""
    found: dict[str, Any] = {}
    for settings in several:
        for key, value in settings.items():
            known = found.get(key)
            smaller = max if key.endswith("accumulate") else min
            found[key] = smaller(known, value) if isinstance(known, int) and isinstance(value, int) else value
    return found


def _sums(need: Need, hardware: Hardware) -> tuple[float | int, float | int]:
    """Bytes of the GPU and of the machine's memory, what cannot be counted included."""
    if hardware.gpu is None:
        return 0.0, need.host + need.device
    return (RESERVE * need.device + CONTEXT if need.device else 0.0), need.host


def _short(need: Need, hardware: Hardware) -> str:
    """What is missing, in words; empty where it fits."""
    gpu, ram = _sums(need, hardware)
    said = []
    if hardware.gpu is not None and gpu > hardware.gpu:
        said.append(f"{(gpu - hardware.gpu) / GIB:.1f} GiB more of GPU memory")
    if ram > OWN * hardware.ram:
        said.append(f"{(ram - OWN * hardware.ram) / GIB:.1f} GiB more of the machine's memory")
    return " and ".join(said)


def _judged(job: Job, need: Need, hardware: Hardware, speed: Speed) -> Row:
    gpu, ram = _sums(need, hardware)
    from neuroclips.planning.needs import needs_of

    seconds, timed = speed.seconds(need)
    short = _short(need, hardware)
    if not short:
        return Row(need, gpu, ram, seconds, timed, "fits", True)
    settings: dict[str, Any] = {}
    for changes in SMALLER.get((need.stage, need.what), SMALLER.get((need.stage, ""), ())):
        if not all(_takes_less(job.recipe, key, value) for key, value in changes.items()):
            continue
        settings |= {key: value for key, value in changes.items() if _value(job.recipe, key) != value}
        smaller = next(other for other in needs_of(_changed(job, settings), need.stage) if other.what == need.what)
        if settings and not _short(smaller, hardware):
            return Row(need, gpu, ram, seconds, timed, f"fits with {in_words(settings)}", False, dict(settings))
    return Row(need, gpu, ram, seconds, timed, f"cannot fit: needs {short}", False)


def in_words(settings: Mapping[str, Any]) -> str:
    """Settings as they are written on the command line.

    >>> in_words({"generate.video.offload": True, "decoders.networks.initial": None})
    '--set generate.video.offload=true --set decoders.networks.initial=null'
    """
    return " ".join(
        f"--set {key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in settings.items()
    )


def _value(recipe: Recipe, key: str) -> Any:
    found: Any = recipe
    for name in key.split("."):
        found = getattr(found, name)
    return found


def _takes_less(recipe: Recipe, key: str, value: Any) -> bool:
    """Whether a number is on the side of what takes less; of other settings nothing is known."""
    if isinstance(value, bool) or not isinstance(value, int):
        return True
    return value > _value(recipe, key) if key.endswith("accumulate") else value < _value(recipe, key)


def _changed(job: Job, settings: Mapping[str, Any]) -> Job:
    """The same run under other settings."""
    content = job.recipe.model_dump()
    for key, value in settings.items():
        *parents, leaf = key.split(".")
        part: Any = content
        for parent in parents:
            part = part[parent]
        part[leaf] = value
    return replace(job, recipe=Recipe.model_validate(content))


def _missing(recipe: Recipe) -> Iterator[tuple[str, tuple[float | int, float | int]]]:
    """Published weights that the recipe names and that are not here: bytes to download, and bytes when ready."""
    from neuroclips.pretrained.catalogue import published, state_of
    from neuroclips.stages import weights_named

    names = [name for stage in ("targets", "fit", "generate") for name in weights_named(recipe, stage) if name]
    for name in dict.fromkeys(names):
        model = published().get(name)
        if model is not None and state_of(model).name != "ready":
            yield name, (model.size or 0, model.ready or 0 if model.converter else 0)
