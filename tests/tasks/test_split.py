from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coadapt._errors import InputError
from coadapt.tasks.split import SplitFractions, generator, normalize, split_of, text_key

FRACTIONS = SplitFractions()
texts = st.text(st.characters(exclude_categories=["Cs"]))


@settings(deadline=None)
@given(texts)
def test_normalize_is_idempotent(text):
    assert normalize(normalize(text)) == normalize(text)


@settings(deadline=None)
@given(texts, st.sampled_from([" ", "\n", "\t\u00a0", "\u2003 "]), st.integers(0, 99))
def test_equal_texts_are_in_one_split(text, space, seed):
    key = text_key([text])
    for variant in (space + text, text + space, text.replace(" ", space), text.lower().upper()):
        if normalize(variant) == normalize(text):
            assert text_key([variant]) == key
            assert split_of(text_key([variant]), FRACTIONS, seed) == split_of(key, FRACTIONS, seed)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Hello  World", " hello world\n"),
        ("\ufb01ne", "FINE"),  # the ligature fi
        ("Stra\u00dfe", "STRASSE"),
        ("caf\u00e9", "CAFE\u0301"),
        ("\uff21\uff22", "ab"),  # full width
        ("a\u00a0b", "a b"),
        ("\u03a3\u03a3", "\u03c3\u03c2"),  # the final sigma
    ],
)
def test_normalize_folds(one, other):
    assert normalize(one) == normalize(other)
    assert text_key([one]) == text_key([other])


def test_normalize_keeps_what_differs():
    assert (
        len({normalize(text) for text in ("resume", "r\u00e9sum\u00e9", "resume!", "re sume")}) == 4
    )


@settings(deadline=None)
@given(texts, texts)
def test_a_pair_is_two_texts_in_order(one, other):
    distinct = normalize(one) != normalize(other)
    assert (text_key([one, other]) != text_key([other, one])) == distinct
    assert text_key([one, other]) != text_key([one + other])
    if normalize(one):
        assert text_key(["a " + one, other]) != text_key(["a", one + " " + other])


def test_shares_and_seeds():
    keys = [text_key([f"text {i}"]) for i in range(4000)]
    splits = [split_of(key, FRACTIONS, 0) for key in keys]
    counts = Counter(splits)
    # Four standard errors of a share of 4000 draws.
    assert abs(counts["test"] / 4000 - 0.25) < 0.028
    assert abs(counts["validation"] / 4000 - 0.15) < 0.023
    assert splits != [split_of(key, FRACTIONS, 1) for key in keys]
    assert splits != [split_of(key, FRACTIONS, -1) for key in keys]


def test_the_split_is_the_same_on_every_machine():
    found = [split_of(text_key([text]), FRACTIONS, 0) for text in "abcdefghijkl"]
    assert "".join(split[1] for split in found) == "aaererereera"


def test_fractions_may_be_nothing():
    fractions = SplitFractions(validation=0.0, test=0.0)
    assert {split_of(text_key([str(i)]), fractions, 0) for i in range(99)} == {"train"}


@pytest.mark.parametrize(
    ("validation", "test"), [(0.5, 0.5), (-0.1, 0.2), (0.1, 1.0), (0.1, float("nan"))]
)
def test_fractions_that_cannot_be(validation, test):
    with pytest.raises(InputError, match="give two numbers from 0 whose sum is below 1"):
        SplitFractions(validation=validation, test=test)


def test_generators_depend_on_the_key_alone():
    draw = [
        int(generator(*key).integers(2**62)) for key in (("a", 1), ("a", 1), ("a", "1"), ("a1",))
    ]
    assert draw[0] == draw[1]
    assert len(set(draw)) == 3
