"""Data as people have them: folders of classes, parted ones, a table of labels, and what is none of these."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import fill_folder, fingerprint, photo
from PIL import Image, ImageOps

from utils import split
from utils.config import InputError
from utils.eda.corrections import read_images
from utils.eda.duplicates import group_images
from utils.images import read_pictures, scan_folder
from utils.layout import list_images


def classes(folder: Path, **options) -> dict[str, set[tuple[str, str]]]:
    """The class and part of each image that is not refused, by name."""
    return {entry.path.name: (entry.label, entry.part) for entry in list_images(folder, **options) if not entry.reason}


@pytest.mark.parametrize(
    ("train", "valid", "test"),
    [
        ("train", "valid", "test"),
        ("Training", "validation", "Testing"),
        ("training_set", "val", "test_set"),
        ("seg_train", "seg_val", "seg_test"),
        ("train_set", "dev", "test-images"),
        ("TrainData", "images_val", "test1"),
        ("학습 train", "", "test"),
    ],
)
def test_parts_are_known_by_their_usual_names_and_may_lack_a_class(tmp_path, train, valid, test):
    fill_folder(tmp_path / train, {"cat": 3, "dog": 3, "cow": 2})
    fill_folder(tmp_path / test, {"cat": 2, "dog": 2})
    if valid:
        fill_folder(tmp_path / valid, {"dog": 2})
    found = pd.DataFrame(list_images(tmp_path))
    assert found.groupby(["part", "label"]).size().to_dict() == {
        ("train", "cat"): 3,
        ("train", "dog"): 3,
        ("train", "cow"): 2,
        ("test", "cat"): 2,
        ("test", "dog"): 2,
        **({("valid", "dog"): 2} if valid else {}),
    }


def test_archives_that_hold_a_part_twice_are_stepped_into(tmp_path):
    for part in ("seg_train", "seg_test"):
        fill_folder(tmp_path / part / part, {"cat": 3, "dog": 3})
    assert {entry.part for entry in list_images(tmp_path)} == {"train", "test"}
    assert {entry.label for entry in list_images(tmp_path)} == {"cat", "dog"}


def test_classes_may_be_called_as_parts_are(tmp_path):
    fill_folder(tmp_path, {"bus": 3, "train": 3})
    assert {entry.label for entry in list_images(tmp_path)} == {"bus", "train"}
    fill_folder(tmp_path / "train" / "day 1", {"a": 3})
    assert {entry.label for entry in list_images(tmp_path, "absent")} == {"bus", "train"}


def trees(folder: Path, *tree: str) -> Path:
    """Make folders, with three images where no slash ends the name, and nothing in them where one does."""
    for number, name in enumerate(tree):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for image in range(0 if name.endswith("/") else 3):
            photo(np.random.default_rng([number, image]), (200, 40, 40)).save(folder / name / f"{number}{image}.jpg")
    return folder


@pytest.mark.parametrize(
    ("tree", "sentence"),
    [
        (["train/cat", "train/dog", "test/cat", "cow"], "holds test, train, by the name parts.* beside them cow: move"),
        (["train/cat", "train/dog", "test"], r'beside them test: .*give one part, --data ".*train", or,.*SPLIT=absent'),
        (["train", "test"], "parts of a split .test, train. without class folders.*--labels FILE"),
        (["train/Cat", "train/dog", "test/cat", "test/dog"], "spells one class in two ways: 'Cat' and 'cat'"),
        (["north/cat", "north/dog", "south/cat", "south/dog"], "north, south hold folders of the same names, cat, dog"),
        (["dataset/cat", "dataset/dog"], 'found .*dataset.*If the classes, .* are in dataset, give --data ".*dataset"'),
        (["cat", "dog", "New folder/"], r"New folder has no readable image \(New folder holds nothing\): add some"),
        (["."], "has 0 class folders.*If it is a class, give --data .*; if a table has the classes, --labels"),
    ],
)
def test_folders_that_are_neither_classes_nor_parts_are_named_with_what_to_do(tmp_path, tree, sentence):
    with pytest.raises(InputError, match=sentence):
        list_images(trees(tmp_path / "data", *tree))


def test_a_folder_of_results_among_the_classes_is_named_with_what_it_holds(tmp_path):
    folder = trees(tmp_path, "cat", "dog", "results/")
    (folder / "results" / "scores.csv").write_text("a,b\n")
    with pytest.raises(InputError, match=r"results has no readable image \(results holds .csv\): .*move it elsewhere"):
        list_images(folder)


def test_folders_of_the_same_names_are_pooled_or_taken_for_classes_as_is_said(tmp_path):
    folder = trees(tmp_path, "north/cat", "north/dog", "south/cat", "south/dog")
    assert set(classes(folder, split="ours").values()) == {("cat", ""), ("dog", "")}
    assert set(classes(folder, split="absent").values()) == {("north", ""), ("south", "")}


def test_masks_in_folders_of_their_own_and_images_of_no_class_are_refused(tmp_path):
    folder = trees(tmp_path, "cat/images", "cat/masks", "dog/images", "dog/masks", ".")
    good, refused = scan_folder(folder)
    assert good["path"].str.contains("/images/").all() and len(good) == 6
    assert refused["reason"].value_counts().to_dict() == {
        "a mask, by its folder's name; SPLIT=absent takes it for a photo": 6,
        "it lies in no class folder": 3,
    }


LAYOUTS = {"cat": 9, "dog": 8}


@pytest.fixture
def photos(tmp_path) -> dict[str, Path]:
    """The same photos in class folders, parted, and beside each other; and a table of their classes."""
    source = fill_folder(tmp_path / "source", LAYOUTS)
    for number, path in enumerate(sorted(source.rglob("*.jpg"))):
        name = f"{path.parent.name}_{path.name}"
        part = "test" if number % 4 == 0 else "train"
        for target in (f"folders/{path.parent.name}", f"parted/{part}/{path.parent.name}", "table/deep"):
            (tmp_path / target).mkdir(parents=True, exist_ok=True)
            (tmp_path / target / name).write_bytes(path.read_bytes())
    return {name: tmp_path / name for name in ("folders", "parted", "table")}


def write_table(folder: Path, form: str, delimiter: str = ",") -> Path:
    """List a folder's images with their classes."""
    path = folder.parent / "labels.csv"
    rows = [(form.format(name=path.name, stem=path.stem), path.name[:3]) for path in sorted(folder.rglob("*.jpg"))]
    pd.DataFrame(rows, columns=["image_id", "species"]).assign(width=60)[::-1].to_csv(path, sep=delimiter, index=False)
    return path


