"""Neighbours by words: by hand, and what has none."""

import numpy as np

from tests.support.clusters import LastFirst
from tssr_jax.memory import words
from tssr_jax.memory.words import word_neighbours


def test_likeness_by_hand():
    # "red" is in three texts, "box" in two, "red box" in two; "blue" and "lid" are in one each.
    found = word_neighbours(["Red box", "red BOX!", "a red lid", "blue"], 3)
    red, box = np.log(5 / 4) + 1, np.log(5 / 3) + 1  # the pair is as rare as "box"
    norm = np.sqrt(red**2 + 2 * box**2)
    assert found.classes[1].tolist() == [2, 3, 0] and found.classes[2].tolist() == [1, 3, 0]
    np.testing.assert_allclose(found.likeness[1], [1.0, (red / norm) ** 0.7, 0], rtol=1e-5)
    assert found.classes[3].tolist() == [1, 2, 0]  # of equal ones the first comes first
    np.testing.assert_allclose(found.likeness[3], [(red / norm) ** 0.7] * 2 + [0], rtol=1e-5)
    assert not found.likeness[[0, 4]].any()


def test_a_word_counts_as_often_as_it_occurs():
    found = word_neighbours(["x x y", "x", "y"], 2)
    weight = np.log(4 / 3) + 1
    vector = np.array([2 * weight, weight])  # "x x" and "x y" are in one text only
    expected = (vector / np.linalg.norm(vector)) ** 0.7
    np.testing.assert_allclose(found.likeness[1], expected, rtol=1e-5)


def test_texts_without_words():
    assert not word_neighbours(["", "", "..."], 2).likeness.any()


def test_blocks_change_nothing(monkeypatch):
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(list("abcdefgh"), 4)) for _ in range(50)]
    whole = word_neighbours(texts, 5)
    monkeypatch.setattr(words, "_ITEMS_AT_A_TIME", 7)
    parts = word_neighbours(texts, 5)
    np.testing.assert_array_equal(parts.classes, whole.classes)
    np.testing.assert_array_equal(parts.likeness, whole.likeness)


def test_any_engine_finds_the_same(monkeypatch):
    monkeypatch.setattr(words, "_ITEMS_AT_A_TIME", 3)
    texts = [f"a{i % 3} b{i % 4} c{i % 5} d" for i in range(20)] + [""]
    here, there = word_neighbours(texts, 4), word_neighbours(texts, 4, engine=LastFirst())
    np.testing.assert_array_equal(here.classes, there.classes)
    np.testing.assert_array_equal(here.likeness, there.likeness)


def test_too_frequent_terms_count_in_the_norm_only(monkeypatch):
    # "the" is in four texts: 16 products. "red" and "box" are in two each: 4 products each.
    texts = ["the red", "the red box", "the box", "the lid"]
    whole = word_neighbours(texts, 3)
    assert whole.classes[4].tolist() == [3, 1, 2]
    the, red = np.log(5 / 5) + 1, np.log(5 / 3) + 1  # "the red" is as rare as "red"
    first, second = np.sqrt(the**2 + 2 * red**2), np.sqrt(the**2 + 3 * red**2)
    np.testing.assert_allclose(
        whole.likeness[1, 0], ((the**2 + 2 * red**2) / (first * second)) ** 0.7, rtol=1e-5
    )
    monkeypatch.setattr(words, "MOST_PRODUCTS", 4)  # 16 in all, for four texts
    found = word_neighbours(texts, 3)
    assert found.classes[1].tolist() == [2, 0, 0] and not found.likeness[4].any()
    np.testing.assert_allclose(
        found.likeness[1, 0], (2 * red**2 / (first * second)) ** 0.7, rtol=1e-5
    )
    monkeypatch.setattr(words, "MOST_PRODUCTS", 8)  # 32: all products, those of rare terms too
    np.testing.assert_array_equal(word_neighbours(texts, 3).likeness, whole.likeness)


def test_a_new_text_leaves_out_the_same_terms(monkeypatch):
    monkeypatch.setattr(words, "MOST_PRODUCTS", 4)
    texts = ["the red", "the red box", "the box", "the lid"]
    found = word_neighbours([*texts, "the red lid"], 3, num_weighed=4)
    assert found.classes[5].tolist() == [1, 2, 0]
