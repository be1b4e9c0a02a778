"""The neural decoders of one subject, behind the interface of all decoders: fit, decode, save, load.

    volumes --input layer--> code --perception network--> latents of every frame
                                  --semantics network--> tokens --diffusion prior--> tokens nearer to an image's

With ``pretrained`` weights everything after the input layer is shared by subjects and stays as it is: the subject's own
layer is solved by ridge, in seconds (``decoders.code``). Without them the networks are trained here, on codes that were
held out from their own solution, and the validation clips choose every network's weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from neuroclips.artefacts import read_arrays, read_json, stable_seed, write_arrays, write_json
from neuroclips.data.clips import Clips, Targets, TrainingClips, ValidationClips, refuse_test_clips
from neuroclips.decoders import Decoded, FirstLayer, Pathway
from neuroclips.decoders.code import Basis, InputLayer, solve_input_layer
from neuroclips.decoders.pretrained import (
    Sizes,
    attach,
    build_perception,
    build_prior,
    build_semantics,
    read_state,
    shared_state,
)
from neuroclips.decoders.semantics import SemanticsOutput
from neuroclips.decoders.text import fit_text_projector
from neuroclips.errors import DataError
from neuroclips.pretrained.registry import resolve
from neuroclips.shapes import Float32
from neuroclips.training import TrainingSettings
from neuroclips.training.loop import train
from neuroclips.training.objectives import PerceptionObjective, PriorObjective, SemanticsObjective, epoch_length
from neuroclips.training.switches import Preset, Switches, switches

Progress = Callable[[int, int, str], None]
VOLUMES = 2  # that the input layer hears: the clip's own and the next
AXES = (160, 224)  # of tokens and latents in a code, where it is made from the subject's own training clips
# Of the prior's tokens in what it gives; the rest is its condition. On the validation clips of four simulated subjects,
# shares of 0, 0.5 and 1 give agreements of 0.43, 0.48 and 0.48 with the image's tokens, and top-1 of 58, 57 and 54 %
# (``benchmarks/decoders.py``).
PRIOR_SHARE = 0.5
AT_ONCE = 64  # clips through the networks
VALIDATIONS = 20  # of a training
PATIENCE = 6


class NeuralDecoders:
    """Input layer by ridge, then networks.

    Parameters
    ----------
    pretrained : "mini", a folder made by ``python -m neuroclips.mini decoders``, or None to train on this subject.
    preset, changes : switches between paper, released code and our recommendation, and those that differ from the
        preset; they matter when networks are trained here.
    epochs : visits of every clip, in place of the preset's, for all three networks.
    prior_draws : noise draws that the prior's expected tokens are averaged over.
    seed, device, checkpoints, progress : of the training; checkpoints is a folder that a killed training resumes from.

    Attributes
    ----------
    basis_, layer_ : the code and the way to it.  semantics_, perception_, prior_ : networks in eval mode.
    token_mean_ (K, D), token_sd_ : the prior sees tokens standardised by them.  curves_ : of each network trained here.
    """

    name = "neural"

    def __init__(
        self,
        pretrained: str | Path | None = "mini",
        *,
        preset: Preset = "corrected",
        changes: Mapping[str, Any] | None = None,
        epochs: int | None = None,
        prior_draws: int = 4,
        seed: int = 0,
        device: str = "auto",
        checkpoints: Path | None = None,
        progress: Progress | None = None,
    ):
        self.pretrained, self.preset, self.epochs, self.prior_draws = pretrained, preset, epochs, prior_draws
        self.seed, self.device, self.checkpoints, self.progress = seed, device, checkpoints, progress
        self.changes = dict(changes or {})

    def inputs(self, clips: Clips, n_repeats: int | None = None) -> Float32[np.ndarray, "B X"]:
        """The clip's own volume and the next of its run, one after the other: X = 2 V. Where the recipe names several
        delays, the volumes of these."""
        return clips.inputs(n_repeats, clips.lags if len(clips.lags) > 1 else tuple(range(VOLUMES)))

    def fit(
        self,
        train: TrainingClips,
        targets: Targets,
        validation: ValidationClips | None = None,
        validation_targets: Targets | None = None,
    ) -> NeuralDecoders:
        """Solve the input layer; without pretrained weights, train the networks as well.

        Raises ``SplitLeakError`` for test clips and ``DataError`` where pretrained weights are of other sizes.
        """
        refuse_test_clips(train, validation)
        self.curves_: dict[str, Any] = {}
        x = self.inputs(train)
        if self.pretrained is None:
            self.basis_ = Basis.fit(targets, *AXES)
            tokens = np.asarray(targets.tokens, np.float32)
            self.token_mean_, self.token_sd_ = tokens.mean(axis=0), float(np.sqrt(tokens.var(axis=0).mean()))
        else:
            self._read_shared(resolve_decoders(self.pretrained))
        self.layer_ = solve_input_layer(x, self.basis_.encode(targets), train.segment, held_out=self.pretrained is None)
        self._build(targets.tokens.shape[1:], targets.latents.shape[1:])
        if self.pretrained is None:
            if validation is None or validation_targets is None:
                raise DataError("training networks needs validation clips and their targets, to choose the weights by")
            held = self.layer_(self.inputs(validation))
            self._train_networks(targets, held, validation_targets)
        else:
            self._load_states(resolve_decoders(self.pretrained))
        self._finish()
        return self

    # --- training on the subject alone -------------------------------------------------------------------------------

    def _train_networks(self, targets: Targets, held: np.ndarray, held_targets: Targets) -> None:
        """Semantics, prior and perception one after the other, on held-out codes."""
        chosen = without_teacher(self.preset, self.changes)
        codes = self.layer_.held_out
        assert codes is not None
        codes = codes[:, None]  # (B, 1, W): one "repeat", the mean of all
        tokens, latents = np.asarray(targets.tokens), np.asarray(targets.latents)
        held_code = torch.from_numpy(held)
        true = torch.from_numpy(np.asarray(held_targets.tokens, np.float32))
        true_latents = torch.from_numpy(np.asarray(held_targets.latents, np.float32))
        mean, sd = torch.from_numpy(self.token_mean_), self.token_sd_

        def steps(part: str) -> tuple[int, int]:
            batch = min(getattr(chosen, f"{part}_batch"), len(codes))
            epochs = self.epochs or getattr(chosen, f"{part}_epochs")
            return epochs * epoch_length(len(codes), batch), batch

        words: dict[str, Any] = {}
        if targets.text is not None:  # captions came with the data or were asked for: the paper's text losses
            text = np.asarray(targets.text)
            words = {"text": text, "projector": fit_text_projector(tokens, text, seed=self.seed)}
        n, batch = steps("semantics")
        objective: Any = SemanticsObjective(
            codes, tokens[:, None], switches=chosen, steps=n, batch=batch, codes=True, seed=self.seed, **words
        )
        self._train(
            "semantics", self.semantics_, objective, n, chosen,
            lambda m: token_scores(_whole(m, held_code).tokens, true, mean), "agreement", True,
        )  # fmt: skip
        with torch.inference_mode():
            conditions, held_conditions = (
                (self._condition(_whole(self.semantics_, code)) - mean) / sd
                for code in (torch.from_numpy(codes[:, 0]), held_code)
            )
        n, batch = steps("prior")
        standard = (np.asarray(tokens, np.float32) - self.token_mean_) / np.float32(sd)
        objective = PriorObjective(
            conditions[:, None].numpy(),
            standard[:, None].astype(np.float32),
            switches=chosen,
            batch=batch,
            seed=self.seed,
        )

        def prior_scores(m: Any) -> dict[str, float]:
            on = next(m.parameters()).device
            draws = [torch.Generator().manual_seed(i) for i in range(len(held_conditions))]
            return token_scores(m.expected(held_conditions.to(on), draws).cpu() * sd + mean, true, mean)

        self._train("prior", self.prior_, objective, n, chosen, prior_scores, "agreement", True)
        n, batch = steps("perception")
        objective = PerceptionObjective(codes, latents, switches=chosen, batch=batch, codes=True, seed=self.seed)
        self._train(
            "perception", self.perception_, objective, n, chosen,
            lambda m: {"l1": float((_whole(m, held_code).latents - true_latents).abs().mean())}, "l1", False,
        )  # fmt: skip

    def _train(
        self, name: str, module: nn.Module, objective: Any, steps: int, chosen: Switches, validate: Callable,
        choose: str, highest: bool,
    ) -> None:  # fmt: skip
        settings = TrainingSettings(
            steps=steps, learning_rate=getattr(chosen, f"{name}_learning_rate"), seed=stable_seed(self.seed, name),
            validate_every=max(1, steps // VALIDATIONS), patience=PATIENCE, decay_all=chosen.decay_all, ema=0.99,
        )  # fmt: skip
        self.curves_[name] = train_part(
            name, module, objective, settings, validate, choose, highest,
            device=self.device, checkpoints=self.checkpoints, progress=self.progress,
        )  # fmt: skip

    # --- decoding ----------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def decode(self, inputs: Float32[np.ndarray, "B X"], ids: list[str], *, prior: bool = True) -> Decoded:
        """Latents, tokens, and their mean with the prior's expected tokens; its noise is seeded by clip."""
        expected = self.layer_.weight.shape[0]
        if inputs.shape[1] != expected:
            raise DataError(f"inputs have {inputs.shape[1]} columns; these decoders were fitted on {expected}")
        on = pick_device(self.device)
        perception, semantics, diffusion = self.perception_.to(on), self.semantics_.to(on), self.prior_.to(on)
        mean, sd = torch.tensor(self.token_mean_, device=on), self.token_sd_
        latents, tokens, nearer = [], [], []
        for start in range(0, len(inputs), AT_ONCE):
            rows = slice(start, start + AT_ONCE)
            x = torch.from_numpy(np.ascontiguousarray(inputs[rows])).to(on)
            latents.append(perception(x).latents.cpu().numpy())
            seen = semantics(x)
            tokens.append(seen.tokens.cpu().numpy())
            if prior:
                draws = [torch.Generator().manual_seed(stable_seed(self.seed, "prior", clip)) for clip in ids[rows]]
                found = diffusion.expected((self._condition(seen) - mean) / sd, draws, samples=self.prior_draws)
                nearer.append((PRIOR_SHARE * (found * sd + mean) + (1 - PRIOR_SHARE) * seen.tokens).cpu().numpy())
        return Decoded(*(np.concatenate(parts).astype(np.float32) for parts in (latents, tokens, nearer) if parts))

    def first_layer(self, pathway: Pathway) -> FirstLayer:
        """The subject's own layer, for the part of the code that holds the pathway's components of the targets.

        Both networks hear the whole code, but start from these parts (``build_perception``, ``build_semantics``).
        Outputs are coordinates along orthonormal axes of the targets, so that squares add up to theirs.
        """
        n = self.basis_.n_tokens
        part = slice(0, n) if pathway == "semantics" else slice(n, None)
        scale, layer = self.basis_.scale[part], self.layer_
        weight, bias = layer.weight[:, part], layer.bias[part]
        return FirstLayer(
            rows=lambda columns: weight[columns] * scale,
            output=lambda x: (x @ weight + bias) * scale,
            goal=lambda targets: self.basis_.encode(targets)[:, part] * scale,
        )

    # --- files -------------------------------------------------------------------------------------------------------

    def save(self, directory: Path) -> dict[str, Any]:
        """Write everything that ``decode`` needs; returns a summary with the curves."""
        directory = Path(directory)
        self.basis_.save(directory / "basis.safetensors")
        write_arrays(directory / "input.safetensors", {"weight": self.layer_.weight, "bias": self.layer_.bias})
        write_arrays(directory / "tokens.safetensors", {"mean": self.token_mean_, "sd": np.array([self.token_sd_])})
        for name in ("semantics", "perception", "prior"):
            state = {k: v.cpu().numpy() for k, v in shared_state(getattr(self, f"{name}_")).items()}
            write_arrays(directory / f"{name}.safetensors", state)
        about = {
            "decoders": self.name, "pretrained": None if self.pretrained is None else str(self.pretrained),
            "preset": self.preset, "changes": self.changes, "prior_draws": self.prior_draws, "seed": self.seed,
            "training": self.curves_,
        }  # fmt: skip
        write_json(directory / "decoders.json", about)
        return about

    @classmethod
    def load(cls, directory: Path, device: str = "auto") -> NeuralDecoders:
        directory = Path(directory)
        about = read_json(directory / "decoders.json")
        decoders = cls(
            about["pretrained"], preset=about["preset"], changes=about["changes"], prior_draws=about["prior_draws"],
            seed=about["seed"], device=device,
        )  # fmt: skip
        decoders.curves_ = about["training"]
        decoders._read_shared(directory)
        layer = read_arrays(directory / "input.safetensors")
        decoders.layer_ = InputLayer(np.asarray(layer["weight"]), np.asarray(layer["bias"]))
        decoders._build(decoders.basis_.tokens_mean.shape, decoders.basis_.latents_mean.shape)
        decoders._load_states(directory)
        decoders._finish()
        return decoders

    def _read_shared(self, directory: Path) -> None:
        self.basis_ = Basis.load(directory / "basis.safetensors")
        tokens = read_arrays(directory / "tokens.safetensors")
        self.token_mean_, self.token_sd_ = np.asarray(tokens["mean"], np.float32), float(tokens["sd"][0])

    def _build(self, tokens: tuple[int, ...], latents: tuple[int, ...]) -> None:
        """Networks for targets of these shapes, with the subject's layer in."""
        torch.manual_seed(stable_seed(self.seed, "networks"))
        sizes, columns = _sizes(tokens, latents, self.basis_.width), len(self.layer_.weight)
        position = switches(self.preset, **self.changes).temporal_position
        self.semantics_ = attach(build_semantics(sizes, self.basis_, columns), self.layer_)
        self.perception_ = attach(build_perception(sizes, self.basis_, columns, position=position), self.layer_)
        self.prior_ = build_prior(sizes)

    def _condition(self, seen: SemanticsOutput) -> torch.Tensor:
        """What the prior is conditioned on, by the switch ``prior_condition``."""
        wanted = switches(self.preset, **self.changes).prior_condition
        return seen.tokens if wanted == "tokens" else seen.backbone_tokens

    def _load_states(self, directory: Path) -> None:
        for name in ("semantics", "perception", "prior"):
            module = getattr(self, f"{name}_")
            missing = module.load_state_dict(read_state(directory / f"{name}.safetensors"), strict=False)
            wrong = [k for k in missing.missing_keys if not k.startswith("input.")] + missing.unexpected_keys
            if wrong:
                raise DataError(f"{directory / name}.safetensors does not fit its network: {', '.join(wrong[:3])} ...")

    def _finish(self) -> None:
        for module in (self.semantics_, self.perception_, self.prior_):
            module.eval().requires_grad_(False)


