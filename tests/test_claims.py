"""Claims: numbers checked by hand, and every way in which a claim must not pass."""

import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lib.claims import ALPHA, MIME, Claims, Control, Estimate, claim, estimate, not_attempted, slope

INF, NAN = float("inf"), float("nan")


def check(measured=None, **options):
    """A claim that holds, unless an option says otherwise."""
    settings = {"predicted": 1.0, "source": "Theorem 1"} | options
    settings.setdefault("no_control", "" if "control" in options else "an identity")
    return claim("T1", "$x = 1$", measured=measured or Estimate(1.0), **settings)


def test_estimate_by_hand():
    # Mean 2, squared deviations 1 + 0 + 1, variance 1, standard error 1/sqrt(3).
    e = estimate([1.0, 2.0, 3.0])
    assert (e.value, e.n) == (2.0, 3)
    assert e.stderr == pytest.approx(1 / math.sqrt(3), rel=1e-15)
    assert estimate(torch.ones(2, 3, dtype=torch.float32)) == Estimate(1.0, 0.0, 6)
    assert estimate([0.1 + 0.2, 0.3]).stderr == 0  # rounding
    assert estimate([0.3, 0.3 + 1e-9]).stderr > 0


@pytest.mark.parametrize(("n", "quantile"), [(2, 6366.198), (3, 99.992), (10, 6.594), (121, 4.025)])
def test_student_interval_from_the_printed_table(n, quantile):
    """The column 0.99995 of any table of Student's t, with n - 1 degrees of freedom."""
    assert ALPHA == 1e-4
    assert Estimate(0.0, 2.0, n).half_width() == pytest.approx(2 * quantile, abs=2e-3)


def test_an_exact_value_has_no_interval():
    assert Estimate(3.0).half_width() == 0.0


@pytest.mark.parametrize("samples", [[], [1.0], [1.0, NAN], [1.0, INF]])
def test_estimate_refuses_what_has_no_error_bar(samples):
    with pytest.raises(ValueError, match="samples"):
        estimate(samples)


@pytest.mark.parametrize("arguments", [(1.0, 0.1), (1.0, 0.1, 1), (1.0, 0.0, 0)])
def test_one_draw_has_no_standard_error(arguments):
    with pytest.raises(ValueError, match="at least 2 draws"):
        Estimate(*arguments)


def test_slope_by_hand():
    # Two draws over x = 0, 1, 2: y = 2x exactly, and y = 0, 0, 3 with slope (2·3 - 1·3) / 2 = 3/2.
    e = slope([0.0, 1.0, 2.0], torch.tensor([[0.0, 0.0], [2.0, 0.0], [4.0, 3.0]]))
    assert e.value == pytest.approx(1.75)
    assert e.stderr == pytest.approx(0.25)  # std of {2, 1.5} is 0.5/sqrt(2), over sqrt(2)
    assert e.n == 2


@given(st.floats(-3, 3), st.floats(-3, 3))
def test_slope_recovers_a_power_law(power, constant):
    x = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64).log()
    e = slope(x, (constant + power * x)[:, None].expand(-1, 3))
    assert e.value == pytest.approx(power, abs=1e-12)
    assert e.stderr == pytest.approx(0, abs=1e-12)


def test_slope_says_which_shapes_it_wants():
    for x, y in [([1.0], torch.ones(1, 2)), ([1.0, 2.0], torch.ones(3, 2)), ([1.0, 2.0], torch.ones(2))]:
        with pytest.raises(ValueError, match="need"):
            slope(x, y)


@pytest.mark.parametrize(
    ("relation", "value", "holds"),
    [
        ("=", 0.8, True),
        ("=", 0.7, False),
        ("=", 1.2, True),
        ("=", 1.3, False),
        ("<", -9.0, True),
        ("<", 1.2, True),
        ("<", 1.3, False),
        (">", 9.0, True),
        (">", 0.8, True),
        (">", 0.7, False),
    ],
)
def test_relations(relation, value, holds):
    c = check(Estimate(value), relation=relation, finite_size=0.25, finite_size_from="1/T, T = 4")
    assert (c.holds, c.passed) == (holds, holds)
    assert c.status == ("agrees" if holds else "differs")


def test_tolerance_is_the_interval_plus_the_finite_size():
    c = check(Estimate(1.0, 0.1, 10), finite_size=0.25, finite_size_from="1/T")
    assert c.tolerance == pytest.approx(0.25 + 0.6594, abs=1e-4)
    assert c.half_width == pytest.approx(0.6594, abs=1e-4)
    assert c.tolerance_from == "99.99 % Student interval over 10 draws + 1/T"
    assert check().tolerance_from == "exact"


@pytest.mark.parametrize("relation", ["=", "<", ">"])
@pytest.mark.parametrize(
    ("measured", "predicted"),
    [
        (Estimate(NAN), 1.0),
        (Estimate(1.0), NAN),
        (Estimate(1.0, NAN, 9), 1.0),
        (Estimate(1.0, INF, 9), 1.0),
        (Estimate(INF), INF),
    ],
)
def test_what_cannot_be_compared_never_holds(relation, measured, predicted):
    c = check(measured, predicted=predicted, relation=relation)
    assert not c.holds
    assert not c.passed