def test_three_layouts_of_one_data_set_are_split_alike(photos, tmp_path):
    tables = {}
    for name, folder in photos.items():
        labels = str(write_table(folder, "{stem}")) if name == "table" else None
        (tmp_path / f"run {name}").mkdir()
        before = fingerprint(folder)
        index, refused, _ = read_images(folder, tmp_path / f"run {name}", "ours", labels)
        index["group"] = group_images(folder, index, read_pictures(folder, index), "", tmp_path / "cache").names
        index["split"] = split.make_split(index, "ours")
        split.save_index(tmp_path / f"run {name}" / "split.csv", index, refused)
        loaded = split.load_index(tmp_path / f"run {name}" / "split.csv", folder)
        tables[name] = loaded.assign(name=loaded["path"].map(lambda path: Path(path).name))
        assert refused.empty and fingerprint(folder) == before
    for name in ("parted", "table"):
        for column in ("name", "class", "split", "group"):
            assert tables[name][column].equals(tables["folders"][column]), (name, column)


@pytest.mark.parametrize(
    "form", ["{name}", "{stem}", "deep/{name}", "deep/{stem}", "table\\deep\\{name}", "./deep/{name}"]
)
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_table_names_files_as_people_write_them(photos, tmp_path, form, delimiter):
    folder = photos["table"]
    index, refused, _ = read_images(folder, tmp_path, labels=str(write_table(folder, form, delimiter)))
    assert index["class"].value_counts().to_dict() == LAYOUTS and refused.empty
    assert (index["path"].map(lambda path: Path(path).name[:3]) == index["class"]).all()


