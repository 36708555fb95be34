"""Decide whether a reflection that a model wrote can be trained on, by rules on its text.

A small model writes many that cannot: about nothing, about the other rating, or a copy of the
example in its prompt. Every rule refuses for one reason, in words that a log can count
(docs/method.md section 8.3 has the few that the method needs).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from alignuser_jax.language.parsing import ReplyError, parse_tags
from alignuser_jax.language.reflection_prompts import FEELINGS
from alignuser_jax.records import Action

REPEATED_WORDS = 4
"""A text that has a run of so many words twice repeats itself."""
COPIED_WORDS = 6
"""A text that has a run of so many words from a worked example copies it."""
LEAST_WORDS = {"WHY": 6, "LESSON": 4}
"""Words that a tag must have, where something less says nothing."""
SENTENCES = {"WHY": 3}
"""Sentences of a tag that are kept; of a tag that is not named, one."""

_END = re.compile(r"[.!?]+[\"')\]]*(?=\s|$)")
_NO_END = re.compile(r"(?:\b(?:Mr|Mrs|Ms|Dr|St|Jr|Sr|vs|Vol)|\b[A-Z])\.$")
_POSITIVE = r"(?:love|like|enjoy|adore|appreciate|admire)"
_FOR = re.compile(rf"\bI (?:(?:really|truly|do|did|also|just|always) )?{_POSITIVE}d?\b", re.I)
_AGAINST = re.compile(
    r"\bI (?:(?:really|truly|just|also) )?(?:hate|dislike|loathe|detest)d?\b"
    r"|\b(?:do|did|does|could|can|would|was|is|am|are)(?:n['’]t| not|not)\b|\bnever\b|\bnot\b"
    r"|\b(?:bor(?:ed|ing)|dull|disappoint\w*|annoy\w*|weak|flat|lack\w*|too|tired)\b",
    re.I,
)
_IT = r"(?:it|this|that|them|the (?:\w+ )?(?:film|movie|show|book|game|item))\b"
_CLAIMS_FOR = re.compile(
    rf"^I (?:(?:really|truly|just|do) )?{_POSITIVE}d?\b"
    rf"|\bI (?:(?:really|truly|do|did|also|just|always) )?{_POSITIVE}d? {_IT}",
    re.I,
)
_CLAIMS_AGAINST = re.compile(
    rf"^I (?:(?:really|truly|just) )?(?:hate|dislike|loathe|detest)d?\b"
    rf"|\bI (?:(?:really|truly|just|also) )?(?:hate|dislike|loathe|detest)d? {_IT}"
    rf"|\bI (?:do|did)(?:n['’]t| not) (?:really )?{_POSITIVE} {_IT}",
    re.I,
)
_META = re.compile(
    r"\b(?:experts?|the human|as an ai|language model|the user|this user|their rating)\b", re.I
)
_MARKUP = re.compile(r"\*\*|```|</?\w+>|<\||\|>|^#|https?:")
_ALIASES = {
    "children": ("child", "kid", "famil"),
    "comedy": ("comic", "funny", "laugh"),
    "romance": ("romantic", "love stor"),
    "sci-fi": ("science fiction", "scifi"),
    "animation": ("animated", "cartoon"),
    "musical": ("music", "song"),
    "horror": ("scary", "frighten"),
    "film-noir": ("noir",),
    "thriller": ("thrill", "suspense"),
}


@dataclass(frozen=True, slots=True)
class ReflectionFacts:
    """What a reflection on a rating may be about.

    Attributes:
        title: The title of the item.
        genres: Its genres.
        known: Titles of other items that the prompt names.
        favourites: The user's favourite genres.
        examples: Replies, and titles, of the worked examples in the prompt.
    """

    title: str
    genres: tuple[str, ...] = ()
    known: tuple[str, ...] = ()
    favourites: tuple[str, ...] = ()
    examples: tuple[str, ...] = ()

    def about_item(self, text: str) -> bool:
        """Return whether a text names the item or one of its genres."""
        return _names(text, [self.title]) or _names_genre(text, self.genres)

    def about_user(self, text: str) -> bool:
        """Return whether a text names an item that the user rated, or a favourite genre."""
        return _names(text, self.known) or _names_genre(text, self.favourites)


def whole_sentences(text: str, tags: Sequence[str]) -> dict[str, str]:
    r"""Return the value of each tag without a last sentence that is cut off.

    Args:
        text: The reply.
        tags: `prompts.ITEM_TAGS` or `prompts.TRAJECTORY_TAGS`.

    Raises:
        ReplyError: A tag is missing or out of order, or has no whole sentence.

    Example:
        >>> whole_sentences("WHY: I like it. It is\\nLESSON: More of it.", ("WHY", "LESSON"))
        {'WHY': 'I like it.', 'LESSON': 'More of it.'}
    """
    values = parse_tags(text, tags)
    for tag, value in values.items():
        ends = [match.end() for match in _END.finditer(value)]
        ends = [end for end in ends if not _NO_END.search(value[:end])]
        if not ends:
            raise ReplyError(f"{tag} has no whole sentence: {value!r}")
        values[tag] = value[: ends[: SENTENCES.get(tag, 1)][-1]]
    return values


def accept(
    text: str,
    tags: Sequence[str],
    choice: Action,
    alternative: Action,
    facts: ReflectionFacts | None = None,
) -> tuple[str | None, str]:
    """Check a reflection that a model wrote.

    Args:
        text: The reply.
        tags: The tags that it must have.
        choice: What the human did.
        alternative: What the human did not do.
        facts: What it may be about; `None` leaves out the rules that need to know it.

    Returns:
        `(text as tagged lines, "")`, or `(None, reason)` if it is refused.
    """
    try:
        parse_tags(text, tags)
    except ReplyError:
        return None, "tags missing"
    try:
        values = whole_sentences(text, tags)
    except ReplyError:
        return None, "no whole sentence"
    body = " ".join(values.values())
    reason = _refusal(body, choice, alternative) or _form(values)
    if facts is not None and not reason:
        reason = _untrue(values, choice, facts)
    if reason:
        return None, reason
    return "".join(f"{tag}: {values[tag]}\n" for tag in tags), ""


def _refusal(body: str, choice: Action, alternative: Action) -> str:
    """The rules of the method: no expert, no choice that is named, no praise of the other."""
    if _META.search(body):
        return "talks about an expert"
    if re.search(_named(choice), body, re.IGNORECASE):
        return "names the choice"
    better = r"(is|was|seems|would be|fits|suits|matches)\W+(\w+\W+){0,2}?(better|best|right)"
    if re.search(rf"({_named(alternative)})\W+(\w+\W+){{0,3}}?{better}", body, re.IGNORECASE):
        return "names the alternative as better"
    return ""


def _form(values: Mapping[str, str]) -> str:
    """The rules on the text alone."""
    if any(_MARKUP.search(value) for value in values.values()):
        return "holds markup"
    if any(_count(value) < LEAST_WORDS.get(tag, 1) for tag, value in values.items()):
        return "too short"
    # a number between tags, so that no run goes over the end of one
    words = [w for n, value in enumerate(values.values()) for w in (*_words(value), str(n))]
    seen = list(_runs(words, REPEATED_WORDS))
    return "repeats itself" if len(seen) > len(set(seen)) else ""


def _untrue(values: Mapping[str, str], choice: Action, facts: ReflectionFacts) -> str:
    """The rules on what the text is about."""
    body = " ".join(values.values())
    shown = " ".join((facts.title, *facts.genres, *facts.known, *facts.favourites))
    if any(c.isalpha() and ord(c) > 0x24F and c not in shown for c in body):
        return "in another script"
    copied = {run for text in facts.examples for run in _runs(_words(text), COPIED_WORDS)}
    if copied.intersection(_runs(_words(body), COPIED_WORDS)):
        return "copies the example"
    if _names(body, [text for text in facts.examples if "\n" not in text]):
        return "copies the example"
    if not facts.about_item(body):
        return "not about the item"
    if choice.kind == "rate":
        if any(f"i {word}" in body.lower() for word in _other_feelings(choice.value)):
            return "speaks for another rating"
        praise, blame = bool(_FOR.search(values["WHY"])), bool(_AGAINST.search(values["WHY"]))
        if choice.value >= 4 and (blame and not praise or _CLAIMS_AGAINST.search(body)):
            return "speaks against a high rating"
        if choice.value <= 2 and (not blame or _CLAIMS_FOR.search(body)):
            return "speaks for a low rating"
    return ""


def _other_feelings(rating: int) -> list[str]:
    """What questions call ratings of the other side, and of the middle."""

    def side(value: int) -> int:
        return (value > 3) - (value < 3)

    return [word for n, word in enumerate(FEELINGS, 1) if side(n) != side(rating)]


def _named(action: Action) -> str:
    """A pattern that matches the ways in which a text names an action."""
    if action.kind != "rate":
        return re.escape(action.token)
    words = ("one", "two", "three", "four", "five")
    number = rf"(?<!\d\.){action.value}(\.0+)?(?!\.?\d)"  # not 4.2, nor the end of 3.4
    value = f"({number}|{words[action.value - 1]})"
    return rf"\b(rat\w+|score)( it| this| of|:)* {value}\b|\b{value}(/5| out of 5|[ -]stars?)"


def _count(text: str) -> int:
    """How many words a text has, numbers not counted."""
    return sum(not word.isdigit() for word in _words(text))


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def _runs(words: Sequence[str], length: int) -> Iterable[tuple[str, ...]]:
    return (tuple(words[n : n + length]) for n in range(len(words) - length + 1))


def _names(text: str, titles: Iterable[str]) -> bool:
    """Whether a text names one of the titles, with or without year and article."""
    return any((name := _core(title)) and name.search(text) for title in titles)


@lru_cache(maxsize=1 << 14)
def _core(title: str) -> re.Pattern[str] | None:
    """A pattern of a title without what follows a bracket or a colon, and without articles.

    The case of a short title counts, since a text may have its words without meaning it.
    """
    words = re.findall(r"\w+", re.split(r"\s\(|: ", title, maxsplit=1)[0])
    for place in (0, -1):
        if len(words) > 1 and words[place].lower() in ("the", "a", "an"):
            del words[place]
    name = r"\W+".join(map(re.escape, words))
    short = len(name) < 6
    return re.compile(rf"\b{name}\b", 0 if short else re.I) if words else None


def _names_genre(text: str, genres: Iterable[str]) -> bool:
    """Whether a text has a word of one of the genres, in any of its forms."""
    lower = text.lower()
    for genre in genres:
        plain = genre.lower().removesuffix("'s")
        stem = plain[:-1] if len(plain) > 4 and plain[-1] in "aeiyl" else plain
        forms = (stem, *_ALIASES.get(plain, ()))
        if any(re.search(rf"(?<!\w){re.escape(form)}", lower) for form in forms):
            return True
    return False
