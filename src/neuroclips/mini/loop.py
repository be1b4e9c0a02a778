"""The training loop of the mini networks: cosine schedule, weight averaging, checkpoints, resume."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

from neuroclips.artefacts import written_aside

EMA_DECAY = 0.999


def train(
    module: nn.Module,
    loss: Callable[[Any, Any], tuple[torch.Tensor, dict[str, float]]],
    batches: Iterator[Any],
    *,
    steps: int,
    learning_rate: float,
    checkpoint: Path,
    device: str,
    minutes: float = math.inf,
    save_every_s: float = 60.0,
) -> tuple[Any, list[dict[str, float]]]:
    """Train ``module`` in place and return its averaged weights (EMA) and the curve of logged losses.

    The learning rate warms up over 2 % of the run and falls to zero by a cosine; progress is counted in steps or in
    minutes, whichever ends first, so that a time limit still ends at rate zero. A run that was cut resumes from
    ``checkpoint``.
    """
    console = Console(stderr=True)
    module = module.to(device).train()
    averaged = torch.optim.swa_utils.AveragedModel(
        module, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(EMA_DECAY)
    )
    optimizer = torch.optim.AdamW(module.parameters(), lr=learning_rate, weight_decay=0.01)
    step, spent = 0, 0.0
    curve: list[dict[str, float]] = []
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=device, weights_only=True)
        module.load_state_dict(state["module"])
        averaged.load_state_dict(state["averaged"])
        optimizer.load_state_dict(state["optimizer"])
        step, spent, curve = state["step"], state["spent"], state["curve"]
        console.print(f"resuming {checkpoint.name} at step {step}")

    def save() -> None:
        with written_aside(checkpoint) as aside:
            torch.save(
                {
                    "module": module.state_dict(), "averaged": averaged.state_dict(),
                    "optimizer": optimizer.state_dict(), "step": step, "spent": spent, "curve": curve,
                },
                aside,
            )  # fmt: skip

    started, saved = time.monotonic() - spent, spent
    while True:
        spent = time.monotonic() - started
        done = max(step / steps, spent / (60 * minutes))
        if done >= 1:
            break
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * min(1.0, done / 0.02 + 1e-3) * 0.5 * (1 + math.cos(math.pi * done))
        batch = next(batches)
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            value, logged = loss(module, batch)
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        averaged.update_parameters(module)
        step += 1
        if step % 100 == 0 or step == 1:
            curve.append({"step": step, "seconds": spent, **logged})
            shown = "  ".join(f"{k} {v:.4f}" for k, v in logged.items())
            left = spent * (1 - done) / max(done, 1e-6)
            console.print(f"step {step}  {shown}  {spent:.0f} s, {left:.0f} s left")
        if spent - saved > save_every_s:
            save()
            saved = spent
    save()
    return averaged.module.eval(), curve
