"""CC2017 at its full size, from zips as downloaded to arrays: time and memory, a kill and a second call.

    python benchmarks/cc2017.py FOLDER         needs 30 GB of disk there, and 40 minutes on two cores

A subject of 86 runs of 91,282 grayordinates is simulated once (18 segments shown twice, 5 shown ten times, 8 minutes
each) and packed like the downloads of the study: zips that hold ``<doi>/bundle.zip``. Then ``neuroclips prepare
cc2017`` runs as a command: killed in the middle, again to its end, and a third time.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile

import psutil

DOIS = {"stimuli": "10.4231_R71Z42KK", "subject1": "10.4231_R7X63K3M"}
RECIPE = """
name: full
seed: 5
film: {train_segments: 18, test_segments: 5, train_seconds: 480, test_seconds: 480, size: 256}
brain: {subject: 1, train_repeats: 2, test_repeats: 10}
data: {train: [seg1, seg2], validation: [seg3], test: [test1]}
"""


def simulate(folder: Path) -> Path:
    recipe = folder / "full.yaml"
    recipe.write_text(RECIPE)
    subprocess.run([command(), "simulate", recipe, "-o", folder / "simulated"], check=True)
    return folder / "simulated" / "simulate" / "video_fmri_dataset"


def command() -> Path:
    return Path(sys.executable).with_name("neuroclips")


def pack(dataset: Path, downloads: Path) -> None:
    """Double-wrapped zips as the repository serves them; every file is removed when it is packed."""
    downloads.mkdir(parents=True, exist_ok=True)
    for part, doi in DOIS.items():
        bundle = downloads / f".{part}-bundle.zip"
        with ZipFile(bundle, "w", ZIP_DEFLATED, compresslevel=1) as inner:
            for path in sorted((dataset / part).rglob("*")):
                if path.is_file():
                    inner.write(path, f"video_fmri_dataset/{path.relative_to(dataset)}")
                    path.unlink()
            if part == "subject1":  # a file of a kind that is not read, under its wrong name in the real download
                inner.writestr("video_fmri_dataset/subject1/fmri/test1/mni/test1_9.mni.nii.gz", b"not read")
        with ZipFile(downloads / f"{doi}.zip", "w", ZIP_STORED) as outer:
            outer.write(bundle, f"{doi}/bundle.zip")
        bundle.unlink()
    shutil.rmtree(dataset)


def prepare(downloads: Path, run: Path, *, kill_after: float | None = None, pixels: int = 224) -> dict[str, object]:
    """The command a user types; its seconds, exit status and highest resident memory, of that what is its own (mapped
    files of a gigabyte are the page cache's, which the system takes back when it needs it)."""
    words = [command(), "prepare", "cc2017", downloads, "--subject", "1", "-o", run]
    start = time.monotonic()
    process = subprocess.Popen([*map(str, words), "-s", f"data.frame_size={pixels}"])
    peak = {"resident": 0, "own": 0}

    def watch() -> None:
        while process.poll() is None:
            try:
                family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
                memory = [p.memory_info() for p in family]
            except psutil.Error:
                continue
            peak["resident"] = max(peak["resident"], sum(m.rss for m in memory))
            peak["own"] = max(peak["own"], sum(m.rss - m.shared for m in memory))
            time.sleep(0.2)

    watcher = threading.Thread(target=watch)
    watcher.start()
    if kill_after is not None:
        time.sleep(kill_after)
        process.send_signal(signal.SIGKILL)
    process.wait()
    watcher.join()
    gigabytes = {f"peak_{name}_gb": round(value / 1e9, 2) for name, value in peak.items()}
    return {"exit": process.returncode, "seconds": round(time.monotonic() - start, 1), **gigabytes}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("folder", type=Path)
    folder = arguments.parse_args().folder
    downloads, run = folder / "downloads", folder / "run"
    if not downloads.exists():
        pack(simulate(folder), downloads)
    shutil.rmtree(run, ignore_errors=True)
    shutil.rmtree(downloads / "video_fmri_dataset", ignore_errors=True)
    for left in ("stimuli", "subject1"):
        shutil.rmtree(downloads / left, ignore_errors=True)
    killed = [prepare(downloads, run, kill_after=seconds) for seconds in (40, 100, 160)]
    last = prepare(downloads, run)
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*.safetensors")}
    again = prepare(downloads, run)
    cards = {p.parent.name: json.loads(p.read_text()) for p in run.glob("*/card.json")}
    result = {
        "zips_gb": round(sum(p.stat().st_size for p in downloads.glob("*.zip")) / 1e9, 2),
        "killed": killed, "finished": last, "again": again,
        "again_wrote": sum(path.stat().st_mtime_ns != then for path, then in before.items()),
        "stages": {name: [card["seconds"], card["peak_memory_gb"]] for name, card in cards.items()},
        "arrays_gb": round(sum(p.stat().st_size for p in run.rglob("*.safetensors")) / 1e9, 2),
        "machine": f"{platform.machine()} {platform.system()}, {os.cpu_count()} cores",
    }  # fmt: skip
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
