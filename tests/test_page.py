"""The page to share, in Chromium as it opens with a double click: what it says, and the model that is tried in it.

`SCREENSHOTS=folder` keeps a picture of the page as it was seen at two widths.
"""

import base64
import gzip
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nbformat
import numpy as np
import onnx
import pandas as pd
import pytest
from conftest import ROOT, photo, read_report, run_py
from nbformat.v4 import new_code_cell
from PIL import Image

from utils.checkpoint import keep_logits
from utils.compare_models import page, tryout
from utils.config import InputError
from utils.files import sha256
from utils.onnx_quant.export import write_metadata
from utils.predict import Classifier
from utils.report import environment, shipped_file
from utils.session import open_session, read_metadata

WIDTHS = {"phone": 390, "desktop": 1280}
SCRIPT, KOREAN = "<script>alert(1)</script>", "사과 & \"체리\" 'x'"
READY, REFUSAL = "window.ready.then(() => '')", "window.ready.then(() => 'ready', error => error.message)"
CLASSIFY = """text => classify(new Blob([Uint8Array.from(atob(text), letter => letter.charCodeAt(0))]))"""
NOISE = """() => {
    const read = CanvasRenderingContext2D.prototype.getImageData;
    CanvasRenderingContext2D.prototype.getImageData = function (...place) {
        const image = read.apply(this, place);
        image.data[0] ^= 1;
        return image;
    };
}"""


@pytest.fixture(scope="module")
def page_file(project, embedded, tmp_path_factory) -> Path:
    """What `python run.py page` writes, moved to where nothing else is."""
    done = run_py(project, "page")
    assert done.returncode == 0, done.stdout + done.stderr
    if "cannot be tried" in done.stdout:
        pytest.skip(done.stdout)  # no npm, or no network
    return shutil.move(project / "runs" / "page.html", tmp_path_factory.mktemp("보낸 파일") / "a page.html")


@pytest.fixture
def in_project(project, embedded, monkeypatch):
    """Let this process write pages of the project's runs."""
    monkeypatch.setattr(page, "CHECKPOINTS", project / "checkpoints")
    monkeypatch.setattr(page, "ROOT", project)
    return project


@contextmanager
def opened(browser, path: Path, width: int = 1280, before: str = "") -> Iterator:
    """Open a page as from the disk; nothing may be loaded, no dialog pop up, and no error reach the console."""
    context = browser.new_context(viewport={"width": width, "height": 900}, offline=True)
    tab, faults = context.new_page(), []
    tab.on("console", lambda message: faults.append(message.text) if message.type in ("error", "warning") else None)
    tab.on("pageerror", lambda error: faults.append(str(error)))
    tab.on("dialog", lambda dialog: faults.append(f"dialog: {dialog.message}"))
    tab.on("request", lambda request: faults.append(request.url))
    if before:
        tab.add_init_script(f"({before})()")
    tab.goto(path.as_uri())
    yield tab
    allowed = (path.as_uri(), "blob:null/")  # the file itself, and what it makes of its own content
    assert not [fault for fault in faults if not fault.startswith(allowed)]
    context.close()


@pytest.fixture(scope="module")
def ready_tab(browser, page_file):
    with opened(browser, page_file) as tab:
        tab.evaluate(READY)
        yield tab


def deployed(project: Path) -> Path:
    """Find the file that is in the page."""
    return shipped_file(project / "checkpoints")


def answer(tab, path: Path) -> dict:
    return tab.evaluate(CLASSIFY, base64.b64encode(path.read_bytes()).decode())


