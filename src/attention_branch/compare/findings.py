"""What a comparison found, in plain words: sentences made from its numbers, which say so when these say nothing."""

import numpy as np

from attention_branch.compare.comparison import Answers, Comparison, share_of
from attention_branch.compare.measures import MEASURES
from attention_branch.evaluation.wording import interval_text, percent
from attention_branch.explanations.methods import CLASS_AGNOSTIC, CONTROLS
from attention_branch.metrics.statistics import FEWEST, PairedDifference
from attention_branch.report.page import Figure
from attention_branch.report.statements import Statement

NAMES = {
    "attention": "the attention map",
    "attention-class": "the attention branch's class evidence",
    "cam": "CAM",
    "grad-cam": "Grad-CAM",
    "grad-cam++": "Grad-CAM++",
    "hires-cam": "HiResCAM",
    "layer-cam": "Layer-CAM",
    "rollout": "attention roll-out",
    "soft-masks": "the last attention module's soft mask",
    "integrated-gradients": "integrated gradients",
    "occlusion": "occlusion",
    "center": "a spot in the middle of every image",
    "random": "noise",
    "constant": "a map that is the same everywhere",
}
"""Methods as they are called in a sentence."""

_FAITHFUL = ("insertion-deletion", "road", "insertion", "deletion", "average-drop", "adcc")
_TESTED = {
    "insertion-deletion": "The places the map shows are taken from the image, and put into a blurred one. If they "
    "matter, the answer's probability falls and rises at once. The number is the gap: near 1 they decide the answer; "
    "the random control is what chance gets.",
    "road": "The places the map shows, and then those it does not, are blended into their surroundings. The number is "
    "half of what the first costs the answer's probability more than the second.",
    "insertion": "The places the map shows are put into a blurred image first. If they matter, the answer's "
    "probability rises at once; the number is its mean on the way.",
    "deletion": "The places the map shows are taken from the image first. If they matter, the answer's probability "
    "falls at once; the number is its mean on the way, so low is good.",
    "average-drop": "Only what the map shows is kept of the image. The number is the share of the answer's probability "
    "that this costs, so low is good.",
    "adcc": "Only what the map shows is kept of the image: little should be lost, little should be shown, and its map "
    "should be the same again. The number brings the three together; 1 is best.",
}
"""The tests of a map, as they are told to somebody who has not met them."""
_SURE = 0.9
_FEWEST = 5
"""Classes with fewer images than this are not named as weak: their share says little."""


def findings(comparison: Comparison) -> list[tuple[str, list[Statement]]]:
    """Return three questions with their answers: what it looked at, how far to trust that, where it fails."""
    return [
        ("What did the network look at?", _looked(comparison)),
        ("How far can the map be trusted?", _trusted(comparison)),
        ("Where does it fail?", _fails(comparison)),
    ]


def headline(comparison: Comparison) -> tuple[str, str, list[Figure], list[str]]:
    """Return the page's title, its summary, the numbers at its top, and the sentence nobody may miss, if any."""
    name = NAMES[comparison.main]
    tests = _tests(comparison)
    passed = [what for what, verdict, _ in tests if verdict == "right"]
    summary = f"{_capital(comparison.images_text())}; {len(comparison.methods)} kinds of map, each of the same images. "
    if tests:
        parts = [f"{name} {_listed(passed)}"] if passed else []
        for kind, said in (("unsure", "not shown"), ("wrong", "refuted")):
            for what in (what for what, verdict, _ in tests if verdict == kind):
                parts.append(f"that {'it' if parts else name} {what} is {said}")
        summary += _capital("; ".join(parts)) + "."
    if comparison.n < FEWEST:
        summary += f" {comparison.n} images are too few for any difference to be sure; take more."
    summary = summary.strip()
    figures = []
    known = comparison.answers.right[~np.isnan(comparison.answers.right)]
    if len(known):
        accuracy = share_of(known > 0)
        figures.append(Figure(percent(accuracy["share"]), "right answers", interval_text(accuracy["interval"])))
    words = {"right": "yes", "wrong": "no", "unsure": "not shown"}
    figures += [Figure(words[verdict], test, detail) for test, verdict, detail in tests]
    for metric in ("pointing",):
        if metric in comparison.metrics:
            result = comparison.results[comparison.main][metric]
            figures.append(
                Figure(percent(result.mean), "strongest point on the object", interval_text(result.interval))
            )
    alarms = []
    against = {test: verdict for test, verdict, _ in tests}
    if against.get(_BEATS["center"], "right") != "right":
        alarms.append(
            f"{_capital(name)} does not clearly say more than a spot in the middle of every image would, so do not "
            "read it as the reason for an answer."
        )
    return "What the network looked at, and how far its maps can be trusted", summary, figures, alarms


