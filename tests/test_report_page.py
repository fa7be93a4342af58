"""Cells of the reports' tables: what may be broken into lines, and what is escaped."""

from universal_model_hub.fit.reporting.page import Markup, facts, table, text_class


def test_names_of_models_stay_whole_and_paths_may_break():
    assert text_class("bts") == "text"
    assert text_class("Model_Multi+MIAL") == "text words"
    assert text_class("Models Genesis, in its manner") == "text words"
    assert text_class("segmentations/patient-017.nii.gz") == "text words long"


def test_the_target_of_a_link_does_not_count_as_a_word():
    link = Markup("<a href='logs/a-very-long-name-of-a-log-file.log'>log</a>")
    assert text_class(link) == "text"


def test_table_and_facts_give_each_cell_its_class_and_escape_it():
    page = table(["scan", "Dice"], [["<b>", "0.91"], ["a" * 21, "none"]], numeric=[1])
    assert "<td class='text'>&lt;b&gt;</td>" in page
    assert "<td class='number figure'>0.91</td>" in page
    assert "<td class='text words long'>" in page
    assert "<td class='text words long'>" in facts({"folder": "b" * 21})
