"""Confident learning: the labels that probabilities contradict."""

import csv
import io

import numpy as np

from flaxmnist.report.suspects import Suspect, find_suspects, page, table

NAMES = ["cat", "dog", "<owl>", "absent"]


def slow(labels, probabilities):
    """The definition of the paper, an example and a class at a time."""
    classes = range(probabilities.shape[1])
    thresholds = {}
    for j in classes:
        own = [
            p[j] for p, label in zip(probabilities, labels, strict=True) if label == j
        ]
        if own:
            thresholds[j] = sum(own) / len(own)
    found = {}
    for index, (p, label) in enumerate(zip(probabilities, labels, strict=True)):
        confident = [j for j in thresholds if p[j] >= thresholds[j]]
        best = max(confident, key=lambda j: p[j], default=label)
        if best != label:
            found[index] = best
    return found


def drawn(count=400):
    """Labels of three of four classes, a tenth of them wrong, and probabilities."""
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 3, count)
    logits = rng.normal(0, 1, (count, 4)) + np.diag([5, 5, 2, 0])[truth]
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    wrong = rng.random(count) < 0.1
    return np.where(wrong, (truth + 1) % 3, truth), probabilities, wrong


def test_suspects_are_those_of_the_definition_surest_first():
    labels, probabilities, wrong = drawn()
    found = find_suspects(labels, probabilities, NAMES)
    wanted = slow(labels, probabilities)
    assert {one.index: one.suggestion for one in found} == {
        index: NAMES[label] for index, label in wanted.items()
    }
    rows = [one.index for one in found]
    assert wrong[rows].mean() > 0.95
    assert wrong[rows].sum() > 0.8 * wrong.sum()
    margins = [one.suggestion_probability - one.label_probability for one in found]
    assert margins == sorted(margins, reverse=True)
    first = found[0]
    assert first.label == NAMES[labels[first.index]]
    assert first.label_probability == probabilities[first.index, labels[first.index]]
    assert find_suspects(np.arange(3), np.eye(4)[:3], NAMES) == []


def test_a_class_is_probable_if_it_reaches_its_mean_probability():
    # The means are 0.75 and 0.4: the second example counts for dog, the third for none.
    probabilities = np.array([[0.9, 0.1], [0.6, 0.4], [0.7, 0.3], [0.5, 0.5]])
    found = find_suspects(np.array([0, 0, 1, 1]), probabilities, NAMES)
    assert found == [Suspect(1, "cat", "dog", 0.6, 0.4)]


def test_suspects_are_listed_in_a_table_and_on_a_page():
    suspects = [
        Suspect(7, "cat", "<owl>", 0.01, 0.9),
        Suspect(2, "a,b", "dog", 0.2, 0.7),
    ]
    rows = [*csv.DictReader(io.StringIO(table(suspects)))]
    assert [row["index"] for row in rows] == ["7", "2"]
    assert (rows[1]["label"], rows[0]["suggestion_probability"]) == ("a,b", "0.900000")
    text = page("labels", "cnn on own", 0.98, suspects, np.zeros((9, 4, 4), np.uint8))
    assert "<b>2</b> suspect labels" in text
    assert text.index('alt="Training image 7"') < text.index('alt="Training image 2"')
    assert "or &lt;owl&gt;, 90 %" in text
    many = [Suspect(index, "cat", "dog", 0.1, 0.9) for index in range(600)]
    text = page("labels", "cnn on own", 0.9, many, np.zeros((600, 4, 4), np.uint8))
    assert "The first 500 of 600 suspects" in text
