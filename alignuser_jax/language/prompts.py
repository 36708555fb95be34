"""The prompts of agents and of the world model, and the replies that they allow.

The wording is this project's own (docs/method.md section 14 has the paper's, paraphrased). A
turn is repeated hundreds of thousands of times, so turns are short and the system prompt
explains the reply formats once. Every fixed phrase is in `FIXED_PHRASES`: the tokenizer that is
trained for models from scratch holds each as one symbol. A change of wording or layout that
makes new prompts differ from old shards must raise `PROMPT_LAYOUT_VERSION`.

Prompts for reflections are in `reflection_prompts`, those for matching personas in
`persona_prompts`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from alignuser_jax.language.answers import AnswerLines, integers
from alignuser_jax.records import RATINGS, Action, Message, Persona, Span
from alignuser_jax.text import one_line

PROMPT_LAYOUT_VERSION = 4
"""The version of wording and layout, which shards record."""

# --- the fixed phrases ------------------------------------------------------------------

PLATFORM = "a recommendation site for {item_type}"
SHOP = "a web shop"

NEXT_STATE = "[NEXT STATE]"
ACTION = "ACTION: "
BEST_ACTION = "BEST-ACTION: "
WHY = "WHY: "
LESSON = "LESSON: "
TRAJECTORY_TAGS = ("CONTEXT-ADVANTAGE", "PERSONA-ALIGNMENT", "FUTURE-OUTCOMES", "LESSON")
ITEM_TAGS = ("WHY", "LESSON")
WATCH, SKIP = " yes", " no"

SYSTEM = (
    "You are the user of {platform} who is described below. Decide as this person would.",
    "Reasoning may come first; a reply ends with the lines asked for.",
    "Watch: each number and yes or no. Rate: 1 to 5. Satisfaction: 1 to 10.",
    "Act: think step by step what this person would do next, going on while good items are "
    "likely; then BEST-ACTION: and one of the actions.",
)
RECALL = (
    "Digits from 0 to 9 are what you recall: match with your genres, popularity, others' "
    "ratings, your ratings of similar items."
)
SIMULATE = (
    "You simulate {platform}. Given a state and an action, write the state that follows: "
    "change only what the action changes and invent nothing."
)
SHOP_SYSTEM = (
    "You are a shopper in {platform}. Stay in character: decide as the person described below "
    "would, with what they are looking for in mind.",
    "A page shows a context, products, and the ids of what can be clicked.",
    "Think step by step about what this person would do next; buy what fits, and leave when "
    "nothing suitable is likely to be found.",
    "A reply may begin with reasoning and ends with exactly one line, BEST-ACTION: and an "
    "action: [CLICK:id] with an id of the page, one of the listed [INPUT:id|text], or "
    "[TERMINATE], which leaves the shop.",
)
"""Like all phrases of the shop this is not in `FIXED_PHRASES`: it would change every vocabulary
that is trained from scratch."""
GOAL, DONE, NOTHING_YET = "Looking for: ", "Done so far:", "Nothing yet."
TEXTS, SHOP_ACT = "Texts to type: ", "What do you do?"
MATCH, POPULARITY = " match ", " popularity "
OTHERS, SIMILAR = "others ", "similar items "
SCREEN = "Watch?"
RATE = "Rate "
ACTIONS = "Actions: "
INTERVIEW = "Satisfaction with the recommendations?"

OCCUPATION, AGE = "Occupation: ", "Age: "
# The phrases of a trait by its level, the first for an unknown one.
PICKINESS = (
    "",
    "You are not picky about {item_type}.",
    "You are moderately picky about {item_type}.",
    "You are extremely picky about {item_type}.",
)
ENGAGEMENT = (
    "",
    "You visit rarely and leave at slight dissatisfaction.",
    "You visit now and then.",
    "You visit often and are patient.",
)
CONFORMITY = (
    "",
    "You rate much as others do.",
    "You rate partly as others do.",
    "You rate regardless of others.",
)
VARIETY = (
    "",
    "You keep to a few genres.",
    "You like some variety.",
    "You seek out the unusual.",
)
BIG_FIVE = ("openness", "conscientiousness", "extraversion", "agreeableness", "neuroticism")
"""The order of `Persona.big_five`."""
TRAITS, PERSONALITY, HABITS = (
    "Personality traits (1 low, 2 medium, 3 high): ",
    "Personality: ",
    "Habits: ",
)
"""Only matched and given personas have these lines, so they are not in `FIXED_PHRASES`: they
would change every vocabulary that is trained from scratch."""
MEAN_RATING = "Average rating: "
RATING_SHARES = "Ratings 1 to 5 in percent: "
GENRES_LABEL = "Favourite genres: "
HISTORY = "Past ratings:"


def system_prompt(item_type: str = "movies", recall: bool = False) -> str:
    """Return the system prompt of a site: platform, task and reply formats.

    It is the same for all users. With `recall` it explains the lines of `screen_recall_line`
    and `rate_recall_line`.
    """
    lines = "\n".join((*SYSTEM, RECALL) if recall else SYSTEM)
    return lines.format(platform=PLATFORM.format(item_type=item_type))


def persona_block(persona: Persona | None, item_type: str = "movies") -> str:
    """Return the lines about the user, in the order of docs/method.md section 4.5.

    Without a persona (the ablation) the block is "". What is unknown is left out.
    """
    if persona is None:
        return ""
    levels = (
        (PICKINESS, persona.pickiness),
        (ENGAGEMENT, persona.engagement),
        (CONFORMITY, persona.conformity),
        (VARIETY, persona.variety),
    )
    traits = " ".join(phrases[level] for phrases, level in levels if level)
    known = ((OCCUPATION, persona.occupation), (AGE, persona.age))
    lines = [label + one_line(text) for label, text in known if one_line(text)]
    if persona.big_five:
        named = zip(BIG_FIVE, persona.big_five, strict=True)
        lines.append(TRAITS + ", ".join(f"{name} {level}" for name, level in named))
    if persona.personality:
        lines.append(PERSONALITY + one_line(persona.personality))
    lines.append(traits.format(item_type=item_type))
    if persona.habits:
        lines.append(HABITS + one_line(persona.habits))
    if persona.mean_rating is not None:
        lines.append(f"{MEAN_RATING}{persona.mean_rating:.1f}")
    if persona.rating_shares:
        shares = " ".join(f"{100 * share:.0f}" for share in persona.rating_shares)
        lines.append(RATING_SHARES + shares)
    if persona.favourite_genres:
        lines.append(GENRES_LABEL + one_line(", ".join(persona.favourite_genres)))
    return turn(*lines)


def opening(persona: Persona | None, history: str, item_type: str = "movies") -> str:
    """Return the beginning of the first user message: persona, then past ratings.

    `history` is the text of `EpisodicMemory.summary`, fixed when the session starts.
    """
    return turn(persona_block(persona, item_type), HISTORY, history)


def turn(*parts: str) -> str:
    """Join the parts of a message (opening, page, question) by newlines, without empty ones."""
    return "\n".join(part for part in parts if part)


# --- the calls of a session: the question's text, and the alternatives of the answer ------


def screen_recall_line(target: str, match: int | None, popularity: int) -> str:
    """Return the line about one item before a screening.

    Args:
        target: The page-local id of the item.
        match: A level of `Recall`, one digit, `None` for none.
        popularity: Another.
    """
    matched = f"{MATCH}{match}" if match is not None else ""
    return f"{target}:{matched}{POPULARITY}{popularity}"


def rate_recall_line(others: str, similar: str) -> str:
    """Return what is recalled before a rating: two levels, each "" where there is none."""
    known = ((OTHERS, others), (SIMILAR, similar))
    return ", ".join(label + level for label, level in known if level)


def screen_turn(page_text: str, *recalled: str) -> str:
    """Return a new page, the recall lines of its items, and the question which to watch."""
    return turn(page_text, *recalled, SCREEN)


def screen_answer(slate_size: int) -> AnswerLines:
    """Return one answer line per item; alternative 0 is to watch it, 1 to skip it."""
    return tuple((f"{n}{WATCH}", f"{n}{SKIP}") for n in range(1, slate_size + 1))


def rate_turn(target: str, page: str = "", recalled: str = "") -> str:
    """Return the question for a rating.

    Args:
        target: The page-local id of the item.
        page: The page, if it is new.
        recalled: A `rate_recall_line`.

    Example:
        >>> rate_turn("2", recalled="others 7, similar items 6")
        'Rate 2: others 7, similar items 6'
    """
    return turn(page, f"{RATE}{target}{': ' if recalled else '.'}{recalled}")


def rate_answer() -> AnswerLines:
    """Return the answer line of a rating; alternative i is a rating of i + 1."""
    return (integers(RATINGS[0], RATINGS[-1]),)


def act_turn(actions: Sequence[Action], feedback: str = "") -> str:
    """Return the question which of `actions` to take.

    Clicks on neighbouring items are listed as one, such as `[CLICK_ITEM:1-4]`.
    """
    return turn(feedback, ACTIONS + " ".join(_listed(actions)))


def _listed(actions: Sequence[Action]) -> Iterator[str]:
    """The tokens of the actions, runs of clicks on neighbouring positions as one."""
    run: list[Action] = []
    for action in actions:
        position = action.target if action.kind == "click" else ""
        if run and position.isdigit() and int(position) == int(run[-1].target) + 1:
            run.append(action)
            continue
        yield from _click_range(run)
        run = [action] if position.isdigit() else []
        if not run:
            yield action.token
    yield from _click_range(run)


def _click_range(run: Sequence[Action]) -> Iterator[str]:
    if run:
        ends = run[0].target if len(run) == 1 else f"{run[0].target}-{run[-1].target}"
        yield Action("click", ends).token


def act_answer(actions: Sequence[Action]) -> AnswerLines:
    """Return the answer line of an action; alternative i is action i."""
    return (tuple(BEST_ACTION + action.token for action in actions),)


def interview_turn(state_text: str = "") -> str:
    """Return the question for the satisfaction at the end of a session."""
    return turn(state_text, INTERVIEW)


def interview_answer() -> AnswerLines:
    """Return the answer line of the interview; alternative i is a satisfaction of i + 1."""
    return (integers(1, 10),)


# --- a visit to a web shop (docs/method.md section 13.3) ----------------------------------


def shop_system_prompt() -> str:
    """Return the system prompt of a web shop."""
    return "\n".join(SHOP_SYSTEM).format(platform=SHOP)


def shop_opening(persona: Persona | None, goal: str, done: Sequence[str]) -> str:
    """Return the beginning of the first user message of a visit to a shop.

    Args:
        persona: Who the user is.
        goal: What the user is looking for, "" if that is unknown.
        done: The tokens of the actions of this visit so far.
    """
    goal_line = GOAL + one_line(goal) if goal else ""
    return turn(persona_block(persona, "products"), goal_line, DONE, *(done or (NOTHING_YET,)))


def shop_act_turn(actions: Sequence[Action], page_text: str) -> str:
    """Return a page and the question what to do.

    The ids to click are on the page, so only the texts that can be typed are listed.
    """
    texts = " ".join(action.token for action in actions if action.kind == "input")
    return turn(page_text, TEXTS + texts if texts else "", SHOP_ACT)


# --- parts, for counting ------------------------------------------------------------------

PARTS = ("system", "persona", "past ratings", "pages", "recalled", "questions", "actions")
"""The parts of a prompt, in the order in which they first occur."""
_STARTS = {
    "persona": (OCCUPATION, AGE, TRAITS, PERSONALITY, HABITS, MEAN_RATING, RATING_SHARES)
    + (
        GENRES_LABEL,
        "You are ",
        "You visit ",
        "You rate ",
        "You keep ",
        "You like ",
        "You seek ",
    ),
    "past ratings": (HISTORY, "Liked (", "Neutral (", "Disliked (", "None yet."),
    "actions": (ACTIONS, ACTION),
    "questions": (SCREEN, RATE, INTERVIEW),
}
_RECALLED = re.compile(rf"\d+:({MATCH}\d)?{POPULARITY}\d")


def part_of(line: str) -> str:
    """Return which of `PARTS` a line of a user message is; what is nothing else is a page.

    >>> part_of("1: match 3 popularity 9")
    'recalled'
    """
    if _RECALLED.fullmatch(line):
        return "recalled"
    return next((part for part, starts in _STARTS.items() if line.startswith(starts)), "pages")


# --- the world model (docs/method.md section 1, equation 2) -------------------------------


def world_model_messages(
    state_text: str,
    action: Action,
    next_state_text: str | None = None,
    item_type: str = "movies",
    platform: str = PLATFORM,
) -> tuple[Message, ...]:
    """Return the prompt to predict the next state, and the trained reply if it is given.

    Args:
        state_text: The page before the action.
        action: What is done.
        next_state_text: The page after it, for training; `None` for the prompt alone.
        item_type: What the site recommends.
        platform: `PLATFORM` or `SHOP`.
    """
    system = SIMULATE.format(platform=platform.format(item_type=item_type))
    messages = (
        Message.of("system", system),
        Message.of("user", turn(state_text, ACTION + action.token)),
    )
    if next_state_text is None:
        return messages
    reply = Span(f"{NEXT_STATE}\n{next_state_text}", trained=True)
    return (*messages, Message("assistant", (reply,)))


def _fixed_phrases() -> tuple[str, ...]:
    """Return every fixed stretch of the prompts above, cut where something is filled in."""
    templates = [
        *SYSTEM,
        *(RECALL, SIMULATE),
        *(*PICKINESS, *ENGAGEMENT, *CONFORMITY, *VARIETY),
        *(MATCH, POPULARITY, OTHERS, SIMILAR),
        *(PLATFORM, SCREEN, RATE, ACTIONS, INTERVIEW, OCCUPATION, AGE),
        *(MEAN_RATING, RATING_SHARES, GENRES_LABEL, HISTORY, NEXT_STATE, ACTION, BEST_ACTION),
        *(WATCH, SKIP, "You rated ", *(f"{tag}: " for tag in TRAJECTORY_TAGS), WHY),
    ]
    pieces: dict[str, None] = {}
    for template in templates:
        for part in template.replace("{platform}", PLATFORM).split("{item_type}"):
            if len(part) > 1:
                pieces[part] = None
    return tuple(pieces)


FIXED_PHRASES: tuple[str, ...] = _fixed_phrases()
"""Each is one symbol in a vocabulary that is trained from scratch."""
