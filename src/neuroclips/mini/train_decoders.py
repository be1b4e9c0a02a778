"""Train what subjects share: semantics backbone, diffusion prior and perception decoder, on a simulated population.

The input layers of the population's subjects are solved already (``mini.population``): networks learn from codes to
tokens and latents. One subject and the last films take no part and choose the weights.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional as F

from neuroclips.artefacts import read_arrays, write_arrays, write_json
from neuroclips.decoders.code import Basis
from neuroclips.decoders.losses import frame_contrastive, info_nce
from neuroclips.decoders.pretrained import (
    SIZES,
    build_perception,
    build_prior,
    build_semantics,
    shared_state,
    write_state,
)
from neuroclips.mini.population import CLIPS, codes_path, read_targets
from neuroclips.training import TrainingSettings
from neuroclips.training.decoders import token_scores
from neuroclips.training.loop import train

HELD_OUT_FILMS = 20
CODE_NOISE = (
    0.2  # added to codes, in units of a component: more of it costs detail, less lets networks learn films by heart
)
CONTRAST, TEMPERATURE = 0.2, 0.05  # of the tokens' contrastive loss beside their squared error
FRAME_CONTRAST = 0.05


@dataclass(frozen=True)
class Pairs:
    """Codes (N, W) of one or more subjects, and of each the row (N,) of its clip in the targets."""

    codes: Tensor
    clip: Tensor


def read_pairs(folder: Path, subjects: list[int], films: range, device: str) -> Pairs:
    codes, clips = [], []
    for subject in subjects:
        arrays = read_arrays(codes_path(folder, subject))
        number = np.asarray(arrays["film"])
        kept = (number >= films.start) & (number < films.stop)
        codes.append(np.asarray(arrays["codes"])[kept].reshape(-1, arrays["codes"].shape[-1]))
        clips.append((number[kept][:, None] * CLIPS + np.arange(CLIPS)).ravel())
    stack = torch.tensor(np.concatenate(codes), device=device).float()
    return Pairs(stack, torch.tensor(np.concatenate(clips), dtype=torch.long, device=device))


class Trainer:
    """The data on the device, and one training a network."""

    def __init__(
        self, folder: Path, subjects: list[int], held_out: int, films: int, device: str, out: Path, scale: float
    ):
        self.device, self.out, self.scale, self.console = device, out, scale, Console(stderr=True)
        self.basis = Basis.load(folder / "basis.safetensors")
        targets = read_targets(folder, list(range(films)))
        self.tokens = torch.tensor(targets.tokens, device=device).float()
        self.latents = torch.tensor(targets.latents, device=device)
        self.learnt = films - HELD_OUT_FILMS
        self.pairs = read_pairs(folder, subjects, range(self.learnt), device)
        self.held = read_pairs(folder, [held_out], range(self.learnt, films), device)
        known = self.tokens[: self.learnt * CLIPS]
        self.token_mean = known.mean(dim=0)
        self.token_variance = known.var(dim=0).mean()
        self.curves: dict[str, Any] = {}

    def fit(
        self, name: str, module: nn.Module, loss: Callable, rows: Tensor, *, steps: int, batch: int, rate: float,
        decay: float, validate: Callable, choose: str = "agreement",
    ) -> Any:  # fmt: skip
        """Train on the pairs in ``rows`` and keep the curve; returns the module at its best validation."""
        steps = max(2, round(steps * self.scale))

        def batches(number: int, generator: torch.Generator) -> Tensor:
            return rows[torch.randint(len(rows), (min(batch, len(rows)),), generator=generator).to(rows.device)]

        settings = TrainingSettings(
            steps=steps, learning_rate=rate, seed=1, validate_every=max(1, steps // 10), weight_decay=decay, ema=0.99,
            precision="bf16" if self.device == "cuda" else "no",
        )  # fmt: skip
        started = time.monotonic()
        trained = train(
            module, loss, batches, settings=settings, checkpoint=self.out / f"{name}.checkpoint.pt",
            validate=validate, choose=choose, highest=True, device=self.device,
        )  # fmt: skip
        self.curves[name] = {"steps": trained.steps, "best_step": trained.best_step, "curve": trained.curve,
                             "seconds": round(time.monotonic() - started, 1), "batch": batch}  # fmt: skip
        self.console.print(f"{name}: {json.dumps(trained.curve[-1])}, best at {trained.best_step}")
        return trained.module

    def semantics(self, name: str, rows: Tensor) -> Any:
        """Squared error in units of the tokens' variance, and InfoNCE of centred tokens."""

        def loss(module: Any, row: Tensor, generator: torch.Generator) -> tuple[Tensor, dict[str, Any]]:
            code = self.pairs.codes[row]
            predicted = module.from_code(code + CODE_NOISE * torch.randn_like(code)).tokens.float()
            true = self.tokens[self.pairs.clip[row]]
            error = (predicted - true).square().mean() / self.token_variance
            contrast = info_nce(
                (predicted - self.token_mean).flatten(1), (true - self.token_mean).flatten(1), TEMPERATURE
            )
            return error + CONTRAST * contrast, {"error": error, "contrast": contrast}

        module = build_semantics(SIZES, self.basis)
        return self.fit(name, module, loss, rows, steps=1200, batch=512, rate=5e-4, decay=0.1,
                        validate=lambda m: self._agreement(m.from_code(self.held.codes).tokens))  # fmt: skip

    def prior(self, conditions: Tensor) -> nn.Module:
        """Squared error of the clean tokens, given tokens from a network that had not seen the clip's film."""
        module = build_prior(SIZES)
        mean, sd = self.token_mean, self.token_variance.sqrt()

        def loss(module: Any, row: Tensor, generator: torch.Generator) -> tuple[Tensor, dict[str, Any]]:
            true = (self.tokens[self.pairs.clip[row]] - mean) / sd
            return module.loss(true, (conditions[row].float() - mean) / sd, generator), {}

        def validate(m: Any) -> dict[str, float]:
            draws = [torch.Generator().manual_seed(n) for n in range(len(self.held.codes))]
            return self._agreement(m.expected((self.held_tokens - mean) / sd, draws) * sd + mean)

        rows = torch.arange(len(conditions), device=self.device)
        return self.fit("prior", module, loss, rows, steps=2000, batch=256, rate=6e-4, decay=0.05, validate=validate)

    def perception(self) -> nn.Module:
        """Squared error in units of the latents' variance, and equation 1's contrast of each frame's own part."""
        mean = self.latents[: self.learnt * CLIPS].float().mean(dim=0)
        variance = (self.latents[: self.learnt * CLIPS : 7].float() - mean).square().mean()

        def loss(module: Any, row: Tensor, generator: torch.Generator) -> tuple[Tensor, dict[str, Any]]:
            code = self.pairs.codes[row]
            predicted = module.from_code(code + CODE_NOISE * torch.randn_like(code)).latents.float()
            true = self.latents[self.pairs.clip[row]].float()
            error = (predicted - true).square().mean() / variance
            contrast = frame_contrastive(predicted, true, 0.1, centre=True)
            return error + FRAME_CONTRAST * contrast, {"error": error, "contrast": contrast}

        def validate(m: Any) -> dict[str, float]:
            found = torch.cat([m.from_code(code).latents.float() for code in self.held.codes.split(250)])
            true = self.latents[self.held.clip].float()
            return {
                "explained": 1 - float((found - true).square().mean() / (true - mean).square().mean()),
                "motion": float(F.cosine_similarity(found.diff(dim=1).flatten(1), true.diff(dim=1).flatten(1)).mean()),
            }

        rows = torch.arange(len(self.pairs.codes), device=self.device)
        module = build_perception(SIZES, self.basis)
        return self.fit("perception", module, loss, rows, steps=500, batch=256, rate=6e-4, decay=0.1, validate=validate,
                        choose="explained")  # fmt: skip

    def run(self) -> dict[str, nn.Module]:
        """Semantics twice on half of the films, for conditions that the prior may learn from; then all three."""
        every = torch.arange(len(self.pairs.codes), device=self.device)
        film = self.pairs.clip // CLIPS
        early = film <= film.median()
        halves = [self.semantics(f"semantics-{n}", every[half]) for n, half in (("early", early), ("late", ~early))]
        with torch.no_grad():
            conditions = torch.empty(len(every), *self.tokens.shape[1:], dtype=torch.float16, device=self.device)
            for network, other in zip(halves, (~early, early)):
                for rows in every[other].split(4096):
                    conditions[rows] = network.from_code(self.pairs.codes[rows]).tokens.half()
        semantics = self.semantics("semantics", every)
        with torch.no_grad():
            self.held_tokens = semantics.from_code(self.held.codes).tokens.float()
        return {"semantics": semantics, "prior": self.prior(conditions), "perception": self.perception()}

    def _agreement(self, predicted: Tensor) -> dict[str, float]:
        """Of the held-out subject and films: mean correlation of centred tokens, explained variance, and how often the
        true clip's tokens are the best match among all held-out clips."""
        true = self.tokens[self.held.clip]
        a, b = ((x.float() - self.token_mean).flatten(1) for x in (predicted, true))
        a, b = (F.normalize(x - x.mean(dim=1, keepdim=True), dim=1) for x in (a, b))
        best = (a @ b.T).argmax(dim=1) == torch.arange(len(a), device=a.device)
        return token_scores(predicted.float(), true, self.token_mean) | {"top1": float(best.float().mean())}