@pytest.mark.browser
@pytest.mark.parametrize("name", WIDTHS)
def test_opens_without_a_network_and_fits_the_screen(browser, page_file, project, name):
    with opened(browser, page_file, WIDTHS[name]) as tab:
        tab.evaluate(READY)
        assert tab.evaluate("document.documentElement.scrollWidth") <= WIDTHS[name]
        assert tab.locator("h1").text_content() == "Is it apple, cherry or tomato?"
        about, low, high = map(int, re.findall(r"\d+", tab.locator(".verdict h2").text_content())[1:])
        assert low <= about <= high and about > 70
        assert tab.locator("img").evaluate_all("images => images.every(image => image.alt && image.naturalWidth)")
        report = read_report(project)
        assert str(report["dataset"]["images"]) in tab.locator(".verdict").text_content()
        assert tab.locator("#state").text_content().startswith("Ready")
        if "SCREENSHOTS" in os.environ:
            tab.screenshot(path=Path(os.environ["SCREENSHOTS"]) / f"page_{name}.png", full_page=True)


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> list[Path]:
    """Photos as people have them: turned by EXIF, transparent, grey, of 16 bits, CMYK, large, tiny, and others."""
    generator, folder = np.random.default_rng(0), tmp_path_factory.mktemp("사진")
    fruit = sorted((ROOT / "data" / "train").glob("*/*.jpg"))
    for turn in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = turn
        Image.open(fruit[turn * 30]).save(folder / f"turned_{turn}.jpg", exif=exif)
    for number in range(4):
        image = Image.open(fruit[number * 75])
        transparent = image.copy()
        transparent.putalpha(Image.fromarray(generator.integers(0, 256, image.size[::-1], dtype=np.uint8)))
        transparent.save(folder / f"transparent_{number}.png")
        image.convert("L").save(folder / f"grey_{number}.png")
        image.convert("L").save(folder / f"grey_{number}.jpg")
        levels = np.asarray(image.convert("L")).astype(np.uint16) * 257
        Image.fromarray(levels).save(folder / f"16_bits_{number}.png")
        image.convert("CMYK").save(folder / f"cmyk_{number}.jpg")
        image.resize((3000, 2000)).save(folder / f"large_{number}.jpg")
        image.resize((5 + number, 7)).save(folder / f"tiny_{number}.png")
        image.quantize(32).save(folder / f"palette_{number}.png")
        image.save(folder / f"web_{number}.webp")
        image.save(folder / f"progressive_{number}.jpg", progressive=True, subsampling=2)
    for number in range(8):
        photo(generator, (200, 40, 40)).save(folder / f"stranger_{number}.jpg")
    return sorted(folder.iterdir())


@pytest.mark.browser
def test_answers_are_those_of_predict(ready_tab, project, photos):
    """But for layers in float, which round otherwise in a browser, and now and then move an 8-bit value by one.

    Pixels are the same but in 16-bit grey with odd lower bytes, which browsers drop where Python rounds.
    """
    classifier = Classifier(deployed(project))
    assert len(photos) >= 50
    differences = []
    for path in photos:
        found, expected = answer(ready_tab, path), classifier.probabilities(path)
        assert found["label"] == classifier.details["classes"][expected.argmax()], path.name
        differences.append(np.abs(np.array(found["probabilities"]) - expected).max())
        assert found["unsure"] == bool(expected.max() < classifier.details.get("abstain_below", 0)), path.name
        assert not found["unknown"] or "novelty_above" in classifier.details
        assert found["ms"] > 0
    assert np.quantile(differences, 0.9) < 1e-3 and max(differences) < 1e-2