def train_part(
    name: str,
    module: nn.Module,
    objective: Any,
    settings: TrainingSettings,
    validate: Callable[[Any], Mapping[str, float]],
    choose: str,
    highest: bool,
    *,
    device: str,
    checkpoints: Path | None,
    progress: Progress | None,
) -> dict[str, Any]:
    """Train one of a subject's networks, and put it on the CPU, so that the next has the device to itself.

    Returns its best step, its steps and its curve, without wall times: the same training leaves the same files.
    """
    trained = train(
        module, objective.loss, objective.batches, settings=settings, validate=validate, choose=choose,
        highest=highest, device=device,
        checkpoint=None if checkpoints is None else checkpoints / f".{name}.checkpoint.pt",
        progress=None if progress is None else lambda done, total, what: progress(done, total, f"{name}: {what}"),
    )  # fmt: skip
    module.cpu()
    curve = [{k: v for k, v in row.items() if k != "seconds"} for row in trained.curve]
    return {"best_step": trained.best_step, "steps": trained.steps, "curve": curve}


def without_teacher(preset: Preset, changes: Mapping[str, Any]) -> Switches:
    """Switches of a training that has no teacher of perception's maps: the paper's loss where the released one, which
    distils them, is asked for."""
    chosen = switches(preset, **changes)
    return (
        switches(preset, **{**changes, "perception_loss": "paper"}) if chosen.perception_loss == "released" else chosen
    )


