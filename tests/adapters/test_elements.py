"""Oracle: connected components of a few joined places, drawn by hand."""

from __future__ import annotations

import numpy as np

from autocompress.adapters.elements import FIXED, Elements, Place

MAKER, READER, NORM = Place("producer", "a"), Place("consumer", "b"), Place("carrier", "n")


def test_a_place_has_the_same_elements_at_every_call() -> None:
    elements = Elements()
    first = elements.of(MAKER, 3)
    assert not set(first) & set(elements.of(READER, 3))
    assert elements.of(MAKER, 3) is first


def test_joined_elements_are_one_class_in_all_their_places() -> None:
    elements = Elements()
    made, read, carried = (elements.of(place, 3) for place in (MAKER, READER, NORM))
    elements.join(made, read[::-1])
    elements.join(read, carried)
    assert elements.classes() == [{MAKER: [i], READER: [2 - i], NORM: [2 - i]} for i in range(3)]


def test_a_pin_holds_the_whole_class_whenever_it_was_set() -> None:
    elements = Elements()
    made, read = elements.of(MAKER, 3), elements.of(READER, 3)
    elements.pin([int(made[0])])
    elements.join(made, read)
    elements.pin([int(read[2]), FIXED])
    assert elements.classes() == [{MAKER: [1], READER: [1]}]


def test_what_meets_padding_stays() -> None:
    elements = Elements()
    made = elements.of(MAKER, 3)
    elements.join(made, np.array([FIXED, int(made[1]), FIXED]))
    assert elements.classes() == [{MAKER: [1]}]
