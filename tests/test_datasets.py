"""Table → split → Dataset → loader: nothing leaks, nothing shifts, and only the minority is augmented."""

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT, fill_folder
from torchvision.transforms import InterpolationMode, v2

from utils.config import InputError
from utils.datasets import Augmentation, ImageDataset, evaluation_transform, make_loader
from utils.images import read_image, scan_folder
from utils.split import count_leaks, load_index, minority_classes, name_groups, save_index, split_index

PREPROCESSING = {"image_size": 32, "interpolation": "bilinear", "mean": [0.5] * 3, "std": [0.25] * 3}
PARTS = ["train", "valid", "test"]


def table(counts: dict[str, int], images_per_group: int = 1) -> pd.DataFrame:
    rows = [
        (f"{name}/{number}.jpg", name, f"{name}{number // images_per_group}")
        for name, count in counts.items()
        for number in range(count)
    ]
    return pd.DataFrame(rows, columns=["path", "class", "group"])


def test_each_class_is_split_70_15_15():
    index = table({"apple": 127, "cherry": 127, "tomato": 50})
    shares = pd.crosstab(index["class"], split_index(index), normalize="index")[PARTS]
    assert np.abs(shares - [0.70, 0.15, 0.15]).max(axis=None) <= 0.02
    assert minority_classes(index["class"]) == ["tomato"]


def test_groups_stay_whole():
    index = table({"apple": 90, "tomato": 36}, images_per_group=4)
    split = split_index(index)
    assert (split.groupby(index["group"]).nunique() == 1).all()
    assert count_leaks(index["group"], split) == 0
    assert (
        np.abs(pd.crosstab(index["class"], split, normalize="index")[PARTS] - [0.70, 0.15, 0.15]).max(axis=None) < 0.1
    )


@pytest.mark.parametrize("seed", range(4))
def test_group_with_most_images_is_trained_on(seed):
    groups = ["a/one", "a/two", *["a/many"] * 100, *(f"b/{number}" for number in range(30))]
    paths = [f"{group[0]}/{number:03d}.jpg" for number, group in enumerate(groups)]
    index = pd.DataFrame({"path": paths, "class": [path[0] for path in paths], "group": groups})
    assert set(split_index(index, seed)[index["group"] == "a/many"]) == {"train"}


@pytest.mark.parametrize(("pattern", "groups"), [("", 3), (r"\d*", 3), (r"[a-z]+", 2), (r"[a-z]+_\d", 3)])
def test_names_that_begin_alike_are_a_group(pattern, groups):
    index = pd.DataFrame({"path": ["x/cup_1.jpg", "x/cup_2.jpg", "x/jug_1.jpg"], "class": "x"})
    assert name_groups(index, pattern).nunique() == groups


def test_pattern_that_is_none_is_named():
    with pytest.raises(InputError, match="GROUPS '\\(' is no regular expression"):
        name_groups(pd.DataFrame({"path": ["x/cup_1.jpg"], "class": "x"}), "(")


def test_leaks_are_pairs_of_one_group_in_two_parts():
    groups, split = pd.Series(list("aaabb")), pd.Series(["train", "train", "test", "valid", "valid"])
    assert count_leaks(groups, split) == 2


@pytest.mark.parametrize("count", [3, 4, 5, 7])
@pytest.mark.parametrize("images_per_group", [1, 4])
def test_small_class_is_in_every_part(count, images_per_group):
    for seed in range(5):
        index = table({"apple": 20, "plum": count}, images_per_group)
        split = split_index(index, seed)
        assert set(split[index["class"] == "plum"]) == set(PARTS)


def test_class_of_two_images_is_named():
    with pytest.raises(InputError, match=r"too few in plum \(2\): add images or remove the folder"):
        split_index(table({"apple": 20, "plum": 2}))


def test_the_seed_decides_the_split():
    index = table({"apple": 40, "tomato": 20})
    assert split_index(index, 1).equals(split_index(index, 1))
    assert not split_index(index, 1).equals(split_index(index, 2))


@pytest.fixture
def written(tmp_path):
    """A data folder and its manifest; the classes look like numbers, as those of digits do."""
    folder = fill_folder(tmp_path / "내 사진", {"01": 4, "2": 4})
    (folder / "2" / "bad.jpg").write_bytes(b"")
    index, refused = scan_folder(folder)
    index["group"] = index["path"]
    index["split"] = split_index(index)
    save_index(tmp_path / "split.csv", index, refused)
    return tmp_path / "split.csv", folder, index


def test_manifest_comes_back_as_it_was_written(written):
    path, folder, index = written
    columns = ["path", "class", "group", "sha256", "split"]
    assert load_index(path, folder)[columns].to_dict("list") == index[columns].to_dict("list")


def test_changed_folder_is_refused_and_every_file_named(written):
    path, folder, _ = written
    (folder / "2" / "000.jpg").unlink()
    (folder / "2" / "extra.jpg").write_bytes(b"more")
    (folder / "01" / "001.jpg").write_bytes((folder / "01" / "002.jpg").read_bytes())
    with pytest.raises(
        InputError, match="missing: 2/000.jpg; new: 2/extra.jpg; changed: 01/001.jpg.*run EDA.ipynb again"
    ):
        load_index(path, folder)


