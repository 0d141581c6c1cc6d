"""Run the scripts in examples/ and write the pages of the gallery: text, picture, code and output of each.

python docs/render_gallery.py                 # all of them
python docs/render_gallery.py torch_loop      # one of them, and the index
"""

from __future__ import annotations

import ast
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES, PAGES, PICTURES = ROOT / "examples", ROOT / "docs" / "gallery", ROOT / "docs" / "images" / "gallery"
SCRIPTS = {
    "fraud_detector.py": "Train, read the report, choose a threshold by cost, score later payments; beside LightGBM.",
    "torch_loop.py": "Beside plain shuffling and over-sampling to 1:1, with the same steps.",
    "sklearn_pipeline.py": "Two ways without a training loop, beside a plain forest and RandomOverSampler.",
    "lightgbm_policy.py": "Weights, calibration and threshold by AdaptiveClassifier; beside LightGBM as it is.",
    "lightning_trainer.py": "A mixin, a sampler and a callback, beside the plain module.",
    "hugging_face_trainer.py": "A small BERT and rare messages: Trainer and AdaptiveTrainer.",
    "keras_fit.py": "With every backend of Keras; beside plain fit and class_weight.",
    "long_tail.py": "24 classes, the rarest with 8 rows; beside logit adjustment, a strong rival.",
    "streaming.py": "Items come one by one; how many are read, drawn, and drawn again.",
    "own_part.py": "A class with two methods replaces the attention.",
    "new_stream.py": "From the network of one bank to that of another, with few rows.",
    "drift.py": "Which fields have changed, and whether training again pays.",
    "own_environment.py": "Any model as the student of the Gymnasium environment, and PPO of Stable-Baselines3.",
    "service.sh": "Train, serve, score with reasons, and send a label: by curl.",
}
"""The scripts with a page, in the order of the index, and what it says about each."""
INDEX = """# Gallery

Each page is a script that runs as it stands, in less than a minute on one processor core. It shows text, code, what
the script printed, and a picture where it draws one. Each compares with the plain way, and says where it is behind.

| | what it shows |
|---|---|
{rows}

Most figures are of one seed and small tables, so that the scripts are quick. They show how to use a thing; what it is
worth is [measured elsewhere](../results/index.md). Figures differ a little between processors.

One more script is longer: [medical_text.py](../../examples/medical_text.py) trains the network for transactions on
text, to find the chapter of a disease description, and compares it with TF-IDF. `docs/render_gallery.py` writes these
pages.
"""
ICON = """<svg xmlns="http://www.w3.org/2000/svg" width="160" height="90" viewBox="0 0 160 90">
<rect width="160" height="90" rx="6" fill="#263238"/>
<path d="M22 26l16 14-16 14M48 58h24" fill="none" stroke="#90caf9" stroke-width="5" stroke-linecap="round"/>
</svg>
"""
"""What the index shows for a script without a picture: a prompt."""


class Example(NamedTuple):
    """A script, split into what a page shows."""

    script: str
    """Name of the file."""
    title: str
    text: str
    """What the script says about itself, below the title."""
    code: str

    @property
    def name(self) -> str:
        """Name of the page and of the picture."""
        return Path(self.script).stem

    @property
    def picture(self) -> Path:
        """Where the picture is, if the script draws one."""
        return PICTURES / f"{self.name}.svg"

    @property
    def draws(self) -> bool:
        """Whether the script writes a picture of its name."""
        return f'"{self.name}.svg"' in self.code


def read(script: str) -> Example:
    """Split a script into title, text and code.

    Args:
        script: Name of a file in examples/, in Python with a docstring or in shell with a comment at the top.
    """
    source = (EXAMPLES / script).read_text(encoding="utf-8")
    if script.endswith(".py"):
        text = ast.get_docstring(ast.parse(source)) or ""
        code = source.split('"""', 2)[2]
    else:
        lines = source.splitlines()[1:]
        end = next(number for number, line in enumerate(lines) if not line.startswith("#"))
        text = "\n".join(line.removeprefix("#").removeprefix(" ") for line in lines[:end])
        code = "\n".join(lines[end:])
    title, _, rest = text.partition("\n")
    return Example(script, title.removesuffix("."), rest.strip(), code.strip())


def page(example: Example, output: str) -> str:
    """The page of an example.

    Args:
        example: The script.
        output: What it printed.
    """
    language = "python" if example.script.endswith(".py") else "sh"
    picture = f"![{example.title}](../images/gallery/{example.picture.name})\n\n" if example.draws else ""
    return (
        f"# {example.title}\n\n{example.text}\n\n{picture}"
        f"## Output\n\n```text\n{output.strip()}\n```\n\n"
        f"## Code\n\n[{example.script}](../../examples/{example.script})\n\n```{language}\n{example.code}\n```\n"
    )


def printed(text: str) -> str:
    """What a script had printed when its page was written; the opposite of :func:`page`."""
    return text.split("## Output\n\n```text\n", 1)[1].split("\n```\n", 1)[0]


def index() -> str:
    """The page with all examples."""
    rows = []
    for script, summary in SCRIPTS.items():
        example = read(script)
        picture, link = example.picture.name if example.draws else "prompt.svg", f"{example.name}.md"
        rows.append(f"| [![{example.title}](../images/gallery/{picture})]({link}) | **[{example.title}]({link})**<br>{summary} |")
    return INDEX.format(rows="\n".join(rows))


def run(script: str, folder: Path) -> str:
    """Run a script in a folder, where its picture is left; returns what it printed."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    tools = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "KERAS_BACKEND": "torch", "PORT": str(port), "PATH": tools, "TMPDIR": str(folder)}
    command = [sys.executable, "-W", "ignore"] if script.endswith(".py") else ["sh"]
    done = subprocess.run([*command, str(EXAMPLES / script)], cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{script} ended with exit code {done.returncode}:\n{done.stderr}")
    return done.stdout


def main(names: list[str]) -> None:
    """Write the pages of the named scripts, or of all, and the index.

    Args:
        names: Names without their ending, or ``--text``.
    """
    PAGES.mkdir(exist_ok=True)
    PICTURES.mkdir(parents=True, exist_ok=True)
    for script in SCRIPTS:
        example = read(script)
        file = PAGES / f"{example.name}.md"
        if names == ["--text"]:
            file.write_text(page(example, printed(file.read_text(encoding="utf-8"))), encoding="utf-8")
            continue
        if names and example.name not in names:
            continue
        with tempfile.TemporaryDirectory() as folder:
            output = run(script, Path(folder))
            if example.draws:
                shutil.copy(Path(folder) / example.picture.name, example.picture)
        file.write_text(page(example, output), encoding="utf-8")
        print(f"{example.name}: written", flush=True)
    (PICTURES / "prompt.svg").write_text(ICON, encoding="utf-8")
    (PAGES / "index.md").write_text(index(), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
