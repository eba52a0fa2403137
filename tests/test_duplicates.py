"""Near-copies get one group, distinct objects do not."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageDraw, ImageEnhance, ImageOps

from bench.copies import pair_scores
from utils.config import EMBEDDED
from utils.eda import duplicates
from utils.eda.duplicates import describe_colors, describe_features, group_by_looks, group_images, join_groups
from utils.images import read_pictures, scan_folder
from utils.split import count_leaks, group_pattern, name_groups, split_index

OBJECTS, COPIES = 12, 3
# the threshold is near the likest pair across classes: about one pair of strangers in a class exceeds it by chance
APART = 0.75


def draw(generator: np.random.Generator) -> Image.Image:
    """An object like no other: a smooth random picture."""
    colors = generator.integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(colors).resize((96, 96), Image.Resampling.BICUBIC)


def near_copy(image: Image.Image, generator: np.random.Generator) -> Image.Image:
    """The same object a moment later: shifted, in other light, with the noise of a sensor."""
    left, top = generator.integers(0, 4, 2)
    image = ImageEnhance.Brightness(image.crop((left, top, left + 92, top + 92))).enhance(generator.uniform(0.85, 1.1))
    noisy = np.asarray(image) + generator.normal(0, 8, (92, 92, 3))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Two classes of a dozen objects; each object was taken three times."""
    folder, generator = tmp_path_factory.mktemp("내 사진"), np.random.default_rng(0)
    for name in ("사과", "cherry pie"):
        (folder / name).mkdir()
        for number in range(OBJECTS):
            image = draw(generator)
            for copy in range(COPIES):
                near_copy(image, generator).save(folder / name / f"{number:02d}_{copy}.jpg", quality=85)
    index, _ = scan_folder(folder)
    return index.assign(object=index["path"].str.rsplit("_", n=1).str[0]), read_pictures(folder, index)


def by_colors(index: pd.DataFrame, pictures: np.ndarray) -> pd.Series:
    return group_by_looks(index, [describe_colors(pictures, index["class"].to_numpy())])


def test_near_copies_get_one_group(photos):
    index, pictures = photos
    assert (by_colors(index, pictures).groupby(index["object"]).nunique() == 1).all()


def test_distinct_objects_and_classes_stay_apart(photos):
    index, pictures = photos
    groups = by_colors(index, pictures)
    assert groups.nunique() >= APART * index["object"].nunique()
    assert (index["class"].groupby(groups).nunique() == 1).all()


def test_without_copies_nearly_every_image_is_alone(photos):
    index, pictures = photos
    first = index["path"].str.endswith("_0.jpg")
    alone = index[first].reset_index(drop=True)
    assert by_colors(alone, pictures[first]).nunique() >= APART * len(alone)


def test_the_order_of_the_table_does_not_matter(photos):
    index, pictures = photos
    shuffled = index.sample(frac=1, random_state=1)
    groups = by_colors(index, pictures)
    same = by_colors(shuffled, pictures[shuffled.index]).reindex(index.index)
    assert len(set(zip(groups, same, strict=True))) == groups.nunique() == same.nunique()


def test_images_that_are_compared_in_batches_give_the_same_groups(photos, monkeypatch):
    at_once = by_colors(*photos)
    monkeypatch.setattr(duplicates, "BATCH_SIZE", 7)
    assert by_colors(*photos).equals(at_once)


def test_a_group_is_named_by_its_first_image(photos):
    index, pictures = photos
    groups = by_colors(index, pictures)
    assert (groups.groupby(groups).apply(lambda group: index["path"][group.index[0]]) == sorted(set(groups))).all()
    assert set(groups) <= set(index["path"])


def test_plain_pictures_are_no_reason_to_stop(tmp_path):
    for name in ("black", "white"):
        (tmp_path / name).mkdir()
        for number in range(3):
            Image.new("RGB", (20, 20), name).save(tmp_path / name / f"{number}.png")
    index, _ = scan_folder(tmp_path)
    groups = by_colors(index, read_pictures(tmp_path, index))
    assert list(groups) == [f"{name}/0.png" for name in ("black", "white") for _ in range(3)]


def test_exact_copies_are_one_group_across_classes_and_formats(tmp_path):
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
    picture = draw(np.random.default_rng(1))
    picture.save(tmp_path / "a" / "one.png")
    picture.save(tmp_path / "b" / "other name.bmp")  # other bytes, same pixels
    for number in range(6):
        draw(np.random.default_rng(2 + number)).save(tmp_path / "abc"[number % 3] / f"{number}.png")
    index, _ = scan_folder(tmp_path)
    groups = join_groups(index, index["path"]).groupby(index["path"]).first()
    assert groups["a/one.png"] == groups["b/other name.bmp"]
    assert groups.nunique() == len(index) - 1


