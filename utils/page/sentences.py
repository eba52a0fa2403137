"""The report in plain sentences, for someone who has never heard of macro-F1."""

from utils.config import listing

HARDLY = 0.01  # of macro-F1: a gain that nobody would notice


def question(classes: list[str]) -> str:
    """Ask what the model answers."""
    if len(classes) > 8:
        return f"Which is it? {listing(classes)}"
    return f"Is it {', '.join(classes[:-1])} or {classes[-1]}?"


def verdict_sentence(report: dict, sizes: dict[str, str]) -> str:
    """Say which file to use and why, in a sentence; `sizes` are the models' sizes in words."""
    comparison = report["comparison"]
    first, second = comparison["pair"]
    ship, outcome = comparison["verdict"]["ship"], comparison["verdict"].get("outcome")
    if ship == second:
        return f"Use the small file ({sizes[second]}): it was shown to be as good as the large one ({sizes[first]})."
    use = f"Use the larger file ({ship}, {sizes[ship]})"
    if outcome == "not shown":
        return f"{use}. The small one ({sizes[second]}) may be as good, but these photos do not show it."
    if outcome == "do not ship":
        return f"{use}. The small one ({sizes[second]}) was shown to be worse or slower."
    return f"{use}. The small one ({sizes[second]}) was not shown to be as good."


def size_in_words(count: int) -> str:
    """Write a number of bytes as people read it."""
    return f"{count / 1e6:.1f}\N{NO-BREAK SPACE}MB" if count >= 1e6 else f"{count / 1e3:.0f}\N{NO-BREAK SPACE}kB"


def limits(report: dict, rows: list[dict], knows_strangers: bool) -> list[str]:
    """Say what the data cannot prove; `rows` are those of `answers.class_rows`."""
    dataset = report.get("dataset", {})
    said = [
        "These numbers hold for photos like those it learned from. Another camera, light or background was not tried."
    ]
    if series := dataset.get("series"):
        said.append(
            f"All photos of {listing(series)} seem to show one object, or nearly so. It may know that object, and not "
            "others of its kind."
        )
    asked = [row for row in rows if row["images"]]
    vague = max(asked, key=lambda row: row["high"] - row["low"])
    said.append(
        f"Least is known about {vague['name']}: from {count(vague['images'], 'photo')} of "
        f"{count(vague['groups'], 'object')} or scenes, all that can be said is that of 100 it gets {vague['low']} to "
        f"{vague['high']} right."
    )
    if knows_strangers:
        novelty = report["train"].get("novelty")
        times = f"{novelty['caught']:.0%} of the time" if novelty else "sometimes"
        said.append(
            f"Shown something that is none of its classes, it says “unknown” {times}, and otherwise names one of them."
        )
    else:
        said.append("It only knows these classes. Shown anything else, it names one of them all the same.")
    if shortcuts := dataset.get("shortcuts"):
        said.append(
            f"The classes can partly be told apart by {' or '.join(shortcuts)} alone, so some answers may rest on that "
            "and not on the object."
        )
    return said + _files_left_out(dataset)


def _files_left_out(dataset: dict) -> list[str]:
    said = []
    dropped = dataset.get("corrections", {}).get("dropped", 0)  # listed as refused, too
    if refused := len(dataset.get("refused", [])) - dropped:
        said.append(f"{count(refused, 'file')} could not be read and had no part in this.")
    if skipped := dataset.get("skipped"):
        said.append(f"{count(sum(skipped.values()), 'file')} of other kinds ({listing(skipped)}) had no part in this.")
    if suspects := len(dataset.get("suspects", [])):
        said.append(
            f"{count(suspects, 'photo')} may lie in the wrong folder, which would count right answers as wrong."
        )
    return said


def more_photos(curve: dict) -> list[str]:
    """Say what more photos would bring, as far as the report's learning curve can tell; nothing where there is none."""
    if not curve:
        return []
    smallest, each, doubled = (curve[f"gain_{name}"] for name in ("smallest", "each", "doubled"))
    said = [
        f"{count(smallest['images'], 'more photo')} of {curve['smallest']}: {_points(smallest)}.",
        f"{count(each['images'], 'more photo')} of every class: {_points(each)}.",
        f"Twice as many of every class: {_points(doubled)}.",
    ]
    if doubled["low"] > 0:
        return [*said, "So more photos like these would help."]
    if doubled["high"] < HARDLY:
        return [*said, "So more photos like these would hardly help. Others might, of what it confuses."]
    return [*said, "So more photos like these may help; that is not sure."]


def _points(gain: dict[str, float]) -> str:
    return f"about {100 * gain['gain']:+.1f} points ({100 * gain['low']:+.1f} to {100 * gain['high']:+.1f})"


def count(number: int, noun: str) -> str:
    """Write a number with its noun."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
