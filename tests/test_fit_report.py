"""The report page: self-contained, escaped, and with the numbers and pictures of its cases."""

import io
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from universal_model_hub import Volume
from universal_model_hub.errors import ConfigError, GeometryError
from universal_model_hub.fit.data.cases import Finding
from universal_model_hub.fit.reporting.classification import CaseAnswer
from universal_model_hub.fit.reporting.evaluate import segmentation_scores
from universal_model_hub.fit.reporting.planes import DIFFERENCES, class_color, in_ras, three_planes
from universal_model_hub.fit.reporting.report import (
    Arm,
    DataSummary,
    Picture,
    ReportData,
    duration,
    report_page,
    write_report,
)
from universal_model_hub.fit.reporting.results import best_median_worst, most_confidently_wrong
from universal_model_hub.fit.reporting.summary import CaseScores

EVIL = "<script>alert('x')</script>"
CLASSES = {1: "liver", 2: "tumor & rim"}
VOID = {"meta", "img", "source", "br"}


class _Page(HTMLParser):
    """Reads a page; an element that is not closed where it should be is an error."""

    def __init__(self, text):
        super().__init__()
        self.open, self.found, self.rows, self.words = [], [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.words.append(data)
            if self.rows and self.rows[-1] and {"td", "th"} & set(self.open):
                self.rows[-1][-1] += data

    @property
    def text(self):
        return " ".join(self.words)


def boxes(shift):
    """A truth of two classes, and the same shifted by some voxels."""
    truth = np.zeros((16, 14, 10), np.int16)
    truth[3:9, 3:9, 2:8], truth[10:13, 4:8, 3:6] = 1, 2
    return np.roll(truth, shift, axis=0), truth


def case_of(name, shift):
    predicted, truth = boxes(shift)
    scores = segmentation_scores(predicted, truth, (1, 1, 2), CLASSES)
    return CaseScores(case=name, subject=name, classes=tuple(scores))


def arm_of(name, shifts):
    return Arm(
        name=name,
        cases=tuple(case_of(f"case-{i}", shift) for i, shift in enumerate(shifts)),
        losses=(1.0, 0.7, 0.5, 0.4),
        scores=((2, 0.5), (4, 0.6)),
        best_step=4,
        seconds=75.0,
    )


DATA = DataSummary(
    splits={"train": (8, 7), "test": (3, 3)}, class_counts={"liver": 3000, "tumor & rim": 1000}
)
REPORT = ReportData(
    title="Liver",
    task="segmentation",
    command="umh finetune --images scans --labels masks --output liver",
    classes=CLASSES,
    arms=(arm_of("pretrained", (0, 1, 1)),),
    data=DATA,
    settings={"steps": 4},
    provenance={"weights": "unet3d-compact", "seed": 0},
)


def answers(chances):
    return tuple(
        CaseAnswer(case=f"n{i}", subject=f"n{i}", truth=i % 2, probabilities=(1 - p, p))
        for i, p in enumerate(chances)
    )


CLASSIFICATION = replace(
    REPORT,
    task="classification",
    classes={0: "benign", 1: "malignant"},
    arms=(Arm(name="pretrained", answers=answers((0.1, 0.9, 0.8, 0.7, 0.2, 0.4))),),
)


def pixels(png):
    from matplotlib.image import imread

    return (imread(io.BytesIO(png))[..., :3] * 255).round().astype(int)


def near(picture, color, tolerance=40):
    """Where a picture has about a color."""
    wanted = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
    return np.abs(picture - wanted).max(axis=2) <= tolerance


def test_a_page_is_well_formed_and_asks_for_nothing_from_outside(tmp_path):
    png = three_planes(np.zeros((6, 6, 6)), None, None, (1, 1, 1))
    report = replace(REPORT, pictures=(Picture("Worst", "case-1", png),))
    write_report(tmp_path / "report.html", report)
    text = (tmp_path / "report.html").read_text()
    page = _Page(text)
    sources = [v for _, a in page.found for k, v in a.items() if k in ("src", "href", "srcset")]
    assert len(sources) >= 5
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert not re.search(r"https?://|url\(|@import", text)
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_all_text_of_users_is_escaped():
    evil = replace(
        REPORT,
        title=EVIL,
        command=EVIL,
        classes={1: EVIL, 2: "tumor & rim"},
        arms=tuple(
            replace(
                arm_of(name + EVIL, (0, 1)),
                cases=(replace(case_of(EVIL, 1), subject=EVIL), case_of("b", 0)),
                facts={EVIL: EVIL},
            )
            for name in ("a", "b")
        ),
        data=DataSummary(
            splits={EVIL: (1, 1)},
            class_counts={EVIL: 1},
            findings=(Finding("warning", EVIL, EVIL),),
            facts={EVIL: EVIL},
        ),
        settings={EVIL: EVIL},
        provenance={EVIL: EVIL},
        score_name=EVIL,
        judged_on=EVIL,
        pictures=(Picture(EVIL, EVIL, b"png"),),
        caveats=(EVIL,),
    )
    text = report_page(evil)
    page = _Page(text)
    assert EVIL not in text
    assert [tag for tag, _ in page.found].count("script") == 1
    assert page.text.count(EVIL) > 20


def test_classes_and_cases_of_classification_are_escaped_too():
    arm = Arm(name=EVIL, answers=tuple(replace(a, case=EVIL + a.case) for a in answers((0.2, 0.7))))
    text = report_page(replace(CLASSIFICATION, classes={0: EVIL, 1: "b"}, arms=(arm,)))
    assert EVIL not in text
    assert EVIL in _Page(text).text


def test_the_tables_hold_the_scores_of_the_classes_and_cases():
    page = _Page(report_page(REPORT))
    liver, tumor = 2 * 180 / 432, 2 * 24 / 72
    assert ["liver", "3", f"{(1 + 2 * liver) / 3:.3f}"] == [
        cell.split("[")[0] for cell in next(r for r in page.rows if r[0] == "liver")[:3]
    ]
    mean = (liver + tumor) / 2
    row = next(r for r in page.rows if r[0] == "case-1")
    assert row == ["case-1", "case-1", f"{mean:.3f}", f"{liver:.3f}", f"{tumor:.3f}", "1.0"]
    assert ["liver", "3,000", "75.00%"] in page.rows


def test_two_arms_stand_side_by_side_with_their_paired_difference():
    arms = (arm_of("pretrained", (0, 1, 0)), arm_of("from scratch", (1, 2, 1)))
    page = _Page(report_page(replace(REPORT, arms=arms)))
    assert "“pretrained” is 0.2" in page.text
    assert "the interval excludes 0" in page.text
    head = next(row for row in page.rows if row[-1] == "difference")
    assert head == ["class", "Dice, pretrained", "Dice, from scratch", "difference"]
    assert "another seed" in page.text


def test_arms_that_do_not_differ_are_not_said_to():
    arms = (arm_of("pretrained", (0, 1, 2)), arm_of("from scratch", (1, 0, 2)))
    page = _Page(report_page(replace(REPORT, arms=arms)))
    assert "the interval includes 0" in page.text
    assert "excludes" not in page.text


def test_one_case_has_no_interval_and_the_page_says_what_that_means():
    one = replace(REPORT, arms=(arm_of("pretrained", (1,)),), within_subject=True)
    page = _Page(report_page(one))
    assert "n = 1: no interval" in page.text
    assert "Judged on 1 subject:" in page.text
    assert "parts of the same scan" in page.text
    assert "not a medical device" in page.text


def test_a_missed_structure_is_counted_and_has_no_distance():
    predicted, truth = boxes(0)
    predicted[predicted == 2] = 0
    scores = segmentation_scores(predicted, truth, (1, 1, 2), CLASSES)
    case = CaseScores(case="a", subject="a", classes=tuple(scores))
    page = _Page(report_page(replace(REPORT, arms=(Arm(name="pretrained", cases=(case,)),))))
    row = next(r for r in page.rows if r[0] == "tumor & rim" and len(r) > 3)
    assert row[4] == "\N{EN DASH}"
    assert row[-2:] == ["1", "0"]


def test_the_table_of_cases_can_be_sorted_by_its_full_numbers():
    page = _Page(report_page(REPORT))
    keys = [a["data-sort"] for tag, a in page.found if tag == "td" and "data-sort" in a]
    assert len(keys) == 3 * 6
    assert float(keys[6 + 3]) == pytest.approx(2 * 180 / 432, abs=1e-12)
    assert [tag for tag, _ in page.found].count("button") == 6


def test_every_wide_thing_scrolls_in_a_box_of_its_own():
    page = _Page(report_page(REPORT))
    scrolling = [a for tag, a in page.found if tag == "div" and a.get("class") == "scroll"]
    assert len(scrolling) == [tag for tag, _ in page.found].count("table")


def test_charts_are_there_for_light_and_for_dark_pages():
    page = _Page(report_page(REPORT))
    dark = [a for tag, a in page.found if tag == "source"]
    assert len(dark) == 2
    assert all("dark" in a["media"] for a in dark)


def test_classification_shows_rates_confusion_and_each_answer():
    page = _Page(report_page(CLASSIFICATION))
    assert any(row[0] == "AUC" and row[1].startswith("0.778") for row in page.rows)
    row = next(r for r in page.rows if r[0] == "n2")
    assert row[3:] == ["benign", "malignant", "no", "0.200", "0.800"]
    assert "Cases by truth" in page.text


@pytest.mark.parametrize("arms", [(), REPORT.arms * 3])
def test_other_than_one_or_two_arms_are_refused(arms):
    with pytest.raises(ConfigError, match="two to compare"):
        report_page(replace(REPORT, arms=arms))


def test_the_drawn_cases_are_the_best_the_middle_and_the_worst():
    cases = arm_of("a", (2, 0, 3, 1, 4)).cases
    chosen = best_median_worst(cases)
    assert {k: c.case for k, c in chosen.items()} == {
        "best": "case-1", "median": "case-0", "worst": "case-4",
    }  # fmt: skip
    assert list(best_median_worst(cases[:2])) == ["best", "worst"]
    assert list(best_median_worst(cases[:1])) == ["best"]


def test_the_most_confidently_wrong_answer_is_found():
    assert most_confidently_wrong(answers((0.1, 0.9, 0.8, 0.05))).case == "n3"
    assert most_confidently_wrong(answers((0.1, 0.9))) is None


def test_voxels_keep_their_proportions_in_a_picture():
    image = np.zeros((40, 40, 10))
    image[5:35, 5:35, 2:8] = 100  # 30 x 30 x 30 mm
    picture = pixels(three_planes(image, None, None, (1, 1, 5), window=(0, 100)))
    bright = (picture > 225).all(axis=2)
    rows, columns = np.flatnonzero(bright.mean(axis=1) > 0.3), bright.sum(axis=1).max() / 3
    assert len(rows) / columns == pytest.approx(1, abs=0.06)


def test_right_is_on_the_right_and_classes_have_their_colors():
    image = np.zeros((40, 40, 40))
    truth = np.zeros(image.shape, np.int16)
    truth[4:12, 8:32, 8:32], truth[28:36, 8:32, 8:32] = 1, 2
    picture = pixels(three_planes(image, truth, None, (1, 1, 1), window=(0, 1)))
    axial = picture[:, 2 * picture.shape[1] // 3 :]
    left, right = (
        np.flatnonzero(near(axial, class_color(label), 30).any(axis=0)) for label in (1, 2)
    )
    assert left.max() < right.min()


def test_differences_are_marked_each_in_its_color_and_only_where_annotated():
    image = np.zeros((20, 20, 20))
    truth, predicted = (np.zeros(image.shape, np.int16) for _ in range(2))
    truth[2:10, 5:15, 5:15] = 1
    assert not any(
        near(pixels(three_planes(image, truth, truth, (1, 1, 1))), color, 45).any()
        for color in DIFFERENCES.values()
    )
    predicted[6:18, 5:15, 5:15] = 1
    missed, extra, other = (
        near(pixels(three_planes(image, truth, predicted, (1, 1, 1))), color, 45).sum()
        for color in DIFFERENCES.values()
    )
    assert missed > 100
    assert extra / missed == pytest.approx(160 / 180, abs=0.05)  # voxels of three planes
    assert other == 0
    unknown = np.where(predicted > 0, np.where(truth > 0, truth, -1), truth).astype(np.int16)
    drawn = pixels(three_planes(image, unknown, predicted, (1, 1, 1)))
    assert not near(drawn, list(DIFFERENCES.values())[1], 45).any()


def test_small_structures_are_shown_larger_below_the_whole_scan():
    image = np.zeros((200, 200, 60))
    truth = np.zeros(image.shape, np.int16)
    truth[40:46, 60:66, 20:24] = 1
    small = pixels(three_planes(image, truth, truth, (1, 1, 2)))
    truth[10:190, 10:190, 5:55] = 1
    large = pixels(three_planes(image, truth, truth, (1, 1, 2)))
    assert small.shape[0] > large.shape[0]
    assert near(small, class_color(1), 40).sum() > 100


@pytest.mark.parametrize("shape", [(1, 9, 9), (9, 9, 1), (1, 1, 1)])
def test_scans_of_one_slice_can_be_drawn(shape):
    labels = np.ones(shape, np.int16)
    assert three_planes(np.zeros(shape), labels, labels, (1, 1, 1)).startswith(b"\x89PNG")


def test_labels_on_another_grid_are_refused():
    with pytest.raises(GeometryError, match="grid"):
        three_planes(np.zeros((4, 4, 4)), np.zeros((4, 4, 5), int), None, (1, 1, 1))


def test_a_scan_is_turned_to_the_axes_of_the_pictures():
    array = np.arange(24).reshape(2, 3, 4)
    affine = np.array([[0, 0, -3.0, 0], [-1.0, 0, 0, 0], [0, 2.0, 0, 0], [0, 0, 0, 1]])
    turned, spacing = in_ras(Volume(array, affine))  # axes point to P, S, L
    assert spacing == (3.0, 1.0, 2.0)
    assert turned.shape == (4, 2, 3)
    assert turned[0, 0, 0] == array[1, 0, 3]
    assert turned[3, 1, 2] == array[0, 2, 0]


def test_times_are_said_as_people_say_them():
    assert [duration(s) for s in (None, 42.4, 75, 3540, 7322)] == [
        "not known", "42 s", "1 min", "59 min", "2 h 02 min",
    ]  # fmt: skip
