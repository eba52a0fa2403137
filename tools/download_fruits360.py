"""Download the Fruits-360 photos of the original project: `python tools/download_fruits360.py OUTPUT`.

Needs a network and git 2.35 or newer. Only the folders named below are fetched.

`OUTPUT/train/{apple,cherry,tomato}` is the original data set: the plain frames (`201_100.jpg`, not `r_201_100.jpg`)
from 201 onward of Apple Braeburn, Cherry 1 and Tomato 1. Their films have frames 0 to 327, which Fruits-360 spreads
over `Training` and `Test`, so both are read: 127 apples, 127 cherries and, as the original stops at 50, 50 tomatoes.

`OUTPUT/pretrain/{apple,banana,cherry,lychee,orange}` is every photo, rotations included, in `Training` of Apple Granny
Smith, Banana, Cherry 1, Lychee and Orange that is not in `train`. The cherry is the same fruit as in `train`: no photo
is in both, but some look alike. Of the original's pretraining only the five class names are known; the folders, the
green apple among them, are this script's choice.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

REPOSITORY = "https://github.com/Horea94/Fruit-Images-Dataset.git"
TRAIN = {"apple": "Apple Braeburn", "cherry": "Cherry 1", "tomato": "Tomato 1"}
TRAIN_FRAMES = {"Apple Braeburn": range(201, 328), "Cherry 1": range(201, 328), "Tomato 1": range(201, 251)}
PRETRAIN = {"apple": "Apple Granny Smith", "banana": "Banana", "cherry": "Cherry 1", "lychee": "Lychee"}
PRETRAIN |= {"orange": "Orange"}
SOURCES = {f"train/{name}": [f"Training/{fruit}", f"Test/{fruit}"] for name, fruit in TRAIN.items()}
SOURCES |= {f"pretrain/{name}": [f"Training/{fruit}"] for name, fruit in PRETRAIN.items()}
FOLDERS = sorted({folder for folders in SOURCES.values() for folder in folders})
CREDITS = """\
Citation: Horea Muresan, Mihai Oltean, "Fruit recognition from images using deep learning",
  Acta Univ. Sapientiae, Informatica Vol. 10, Issue 1, pp. 26-42, 2018.