def test_what_a_table_lacks_is_counted_and_named(photos, tmp_path):
    folder = photos["table"]
    table = pd.read_csv(write_table(folder, "{name}"), dtype=str)[["image_id", "species"]]
    table.loc[table["image_id"] == "cat_000.jpg", "species"] = ""
    table = table[table["image_id"] != "cat_001.jpg"]
    rows = [*table.values.tolist(), ["gone.jpg", "cat"], ["cat_002.jpg", "dog"]]
    pd.DataFrame(rows, columns=table.columns).to_csv(tmp_path / "labels.csv", index=False)
    (tmp_path / "run").mkdir()
    index, refused, section = read_images(folder, tmp_path / "run", labels=str(tmp_path / "labels.csv"))
    assert index["class"].value_counts().to_dict() == {"cat": 6, "dog": 8}
    assert {Path(row["path"]).name: row["reason"] for row in section["refused"]} == {
        "cat_000.jpg": "labels.csv gives it no class",
        "cat_001.jpg": "labels.csv does not list it",
        "cat_002.jpg": "labels.csv gives it cat and dog",
        "gone.jpg": "labels.csv lists it, but it is not there",
    }
    index["group"], index["split"] = index["path"], "train"
    split.save_index(tmp_path / "split.csv", index, refused)
    assert len(split.load_index(tmp_path / "split.csv", folder)) == 14
    Image.new("RGB", (9, 9)).save(folder / "gone.jpg")
    with pytest.raises(InputError, match=r"changed: gone.jpg.*run EDA.ipynb again"):
        split.load_index(tmp_path / "split.csv", folder)


@pytest.mark.parametrize(
    ("table", "columns", "sentence"),
    [
        (
            "file,width,height\ncat_000.jpg,1,2\n",
            None,
            "which of its columns .file, width, height. hold file and class",
        ),
        ("file,label,class\ncat_000.jpg,1,a\n", None, "which of its columns.*Say it, as -p LABEL_COLUMNS=file,label"),
        ("file,label\nnowhere.jpg,a\n", None, "None of them names an image of the data folder"),
        (
            "file,label\ncat_000.jpg,a\n",
            "file,kind",
            "LABEL_COLUMNS 'file,kind': .*labels.csv has the columns file, label",
        ),
        ("file,label\ncat_000.jpg,a\n", None, "label names a: it takes two"),
        ("file,label\ncat_000.jpg,Cat\ncat_001.jpg,cat\n", None, "spells one class in two ways: 'Cat' and 'cat'"),
        ("file\ncat_000.jpg\n", None, "which of its columns"),
        ("", None, "which of its columns"),
        (None, None, "labels.csv cannot be read: No such file"),
    ],
)
def test_table_that_cannot_be_read_so_is_explained(photos, tmp_path, table, columns, sentence):
    if table is not None:
        (tmp_path / "labels.csv").write_text(table)
    with pytest.raises(InputError, match=sentence):
        read_images(photos["table"], tmp_path, labels=str(tmp_path / "labels.csv"), columns=columns)


def test_columns_can_be_named(photos, tmp_path):
    names = [path.name for path in sorted(photos["table"].rglob("*.jpg"))]
    table = pd.DataFrame({"label": names, "file": [name[:3] for name in names], "class": "x"})
    table.to_csv(tmp_path / "labels.csv", index=False)
    index, *_ = read_images(photos["table"], tmp_path, labels=str(tmp_path / "labels.csv"), columns="label, file")
    assert set(index["class"]) == {"cat", "dog"}


def test_a_name_in_two_folders_is_no_name(photos, tmp_path):
    folder = trees(photos["table"], "a", "b")
    for other in ("a", "b"):
        Image.new("RGB", (9, 9)).save(folder / other / "both.jpg")
    (tmp_path / "labels.csv").write_text("file,label\nboth.jpg,x\ncat_000.jpg,y\n")
    with pytest.raises(InputError, match=r"both.jpg may be a/both.jpg or b/both.jpg: write their paths"):
        read_images(folder, tmp_path, labels=str(tmp_path / "labels.csv"))


@pytest.fixture
def parted(tmp_path) -> Path:
    """A split that parts copies: three of the six test images of each class are in train, too, altered."""
    folder = tmp_path / "parted"
    generator = np.random.default_rng(0)
    for label in ("cat", "dog"):
        for part, count in (("train", 12), ("valid", 4), ("test", 6)):
            (folder / part / label).mkdir(parents=True)
            for number in range(count):
                soft(generator).save(folder / part / label / f"{part}{number}.png")
        for number, alter in enumerate(
            [ImageOps.mirror, lambda image: image.crop((6, 6, 90, 90)), lambda image: image]
        ):
            with Image.open(folder / "test" / label / f"test{number}.png") as image:
                alter(image).save(folder / "train" / label / f"copy{number}.jpg", quality=60)
    return folder


