"""Planning: the shortest sequence of steps, with every verb applied in order."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lepton_edge import api, registry
from lepton_edge.errors import LeptonError
from lepton_edge.plan import plan
from lepton_edge.registry import Step


def step(verb, source, target, cost=1.0, **more):
    return Step(f"{verb}_{source}_{target}", Path("x.py"), verb, source, target, "", cost=cost, **more)


STEPS = [
    step("convert", "a", "b"),
    step("convert", "b", "c"),
    step("convert", "a", "c", cost=5.0),
    step("quantize", "b", "b"),
    step("quantize", "c", "c"),
    step("prune", "a", "a"),
]


def names(steps):
    return [s.name for s in steps]


def test_the_cheapest_way_wins():
    assert names(plan("a", "c", (), STEPS)) == ["convert_a_b", "convert_b_c"]


def test_quantization_happens_in_the_target_format():
    assert names(plan("a", "c", ("quantize",), STEPS)) == ["convert_a_b", "convert_b_c", "quantize_c_c"]


def test_prune_then_quantize():
    assert names(plan("a", "c", ("prune", "quantize"), STEPS))[0] == "prune_a_a"


def test_no_route_says_where_the_verb_works():
    with pytest.raises(LeptonError, match="no route from c to b with prune") as e:
        plan("c", "b", ("prune",), STEPS)
    assert "prune works on: a" in e.value.hint


def test_a_missing_package_is_a_last_resort():
    steps = [
        step("convert", "a", "b", requires=("no-such-package-at-all",)),
        step("convert", "a", "b", cost=50.0),
    ]
    assert plan("a", "b", (), steps) == (steps[1],)
    assert plan("a", "b", (), steps[:1]) == (steps[0],)


@given(
    st.sampled_from(["a", "b", "c"]),
    st.sampled_from(["a", "b", "c"]),
    st.lists(st.sampled_from(["prune", "quantize"]), max_size=3),
)
def test_a_plan_connects_and_applies_all_verbs_in_order(source, target, verbs):
    try:
        steps = plan(source, target, tuple(verbs), STEPS)
    except LeptonError:
        return
    assert [s.verb for s in steps if s.verb != "convert"] == verbs
    formats = [source, *(s.target for s in steps)]
    assert all(s.source == f for s, f in zip(steps, formats, strict=False))
    assert formats[-1] == target


def test_every_file_in_the_folders_is_readable_as_a_plugin():
    broken = [(s.name, s.broken) for s in (*registry.steps(), *registry.runtimes()) if s.broken]
    assert broken == []


@pytest.mark.parametrize(
    ("verb", "format_", "wanted"),
    [
        ("quantize", "onnx", "onnx"),
        ("quantize", "openvino", "openvino"),
        ("quantize", "keras", "tflite"),
        ("quantize", "h5", "tflite"),  # two conversions away
        ("quantize", "savedmodel", "tflite"),
        ("quantize", "pt2", "tflite"),
        ("prune", "h5", "keras"),
        ("prune", "onnx", "onnx"),
        ("prune", "pt2", "onnx"),
        ("prune", "savedmodel", "onnx"),
    ],
)
def test_a_pass_without_a_target_goes_to_its_own_format_or_the_nearest(verb, format_, wanted):
    assert api._place_of(verb, format_, Path("model")) == wanted


def test_a_pass_that_cannot_be_reached_says_what_it_works_on():
    with pytest.raises(LeptonError, match="prune does not work on openvino") as e:
        api._place_of("prune", "openvino", Path("model.xml"))
    assert "keras" in e.value.hint
