"""All maps of a run as files: ``voxels.safetensors``, ``about.json``, ``areas.parquet``, ``clips.parquet``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from neuroclips.artefacts import read_arrays, read_json, write_arrays, write_json, written_aside
from neuroclips.cortex.summary import Claim
from neuroclips.cortex.voxel_map import VoxelMap

Space = Literal["cortex", "volume", "unknown"]


@dataclass(frozen=True)
class MapResults:
    """Maps by the heading under which they stand, and what they say.

    areas : rows of ``summary.area_rows``; values are in the units of the maps.
    claims : what the paper says of its figure 5, asked of every map that can answer.
    findings : the same in sentences, and anything else that a reader should know first.
    clips : a row a clip, how far its re-encoding agrees with what was measured; None without re-encoding.
    space : of voxels; "unknown" where nobody says where they are (published tensors).
    """

    maps: Mapping[str, Sequence[VoxelMap]]
    areas: pd.DataFrame
    claims: Sequence[Claim]
    findings: Sequence[str]
    space: Space
    clips: pd.DataFrame | None = None

    @property
    def every(self) -> list[VoxelMap]:
        return [each for group in self.maps.values() for each in group]

    def write(self, directory: Path) -> None:
        write_arrays(directory / "voxels.safetensors", {m.name: m.values for m in self.every})
        for name in ("areas", "clips"):
            table: pd.DataFrame | None = getattr(self, name)
            if table is not None:
                with written_aside(directory / f"{name}.parquet") as aside:
                    table.to_parquet(aside)
        groups = {
            title: [{k: v for k, v in vars(m).items() if k != "values"} for m in maps]
            for title, maps in self.maps.items()
        }
        claims = [asdict(claim) for claim in self.claims]
        write_json(
            directory / "about.json",
            {"space": self.space, "maps": groups, "claims": claims, "findings": list(self.findings)},
        )

    @classmethod
    def read(cls, directory: Path) -> MapResults:
        about, values = read_json(directory / "about.json"), read_arrays(directory / "voxels.safetensors")
        clips = directory / "clips.parquet"

        def pair(ends: list[float] | None) -> tuple[float, float] | None:
            return None if ends is None else (ends[0], ends[1])

        return cls(
            maps={
                title: [
                    VoxelMap(values=np.asarray(values[m["name"]]), **{**m, "limits": pair(m["limits"])}) for m in maps
                ]
                for title, maps in about["maps"].items()
            },
            areas=pd.read_parquet(directory / "areas.parquet"),
            claims=[Claim(**{**claim, "interval": pair(claim["interval"])}) for claim in about["claims"]],
            findings=about["findings"],
            space=about["space"],
            clips=pd.read_parquet(clips) if clips.exists() else None,
        )