def test_pair_scores_count_pairs():
    truth = pd.Series(["x", "x", "x", "y"])
    assert pair_scores(pd.Series([1, 1, 2, 3]), truth) == (1.0, 1 / 3)
    assert pair_scores(pd.Series([1, 1, 1, 1]), truth) == (0.5, 1.0)


def scene(generator: np.random.Generator) -> Image.Image:
    """Shapes on a plain ground: unlike soft colors, something that a network of photos can tell apart."""
    image = Image.new("RGB", (128, 128), tuple(generator.integers(0, 256, 3).tolist()))
    pen = ImageDraw.Draw(image)
    for _ in range(6):
        color, sides = tuple(generator.integers(0, 256, 3).tolist()), int(generator.integers(3, 9))
        (left, top), (width, height) = generator.integers(0, 100, 2).tolist(), generator.integers(10, 80, 2).tolist()
        pen.ellipse((left, top, left + width, top + height), fill=color)
        pen.regular_polygon((top, left, 10 + height / 3), sides, fill=color[::-1])
    return image


@pytest.fixture(scope="module")
def altered(tmp_path_factory):
    """Ten objects in each of two classes, and a twin of each: mirrored and brighter, under a random name.

    One more twin, compressed, has the other class's label.
    """
    folder, generator = tmp_path_factory.mktemp("증강"), np.random.default_rng(0)
    objects = {}
    for name in ("사과", "cherry"):
        (folder / name).mkdir()
        for number in range(10):
            image = scene(generator)
            twin = ImageEnhance.Brightness(ImageOps.mirror(image)).enhance(1.1)
            for file, picture in ((f"{number}.jpg", image), (f"{generator.integers(2**40):x}.jpg", twin)):
                picture.save(folder / name / file, quality=85)
                objects[f"{name}/{file}"] = f"{name}{number}"
    image.save(folder / "사과" / "wrong.jpg", quality=50)
    objects["사과/wrong.jpg"] = "cherry9"
    index, _ = scan_folder(folder)
    index["object"] = index["path"].map(objects)
    return folder, index, read_pictures(folder, index)


def test_mirrored_twins_that_colors_miss_are_found_by_features(altered):
    folder, index, pictures = altered
    truth = index["object"].where(index["path"] != "사과/wrong.jpg", "wrong")  # groups are searched within a class
    colors = describe_colors(pictures, index["class"].to_numpy())
    features = describe_features(folder, index, folder / "cache")
    found = group_by_looks(index, [colors, features])
    assert pair_scores(group_by_looks(index, [colors]), truth)[1] < 0.5
    precision, recall = pair_scores(found, truth)
    assert recall > 0.9 and precision > 0.9
    assert count_leaks(truth, split_index(index.assign(group=found))) <= 2


@pytest.mark.parametrize(("pattern", "told_by"), [("", "looks"), ("wrong|[0-9a-f]", "file name")])
def test_a_copy_under_two_labels_is_named_and_stays_on_one_side_whatever_tells_the_groups(altered, pattern, told_by):
    folder, index, pictures = altered
    groups = group_images(folder, index, pictures, pattern, folder / "cache")
    assert groups.told_by == told_by
    named = {index["path"].iloc[position] for position in groups.across.ravel()}
    assert {"사과/wrong.jpg", "cherry/9.jpg"} <= named
    names = groups.names.set_axis(index["path"])
    assert names["사과/wrong.jpg"] == names["cherry/9.jpg"]
    assert len(named) <= 4, "others are no copies"


def test_names_that_tell_the_groups_spare_the_search_by_colors(altered, monkeypatch):
    folder, index, pictures = altered
    monkeypatch.setattr(duplicates, "describe_colors", pytest.fail)
    group_images(folder, index, pictures, "wrong|[0-9a-f]", folder / "cache")


def test_images_whose_names_do_not_fit_are_grouped_by_their_looks(altered):
    folder, index, pictures = altered
    by_looks = group_images(folder, index, pictures, "", folder / "cache").names
    some = group_images(folder, index, pictures, "[0-4]", folder / "cache")
    assert some.told_by == "file names where they fit, and looks"
    others = ~index["path"].str.contains("/[0-4]")
    assert others.any() and not others.all()
    together = by_looks[others].groupby(by_looks[others]).transform("size") > 1
    assert together.any() and (some.names[others].groupby(by_looks[others]).nunique() == 1).all()


def test_names_of_the_fruit_group_the_embedded_images_alone(tmp_path):
    paths = [f"apple/apple_20240611_{number:03d}.jpg" for number in range(9)]
    index = pd.DataFrame({"path": paths, "class": "apple"})
    assert name_groups(index, group_pattern(None, tmp_path)).nunique() == 9
    assert name_groups(index, group_pattern(None, EMBEDDED)).nunique() == 1
    assert group_pattern("", EMBEDDED) == "" and group_pattern("a", tmp_path) == "a"