_BEATS = {"random": "says more than noise", "center": "says more than the middle of the image"}
_DRIVES = "drives the answer"


def _tests(comparison: Comparison) -> list[tuple[str, str, str]]:
    """Return the tests of trust: (what, "right", "wrong" or "unsure", the number)."""
    tests = []
    metric = next((name for name in _FAITHFUL if name in comparison.metrics), None)
    if metric is not None and comparison.main not in CONTROLS:
        for control, what in _BEATS.items():
            found = comparison.difference(comparison.main, control, metric)
            verdict = {"better": "right", "worse": "wrong"}.get(
                comparison.verdict(comparison.main, control, metric), "unsure"
            )
            tests.append((what, verdict, f"{MEASURES[metric].title.lower()} {_signed(metric, found)}"))
    if comparison.drive is not None and comparison.main == "attention":
        detail = f"{_points(comparison.drive['mean'].drop)} without its places"
        tests.append((_DRIVES, _drive_mark(comparison), detail))
    return tests


def _looked(comparison: Comparison) -> list[Statement]:
    main, name = comparison.main, NAMES[comparison.main]
    said = []
    if main == "attention":
        said.append(
            Statement(
                "The map spoken of here is the network's own attention. It took part in the answer, and it is the same "
                "whatever the class: it says where the network looked, not what a place speaks for."
            )
        )
    elif main not in CONTROLS:
        whose = "whatever the class" if main in CLASS_AGNOSTIC else f"for {comparison.record.get('target', 'a class')}"
        said.append(Statement(f"The map spoken of here is that of {name}, {whose}."))
    if "pointing" in comparison.metrics:
        own = comparison.results[main]["pointing"]
        text = (
            f"Its strongest point lies on the object in {percent(own.mean)} of the images "
            f"({interval_text(own.interval)}, n = {own.n})"
        )
        others = [f"{NAMES[control]} in {percent(comparison.results[control]['pointing'].mean)}" for control in _BEATS]
        said.append(Statement(f"{text}; {' and '.join(others)}.", _mark(comparison, "center", "pointing")))
    if "energy-pointing" in comparison.metrics:
        own = comparison.results[main]["energy-pointing"]
        area = own.details.get("region_share")
        rest = f", which covers {percent(area)} of the image on average" if area is not None else ""
        said.append(
            Statement(
                f"{percent(own.mean)} of the map's weight lies on the object ({interval_text(own.interval)}){rest}.",
                _mark(comparison, "constant", "energy-pointing"),
            )
        )
    if not {"pointing", "energy-pointing", "box-iou"} & set(comparison.metrics):
        said.append(
            Statement(
                "The data does not say where the objects are, so whether the map lies on them is not measured here; "
                "look at the pictures."
            )
        )
    return said


def _trusted(comparison: Comparison) -> list[Statement]:
    main, said = comparison.main, []
    metric = next((name for name in _FAITHFUL if name in comparison.metrics), None)
    if metric is not None:
        said.append(Statement(f"The test is called {MEASURES[metric].title.lower()}. {_TESTED[metric]}"))
        for other in ("random", "center", "grad-cam"):
            if other in comparison.methods and other != main:
                said.append(Statement(_against(comparison, other, metric), _mark(comparison, other, metric)))
    for other in ("center", "grad-cam"):
        if other in comparison.methods and other != main:
            said.append(_tally(comparison, other))
    if comparison.drive is not None:
        said.append(Statement(comparison.drive.sentence(), _drive_mark(comparison)))
    return said


def _fails(comparison: Comparison) -> list[Statement]:
    answers, said = comparison.answers, []
    known = ~np.isnan(answers.right)
    wrong = known & (answers.right == 0)
    if known.any():
        sure = int((wrong & (answers.confidence > _SURE)).sum())
        text = f"None of the {int(known.sum())} answers is wrong."
        if wrong.any():
            text = f"{int(wrong.sum())} of {int(known.sum())} answers are wrong; "
            text += f"in {sure or 'none'} of them the network was more than {100 * _SURE:.0f} % sure."
        said.append(Statement(text))
    if "pointing" in comparison.metrics:
        hits = comparison.results[comparison.main]["pointing"].values.numpy()
        said += _missing(hits, answers)
    if answers.agree is not None:
        apart = ~answers.agree
        text = f"The network's two branches disagree on {int(apart.sum())} of {comparison.n} images"
        if known.any() and apart.any():
            there, rest = share_of(answers.right[apart & known] > 0), share_of(answers.right[~apart & known] > 0)
            text += f"; the answer is right in {percent(there['share'])} of them, in {percent(rest['share'])} elsewhere"
        said.append(Statement(f"{text}. A disagreement is worth a second look."))
    pair = next((pair for pair in comparison.likeness if set(pair) == {comparison.main, "grad-cam"}), None)
    if pair is not None:
        alike = comparison.likeness[pair]
        alike = alike[~np.isnan(alike)]
        if len(alike):
            said.append(
                Statement(
                    f"{_capital(NAMES[comparison.main])} and Grad-CAM order the places of an image alike with a rank "
                    f"correlation of {_number(float(alike.mean()))} on average (1: the same order); in "
                    f"{int((alike < 0).sum())} of {len(alike)} images they order them the other way round."
                )
            )
    return said


