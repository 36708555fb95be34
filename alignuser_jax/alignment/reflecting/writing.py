"""Let a model write many reflections: filter, ask again, show progress, stop a hopeless run."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from alignuser_jax.alignment.counterfactuals import Generate, Pair
from alignuser_jax.alignment.reflecting.requests import ReflectionConfig
from alignuser_jax.driver.progress import Progress
from alignuser_jax.language.prompts import ITEM_TAGS, TRAJECTORY_TAGS
from alignuser_jax.language.reflection_checks import ReflectionFacts, accept
from alignuser_jax.randomness import stable_key
from alignuser_jax.records import Completion, Request
from alignuser_jax.text import Say

AT_ONCE = 64
"""Requests that are sent together: enough to fill the slots of an engine many times, and few
enough to show how a slow one gets on."""
SECONDS_BETWEEN_SAMPLES = 60.0
"""A sample is shown as often as that, and after the first replies."""


class TooFewKept(RuntimeError):
    """A model writes too few reflections that can be used."""


@dataclass
class Tally:
    """What has become of the replies so far, in one build.

    Attributes:
        config: Says when a run is given up.
        say: Prints a line.
        visible: Whether a bar is shown on a terminal, and lines of progress in a log.
        clock: Returns seconds; tests pass their own.
        replies: How many replies there were.
        kept: How many of them were kept.
        refused: How many were refused, by reason.
        item_named: Kept ones that name the item or one of its genres.
        user_named: Kept ones that name an item that the user rated, or a favourite genre.
    """

    config: ReflectionConfig = ReflectionConfig()
    say: Say = lambda text: None
    visible: bool = False
    clock: Callable[[], float] = time.monotonic
    replies: int = 0
    kept: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    item_named: int = 0
    user_named: int = 0
    _shown: float | None = None
    _checked: bool = False

    def count(self, text: str | None, reason: str, facts: ReflectionFacts | None) -> None:
        """Count one reply: the text that is kept, or why there is none."""
        self.replies += 1
        if text is None:
            self.refused[reason] += 1
            return
        self.kept += 1
        if facts is not None:
            self.item_named += facts.about_item(text)
            self.user_named += facts.about_user(text)

    def show(self, sample: str) -> None:
        """Say how many were kept, and show one, if that was not done a moment ago."""
        now = self.clock()
        if self._shown is None or now - self._shown >= SECONDS_BETWEEN_SAMPLES:
            self._shown = now
            self.say(self.summary())
            if sample:
                self.say(f"  for example: {' / '.join(sample.splitlines())}")

    def check(self) -> None:
        """Give the run up if it keeps too few.

        Raises:
            TooFewKept: `config.first_replies` are there, and the share kept is too low.
        """
        config = self.config
        if self._checked or self.replies < config.first_replies:
            return
        self._checked = True
        if self.kept < config.least_kept * self.replies:
            raise TooFewKept(
                f"{self.summary()}. That is below reflections.least_kept="
                f"{config.least_kept:g}: this model cannot write them. Let another one do it "
                "(--reflector=DIR, FILE.gguf or URL, or --server), or take templates "
                "(build-shards without --reflector). --least_kept=0 goes on with this one; "
                "replies that are recorded are not asked for again"
            )

    def summary(self) -> str:
        """Return in one line how many were kept, and why the others were not."""
        share = f"{self.kept / max(self.replies, 1):.0%}"
        reasons = ", ".join(f"{n} {reason}" for reason, n in self.refused.most_common())
        return f"reflections: kept {self.kept} of {self.replies} replies ({share})" + (
            f"; refused: {reasons}" if reasons else ""
        )

    def figures(self) -> dict[str, int]:
        """Return the counts for a manifest."""
        names = ("replies", "kept", "item_named", "user_named")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class Reflected:
    """The reflections that a model wrote, after the filter.

    Attributes:
        texts: One per request, in order; `None` where no text was kept.
        dropped: How many have none, by the last reason.
    """

    texts: tuple[str | None, ...]
    dropped: Mapping[str, int]


def reflect(
    generate: Generate,
    requests: Sequence[Request],
    pairs: Sequence[Pair],
    facts: Sequence[ReflectionFacts | None] = (),
    tally: Tally | None = None,
) -> Reflected:
    """Ask for all reflections, and again for those that are refused.

    Of reflections with the same lesson for the same step, only the first stays. Requests that
    fail are not repeated: the back end has done so already.

    Args:
        generate: Answers a batch of requests.
        requests: One per pair of steps.
        pairs: What each request is about.
        facts: What each text may be about; () to leave out the rules that need it.
        tally: Counts and shows; it also holds the settings.

    Raises:
        TooFewKept: The model writes too few that can be used.
    """
    tally = tally or Tally()
    texts: list[str | None] = [None] * len(requests)
    reasons: dict[int, str] = {}
    lessons: set[tuple[str, str, str]] = set()
    waiting = deque((place, 0) for place in range(len(requests)))
    progress = Progress(len(requests), tally.visible, unit="reflection")
    while waiting:
        size = AT_ONCE
        if tally.replies < tally.config.first_replies:
            size = tally.config.first_replies - tally.replies
        batch = [waiting.popleft() for _ in range(min(size, len(waiting)))]
        sample = ""
        for (place, attempt), done in zip(
            batch, generate([_again(requests[p], n) for p, n in batch]), strict=True
        ):
            fact = facts[place] if facts else None
            text, reason = _read(done, pairs[place], fact, lessons)
            failed = done.finish_reason == "error"
            tally.count(text, reason, fact)
            texts[place], sample = text, text or sample
            if text is None and not failed and attempt < tally.config.retries:
                waiting.appendleft((place, attempt + 1))
                continue
            if text is None:
                reasons[place] = reason
            progress.finished(failed=text is None)
        tally.show(sample)
        tally.check()
    progress.close()
    return Reflected(tuple(texts), dict(Counter(reasons.values())))


def _again(request: Request, attempt: int) -> Request:
    return (
        replace(request, key=stable_key(request.key, "again", attempt)) if attempt else request
    )


def _read(
    done: Completion,
    pair: Pair,
    facts: ReflectionFacts | None,
    lessons: set[tuple[str, str, str]],
) -> tuple[str | None, str]:
    """Return the text of a reply, or `None` and why it is refused."""
    human, other = pair
    if done.finish_reason == "error":
        return None, f"generation failed: {done.error}"
    if done.finish_reason == "length":
        return None, "too long"
    tags = ITEM_TAGS if human.action.kind == "rate" else TRAJECTORY_TAGS
    text, reason = accept(done.text, tags, human.action, other.action, facts)
    if text is not None:
        lesson = human.state.user_id, human.state.text, text.rsplit("LESSON:", 1)[1]
        if lesson in lessons:
            return None, "lesson repeated"
        lessons.add(lesson)
    return text, reason
