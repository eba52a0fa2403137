"""What the notebooks define, for benchmarks and tests: what they measure is then what a reader sees."""

import ast
import json
import linecache
from collections.abc import Sequence

from utils.config import ROOT


def run_cells(notebook: str, tags: Sequence[str], names: dict) -> dict:
    """Execute a notebook's cells that have one of the `tags`, in their order, with the variables `names`; → these."""
    for cell in _code_cells(notebook):
        if set(tags) & set(cell["metadata"].get("tags", [])):
            exec("".join(cell["source"]), names)
    return names


def define_training(names: dict) -> dict:
    """Define `fit` as train.ipynb does, with what it reads, for the variables `names`; → these.

    Among them are those of its cells imports and parameters, with AUGMENT set, and data, run, index, classes, minority.
    """
    from utils.train import feature_table, strategies, training

    run_cells("train", ["transforms"], names)
    strategy, _ = strategies.choose(names["AUGMENT"], None, names["minority"], names["classes"])
    augmented = [names["classes"][label] for label in strategy.augmented]
    epochs = names["FINE_TUNE_EPOCHS"]
    names.update(strategy=strategy, augmented=augmented)
    names["epochs"] = training.default_epochs(names["ARCH"]) if epochs is None else epochs
    versions = dict.fromkeys(augmented, names["VERSIONS"])
    images = names["backbone"], names["image_set"], names["index"]
    names["table"] = feature_table.extract(*images, versions, names["run"] / "features")
    return run_cells("train", ["fit"], names)


def define(notebook: str, *names: str, edits: dict[str, str] | None = None, **given: object) -> list:
    """Define functions as a notebook's cells do, with the imports they need; → the functions, in the order of `names`.

    `given` are the other globals they read. `edits` replace parts of the source, as someone at the notebook might.
    """
    source = "\n".join("".join(cell["source"]) for cell in _code_cells(notebook))
    for old, new in (edits or {}).items():
        if old not in source:
            raise ValueError(f"{notebook}.ipynb does not say {old!r}")
        source = source.replace(old, new)
    statements = ast.parse(source).body
    functions = [node for node in statements if isinstance(node, ast.FunctionDef) and node.name in names]
    used = {node.id for function in functions for node in ast.walk(function) if isinstance(node, ast.Name)}
    texts = [text for node in statements if (text := _import(node, used))]
    text = "\n".join([*texts, *(ast.get_source_segment(source, function) for function in functions)])
    file = f"<{notebook}.ipynb {hash(text)}>"
    linecache.cache[file] = len(text), None, text.splitlines(keepends=True), file  # where inspect.getsource looks
    namespace = {"__name__": notebook, **given}
    exec(compile(text, file, "exec"), namespace)
    return [namespace[name] for name in names]


def _import(node: ast.stmt, used: set[str]) -> str:
    """Write an import statement with those of its names alone that are used; empty if there are none."""
    if not isinstance(node, ast.Import | ast.ImportFrom):
        return ""
    node.names = [alias for alias in node.names if (alias.asname or alias.name).partition(".")[0] in used]
    return ast.unparse(node) if node.names else ""


def _code_cells(notebook: str) -> list[dict]:
    cells = json.loads((ROOT / f"{notebook}.ipynb").read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]