@pytest.mark.browser
@pytest.mark.parametrize(("keep", "name"), [(0, "empty.jpg"), (0.5, "cut.jpg"), (-1, "cut.png"), (None, "page.jpg")])
def test_what_is_no_photo_is_refused_as_python_refuses_it(ready_tab, project, tmp_path, keep, name):
    content = b"<!doctype html>"
    if keep is not None:
        Image.open(next((ROOT / "data" / "train" / "apple").glob("*.jpg"))).save(tmp_path / name)
        content = (tmp_path / name).read_bytes()
        content = content[: int(len(content) * keep) if keep >= 0 else len(content) // 3]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError):
        Classifier(deployed(project)).probabilities(tmp_path / name)
    with pytest.raises(Exception, match="could not be decoded"):
        answer(ready_tab, tmp_path / name)


@pytest.mark.browser
def test_several_files_at_once_each_with_its_name_however_it_is_written(browser, page_file, tmp_path):
    good = next((ROOT / "data" / "train" / "tomato").glob("*.jpg")).read_bytes()
    names = ["plain.jpg", "\"'><img src=x onerror=alert(1)>.jpg", "broken.jpg"]
    files = [{"name": name, "mimeType": "image/jpeg", "buffer": good} for name in names]
    files[2]["buffer"] = good[:500]
    with opened(browser, page_file, 390) as tab:
        tab.evaluate(READY)
        tab.locator("#choose").set_input_files(files)
        tab.locator("#results li").nth(2).wait_for()
        broken, quoted, plain = tab.locator("#results li").all_text_contents()  # the latest first
        assert "plain.jpg" in plain and "tomato" in plain and "%" in plain
        assert names[1] in quoted and "tomato" in quoted
        assert "broken.jpg cannot be read as a photo here" in broken
        assert tab.evaluate("document.documentElement.scrollWidth") <= 390


@pytest.mark.browser
def test_photos_are_taken_by_keyboard_by_drop_and_by_paste(browser, page_file):
    with opened(browser, page_file) as tab:
        tab.evaluate(READY)
        tab.locator(".sample").first.focus()
        tab.keyboard.press("Enter")
        tab.locator("#results li").nth(0).wait_for()
        for number, event in enumerate(["DragEvent('drop', {dataTransfer", "ClipboardEvent('paste', {clipboardData"]):
            tab.evaluate(f"""async () => {{
                const text = document.querySelector('.sample img').src.split(',')[1];
                const bytes = Uint8Array.from(atob(text), letter => letter.charCodeAt(0));
                const data = new DataTransfer();
                data.items.add(new File([bytes], 'brought.jpg', {{type: 'image/jpeg'}}));
                document.dispatchEvent(new {event}: data, bubbles: true, cancelable: true}}));
            }}""")
            tab.locator("#results li").nth(1 + number).wait_for()
        sample, *others = reversed(tab.locator("#results li").all_text_contents())
        assert "In truth: apple" in sample
        assert all("brought.jpg" in other for other in others)


def other_byte(packed: str) -> str:
    """Change a byte in the middle of a packed file, which unpacks as well as before."""
    content = bytearray(gzip.decompress(base64.b64decode(packed)))
    content[len(content) // 2] ^= 1
    return base64.b64encode(gzip.compress(content, 1)).decode()


@pytest.mark.browser
@pytest.mark.parametrize(
    ("part", "change"),
    [("model", other_byte), ("runtime-code", other_byte), ("runtime-binary", other_byte), ("model", str.lower)],
)
def test_page_that_was_changed_refuses(browser, page_file, tmp_path, part, change):
    before, mark, rest = page_file.read_text(encoding="utf-8").partition(f'id="{part}">')
    packed, end, after = rest.partition("</script>")
    changed = tmp_path / "changed.html"
    changed.write_text("".join([before, mark, change(packed), end, after]), encoding="utf-8")
    with opened(browser, changed) as tab:
        assert "changed or damaged" in tab.evaluate(REFUSAL)
        assert "changed or damaged" in tab.locator("#state").text_content()
        assert not tab.locator("#inputs").is_visible()
        with pytest.raises(Exception, match="changed or damaged"):
            tab.evaluate("classify(new Blob())")


@pytest.mark.browser
def test_browser_that_alters_pixels_is_told_so(browser, page_file):
    with opened(browser, page_file, before=NOISE) as tab:
        assert "alters the colors" in tab.evaluate(REFUSAL)
        assert "alters the colors" in tab.locator("#state").text_content()


@pytest.mark.browser
def test_model_that_answers_otherwise_is_told_so(browser, page_file, tmp_path):
    """As where a browser computes something else: what Python found is changed in the page, its model is not."""
    text = page_file.read_text(encoding="utf-8")
    changed, count = re.subn(r'("probabilities": \[)[^,\]]+', r"\g<1>0.5", text)
    assert count == 1
    (tmp_path / "other.html").write_text(changed, encoding="utf-8")
    with opened(browser, tmp_path / "other.html") as tab:
        assert "does not give the answers that it should" in tab.evaluate(REFUSAL)


def rename_classes(project: Path, name: str, new: dict[str, str]) -> Path:
    """Make another run of the embedded one, in which classes have other names; → its deployed file.

    It has a novelty: one minus the largest probability, too much above 0.1.
    """
    run, renamed, source = project / "checkpoints", project / "checkpoints" / name, deployed(project)
    renamed.mkdir()
    shutil.copy(run / "fine_tuned_conv_net.pth", renamed)
    report = (run / "report.json").read_text(encoding="utf-8")
    for old, text in new.items():
        report = report.replace(f'"{old}"', json.dumps(text))
    (renamed / "report.json").write_text(report, encoding="utf-8")
    table = pd.read_csv(run / "split.csv", dtype=str, keep_default_na=False)
    table["class"] = table["class"].replace(new)
    table.to_csv(renamed / "split.csv", index=False)
    details = read_metadata(open_session(source))
    details["classes"] = [new.get(old, old) for old in details["classes"]]
    model = onnx.load(source)
    del model.metadata_props[:], model.graph.output[1:]
    for node in model.graph.node:
        node.output[:] = ["other" if output == "novelty" else output for output in node.output]
    model.graph.node.append(onnx.helper.make_node("ReduceMax", ["probabilities", "axis"], ["largest"], keepdims=0))
    model.graph.node.append(onnx.helper.make_node("Sub", ["one", "largest"], ["novelty"]))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([1]), "axis"))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([1], np.float32), "one"))
    model.graph.output.append(onnx.helper.make_tensor_value_info("novelty", onnx.TensorProto.FLOAT, ["batch"]))
    onnx.save(model, renamed / source.name)
    write_metadata(renamed / source.name, **details | {"novelty_above": 0.1})
    with np.load(run / "out_of_fold_conv_net.npz") as file:
        logits = {kind: file[kind] for kind in ("onnx", "int8")}
    hashes = {"split": sha256(renamed / "split.csv"), "model": sha256(renamed / "fine_tuned_conv_net.pth")}
    paths = table.loc[table["split"] != "refused", "path"]
    keep_logits(renamed / "out_of_fold_conv_net.npz", paths, lambda: logits, **hashes)
    notebook = nbformat.read(project / "runs" / "train.ipynb", as_version=4)
    notebook.cells.append(new_code_cell(f"NAME = {name!r}", metadata={"tags": ["injected-parameters"]}))
    (project / "runs" / name).mkdir()
    nbformat.write(notebook, project / "runs" / name / "train.ipynb")
    return renamed / source.name