Licence: MIT in the repository Horea94/Fruit-Images-Dataset; newer releases of Fruits-360 (github.com/fruits-360) are
  under CC BY-SA 4.0. Read the LICENSE of the repository you took the photos from before you share them"""


def run_git(*arguments: str) -> str:
    """Return what git prints; on failure exit with the line in which git names the cause."""
    # A git hook sets these three, and they would point our commands at the hook's own repository.
    inherited = {k: v for k, v in os.environ.items() if k not in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE")}
    # No prompt for credentials, in a terminal or a window; LC_ALL keeps "fatal:" in English.
    quiet = {"GIT_TERMINAL_PROMPT": "0", "GIT_ASKPASS": "", "GCM_INTERACTIVE": "never", "LC_ALL": "C"}
    environment = {"GIT_SSH_COMMAND": "ssh -oBatchMode=yes"} | inherited | quiet
    options = {"env": environment, "stdin": subprocess.DEVNULL, "encoding": "utf-8", "errors": "replace"}
    done = subprocess.run(["git", "-c", "core.autocrlf=false", *arguments], capture_output=True, **options)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        # After the cause git adds general advice, so the first fatal line says more than the last line.
        cause = next((line for line in lines if line.startswith(("fatal: ", "error: "))), lines[-1]).rstrip(".")
        sys.exit(f'Download failed, git says "{cause}": check the network and --repository, then run this again.')
    return done.stdout


def fetch_folders(repository: str, clone: Path) -> None:
    """Check out `FOLDERS` and LICENSE, and download nothing else; exit naming every folder that is missing."""
    # For a plain path git ignores --depth and --filter, for its URL it does not.
    url = Path(repository).resolve().as_uri() if Path(repository).is_dir() else repository
    run_git("clone", "--depth", "1", "--filter=blob:none", "--no-checkout", "--", url, str(clone))
    git = ("-C", str(clone))
    found = run_git(*git, "ls-tree", "-d", "-z", "--name-only", "HEAD", "--", *FOLDERS).split("\0")
    if missing := [folder for folder in FOLDERS if folder not in found]:
        sys.exit(f"{repository} has no {', '.join(missing)}: name a copy of Fruits-360 that does with --repository.")
    run_git(*git, "sparse-checkout", "set", "--no-cone", "/LICENSE", *(f"/{folder}/" for folder in FOLDERS))
    run_git(*git, "checkout")


def is_wanted(target: str, photo: Path) -> bool:
    """Tell whether a photo of the repository belongs in the folder `target`, such as `train/apple`."""
    match = re.fullmatch(r"(r\d*_)?(\d+)_100\.jpg", photo.name)
    in_train = bool(match) and not match[1] and int(match[2]) in TRAIN_FRAMES.get(photo.parent.name, ())
    return in_train if target.startswith("train/") else bool(match) and not in_train


def collect_photos(clone: Path, staging: Path) -> dict[str, int]:
    """Copy the wanted photos and LICENSE to `staging`; return photos per class, and exit if a class has none."""
    counts = {}
    for target, folders in SOURCES.items():
        photos = [photo for folder in folders for photo in (clone / folder).iterdir() if is_wanted(target, photo)]
        (staging / target).mkdir(parents=True)
        for photo in photos:
            shutil.copyfile(photo, staging / target / photo.name)
        counts[target] = len(photos)
    if empty := [target for target, count in counts.items() if count == 0]:
        sys.exit(f"The repository has no photo for {', '.join(empty)}: name a complete copy with --repository.")
    if (clone / "LICENSE").is_file():
        shutil.copyfile(clone / "LICENSE", staging / "LICENSE")
    return counts


def check_start(output: Path) -> None:
    """Exit if the download could not end well: something is in the way, or git or the parent folder is missing."""
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        sys.exit(f"{output} exists and is not an empty folder, so nothing was downloaded: name a new folder.")
    if not output.resolve().parent.is_dir():
        sys.exit(f"{output.parent} is not a folder, so {output} cannot be made in it: create it first.")
    if shutil.which("git") is None:
        sys.exit("git is not installed or not on PATH: install it from https://git-scm.com, then run this again.")


def download(repository: str, output: Path) -> dict[str, int]:
    """Fill `output` whole, or leave nothing behind; return photos per class."""
    place = output.resolve()
    # Beside the output, because os.replace cannot cross file systems.
    with tempfile.TemporaryDirectory(dir=place.parent, prefix=f".{place.name}-") as temporary:
        fetch_folders(repository, Path(temporary, "clone"))
        counts = collect_photos(Path(temporary, "clone"), Path(temporary, "staging"))
        if place.exists():
            place.rmdir()  # empty, as checked; Windows does not replace even an empty folder
        os.replace(Path(temporary, "staging"), place)
    return counts


def print_summary(output: Path, counts: dict[str, int]) -> None:
    """Print photos per class, beside the original's numbers, and the citation and licence."""
    original = {f"train/{name}": f" (the original has {len(TRAIN_FRAMES[fruit])})" for name, fruit in TRAIN.items()}
    for target, count in counts.items():
        print(f"{output / target}: {count} photos{original.get(target, '')}")
    print(CREDITS + (f"; a copy is {output / 'LICENSE'}." if (output / "LICENSE").is_file() else "."))


def main() -> None:
    """Read the command line and download."""
    parser = argparse.ArgumentParser(description="Download the Fruits-360 photos that the original project used.")
    parser.add_argument("output", type=Path, help="new folder for train/, pretrain/ and LICENSE")
    parser.add_argument("--repository", default=REPOSITORY, help="git URL or local path (default: %(default)s)")
    arguments = parser.parse_args()
    output = arguments.output
    sys.stdout.reconfigure(errors="backslashreplace")  # a console that cannot show the path is no reason to fail
    try:
        check_start(output)
        print(f"Downloading {len(FOLDERS)} folders of {arguments.repository} ...", flush=True)
        counts = download(arguments.repository, output)
    except OSError as error:
        sys.exit(f"Could not fill {output} ({error}), so nothing was kept: make room or name another folder.")
    except KeyboardInterrupt:
        sys.exit("Stopped, and nothing was kept: run this again to start over.")
    print_summary(output, counts)


if __name__ == "__main__":
    main()
