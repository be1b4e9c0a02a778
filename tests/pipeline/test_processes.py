"""A run in two processes, as ``accelerate launch`` starts them: one trains as well as the other, one writes."""

import json
import os
import subprocess
import sys

import numpy as np
import yaml
from safetensors.numpy import load_file
from tiny_run import copied

NETWORKS = dict(width=32, hidden=16, channels=(16, 8), prior_depth=1, prior_heads=2, prior_head_width=34)


def test_two_processes_train_together_and_one_writes(tiny_run, tmp_path):
    run = copied(tiny_run.directory, tmp_path / "run")
    recipe = tiny_run.recipe.model_dump(mode="json")
    recipe["decoders"] |= {"methods": ["ridge", "end-to-end"], "epochs": 2, "device": "cpu", "networks": NETWORKS}
    (tmp_path / "two.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(recipe))))
    launch = [
        *(sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "--num_machines", "1"),
        *("--mixed_precision", "no", "--dynamo_backend", "no", "--num_cpu_threads_per_process", "1"),
    ]
    words = ["-m", "neuroclips", "fit", str(tmp_path / "two.yaml"), "-o", str(run)]
    done = subprocess.run([*launch, *words], capture_output=True, text=True, timeout=280, env=os.environ, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("s of work in") == 1  # the main process alone talks
    about = json.loads((run / "fit" / "end-to-end" / "decoders.json").read_text())
    assert set(about["training"]) == {"semantics", "prior", "perception"}
    weights = load_file(run / "fit" / "end-to-end" / "semantics.safetensors")
    assert all(np.isfinite(array).all() for array in weights.values())
    assert not list((run / "fit").glob(".*"))[1:]  # conditions and checkpoints are gone; .begun stays
    again = subprocess.run(
        [sys.executable, "-m", "neuroclips", *words[2:]], capture_output=True, text=True, timeout=120, check=False
    )
    assert "fit  up to date, skipped" in again.stderr  # what two made, one takes as it is