@pytest.mark.browser
def test_class_names_are_text_whatever_they_are(browser, page_file, in_project):
    rename_classes(in_project, "renamed", {"apple": SCRIPT, "cherry": KOREAN})
    path, _ = page.write_page("renamed")
    with opened(browser, path, WIDTHS["phone"]) as tab:
        tab.evaluate(READY)
        assert tab.locator("h1").text_content() == f"Is it {SCRIPT}, {KOREAN} or tomato?"
        photos = [next((ROOT / "data" / "train" / name).glob("*.jpg")) for name in ("apple", "cherry")]
        assert {answer(tab, photo)["label"] for photo in photos} == {SCRIPT, KOREAN}
        tab.locator(".sample").first.click()
        assert SCRIPT in tab.locator("#results li").first.text_content()
        assert tab.evaluate("document.documentElement.scrollWidth") <= WIDTHS["phone"]


@pytest.mark.browser
def test_stranger_is_called_unknown(browser, page_file, in_project, photos):
    classifier = Classifier(rename_classes(in_project, "novelty", {}))
    path, _ = page.write_page("novelty")
    with opened(browser, path) as tab:
        tab.evaluate(READY)
        largest = {path: classifier.probabilities(path).max() for path in photos[::4]}
        unknown = {path: answer(tab, path)["unknown"] for path in largest}
        assert unknown == {path: value < 0.9 for path, value in largest.items()} and len(set(unknown.values())) == 2
        tab.locator("#choose").set_input_files([path for path, strange in unknown.items() if strange][0])
        tab.locator("#results li").wait_for()
        assert "unknown" in tab.locator("#results .badge").text_content()


def test_page_without_what_runs_the_model_says_so(in_project, tmp_path, monkeypatch):
    monkeypatch.setattr(tryout, "KEPT", tmp_path / "none.tgz")
    monkeypatch.setattr(tryout.shutil, "which", lambda *_, **__: None)
    path, missing = page.write_page("")
    text = path.read_text(encoding="utf-8")
    assert missing.startswith("it needs npm once") and "written without the program" in text
    assert "Of 100 photos" in text and len(text) < 2_000_000