def pick_device(name: str) -> torch.device:
    """The device of this name; "auto" takes CUDA, else MPS, else the CPU, as training does."""
    if name != "auto":
        return torch.device(name)
    return torch.device("cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu")


def resolve_decoders(name_or_folder: str | Path) -> Path:
    """Where weights that subjects share are found: "mini" ships with the package."""
    return resolve(name_or_folder, "decoders", holds="basis.safetensors")


def _sizes(tokens: tuple[int, ...], latents: tuple[int, ...], width: int) -> Sizes:
    """Sizes of networks for these targets: a coarse map of half the latent's rows where they can be halved."""
    rows = latents[2]
    grid = rows // 2 if rows % 2 == 0 else rows
    return Sizes(
        tokens=(tokens[0], tokens[1]), latents=(latents[0], latents[1], rows, latents[3]), grid=grid, width=width
    )


def _whole(module: Any, codes: torch.Tensor) -> Any:
    """The module's output for all codes, on the CPU."""
    on = next(module.parameters()).device
    parts = [module.from_code(part.to(on)) for part in codes.split(AT_ONCE)]
    names = [name for name, value in vars(parts[0]).items() if value is not None]
    return type(parts[0])(**{name: torch.cat([getattr(part, name).float().cpu() for part in parts]) for name in names})


def token_scores(predicted: torch.Tensor, true: torch.Tensor, mean: torch.Tensor) -> dict[str, float]:
    """Mean correlation of centred tokens (B, K, D), and the share of their variance that is explained."""
    found, goal = (predicted - mean).flatten(1), (true - mean).flatten(1)
    a, b = (F.normalize(x - x.mean(dim=1, keepdim=True), dim=1) for x in (found, goal))
    return {
        "agreement": float((a * b).sum(dim=1).mean()),
        "explained": 1 - float((found - goal).square().sum() / goal.square().sum()),
    }
