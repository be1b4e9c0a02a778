"""The paper's decoders of one subject, trained end to end from voxels, behind the interface of all decoders.

    volume --semantics network--> tokens --diffusion prior--> tokens nearer to an image's      (method b.1 to b.4)
    volume --perception network--> latents of every frame                                       (method b.6, b.7)

Semantics first, then the prior on what semantics says of the training clips, then perception (method c). Every network
keeps the weights of its best validation. Semantics and prior may start from MindEye2's published weights.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import init_empty_weights
from torch import nn

from neuroclips.artefacts import read_arrays, read_json, stable_seed, write_arrays, write_json
from neuroclips.data.clips import Clips, Targets, TrainingClips, ValidationClips, refuse_test_clips
from neuroclips.decoders import Decoded, FirstLayer, Pathway
from neuroclips.decoders.code import leading_axes
from neuroclips.decoders.perception import PerceptionNetwork
from neuroclips.decoders.prior import DiffusionPrior, PriorNetwork
from neuroclips.decoders.semantics import SemanticsNetwork, SemanticsOutput
from neuroclips.decoders.text import TextProjector, fit_text_projector
from neuroclips.errors import ArtefactError, DataError
from neuroclips.evaluation.agreement import mean_and_sd
from neuroclips.pretrained.registry import resolve
from neuroclips.recipe import NetworksRecipe
from neuroclips.shapes import Bool, Float, Float32
from neuroclips.training import TrainingSettings, processes
from neuroclips.training.decoders import (
    AT_ONCE,
    PRIOR_SHARE,
    VALIDATIONS,
    Progress,
    pick_device,
    token_scores,
    train_part,
    without_teacher,
)
from neuroclips.training.objectives import PerceptionObjective, PriorObjective, SemanticsObjective, epoch_length
from neuroclips.training.switches import Preset, Switches

BLOCKS = {"semantics": 4, "perception": 1}  # residual blocks where the released networks have mixers
NAMES = ("semantics", "prior", "perception")  # of the networks, in the order of their training
READOUT = 160  # principal components of a pathway's targets, for maps of voxels


@dataclass(frozen=True)
class Networks:
    """The three networks of one subject."""

    semantics: SemanticsNetwork
    prior: DiffusionPrior | None
    perception: PerceptionNetwork


def build_networks(
    sizes: NetworksRecipe, voxels: int, tokens: tuple[int, int], latents: tuple[int, int, int, int], chosen: Switches
) -> Networks:
    """Networks with random weights, for V voxels, tokens (K, D) and latents (F, C, h, w). On the meta device
    (``with torch.device("meta")``) they take no memory.

    Networks that start from published weights have those weights' projector, noise schedule and raw tokens.
    """
    (k, d), (f, c, h, w) = tokens, latents
    residual, published = sizes.mixer == "residual", sizes.initial is not None
    grid = sizes.grid or (h // 4 if h % 4 == 0 and w % 4 == 0 else h)
    shared: dict[str, Any] = dict(width=sizes.width, hidden=sizes.hidden, dropout=sizes.dropout)
    semantics = SemanticsNetwork(
        voxels, tokens=k, token_width=d, blocks=BLOCKS["semantics"] * residual,
        projector="mlp" if published else "residual", **shared,
    )  # fmt: skip
    prior = None
    if sizes.prior_depth:
        network = PriorNetwork(
            tokens=k, width=d, depth=sizes.prior_depth, heads=sizes.prior_heads, head_width=sizes.prior_head_width
        )
        prior = DiffusionPrior(network, schedule="library" if published else "textbook")
    perception = PerceptionNetwork(
        voxels, frames=f, latent=(c, h, w), blocks=BLOCKS["perception"] * residual, grid=grid,
        channels=sizes.channels, expansion=sizes.expansion, position=chosen.temporal_position, **shared,
    )  # fmt: skip
    return Networks(semantics, prior, perception)


@dataclass(frozen=True)
class Readout:
    """A code read linearly: ``code @ weight + bias`` are coordinates of targets, ``(target - mean) @ axes.T``.

    weight : (W, E).  bias : (E,).  mean : of the shape of one clip's target.  axes : (E, N), orthonormal rows.
    """

    weight: Float32[np.ndarray, "W E"]
    bias: Float32[np.ndarray, " E"]
    mean: Float32[np.ndarray, ...]
    axes: Float[np.ndarray, "E N"]

    def goal(self, targets: Float[np.ndarray, "B ..."]) -> Float32[np.ndarray, "B E"]:
        """Coordinates (B, E) of targets."""
        axes = self.axes.astype(np.float32)
        parts = [np.asarray(targets[i : i + AT_ONCE], np.float32) - self.mean for i in range(0, len(targets), AT_ONCE)]
        return np.concatenate([part.reshape(len(part), -1) @ axes.T for part in parts])


class EndToEndDecoders:
    """Semantics, prior and perception networks trained on one subject alone (paper sections 3.1 and 3.2).

    Parameters
    ----------
    networks : sizes, precision and initial weights; the defaults are the paper's.
    preset, changes : switches between paper, released code and our recommendation, and those that differ from the
        preset. The released perception loss distils a teacher's maps; there is no teacher here, so the paper's stands
        in for it.
    epochs : visits of every clip, in place of the preset's, for all three networks.
    prior_draws : noise draws that the prior's expected tokens are averaged over.
    seed, device, checkpoints, progress : of the training; checkpoints is a folder that a killed training resumes from.

    Attributes
    ----------
    networks_ : in eval mode; without a prior where ``prior_depth`` is 0.  token_mean_ (K, D), token_sd_ : of the
        training clips.  prior_mean_, prior_sd_ : what the prior sees tokens standardised by; 0 and 1 with initial
        weights, which know raw tokens.  curves_ : of each network.  initial_ : of each network, what of the initial
        weights was loaded, what was skipped and why, and what has no initial weights.
    readouts_ : of each pathway, how its code is best read linearly (``first_layer``).
    """

    name = "end-to-end"

    def __init__(
        self,
        networks: NetworksRecipe | None = None,
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
        self.networks, self.preset, self.epochs = networks or NetworksRecipe(), preset, epochs
        self.prior_draws, self.seed, self.device = prior_draws, seed, device
        self.checkpoints, self.progress, self.changes = checkpoints, progress, dict(changes or {})

    def inputs(self, clips: Clips, n_repeats: int | None = None) -> Float32[np.ndarray, "B X"]:
        """The clip's own volume; where the recipe names several delays, the volumes of these, X = L V."""
        return clips.inputs(n_repeats)

    def fit(
        self,
        train: TrainingClips,
        targets: Targets,
        validation: ValidationClips | None = None,
        validation_targets: Targets | None = None,
    ) -> EndToEndDecoders:
        """Train the three networks; the validation clips choose each one's weights.

        Raises ``SplitLeakError`` for test clips, ``DataError`` without validation clips.
        """
        refuse_test_clips(train, validation)
        if validation is None or validation_targets is None:
            raise DataError("training networks needs validation clips and their targets, to choose the weights by")
        chosen = self._switches()
        self.curves_: dict[str, Any] = {}
        responses, present = single_trials(train), np.asarray(train.present)
        self._build(responses.shape[2], targets.tokens.shape[1:], targets.latents.shape[1:])
        self.initial_ = {} if self.networks.initial is None else self._load_initial(self.networks.initial)
        self.token_mean_, sd = mean_and_sd(targets.tokens)
        self.token_sd_ = float(np.sqrt(np.square(sd, dtype=np.float64).mean()))
        if not self.token_sd_ > 0:
            raise DataError("the tokens of all training clips are the same; expected tokens that differ")
        held = self.inputs(validation)
        candidates = targets.tokens[:, None] if targets.candidates is None else targets.candidates
        words = self._words(targets)
        networks = self.networks_

        steps, batch = self._steps("semantics", len(train), chosen)
        objective: Any = SemanticsObjective(
            responses, candidates, present=present, switches=chosen,
            steps=steps * self.networks.accumulate * processes.count(),
            batch=batch, seed=self.seed, **words,
        )  # fmt: skip
        self._train(
            "semantics", networks.semantics, objective, steps, chosen,
            lambda m: self._token_scores(lambda x, _: m(x).tokens, m, held, validation_targets.tokens),
            "agreement", True,
        )  # fmt: skip

        self.prior_mean_, self.prior_sd_ = np.zeros_like(self.token_mean_), 1.0
        if self.networks.initial is None:
            self.prior_mean_, self.prior_sd_ = self.token_mean_, self.token_sd_
        if networks.prior is not None:
            self._train_prior(networks.prior, responses, present, candidates, held, validation_targets.tokens, words)

        steps, batch = self._steps("perception", len(train), chosen)
        objective = PerceptionObjective(
            responses, targets.latents, present=present, switches=chosen, batch=batch, seed=self.seed
        )
        self._train(
            "perception", networks.perception, objective, steps, chosen,
            lambda m: {"l1": _l1(m, held, validation_targets.latents)}, "l1", False,
        )  # fmt: skip
        self._finish()
        if not processes.is_main():  # the main process saves
            return self
        x = self.inputs(train)
        self.readouts_ = {
            "semantics": self._readout("semantics", x, targets.tokens, lambda m, x: m(x).tokens),
            "perception": self._readout("perception", x, targets.latents, lambda m, x: m(x).latents),
        }
        return self

    def _train_prior(
        self, prior: DiffusionPrior, responses: np.ndarray, present: np.ndarray, candidates: np.ndarray,
        held: np.ndarray, held_tokens: np.ndarray, words: dict[str, Any],
    ) -> None:  # fmt: skip
        """On what semantics, which is frozen by now, says of every training clip and repeat."""
        chosen = self._switches()
        said = self._said(held)
        with self._conditions(responses, present) as conditions:  # semantics leaves the device here
            steps, batch = self._steps("prior", len(responses), chosen)
            objective = PriorObjective(
                conditions, candidates, present=present, switches=chosen, batch=batch, seed=self.seed,
                mean=self.prior_mean_, sd=self.prior_sd_, **words,
            )  # fmt: skip
            self._train(
                "prior", prior, objective, steps, chosen,
                lambda m: self._token_scores(self._expected(m), m, said, held_tokens), "agreement", True,
            )  # fmt: skip

    def _switches(self) -> Switches:
        return without_teacher(self.preset, self.changes)

    def _epochs(self, part: str, chosen: Switches) -> int:
        return self.epochs or getattr(chosen, f"{part}_epochs")

    def _steps(self, part: str, clips: int, chosen: Switches) -> tuple[int, int]:
        """Optimiser steps, and clips of one batch: a step has ``accumulate`` of these in every process."""
        whole = min(getattr(chosen, f"{part}_batch"), clips)
        parts = self.networks.accumulate * processes.count()
        return self._epochs(part, chosen) * epoch_length(clips, whole), -(-whole // parts)

    def _words(self, targets: Targets) -> dict[str, Any]:
        """Caption embeddings and the frozen projector, for the text losses; nothing without captions."""
        if targets.text is None:
            return {}
        text, named = np.asarray(targets.text), self.networks.text_projector
        if named is None:
            return {"text": text, "projector": fit_text_projector(targets.tokens, text, seed=self.seed)}
        folder = resolve(named, "text-projector", holds="projector.safetensors")
        projector = TextProjector.from_file(folder / "projector.safetensors")
        expected = (text.shape[1], targets.tokens.shape[2])
        if tuple(projector.weight.shape) != expected:
            raise ArtefactError(
                f"{folder}: a text projector of {tuple(projector.weight.shape)}; expected {expected}, for these"
                " captions and tokens. Leave decoders.networks.text_projector null to fit one"
            )
        return {"text": text, "projector": projector}

    def _build(self, voxels: int, tokens: Any, latents: Any) -> None:
        torch.manual_seed(stable_seed(self.seed, "networks"))
        self.networks_ = build_networks(self.networks, voxels, tuple(tokens), tuple(latents), self._switches())

    def _load_initial(self, name: str) -> dict[str, Any]:
        folder = resolve(name, "mindeye2", holds="semantics.safetensors")
        modules = {name: module for name, module in self._modules().items() if name != "perception"}
        return {part: load_initial(module, folder / f"{part}.safetensors") for part, module in modules.items()}

    def _train(
        self, name: str, module: nn.Module, objective: Any, steps: int, chosen: Switches, validate: Callable,
        choose: str, highest: bool,
    ) -> None:  # fmt: skip
        epochs = self._epochs(name, chosen)
        settings = TrainingSettings(
            steps=steps, learning_rate=getattr(chosen, f"{name}_learning_rate"), seed=stable_seed(self.seed, name),
            validate_every=steps // min(VALIDATIONS, epochs), decay_all=chosen.decay_all,  # once an epoch, at most
            precision=self.networks.precision, accumulate=self.networks.accumulate,
            checkpoint_activations=self.networks.checkpoint_activations,
        )  # fmt: skip
        self.curves_[name] = train_part(
            name, module, objective, settings, validate, choose, highest,
            device=self.device, checkpoints=self.checkpoints, progress=self.progress,
        )  # fmt: skip

    # --- between the networks ----------------------------------------------------------------------------------------

    def _condition(self, seen: SemanticsOutput) -> torch.Tensor:
        """What the prior is conditioned on, by the switch ``prior_condition``."""
        return seen.tokens if self._switches().prior_condition == "tokens" else seen.backbone_tokens

    @torch.inference_mode()
    def _said(self, x: Float32[np.ndarray, "B X"]) -> Float[np.ndarray, "B K D"]:
        """The prior's conditions of clips, in halves."""
        parts = self._through(lambda m, x: self._condition(m(x)), "semantics", x)
        return np.concatenate([part.half().cpu().numpy() for part in parts])

    def _conditions(self, responses: np.ndarray, present: Bool[np.ndarray, "B R"]) -> _Conditions:
        """Conditions (B, R, K, D) of every training clip and repeat, in halves, in a file that is removed at last: the
        semantics network is frozen by now, and at full size they are larger than memory should be."""
        shape = (*responses.shape[:2], *self.token_mean_.shape)
        file = _Conditions(self.checkpoints, shape)
        with torch.inference_mode():
            for repeat in range(responses.shape[1] if processes.is_main() else 0):
                there = np.flatnonzero(present[:, repeat])
                if self.progress is not None:
                    self.progress(repeat, responses.shape[1], "conditions of the prior")
                for start in range(0, len(there), AT_ONCE):
                    rows = there[start : start + AT_ONCE]
                    file.array[rows, repeat] = self._said(np.asarray(responses[rows, repeat], np.float32))
        self.networks_.semantics.cpu()
        processes.wait()
        return file

    def _through(self, call: Callable[[Any, torch.Tensor], Any], name: str, x: np.ndarray) -> Iterator[Any]:
        """What a network gives, ``AT_ONCE`` clips at a time."""
        on = pick_device(self.device)
        module = getattr(self.networks_, name).to(on)
        for start in range(0, len(x), AT_ONCE):
            yield call(module, torch.from_numpy(np.ascontiguousarray(x[start : start + AT_ONCE])).to(on))

    def _expected(self, prior: DiffusionPrior) -> Callable[[torch.Tensor, int], torch.Tensor]:
        """Conditions (b, K, D) of clips from number ``start`` on, to the prior's expected tokens from one draw each."""

        def tokens(x: torch.Tensor, start: int) -> torch.Tensor:
            mean = torch.from_numpy(self.prior_mean_).to(x.device)
            draws = [torch.Generator().manual_seed(start + i) for i in range(len(x))]
            return prior.expected((x.float() - mean) / self.prior_sd_, draws) * self.prior_sd_ + mean

        return tokens

    def _token_scores(
        self, predict: Callable[[torch.Tensor, int], torch.Tensor], module: nn.Module, x: np.ndarray, true: np.ndarray
    ) -> dict[str, float]:
        """``agreement`` of ``token_scores`` with what ``predict`` makes of x, ``AT_ONCE`` clips at a time."""
        on, mean = next(module.parameters()).device, torch.from_numpy(self.token_mean_)
        total = 0.0
        for start in range(0, len(x), AT_ONCE):
            rows = slice(start, start + AT_ONCE)
            goal = torch.from_numpy(np.asarray(true[rows], np.float32))
            found = predict(torch.from_numpy(np.asarray(x[rows])).to(on), start).float().cpu()
            total += token_scores(found, goal, mean)["agreement"] * len(goal)
        return {"agreement": total / len(x)}

    # --- decoding ----------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def decode(self, inputs: Float32[np.ndarray, "B X"], ids: list[str], *, prior: bool = True) -> Decoded:
        """Latents, tokens, and the prior's: by the switch ``prior_tokens`` the mean of tokens and the prior's expected
        ones, or one sample; its noise is seeded by clip."""
        expected = self.networks_.semantics.input.in_features
        if inputs.shape[1] != expected:
            raise DataError(
                f"inputs have {inputs.shape[1]} columns; these decoders were fitted on {expected}: scans of another "
                "subject, or of another selection of voxels"
            )
        on = pick_device(self.device)
        mean, sd = torch.from_numpy(self.prior_mean_).to(on), self.prior_sd_
        sample = self._switches().prior_tokens == "sample"
        diffusion = self.networks_.prior.to(on) if prior and self.networks_.prior is not None else None
        latents = [part.cpu().numpy() for part in self._through(lambda m, x: m(x).latents, "perception", inputs)]
        tokens, nearer = [], []
        for number, seen in enumerate(self._through(lambda m, x: m(x), "semantics", inputs)):
            tokens.append(seen.tokens.cpu().numpy())
            if diffusion is None:
                continue
            rows = ids[number * AT_ONCE : (number + 1) * AT_ONCE]
            draws = [torch.Generator().manual_seed(stable_seed(self.seed, "prior", clip)) for clip in rows]
            condition = (self._condition(seen) - mean) / sd
            if sample:
                found = diffusion.sample(condition, draws, steps=self.networks.prior_steps)[:, 0] * sd + mean
            else:
                found = diffusion.expected(condition, draws, samples=self.prior_draws) * sd + mean
                found = PRIOR_SHARE * found + (1 - PRIOR_SHARE) * seen.tokens
            nearer.append(found.cpu().numpy())
        return Decoded(*(np.concatenate(parts).astype(np.float32) for parts in (latents, tokens, nearer) if parts))

    def first_layer(self, pathway: Pathway) -> FirstLayer:
        """The subject's own layer of a pathway, read out to principal components of its targets.

        What follows the layer is not linear, and its code has no goal of its own. So the code is read by the linear map
        that comes nearest to what the network makes of the training clips: outputs are coordinates along orthonormal
        axes of the targets, and squares add up to theirs.
        """
        layer, readout = self._input(pathway), self.readouts_[pathway]
        weight = layer.weight.detach().cpu().numpy()  # (W, X)
        bias = layer.bias.detach().cpu().numpy() @ readout.weight + readout.bias
        return FirstLayer(
            rows=lambda columns: weight[:, columns].T @ readout.weight,
            output=lambda x: (x @ weight.T) @ readout.weight + bias,
            goal=lambda targets: readout.goal(targets.tokens if pathway == "semantics" else targets.latents),
        )

    def _readout(self, pathway: Pathway, x: np.ndarray, targets: np.ndarray, call: Callable) -> Readout:
        mean, axes, _ = leading_axes(targets, READOUT)
        with torch.inference_mode():  # a part at a time: at the paper's size all would take 6 GB
            parts = (part.float().cpu().numpy() - mean for part in self._through(call, pathway, x))
            found = np.concatenate([part.reshape(len(part), -1) @ axes.T for part in parts])
        getattr(self.networks_, pathway).cpu()
        weight, bias = _linear(self._codes(pathway, x), found)
        return Readout(weight, bias, mean, axes.astype(np.float16))

    def _input(self, pathway: Pathway) -> nn.Linear:
        network = getattr(self.networks_, pathway)
        if not isinstance(getattr(network, "inception", nn.Identity()), nn.Identity):
            return network.inception.first  # (rank, X): the layer after it has no voxels of its own (method f)
        return network.input

    def _codes(self, pathway: Pathway, x: np.ndarray) -> Float32[np.ndarray, "B W"]:
        layer = self._input(pathway)
        return x @ layer.weight.detach().cpu().numpy().T + layer.bias.detach().cpu().numpy()

    # --- files -------------------------------------------------------------------------------------------------------

    def save(self, directory: Path) -> dict[str, Any]:
        """Write everything that ``decode`` needs; returns a summary with the curves."""
        directory = Path(directory)
        for name, module in self._modules().items():
            state = {k: v.cpu().numpy() for k, v in module.state_dict().items()}
            write_arrays(directory / f"{name}.safetensors", state)
        arrays = {"mean": self.token_mean_, "sd": np.array([self.token_sd_]), "prior_mean": self.prior_mean_}
        write_arrays(directory / "tokens.safetensors", {**arrays, "prior_sd": np.array([self.prior_sd_])})
        for pathway, readout in self.readouts_.items():
            write_arrays(directory / f"{pathway}-readout.safetensors", asdict(readout))
        about = {
            "decoders": self.name, "networks": self.networks.model_dump(mode="json"), "preset": self.preset,
            "changes": self.changes, "prior_draws": self.prior_draws, "seed": self.seed, "initial": self.initial_,
            "training": self.curves_,
            "voxels": self.networks_.semantics.input.in_features, "tokens": list(self.networks_.semantics.shape),
            "latents": list(self.networks_.perception.target),
        }  # fmt: skip
        write_json(directory / "decoders.json", about)
        return about

    @classmethod
    def load(cls, directory: Path, device: str = "auto") -> EndToEndDecoders:
        directory = Path(directory)
        about = read_json(directory / "decoders.json")
        decoders = cls(
            NetworksRecipe(**about["networks"]), preset=about["preset"], prior_draws=about["prior_draws"],
            seed=about["seed"], device=device,
            changes=about["changes"],
        )  # fmt: skip
        decoders.curves_, decoders.initial_ = about["training"], about["initial"]
        with init_empty_weights():  # of parameters; the files have them all
            decoders._build(about["voxels"], about["tokens"], about["latents"])
        for name, module in decoders._modules().items():
            arrays = read_arrays(directory / f"{name}.safetensors")
            state = {k: torch.from_numpy(np.array(v)) for k, v in arrays.items()}
            module.load_state_dict(state, assign=True)
        arrays = {name: np.array(v) for name, v in read_arrays(directory / "tokens.safetensors").items()}
        decoders.token_mean_, decoders.token_sd_ = arrays["mean"], float(arrays["sd"][0])
        decoders.prior_mean_, decoders.prior_sd_ = arrays["prior_mean"], float(arrays["prior_sd"][0])
        decoders.readouts_ = {
            p: Readout(**{k: np.array(v) for k, v in read_arrays(directory / f"{p}-readout.safetensors").items()})
            for p in ("semantics", "perception")
        }
        decoders._finish()
        return decoders

    def _finish(self) -> None:
        for module in self._modules().values():
            module.eval().requires_grad_(False)

    def _modules(self) -> dict[str, nn.Module]:
        """The networks that there are, by name."""
        return {name: module for name in NAMES if (module := getattr(self.networks_, name)) is not None}


class _Conditions:
    """An array (B, R, K, D) in a file beside the checkpoints, or among temporary files; the main process writes it, all
    read it, and it is removed at the end."""

    def __init__(self, folder: Path | None, shape: tuple[int, ...]):
        own = Path(tempfile.mkdtemp() if folder is None and processes.is_main() else folder or ".")
        self.path, self.temporary = processes.told(own / ".conditions.npy"), folder is None
        if processes.is_main():
            self.array = np.lib.format.open_memmap(self.path, "w+", np.float16, shape)
        processes.wait()
        if not processes.is_main():
            self.array = np.load(self.path, mmap_mode="r")

    def __enter__(self) -> np.ndarray:
        return self.array

    def __exit__(self, *error: Any) -> None:
        del self.array
        if not processes.is_main():
            return
        self.path.unlink(missing_ok=True)
        if self.temporary:
            self.path.parent.rmdir()


def load_initial(module: nn.Module, path: Path) -> dict[str, Any]:
    """Copy the weights of a safetensors file into a module where name and shape agree.

    Returns the numbers of parameters ``loaded`` and ``random`` (left as they were), and by name, why others were
    ``skipped``. Raises ``ArtefactError`` where nothing could be loaded.
    """
    arrays, own = read_arrays(path), dict(module.named_parameters())
    skipped = {name: "no such parameter here" for name in arrays if name not in own}
    loaded = []
    with torch.no_grad():
        for name, parameter in own.items():
            if name not in arrays:
                continue
            if arrays[name].shape != tuple(parameter.shape):
                skipped[name] = f"shape {arrays[name].shape}; expected {tuple(parameter.shape)}"
                continue
            parameter.copy_(torch.from_numpy(np.array(arrays[name])))
            loaded.append(name)
    if not loaded:
        raise ArtefactError(
            f"{path}: none of its {len(arrays)} arrays fits; first: {next(iter(skipped.items()), 'there is none')}. "
            "Expected weights of networks of these sizes (decoders.networks)"
        )
    random = [name for name in own if name not in loaded]
    count = {name: int(own[name].numel()) for name in own}
    return {
        "loaded": sum(count[name] for name in loaded), "random": sum(count[name] for name in random),
        "left random": random, "skipped": skipped,
    }  # fmt: skip


def single_trials(clips: Clips) -> Float[np.ndarray, "B R X"]:
    """Responses of every repeat alone, X = L V at the clips' lags; as they are on disk where the lag is 0 alone.

    Repeats that do not exist are zero.
    """
    if clips.lags == (0,):
        return clips.bold
    found = np.zeros((*clips.bold.shape[:2], len(clips.lags), clips.n_voxels), np.float32)
    for place, lag in enumerate(clips.lags):
        source = clips.neighbour(lag)
        found[source >= 0, :, place] = clips.bold[source[source >= 0]]
    return found.reshape(*found.shape[:2], -1)


def _l1(module: PerceptionNetwork, x: np.ndarray, true: np.ndarray) -> float:
    """Mean absolute error of latents."""
    on, total = next(module.parameters()).device, 0.0
    for start in range(0, len(x), AT_ONCE):
        rows = slice(start, start + AT_ONCE)
        goal = torch.from_numpy(np.asarray(true[rows], np.float32)).to(on)
        total += float((module(torch.from_numpy(x[rows]).to(on)).latents - goal).abs().mean()) * len(goal)
    return total / len(x)


def _linear(
    code: Float[np.ndarray, "B W"], found: Float[np.ndarray, "B E"], alpha: float = 1e-3
) -> tuple[Float32[np.ndarray, "W E"], Float32[np.ndarray, " E"]]:
    """Weight and bias of the nearest linear map, by ridge of a small strength: there may be fewer clips than codes."""
    code_mean, found_mean = code.mean(axis=0), found.mean(axis=0)
    centred = (code - code_mean).astype(np.float64)
    gram = centred.T @ centred
    gram.flat[:: len(gram) + 1] += alpha * np.trace(gram) / len(gram)
    weight = np.linalg.solve(gram, centred.T @ (found - found_mean)).astype(np.float32)
    return weight, (found_mean - code_mean @ weight).astype(np.float32)
