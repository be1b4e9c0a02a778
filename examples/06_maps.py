"""Where perception and semantics are read from, side by side, and what each map says of the paper's claim.

    neuroclips maps runs/demo
    python examples/06_maps.py runs/demo maps.png

Two flat maps in one figure (.png, .svg or .pdf); the left hemisphere is on the left, anterior is outward.
"""

import sys
from pathlib import Path

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure

from neuroclips.cortex.plot import colours, flat_thumbnail, save_picture
from neuroclips.cortex.results import MapResults

run, out = Path(sys.argv[1]), Path(sys.argv[2])
found = MapResults.read(run / "maps")

for claim in found.claims:
    ends = (
        "no interval" if claim.interval is None else f"95 % interval {claim.interval[0]:.3g} to {claim.interval[1]:.3g}"
    )
    print(f"{claim.map:24} {claim.larger} minus {claim.smaller}: {claim.difference:.3g} ({ends})")

named = {each.name: each for each in found.every}
figure = Figure(figsize=(12, 3.1), layout="constrained", dpi=150)
for axes, name in zip(figure.subplots(1, 2), ("perception-importance", "semantics-importance")):
    each = named[name]
    axes.imshow(np.moveaxis(flat_thumbnail(each), 0, 2))
    axes.set_axis_off()
    axes.set_title(each.title)
    scale = ScalarMappable(Normalize(*each.limits), ListedColormap(colours(each.signed)))
    figure.colorbar(scale, ax=axes, orientation="horizontal", label=each.unit, shrink=0.6, aspect=40)
save_picture(figure, out)
