"""Buttons to decide about suspects, in JupyterLab and VS Code."""

import html
import io
from functools import partial
from pathlib import Path

import pandas as pd
from ipywidgets import HTML, Box, Dropdown, Image, Layout, ToggleButtons, VBox

from utils.config import InputError
from utils.eda.corrections import DROP, read_decisions, save_decision
from utils.images import read_image

SIZE = 160  # pixels of an image's longer side
SHOWN = 30  # suspects at a time
BUTTONS = 8  # choices that fit below an image as buttons; more of them are a menu


def show_suspects(run: Path, data: Path, suspects: pd.DataFrame, classes: list[str]) -> VBox:
    """Show the first suspects side by side; a click on *right*, *drop* or another class is saved at once.

    `suspects` has a row per image: path, class, sha256, note. Decisions go into the run's ``corrections.csv``.
    """
    decided = read_decisions(run).set_index("path")["action"].to_dict()
    status = HTML(f"The first {min(SHOWN, len(suspects))} of {len(suspects)} suspects.")
    cards = []
    for _, image in suspects.head(SHOWN).iterrows():
        caption = HTML(f"<b>{html.escape(image['class'])}</b><br>{html.escape(image['note'])}")
        choice = _choice(image["class"], classes, decided.get(image["path"]))
        choice.observe(partial(_save, run, image, status), names="value")
        cards.append(
            VBox([_picture(data / image["path"]), caption, choice], layout=Layout(width="210px", margin="8px"))
        )
    return VBox([status, Box(cards, layout=Layout(flex_flow="row wrap"))])


def _picture(path: Path) -> Image:
    picture, file = read_image(path), io.BytesIO()
    picture.thumbnail((SIZE, SIZE))
    picture.save(file, "PNG")
    return Image(value=file.getvalue(), layout=Layout(height=f"{SIZE}px", object_fit="contain"))


def _choice(own: str, classes: list[str], decided: str | None) -> ToggleButtons | Dropdown:
    options = [("right", own), (DROP, DROP), *((name, name) for name in classes if name != own)]
    value = decided if decided in dict(options).values() else None
    if len(options) > BUTTONS:
        return Dropdown(options=options, value=value, layout=Layout(width="auto"))
    return ToggleButtons(options=options, value=value, style={"button_width": "auto"})


def _save(run: Path, image: pd.Series, status: HTML, change: dict) -> None:
    try:
        save_decision(run, image, change["new"])
        saved = (
            f"{len(read_decisions(run))} images decided, saved in corrections.csv. Run all cells again to apply them."
        )
    except InputError as error:  # someone is editing the file
        saved = f"Not saved: {error}"
    status.value = html.escape(saved)