def test_a_control_must_fail():
    rejected = check(control=Control("another ensemble", measured=Estimate(2.0)))
    assert rejected.passed
    assert rejected.control == {
        "description": "another ensemble",
        "predicted": 1.0,
        "measured": 2.0,
        "half_width": 0.0,
        "tolerance": 0.0,
        "fails": True,
    }
    accepted = check(control=Control("the same ensemble", measured=Estimate(1.0)))
    assert accepted.holds
    assert accepted.as_stated
    assert not accepted.passed
    assert "FAILS: the control passes" in repr(Claims(accepted))


def test_a_control_by_another_prediction():
    c = check(control=Control("without the factor 2", predicted=0.5))
    assert c.passed
    assert (c.control["predicted"], c.control["measured"]) == (0.5, 1.0)
    assert not check(control=Control("a factor 1", predicted=1.0)).passed


def test_a_control_has_its_own_error_bar():
    wide = Control("too few draws to tell", measured=Estimate(2.0, 1.0, 2))
    assert not check(control=wide).passed


def test_a_control_that_is_not_a_number_rejects_nothing():
    for broken in (Estimate(NAN), Estimate(2.0, NAN, 9)):
        assert not check(control=Control("broken", measured=broken)).passed
    assert not check(control=Control("broken", predicted=NAN)).passed
    assert check(control=Control("diverges", measured=Estimate(INF))).passed


def test_where_the_book_says_that_a_statement_is_wrong():
    wrong = check(Estimate(2.0), differs="the constant is 2")
    assert (wrong.holds, wrong.as_stated, wrong.passed, wrong.status) == (False, True, True, "differs")
    assert wrong.reason == "the constant is 2"
    right = check(Estimate(1.0), differs="the constant is 2")
    assert (right.holds, right.as_stated, right.passed) == (True, False, False)
    assert not check(Estimate(NAN), differs="the constant is 2").passed, "a NaN does not refute a paper"
    control = Control("the right constant", measured=Estimate(3.0))
    both = check(Estimate(2.0), differs="the constant is 2", control=control)
    assert both.passed
    assert both.as_stated


def test_trend_and_not_attempted():
    assert check(trend=True).status == "agrees in trend"
    assert check(Estimate(2.0), trend=True).status == "differs"
    c = not_attempted("T2", "too large", reason="needs 1 TB", source="Section 5")
    assert (c.status, c.holds, c.passed, c.reason) == ("not attempted", False, True, "needs 1 TB")
    with pytest.raises(ValueError, match="why T2"):
        not_attempted("T2", "s", reason="", source="p")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tag": "papre"}, "use one of paper, sharp, beyond"),
        ({"relation": "~"}, "use one of =, <, >"),
        ({"finite_size": -1.0}, "finite and >= 0"),
        ({"finite_size": INF, "finite_size_from": "none"}, "finite and >= 0"),
        ({"finite_size": NAN, "finite_size_from": "none"}, "finite and >= 0"),
        ({"finite_size": 0.1}, "say where that comes from"),
        ({"no_control": ""}, "say in no_control why"),
    ],
)
def test_errors_say_what_to_do(options, message):
    with pytest.raises(ValueError, match=message):
        check(**options)


def test_a_control_is_a_measurement_or_a_prediction():
    for arguments in ({}, {"measured": Estimate(1.0), "predicted": 2.0}):
        with pytest.raises(ValueError, match="not both"):
            Control("both or none", **arguments)
    with pytest.raises(ValueError, match="drop one"):
        check(control=Control("c", predicted=2.0), no_control="none exists")


def test_cases_tell_claims_apart():
    one, two = check(case="γ = 1"), check(case="γ = 1/2")
    claims = Claims(one, two)
    assert [c.key for c in claims] == ["T1 (γ = 1)", "T1 (γ = 1/2)"]
    assert len(claims) == 2
    with pytest.raises(ValueError, match=r"T1 \(γ = 1\)"):
        Claims(one, two, one)


def test_failed_lists_what_did_not_pass():
    good, bad = check(), check(Estimate(2.0), case="bad")
    assert Claims(good, bad).failed == [bad]


def test_the_bundle_is_json_and_reads_the_same():
    claims = Claims(check(Estimate(1 / 3, 0.01, 7)), check(Estimate(INF), case="diverges"))
    bundle = claims._repr_mimebundle_()
    assert set(bundle) == {"text/plain", "text/html", MIME}
    record = json.loads(json.dumps(bundle[MIME], allow_nan=False))
    assert record == claims.record()
    assert record[0]["measured"] == 0.333333
    assert record[1]["measured"] is None
    assert "measured 0.333 ± 0.091" in bundle["text/plain"]


def test_html_escapes_and_marks_formulas():
    c = claim(
        "<b>",
        "if a < b then $x < y$ & so on",
        predicted=1.0,
        measured=Estimate(1.0),
        source="p",
        finite_size=0.1,
        finite_size_from='"quoted" & <more>',
        control=Control("$<$ & co", predicted=5.0),
    )
    text = Claims(c)._repr_mimebundle_()["text/html"]
    assert "<strong>&lt;b&gt;</strong> if a &lt; b then" in text
    assert r"\(x &lt; y\)</span> &amp; so on" in text
    assert 'title="&quot;quoted&quot; &amp; &lt;more&gt;"' in text
    assert r"\(&lt;\)</span> &amp; co: 1 against 5, rejected" in text
    assert 'class="claim-pass"' in text
    assert 'class="claim-fail"' in Claims(check(Estimate(2.0)))._repr_mimebundle_()["text/html"]