@pytest.mark.parametrize(
    ("ship", "outcome", "words"),
    [
        ("int8", "ship", r"Use the small file \(\d+ kB\): it was shown to be as good as the large one \(\d+ kB\)\."),
        ("onnx", "not shown", r"Use the larger file \(onnx, \d+ kB\)\. The small one \(\d+ kB\)\s+may be as good"),
        (
            "pytorch",
            "do not ship",
            r"Use the larger file \(pytorch, \d+ kB\)\. The small one \(\d+ kB\)\s+was shown to be",
        ),
    ],
)
def test_verdict_in_a_sentence(in_project, monkeypatch, tmp_path, ship, outcome, words):
    monkeypatch.setattr(tryout, "KEPT", tmp_path / "none.tgz")
    monkeypatch.setattr(tryout.shutil, "which", lambda *_, **__: None)
    name = f"ships_{ship}"
    rename_classes(in_project, name, {})
    report = read_report(in_project, name)
    report["comparison"]["verdict"] |= {"ship": ship, "outcome": outcome}
    (in_project / "checkpoints" / name / "report.json").write_text(json.dumps(report), encoding="utf-8")
    for file in ("conv_net_int8_deploy.onnx", "conv_net_deploy.onnx"):
        shutil.copy(in_project / "checkpoints" / file, in_project / "checkpoints" / name)
    text = page.write_page(name)[0].read_text(encoding="utf-8").replace("\N{NO-BREAK SPACE}", " ")
    assert re.search(words, text)


def test_headline_is_by_class_where_one_is_never_recognized(in_project):
    rename_classes(in_project, "never", {})
    path = in_project / "checkpoints" / "never" / "out_of_fold_conv_net.npz"
    with np.load(path) as file:
        kept = dict(file)
    for kind in ("onnx", "int8"):
        kept[kind][:, 2] = -1000  # tomato
    np.savez(path, **kept)
    text = page.write_page("never")[0].read_text(encoding="utf-8")
    assert "It recognizes <b>no photo of <bdi>tomato</bdi></b>" in text and "Of 100 other photos it gets about" in text


GAINS = """{% import "macros.j2" as say %}{% call(sentence) say.each_gain(curve) %}
{{ sentence }}
{% endcall %}"""


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [(0.01, 0.05, "would help."), (-0.02, 0.004, "would hardly help"), (-0.01, 0.05, "cannot be told from these")],
)
def test_what_more_photos_would_bring(low, high, words):
    gain = {"images": 50, "gain": 0.02, "low": -0.01, "high": 0.05}
    curve = {
        "smallest": "tomato",
        "gain_smallest": gain,
        "gain_each": gain,
        "gain_doubled": gain | {"low": low, "high": high},
    }
    first, *_, last = environment(escape=True).from_string(GAINS).render(curve=curve).splitlines()
    assert first == "50 more photos of tomato: about +2.0 points (-1.0 to +5.0)." and words in last


def test_end_of_a_run_says_how_to_write_the_page_and_to_classify_photos(embedded):
    result = embedded.stdout.partition("How good:")[2]
    steps = result.partition("What next:")[2]
    for command in ("page", "predict photo.jpg", "kit"):
        assert f"  python run.py {command} " in steps
    assert max(map(len, result.splitlines())) <= 100


def test_page_of_a_run_that_is_not_there(project):
    done = run_py(project, "page", "--name", "gone")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "checkpoints/gone/report.json is not complete: run all four notebooks first" in done.stderr


def test_page_of_a_run_without_its_notebooks_or_photos(in_project, tmp_path):
    (in_project / "checkpoints" / "moved").mkdir()
    shutil.copy(in_project / "checkpoints" / "report.json", in_project / "checkpoints" / "moved")
    with pytest.raises(InputError, match="no executed notebook of the run 'moved' in .*moved"):
        page.write_page("moved")
    with pytest.raises(InputError, match="photos are no longer in .*photos: say where they are, by --data DIR"):
        page.write_page("", str(tmp_path / "photos"))


def fake_npm(folder: Path, script: str) -> None:
    """Put a program called npm into a folder."""
    npm = folder / ("npm.bat" if os.name == "nt" else "npm")
    npm.write_text(script if os.name == "nt" else f"#!/bin/sh\n{script}\n")
    npm.chmod(0o755)


@pytest.mark.parametrize(
    ("script", "sentence"),
    [
        (
            "echo x > onnxruntime-web-1.30.0.tgz",
            "is not the onnxruntime-web@1.30.0 that was tested: its SHA-512 differs",
        ),
        ("echo 'npm error request failed, reason: no route' >&2; exit 1", "could not fetch .* reason: no route"),
    ],
)
def test_only_the_very_package_is_used(tmp_path, monkeypatch, script, sentence):
    fake_npm(tmp_path, script)
    monkeypatch.setattr(tryout, "KEPT", tmp_path / "kept" / tryout.KEPT.name)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with pytest.raises(InputError, match=sentence):
        tryout.read_runtime()
    assert not tryout.KEPT.exists()
