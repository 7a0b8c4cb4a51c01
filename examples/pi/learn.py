"""Learns from the samples that came since the last night. Stopped at any moment, it goes on there the next time.

    python learn.py FOLDER

FOLDER holds the program ``net.pock`` and, once there is one, the state ``net.ckpt``. New samples come to ``new/`` as
.npz files, with the network's inputs by name and ``y``; whoever writes them gives them their name when they are whole.
Learned ones move to ``learned/``, those that cannot be read to ``refused/``.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np

from pock_tvm import Program

RECIPE = ["--epochs", "3", "--lr", "0.005", "--checkpoint-every", "20", "--tolerate", "3"]


def gather(folder: Path) -> None:
    """Make ``tonight/`` of the new samples: ``samples.npz``, and the names of the files that are in it."""
    inputs = Program.load(folder / "net.pock").manifest["inputs"]
    parts: dict[str, dict[str, np.ndarray]] = {}
    for path in sorted((folder / "new").glob("[!.]*.npz")):
        try:
            with np.load(path) as file:
                arrays = {name: file[name] for name in [*(each["name"] for each in inputs), "y"]}
            if any(arrays[each["name"]].shape[1:] != tuple(each["shape"][1:]) for each in inputs):
                raise ValueError("its samples are of another shape")
            if len({len(array) for array in arrays.values()}) != 1:
                raise ValueError("its arrays differ in length")
        except Exception as error:  # whatever is in the file
            print(f"{path.name} is refused: {error}", flush=True)
            move(path, folder / "refused")
        else:
            parts[path.name] = arrays
    count, batch = sum(len(part["y"]) for part in parts.values()), inputs[0]["shape"][0]
    if count < batch:
        print(f"{count} new samples: fewer than a batch of {batch}. They wait", flush=True)
        sys.exit()
    made = folder / "tonight.part"
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir()
    names = list(next(iter(parts.values())))
    np.savez(made / "samples.npz", **{name: np.concatenate([part[name] for part in parts.values()]) for name in names})
    (made / "files.json").write_text(json.dumps(list(parts)))
    made.rename(folder / "tonight")


def train(folder: Path) -> None:
    """Train on tonight's samples, from the last state on; or go on where that was stopped."""
    last, state = folder / "net.ckpt", folder / "tonight" / "net.ckpt"
    origin = ["--resume"] if state.exists() else ["--start", str(last)] if last.exists() else []
    pock = Path(sys.executable).with_name("pock")
    data = ["--data", str(folder / "tonight" / "samples.npz"), "--checkpoint", str(state)]
    done = subprocess.run([pock, "train", folder / "net.pock", *data, *RECIPE, *origin], check=False)
    if done.returncode:
        sys.exit(done.returncode)
    (folder / "tonight").rename(folder / "done")


def finish(folder: Path) -> None:
    """Take over what was learned. A power cut in here is made good by the next call."""
    done = folder / "done"
    for name in json.loads((done / "files.json").read_text()):
        if (folder / "new" / name).exists():
            move(folder / "new" / name, folder / "learned")
    if (done / "net.ckpt").exists():
        (done / "net.ckpt").replace(folder / "net.ckpt")
    shutil.rmtree(done)


def move(path: Path, to: Path) -> None:
    """Move a file into a folder."""
    to.mkdir(exist_ok=True)
    path.rename(to / path.name)


def main() -> None:
    """Finish the last night, then learn from what is new."""
    folder = Path(sys.argv[1])
    if (folder / "done").exists():
        finish(folder)
    if not (folder / "tonight").exists():
        gather(folder)
    train(folder)
    finish(folder)


if __name__ == "__main__":
    main()
