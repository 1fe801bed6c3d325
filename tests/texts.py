"""A text of our own to train on: the same characters on every machine, whatever this package's source is.

Sentences of a small grammar: subject and verb agree in number, adjectives stand before what they describe, and now
and then a clause is nested. A document has a topic: a few words of every kind that recur in it, the first ones most
often. Documents are from one sentence to a few pages long. So there is something to learn at every distance: how words
are spelt, which may follow, and, over a whole document, which are likely.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path

NOUNS = (
    "anchor", "baker", "basket", "bridge", "candle", "captain", "castle", "doctor", "dragon", "engine", "farmer",
    "feather", "forest", "garden", "hammer", "harbour", "hunter", "island", "kitchen", "ladder", "lantern", "letter",
    "market", "meadow", "miller", "mirror", "mountain", "orchard", "painter", "pebble", "pilot", "prince", "rabbit",
    "river", "sailor", "shadow", "singer", "spider", "teacher", "temple", "thunder", "tiger", "trumpet", "valley",
    "village", "window", "winter", "wizard",
)  # fmt: skip
VERBS = (
    "answer", "follow", "discover", "remember", "visit", "hinder", "cover", "mention", "recover", "wander toward",
    "belong to", "wait for", "look after", "listen to", "borrow from", "depend on", "return to", "travel with",
    "whisper to", "argue with", "gather around", "point at", "call for", "rely on",
)  # fmt: skip
ADJECTIVES = (
    "ancient", "bitter", "careful", "clever", "crooked", "distant", "empty", "famous", "gentle", "golden", "hidden",
    "honest", "hungry", "little", "modern", "narrow", "patient", "silent", "silver", "sleepy", "stormy", "sudden",
    "tired", "wooden",
)  # fmt: skip
OPENINGS = ("In the morning", "Before long", "After the storm", "At the end of the day", "Once more", "Every year")
LINKS = ("and", "but", "because", "while")
# sentences of the shortest documents and of the longest ones
SHORTEST, LONGEST = 1, 80


class Topic:
    """The words that a document keeps coming back to."""

    def __init__(self, draw: random.Random) -> None:
        self._draw = draw
        self._nouns = self._some(NOUNS, 5)
        self._verbs = self._some(VERBS, 4)
        self._adjectives = self._some(ADJECTIVES, 3)

    def sentence(self) -> str:
        draw = self._draw.random
        clause = self._clause()
        if draw() < 0.3:
            clause = f"{clause} {_one(LINKS, draw())} {self._clause()}"
        if draw() < 0.2:
            return f"{_one(OPENINGS, draw())}, {clause}."
        return f"{clause[0].upper()}{clause[1:]}."

    def _clause(self) -> str:
        subject, plural = self._noun_phrase(nested=True)
        return f"{subject} {_agreeing(self._often(self._verbs), plural)} {self._noun_phrase(nested=False)[0]}"

    def _noun_phrase(self, nested: bool) -> tuple[str, bool]:
        draw = self._draw.random
        plural = draw() < 0.4
        words = [_one(("some", "these") if plural else ("the", "a certain"), draw())]
        if draw() < 0.4:
            words.append(self._often(self._adjectives))
        words.append(self._often(self._nouns) + "s" * plural)
        if nested and draw() < 0.2:
            verb = _agreeing(self._often(self._verbs), plural)
            words += ["that", verb, self._noun_phrase(nested=False)[0]]
        return " ".join(words), plural

    def _often(self, words: Sequence[str]) -> str:
        """One of the words, the first ones most often."""
        return _one(words, self._draw.random() ** 2)

    def _some(self, words: Sequence[str], count: int) -> list[str]:
        return sorted(words, key=lambda _: self._draw.random())[:count]


def documents(characters: int, seed: int = 1) -> Iterator[str]:
    """Documents of varied length, until there are so many characters in all.

    Args:
        characters: how many at least.
        seed: of what is drawn. Only ``Random.random`` is used, which is the same in every version of Python.
    """
    draw = random.Random(seed)
    while characters > 0:
        topic = Topic(draw)
        count = int(SHORTEST * (LONGEST / SHORTEST) ** draw.random())
        lines = [" ".join(topic.sentence() for _ in range(4)) for _ in range(count // 4)]
        text = "\n".join([*lines, *(topic.sentence() for _ in range(count % 4))]) + "\n"
        characters -= len(text)
        yield text


def write_texts(folder: Path, characters: int) -> Path:
    """Writes documents, a file each, into a new folder, and gives it.

    Args:
        folder: must not exist.
        characters: how many in all, at least.
    """
    folder.mkdir(parents=True)
    for index, text in enumerate(documents(characters)):
        (folder / f"{index:04d}.txt").write_text(text, encoding="utf-8", newline="\n")
    return folder


def _one(words: Sequence[str], at: float) -> str:
    """The word at a place from 0 to 1."""
    return words[int(at * len(words))]


def _agreeing(verb: str, plural: bool) -> str:
    if plural:
        return verb
    first, _, rest = verb.partition(" ")
    return f"{first}s {rest}".rstrip()
