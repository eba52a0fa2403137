"""The Fruits-360 download, run as a user runs it, against a small local repository of the same layout."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

SCRIPT = Path(__file__).resolve().parent.parent / "tools" / "download_fruits360.py"
# Where each photo must arrive, or None where it must not.
PHOTOS = {
    "Training/Apple Braeburn/200_100.jpg": None,
    "Training/Apple Braeburn/201_100.jpg": "train/apple/201_100.jpg",
    "Training/Apple Braeburn/r_201_100.jpg": None,
    "Test/Apple Braeburn/327_100.jpg": "train/apple/327_100.jpg",
    "Training/Cherry 1/200_100.jpg": "pretrain/cherry/200_100.jpg",
    "Training/Cherry 1/201_100.jpg": "train/cherry/201_100.jpg",
    "Training/Cherry 1/r_201_100.jpg": "pretrain/cherry/r_201_100.jpg",
    "Test/Cherry 1/3_100.jpg": None,
    "Test/Cherry 1/321_100.jpg": "train/cherry/321_100.jpg",
    "Training/Tomato 1/250_100.jpg": "train/tomato/250_100.jpg",
    "Training/Tomato 1/251_100.jpg": None,
    "Training/Tomato 1/r2_230_100.jpg": None,
    "Test/Tomato 1/201_100.jpg": "train/tomato/201_100.jpg",
    "Training/Apple Granny Smith/201_100.jpg": "pretrain/apple/201_100.jpg",
    "Training/Banana/201_100.jpg": "pretrain/banana/201_100.jpg",
    "Test/Banana/3_100.jpg": None,
    "Training/Lychee/r_5_100.jpg": "pretrain/lychee/r_5_100.jpg",
    "Training/Orange/r2_7_100.jpg": "pretrain/orange/r2_7_100.jpg",
    "Training/Orange/Thumbs.db": None,
    "Training/Pineapple/201_100.jpg": None,
}


def git(repository: Path, *arguments: str) -> str:
    # GIT_DIR and its kin, set when a git hook runs the tests, would redirect these commands to the real repository.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    command = ["git", "-C", str(repository), "-c", "user.name=Test", "-c", "user.email=test@example.com", *arguments]
    return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout.strip()


def build_repository(root: Path, photos: list[str]) -> Path:
    for number, photo in enumerate(photos):
        (root / photo).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (12 * number, 90, 200)).save(root / photo, format="JPEG")
    (root / "LICENSE").write_bytes(b"MIT License\n")
    git(root, "init", "--quiet")
    git(root, "config", "uploadpack.allowFilter", "true")
    git(root, "-c", "core.autocrlf=false", "add", "--all")
    git(root, "-c", "commit.gpgsign=false", "commit", "--quiet", "--no-verify", "--message", "photos")
    return root


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return build_repository(tmp_path / "과일 dataset", list(PHOTOS))


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """An empty working directory, so that whatever a run leaves behind is seen."""
    (tmp_path / "work").mkdir()
    return tmp_path / "work"


def run_script(work: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    options = {"cwd": work, "env": os.environ | environment, "capture_output": True, "encoding": "utf-8"}
    return subprocess.run([sys.executable, "-X", "utf8", str(SCRIPT), *arguments], **options)


def read_files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_one_sentence(run: subprocess.CompletedProcess[str], *expected: str) -> None:
    assert run.returncode == 1
    assert len(run.stderr.splitlines()) == 1 and run.stderr.endswith(".\n")
    assert not [text for text in expected if text not in run.stderr], run.stderr


@pytest.mark.parametrize("as_url", [True, False], ids=["url", "path"])
def test_fetches_the_two_selections_and_nothing_else(repository: Path, work: Path, as_url: bool) -> None:
    expected = {target: (repository / photo).read_bytes() for photo, target in PHOTOS.items() if target}
    run = run_script(work, "fruits", "--repository", repository.as_uri() if as_url else str(repository))
    assert (run.returncode, run.stderr) == (0, "")
    assert read_files(work / "fruits") == expected | {"LICENSE": (repository / "LICENSE").read_bytes()}
    assert [path.name for path in work.iterdir()] == ["fruits"]
    assert f"{Path('fruits/train/tomato')}: 2 photos (the original has 50)" in run.stdout


def test_does_not_download_other_folders(repository: Path, work: Path) -> None:
    blob = git(repository, "rev-parse", "HEAD:Training/Pineapple/201_100.jpg")
    stored = repository / ".git" / "objects" / blob[:2] / blob[2:]
    stored.chmod(0o600)
    stored.unlink()  # git could not send this photo, so a run that asks for it fails
    run = run_script(work, "fruits", "--repository", repository.as_uri())
    assert (run.returncode, run.stderr) == (0, "")


def test_prints_citation_and_licence(repository: Path, work: Path) -> None:
    printed = " ".join(run_script(work, "fruits", "--repository", repository.as_uri()).stdout.split())
    assert "Horea Muresan, Mihai Oltean" in printed
    assert "Informatica Vol. 10, Issue 1, pp. 26-42, 2018" in printed
    assert "MIT" in printed and "CC BY-SA 4.0" in printed and str(Path("fruits/LICENSE")) in printed


def test_fills_an_existing_empty_folder(repository: Path, work: Path) -> None:
    (work / "fruits").mkdir()
    assert run_script(work, "fruits", "--repository", repository.as_uri()).returncode == 0
    assert (work / "fruits" / "train" / "apple" / "201_100.jpg").is_file()


def test_names_all_missing_folders(tmp_path: Path, work: Path) -> None:
    kept = [photo for photo in PHOTOS if not photo.startswith(("Training/Lychee/", "Test/Tomato 1/"))]
    repository = build_repository(tmp_path / "partial", kept)
    run = run_script(work, "fruits", "--repository", repository.as_uri())
    assert_one_sentence(run, "Training/Lychee", "Test/Tomato 1", "--repository")
    assert "Banana" not in run.stderr
    assert list(work.iterdir()) == []


def test_names_all_classes_without_photos(tmp_path: Path, work: Path) -> None:
    # The folders are there, but with frames that belong to neither selection.
    other = [photo.replace("201_100", "200_100").replace("327_100", "3_100") for photo in PHOTOS if "Apple Br" in photo]
    others = [photo for photo in PHOTOS if "Apple Br" not in photo and "Orange/r2" not in photo]
    repository = build_repository(tmp_path / "thin", other + others)
    run = run_script(work, "fruits", "--repository", repository.as_uri())
    assert_one_sentence(run, "train/apple", "pretrain/orange")
    assert list(work.iterdir()) == []


def test_says_why_the_repository_is_unreachable(tmp_path: Path, work: Path) -> None:
    run = run_script(work, "fruits", "--repository", (tmp_path / "nowhere").as_uri())
    assert_one_sentence(run, "fatal: ", "nowhere", "check the network")
    assert list(work.iterdir()) == []


def test_says_that_git_is_missing(repository: Path, work: Path) -> None:
    run = run_script(work, "fruits", "--repository", repository.as_uri(), PATH="")
    assert_one_sentence(run, "git is not installed")
    assert list(work.iterdir()) == []


def test_refuses_an_output_that_holds_files(repository: Path, work: Path) -> None:
    (work / "fruits").mkdir()
    (work / "fruits" / "notes.txt").write_text("mine", encoding="utf-8")
    run = run_script(work, "fruits", "--repository", repository.as_uri())
    assert_one_sentence(run, "fruits exists", "name a new folder")
    assert run.stdout == ""  # refused before any download
    assert read_files(work) == {"fruits/notes.txt": b"mine"}


def test_says_that_the_parent_folder_is_missing(repository: Path, work: Path) -> None:
    run = run_script(work, "absent/fruits", "--repository", repository.as_uri())
    assert_one_sentence(run, "absent", "create it first")
    assert list(work.iterdir()) == []
