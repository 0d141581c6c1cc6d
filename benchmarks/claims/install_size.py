"""What an installation costs: seconds, megabytes and packages in an empty environment.

Claims: `pip install .` installs NumPy and safetensors and nothing else, and in that environment `from
balancer import AdaptiveSampler` and its loop work, without torch. `balancer[serve]` installs neither
Gymnasium nor Stable-Baselines3.

    python -m benchmarks.claims.install_size                      # -> benchmarks/results/install_size.json
    python -m benchmarks.claims.install_size --before ../older    # and the core of another checkout

Each installation is made in a new virtual environment with the versions of the checkout's constraints.txt and
the build of torch that pip's index has. Seconds depend on the network and on pip's cache, so the second of
two installations is timed. The build compiles the C++ kernels if there is a compiler.
"""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.lib.checks import claim
from benchmarks.lib.commands import parser
from benchmarks.lib.recording import RESULTS, ROOT, record, recorded

EXTRAS = ("", "serve", "train")
FOREIGN = ("gymnasium", "stable-baselines3", "torch")
"""Packages whose presence is reported."""
LOOP = """
import json, resource, sys, time
import numpy as np
begin = time.perf_counter()
from balancer import AdaptiveSampler
imported = time.perf_counter() - begin
rng = np.random.default_rng(0)
labels = (rng.random(100_000) < 0.01).astype(int)
score = np.clip(0.2 * labels + 0.6 * rng.random(len(labels)), 0, 1)
held_out = rng.permutation(len(labels))[:20_000]
sampler = AdaptiveSampler(labels, epochs=5)
drawn = 0
for _ in range(sampler.epochs):
    drawn += sum(1 for _ in sampler)
    sampler.update(labels[held_out], score[held_out], rows=held_out, row_score=score[held_out])
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps({"seconds_import": round(imported, 3), "rows_drawn": drawn, "share": sampler.weights.share.round(4).tolist(),
                  "seconds": round(time.perf_counter() - begin, 2), "peak_mib": round(peak), "torch_loaded": "torch" in sys.modules}))
"""


def megabytes(folder: Path) -> float:
    """Size of all files in a folder, in 2**20 bytes."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file() and not file.is_symlink()) / 2**20


def cpu_seconds() -> float:
    """Processor time of finished child processes, which other work on the machine does not change."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def packages(python: Path) -> set[str]:
    """Names of the distributions in an environment, without what every virtual environment begins with."""
    listed = json.loads(command(python, "-m", "pip", "list", "--format", "json"))
    return {each["name"].lower().replace("_", "-") for each in listed} - {"pip", "setuptools"}


def command(*parts: str | Path, cwd: Path | None = None) -> str:
    """The standard output of a command that must succeed."""
    done = subprocess.run([str(part) for part in parts], cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{parts} failed:\n{done.stderr[-2000:]}")
    return done.stdout


def copied(checkout: Path, target: Path) -> Path:
    """A copy of the files that git tracks, without the files of earlier builds."""
    for name in command("git", "-C", checkout, "ls-files", "--cached", "--others", "--exclude-standard").splitlines():
        file, to = checkout / name, target / name
        if file.is_file() and not file.is_symlink():
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, to)
    return target


def installation(source: Path, extra: str) -> dict[str, Any]:
    """Install into an empty environment and run the sampler's loop there; the figures of both."""
    with tempfile.TemporaryDirectory() as folder:
        command(sys.executable, "-m", "venv", folder)
        python = next(Path(folder).glob("[bB][iS]*/python*"))
        (site,) = [Path(line) for line in command(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").split()]
        before = megabytes(site)
        begin, processor = time.perf_counter(), cpu_seconds()
        what = f".[{extra}]" if extra else "."
        command(python, "-m", "pip", "--disable-pip-version-check", "install", "-q", "-c", "constraints.txt", what, cwd=source)
        seconds, processor = time.perf_counter() - begin, cpu_seconds() - processor
        found = packages(python)
        return {
            "seconds": round(seconds, 1),
            "cpu_seconds": round(processor, 1),
            "mib": round(megabytes(site) - before, 1),
            "packages": len(found),
            "has": {name: name in found for name in FOREIGN},
            "loop": json.loads(command(python, "-c", LOOP, cwd=Path(folder))),
        }


def installations(checkout: Path, extras: Sequence[str]) -> dict[str, Any]:
    """Figures of a checkout by extra, ``core`` for none."""
    with tempfile.TemporaryDirectory() as folder:
        source = copied(checkout, Path(folder) / "source")
        installation(source, extras[-1])  # fills pip's cache
        return {extra or "core": installation(source, extra) for extra in extras}


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--checkout", type=Path, default=ROOT, help="checkout to install")
    options.add_argument("--before", type=Path, help="older checkout, whose core is measured too")
    options.add_argument("--extras", nargs="*", default=EXTRAS, help="extras to install, each alone; an empty one is the core")
    options.add_argument("--out", type=Path, default=RESULTS / "install_size.json", help="JSON file for the result")
    arguments = options.parse_args()
    before = recorded(arguments.out).get("before")
    if arguments.before is not None:
        before = installations(arguments.before, [""])["core"]
    after = installations(arguments.checkout, arguments.extras)
    claims = []
    if "core" in after:
        core = after["core"]
        claims.append(claim("packages that the core installs, itself included", core["packages"], 3, above=False))
        claims.append(claim("times that the sampler's loop loads torch in the core", int(core["loop"]["torch_loaded"]), 0, above=False))
    if "serve" in after:
        trains = sum(after["serve"]["has"][name] for name in ("gymnasium", "stable-baselines3"))
        claims.append(claim("packages of balancer[serve] that only training needs", trains, 0, above=False))
    record({"before": before, "after": after, "claims": claims}, arguments.out)


if __name__ == "__main__":
    main()