def main(
    folder: Path, out: Path, *, subjects: list[int], held_out: int, films: int, device: str, scale: float = 1.0
) -> dict[str, Any]:  # fmt: skip
    """Train all, write weights (``write_state``), basis and card to ``out``; returns the card.

    Parameters
    ----------
    folder : a population (``make_population``).
    scale : of the number of steps; below 1 for a quick trial.
    """
    out.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(folder, subjects, held_out, films, device, out, scale)
    modules = trainer.run()
    for name, module in modules.items():
        write_state(out / f"{name}.safetensors", shared_state(module))
    statistics = {
        "mean": trainer.token_mean.cpu().numpy(),
        "sd": trainer.token_variance.sqrt().cpu().reshape(1).numpy(),
    }
    write_arrays(out / "tokens.safetensors", statistics)
    trainer.basis.save(out / "basis.safetensors")
    card = {
        "what": "mini decoders: what subjects share, trained on simulated subjects",
        "made_by": "python -m neuroclips.mini population, then python -m neuroclips.mini decoders",
        "subjects": subjects,
        "held_out_subject": held_out,
        "films": films,
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "parameters": {n: sum(v.numel() for v in shared_state(m).values()) for n, m in modules.items()},
        "training": trainer.curves,
    }
    write_json(out / "card.json", card)
    for left in out.glob("*.checkpoint.pt"):
        left.unlink()
    return card