def _missing(hits: np.ndarray, answers: Answers) -> list[Statement]:
    """Say how right the answers are where the map misses the object, and on which classes it does."""
    said = []
    known = ~np.isnan(hits) & ~np.isnan(answers.right)
    missed, hit = known & (hits == 0), known & (hits > 0)
    if missed.any() and hit.any():
        there, rest = share_of(answers.right[missed] > 0), share_of(answers.right[hit] > 0)
        said.append(
            Statement(
                f"Where the map's strongest point misses the object ({there['n']} of {int(known.sum())} images) "
                f"the answer is right in {percent(there['share'])} ({interval_text(there['interval'])}), "
                f"where it lies on it in {percent(rest['share'])} ({interval_text(rest['interval'])})."
            )
        )
    shares = []
    for number in np.unique(answers.label[known & (answers.label >= 0)]):
        of_class = hits[known & (answers.label == number)]
        if len(of_class) >= _FEWEST:
            shares.append((float(of_class.mean()), len(of_class), answers.class_names[number]))
    shares.sort()
    if len(shares) > 1 and shares[0][0] < shares[-1][0]:
        listed = ", ".join(f"'{name}' ({percent(share)} of {count})" for share, count, name in shares[:3])
        said.append(Statement(f"It lies on the object least often for the classes {listed}."))
    return said


def _against(comparison: Comparison, other: str, metric: str) -> str:
    """Say how the main method does against another one, on one metric."""
    main, measure = comparison.main, MEASURES[metric]
    mine, theirs = (comparison.results[method][metric].mean for method in (main, other))
    found, verdict = comparison.difference(main, other, metric), comparison.verdict(main, other, metric)
    values = f"{measure.text(mine)} against {measure.text(theirs)}, difference {_signed(metric, found)}"
    if verdict == "unclear":
        return f"No clear difference between {NAMES[main]} and {NAMES[other]}: {values}."
    return f"{_capital(NAMES[main])} does {verdict} than {NAMES[other]}: {values}."


def _tally(comparison: Comparison, other: str) -> Statement:
    """Count on how many metrics the main method is better and worse than another one."""
    rated = [metric for metric in comparison.metrics if comparison.higher_is_better(metric) is not None]
    verdicts = [comparison.verdict(comparison.main, other, metric) for metric in rated]
    better, worse = verdicts.count("better"), verdicts.count("worse")
    mark = "right" if better and not worse else "wrong" if worse and not better else "unsure"
    measures = f"{len(rated)} measure" + ("s" if len(rated) != 1 else "")
    return Statement(
        f"Of {measures}, {NAMES[comparison.main]} does better than {NAMES[other]} on {better}, worse on "
        f"{worse}, with no clear difference on {verdicts.count('unclear')}.",
        mark,
    )


def _mark(comparison: Comparison, other: str, metric: str) -> str:
    if comparison.main == other:
        return ""
    verdict = comparison.verdict(comparison.main, other, metric)
    return {"better": "right", "worse": "wrong"}.get(verdict, "unsure")


def _signed(metric: str, found: PairedDifference) -> str:
    measure = MEASURES[metric]
    unit = " points" if measure.share else ""
    if found.interval is None:
        return f"{measure.signed(found.mean)}{unit}"
    low, high = (measure.signed(edge) for edge in found.interval)
    return f"{measure.signed(found.mean)}{unit} ({low} to {high})"


def _drive_mark(comparison: Comparison) -> str:
    """Return "right" where the answers get worse without the map's places, "wrong" where they get better."""
    drop = comparison.drive["mean"].drop
    if comparison.drive.verdict == "not applied":
        return "wrong"
    if not drop.clear:
        return "unsure"
    return "right" if drop.mean > 0 else "wrong"


def _points(drop: PairedDifference) -> str:
    """Return what a drop changes, with its interval."""
    values = (-100 * drop.mean, *(-100 * edge for edge in reversed(drop.interval or ())))
    texts = [f"{value:+z.1f}".replace("-", "−") for value in values]
    return f"{texts[0]} points" + (f" ({texts[1]} to {texts[2]})" if len(texts) == 3 else "")


def _listed(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def _number(value: float) -> str:
    return f"{value:.2f}".replace("-", "−")


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
