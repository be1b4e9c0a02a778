"""How long the parts of a run take: from what was measured on an H100, or from a short probe of this machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from neuroclips.planning.hardware import Hardware

if TYPE_CHECKING:
    from neuroclips.planning.needs import Need

# Operations a second of an H100, from docs/results.md: steps or items a second times the operations of one. Semantics
# is solved from two batches, and what does not grow with the batch is AdamW's.
H100: dict[str, float] = {
    "semantics": 255e12, "prior": 237e12, "perception": 9e12, "frozen": 200e12, "captions": 60e12, "video": 180e12,
}  # fmt: skip
H100_ADAMW = 2.7e-11  # seconds a trained parameter


@dataclass(frozen=True)
class Speed:
    """Operations a second by kind of work, seconds of AdamW a parameter, and where they are from."""

    rates: Mapping[str, float | int]
    adamw: float | int
    source: str

    @classmethod
    def of_card(cls, hardware: Hardware) -> Speed:
        """From an H100's figures: of another card, in proportion to its arithmetic; without a GPU nothing is known."""
        if hardware.gpu is None or hardware.speed is None:
            return cls({}, 0, "not measured")
        scaled = {kind: rate * hardware.speed for kind, rate in H100.items()}
        source = "H100" if hardware.speed == 1 else f"H100 / {1 / hardware.speed:.1f}"
        return cls(scaled, H100_ADAMW / hardware.speed, source)

    def seconds(self, need: Need) -> tuple[float | int | None, str]:
        """How long a part takes, and where that is from; None where nobody knows."""
        if need.seconds is not None:
            return need.seconds, "demo, 2 cores"
        if need.flops and need.kind in self.rates:
            return need.flops / self.rates[need.kind] + need.moved * self.adamw, self.source
        return None, "not measured"


def probe(precision: str = "no", seconds: float | int = 10) -> Speed:
    """Measure this machine: steps of the trained networks, all of them narrow. Frozen ones go by these.

    seconds : about how long it takes, beside making the networks. docs/plan.md says how near it comes.
    """
    import torch

    from neuroclips.planning import networks as of
    from neuroclips.recipe import NetworksRecipe
    from neuroclips.training.switches import switches

    on = "cuda" if torch.cuda.is_available() else "cpu"
    sizes = of.Sizes(2000, (64, 512), (6, 4, 16, 16), None, 128)
    recipe = NetworksRecipe(
        width=512, hidden=256, prior_depth=2, prior_heads=8, prior_head_width=52,
        precision="bf16" if precision == "bf16" else "no",
    )  # fmt: skip
    rates: dict[str, float] = {}
    moved, took = 0.0, 0.0
    batches: dict[of.Trained, int] = {"semantics": 64, "prior": 16, "perception": 8}
    for part, batch in batches.items():
        module, step = of.real_step(part, recipe, sizes, switches("corrected"), batch, on)
        counted = of.training(part, recipe, sizes, switches("corrected"), batch, on == "cuda")
        forward, update = step
        rates[part] = counted.flops / _usual(forward, seconds / 6)
        took += _usual(update, seconds / 12)
        moved += counted.trained
        del module
    rates |= dict.fromkeys(("frozen", "video", "captions"), max(rates["perception"], rates["prior"]))
    return Speed(rates, took / moved, f"probe of this machine ({on})")


def _usual(work: Callable[[], Any], seconds: float) -> float | int:
    """Median time of a call, the first one left out."""
    work()
    taken: list[float] = []
    begun = time.perf_counter()
    while not taken or time.perf_counter() - begun < seconds:
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)