def soft(generator: np.random.Generator) -> Image.Image:
    """Draw soft random colors, like no other picture's."""
    colors = generator.integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return Image.fromarray(colors).resize((96, 96), Image.Resampling.BICUBIC)


def test_given_test_part_stays_and_its_near_copies_are_left_out_and_named(parted, tmp_path):
    index, refused = scan_folder(parted)
    index["group"] = group_images(parted, index, read_pictures(parted, index), "", tmp_path / "cache").names
    index["split"] = split.make_split(index)
    assert (index["split"] == "test").equals(index["part"] == "test")
    left_out, copies = index["split"] == split.REFUSED, index["path"].str.contains("copy")
    assert left_out[copies].all() and left_out.sum() <= len(copies[copies]) + 1, "one more may look alike"
    assert set(index.loc[index["part"] == "valid", "split"]) <= {"train", "valid"}
    given = (report := split.summary(index))["given_split"]
    assert given["parts"] == {"train": 30, "test": 12, "valid": 8}
    assert given["left_out"] == left_out.sum() and given["near_duplicates"] >= 6 and report["leaks"] == 0
    assert "near-duplicate pairs, this one 0" in given["note"] and "train/cat/copy0.jpg" in given["note"]
    assert re.search(r"[67] images of train are near-copies of [67] of test: left out", given["note"])
    assert report["images"] == 50 - left_out.sum() == sum(report["classes"].values())
    split.save_index(tmp_path / "split.csv", index, refused)
    assert not split.load_index(tmp_path / "split.csv", parted)["path"].str.contains("copy").any()
    index["split"] = split.make_split(index, "ours")
    ours = split.summary(index)
    assert ours["images"] == 50 and ours["leaks"] == 0 and ours["given_split"]["left_out"] == 0


def table(**groups: str) -> pd.DataFrame:
    """Images of a class each, given by group and part, as in a=\"1:train 1:test\"."""
    rows = [(label, *image.split(":")) for label, images in groups.items() for image in images.split()]
    index = pd.DataFrame(rows, columns=["class", "group", "part"])
    index["group"] = index["class"] + index["group"]
    return index.assign(path=[f"{row}.jpg" for row in range(len(index))])


MANY = " ".join(f"{number}:train" for number in range(9)) + " 10:test"


def test_class_of_which_nothing_would_remain_is_named_unless_it_is_one_series():
    copies = " ".join(f"{number}:train {number}:test" for number in range(4))
    with pytest.raises(InputError, match=r"b: fewer than 3 images remain.*near-copies.*SPLIT=ours"):
        split.make_split(table(a=MANY, b=copies))
    with pytest.raises(InputError, match=r"b: fewer than 3 images remain"):
        split.make_split(table(a=MANY, b="1:test 2:test 3:test 4:test"))
    index = table(a=MANY, b="1:train " * 8 + "1:test " * 3)
    index["split"] = split.make_split(index)
    assert split.summary(index)["series"] == ["b"] and set(index["split"]) == {"train", "valid", "test"}
    assert (index["split"] == "test").equals(index["part"] == "test")


def test_without_a_test_part_all_is_pooled_and_a_class_that_it_lacks_is_named():
    index = table(a=MANY.replace("test", "valid"), b=MANY.replace("test", "valid"))
    assert set(split.make_split(index)) == {"train", "valid", "test"}
    with pytest.raises(InputError, match="SPLIT is 'given', but the data folder has no part that is called test"):
        split.make_split(index, "given")
    index = table(a=MANY, b=MANY.replace("test", "train"))
    index["split"] = split.make_split(index)
    assert "The test part has no image of b" in split.summary(index)["given_split"]["note"]


def test_names_of_one_object_are_one_group_in_all_parts(tmp_path):
    index = pd.DataFrame({"path": ["train/a/mug_1.jpg", "test/a/mug_2.jpg", "train/b/mug_3.jpg"], "class": list("aab")})
    assert split.name_groups(index, "mug").tolist()[:2] == ["a/mug"] * 2
    assert split.name_groups(index, "mug").nunique() == 2
