import pytest

from alignuser_jax.evaluation.next_state import (
    edit_similarity,
    macro_f1,
    rule_page_type,
)


def test_macro_f1_by_hand():
    # browse: 1 hit, 1 false alarm -> 2/3; end: 1 miss -> 0
    assert macro_f1(["browse", "browse"], ["browse", "end"]) == pytest.approx((2 / 3 + 0) / 2)


def test_a_prediction_outside_the_classes_is_a_miss_not_a_class():
    assert macro_f1(["other", "browse"], ["browse", "browse"]) == pytest.approx(2 / 3)


def test_rule_reads_the_action():
    assert rule_page_type("[CLICK_ITEM:2]") == "detail"
    assert rule_page_type("[EXIT]") == "end"
    assert rule_page_type("[RATE:2:4]") == "browse"


def test_edit_similarity():
    assert edit_similarity("A  b\nc", "a b c") == 1
    assert edit_similarity("abcd", "abxd") == 0.75
    assert edit_similarity("", "") == 1