@pytest.mark.parametrize("content", ["", "path\n", "a,b\n1,2\n"])
def test_damaged_manifest_is_refused_in_a_sentence(written, content):
    path, folder, _ = written
    path.write_text(content)
    with pytest.raises(InputError, match="split.csv.*run EDA.ipynb"):
        load_index(path, folder)


@pytest.fixture
def image_set(tmp_path):
    folder = fill_folder(tmp_path / "data", {"apple": 7, "tomato": 4})
    index, _ = scan_folder(folder)
    basic = evaluation_transform(PREPROCESSING)
    augmented = v2.Compose([v2.RandomRotation(30), v2.ColorJitter(0.3), basic])

    def make(training: bool, seed: int = 0) -> ImageDataset:
        augmentation = Augmentation(augmented, ["tomato"] if training else [], seed)
        return ImageDataset(folder, index, ["apple", "tomato"], basic, augmentation)

    return make


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [64, 100, 224])
def test_images_are_prepared_as_torchvision_would_to_the_bit(interpolation, size):
    preprocessing = PREPROCESSING | {"image_size": size, "interpolation": interpolation}
    preprocessing.update(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])
    theirs = v2.Compose(
        [
            v2.Resize((size, size), interpolation=InterpolationMode(interpolation)),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(preprocessing["mean"], preprocessing["std"]),
        ]
    )
    for path in sorted((ROOT / "data" / "train").glob("*/*.jpg"))[::60]:
        image = read_image(path)
        ours, expected = evaluation_transform(preprocessing)(image), theirs(image)
        assert torch.equal(ours, expected) and ours.stride() == expected.stride() and ours.dtype == expected.dtype


def epoch_of(dataset: ImageDataset, epoch: int) -> torch.Tensor:
    return dataset.in_epoch(epoch).stack()


def test_only_the_minority_and_only_in_training_is_augmented(image_set):
    plain, training = image_set(training=False), image_set(training=True)
    tomato = torch.tensor(training.labels) == 1
    first, second = epoch_of(training, 1), epoch_of(training, 2)
    assert torch.equal(epoch_of(plain, 1), epoch_of(plain, 2))
    assert torch.equal(first[~tomato], epoch_of(plain, 1)[~tomato])
    assert torch.equal(first[~tomato], second[~tomato])
    assert all(not torch.equal(*pair) for pair in zip(first[tomato], second[tomato], strict=True))
    assert all(not torch.equal(*pair) for pair in zip(first[tomato], epoch_of(plain, 1)[tomato], strict=True))


def test_augmentation_follows_seed_and_epoch_alone(image_set):
    first = epoch_of(image_set(training=True), 3)
    torch.rand(5)  # whatever else the notebook drew
    assert torch.equal(first, epoch_of(image_set(training=True), 3))
    assert not torch.equal(first, epoch_of(image_set(training=True, seed=1), 3))
    state = torch.get_rng_state()
    epoch_of(image_set(training=True), 4)
    assert torch.equal(state, torch.get_rng_state()), "augmenting moved the notebook's own random numbers"


def test_an_epoch_is_shuffled_and_a_last_batch_of_one_is_dropped(image_set):
    (images, labels), last = make_loader(image_set(training=True), batch_size=5, epoch=2)
    assert len(labels) == len(last[1]) == 5  # of 11
    other_images, other_labels = next(iter(make_loader(image_set(training=True), batch_size=5, epoch=3)))
    assert not torch.equal(other_labels, labels) or not torch.equal(other_images, images)
    assert sum(len(labels) for _, labels in make_loader(image_set(training=False), batch_size=5)) == 11


def test_frames_of_one_series_are_cut_in_a_row_with_a_gap():
    paths = [f"film/{frame}.jpg" for frame in range(100)]
    index = pd.DataFrame({"path": sorted(paths), "class": "film", "group": "film"})
    split = split_index(index, seed=3)
    parts = [dict(zip(index["path"], split, strict=True))[path] for path in paths]
    assert [parts.count(part) for part in ("train", "valid", "test")] == [70, 15, 15]
    around = list(zip(parts, parts[1:] + parts[:1], strict=True))  # the last frame of a turntable resembles its first
    assert ("train", "test") not in around and ("test", "train") not in around
    assert sum(first != second for first, second in around) == 4


def test_images_in_memory_are_those_that_would_be_read_and_no_more_than_allowed(tmp_path, monkeypatch):
    data = fill_folder(tmp_path, {"apple": 4, "tomato": 4})
    index, transform = scan_folder(data)[0], evaluation_transform(PREPROCESSING)
    augmentation = Augmentation(v2.Compose([v2.RandomHorizontalFlip(), transform]), ["tomato"])
    kept = {}
    for _ in range(2):  # read, then taken from memory
        for epoch in (1, 2):
            plain = ImageDataset(data, index, ["apple", "tomato"], transform, augmentation).in_epoch(epoch)
            quick = ImageDataset(data, index, ["apple", "tomato"], transform, augmentation, kept).in_epoch(epoch)
            assert all(torch.equal(one[0], other[0]) for one, other in zip(plain, quick, strict=True))
    assert len(kept) == 4 + 2 * 4, "apples are the same in every epoch, tomatoes are not"
    monkeypatch.setattr("utils.datasets.PREPARED_BYTES", 3 * plain[0][0].nbytes)
    few = {}
    assert len(ImageDataset(data, index, ["apple", "tomato"], transform, prepared=few).stack()) == 8 and len(few) == 3
