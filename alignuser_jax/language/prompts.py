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

from collections.abc import Sequence

from alignuser_jax.language.answers import AnswerLines, integers
from alignuser_jax.records import RATINGS, Action, Message, Persona, Span
from alignuser_jax.text import one_line

PROMPT_LAYOUT_VERSION = 3
"""The version of wording and layout, which shards record."""

# --- the fixed phrases ------------------------------------------------------------------

PLATFORM = "a recommendation site for {item_type}"
SHOP = "a web shop"

UNKNOWN_TEXT = "Unknown"
NEXT_STATE = "[NEXT STATE]"
ACTION = "ACTION: "
BEST_ACTION = "BEST-ACTION: "
RATING_LABEL = "RATING: "
WHY = "WHY: "
LESSON = "LESSON: "
TRAJECTORY_TAGS = ("CONTEXT-ADVANTAGE", "PERSONA-ALIGNMENT", "FUTURE-OUTCOMES", "LESSON")
ITEM_TAGS = ("WHY", "LESSON")
WATCH, SKIP = " [WATCH]", " [SKIP]"

SYSTEM = (
    "You are a user of {platform}. Stay in character: decide as the person described below "
    "would, and stay consistent with their past ratings.",
    "A reply may begin with reasoning and ends with exactly the lines that are asked for.",
    "Screen: for each item, in order, ITEM_n [WATCH] or ITEM_n [SKIP].",
    "Rate: RATING: 1 to 5.",
    "Act: think step by step about what a careful user with this persona would do next, given "
    "their goals, their tastes and what would follow; go on while good items are likely, and "
    "do not leave without a reason; then BEST-ACTION: one of the listed actions.",
    "Interview: RATING: 1 to 10.",
)
RECALL = (
    "Before a choice you recall, from 0 to 9, how well an item's genres match your past and "
    "how popular it is; before a rating, from 0 (2.5 stars or less) to 9 (4.3 or more), what "
    "others gave it and what you gave items like it."
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
MATCH, POPULARITY = ": match ", ", popularity "
OTHERS, SIMILAR = ": others ", ", similar items "
SCREEN = "Screen."
RATE = "Rate "
ACTIONS = "Actions: "
INTERVIEW = "Interview: how satisfied are you with the recommendations?"

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
RATING_SHARES = "Ratings 1 to 5: "
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

    Without a persona (the ablation) the block is "". Unknown age and occupation are said to be
    unknown; everything else that is unknown is left out.
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
    lines = [
        OCCUPATION + (one_line(persona.occupation) or UNKNOWN_TEXT),
        AGE + (one_line(persona.age) or UNKNOWN_TEXT),
    ]
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
        shares = " ".join(f"{100 * share:.0f}%" for share in persona.rating_shares)
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


def screen_recall_line(target: str, match: str, popularity: str) -> str:
    """Return the line about one item before a screening.

    `match` and `popularity` are levels of `Recall`, one digit each, so that they are at fixed
    distances from the answers.
    """
    return f"{target}{MATCH}{match}{POPULARITY}{popularity}"


def rate_recall_line(target: str, others: str, similar: str) -> str:
    """Return the line before a rating; `others` and `similar` are levels, or words for none."""
    return f"{target}{OTHERS}{others}{SIMILAR}{similar}"


def screen_turn(page_text: str, *recalled: str) -> str:
    """Return a new page, the recall lines of its items, and the question which to watch."""
    return turn(page_text, *recalled, SCREEN)


def screen_answer(slate_size: int) -> AnswerLines:
    """Return one answer line per item; alternative 0 is to watch it, 1 to skip it."""
    ids = (f"ITEM_{n}" for n in range(1, slate_size + 1))
    return tuple((item + WATCH, item + SKIP) for item in ids)


def rate_turn(target: str, feedback: str = "", recalled: str = "") -> str:
    """Return the question for a rating.

    Args:
        target: The page-local id of the item.
        feedback: The echo of the last action, or the page if it is new.
        recalled: A `rate_recall_line`.
    """
    return turn(feedback, recalled, f"{RATE}{target}.")


def rate_answer() -> AnswerLines:
    """Return the answer line of a rating; alternative i is a rating of i + 1."""
    return (integers(RATINGS[0], RATINGS[-1], before=RATING_LABEL),)


def act_turn(actions: Sequence[Action], feedback: str = "") -> str:
    """Return the question which of `actions` to take."""
    return turn(feedback, ACTIONS + " ".join(action.token for action in actions))


def act_answer(actions: Sequence[Action]) -> AnswerLines:
    """Return the answer line of an action; alternative i is action i."""
    return (tuple(BEST_ACTION + action.token for action in actions),)


def interview_turn(state_text: str = "") -> str:
    """Return the question for the satisfaction at the end of a session."""
    return turn(state_text, INTERVIEW)


def interview_answer() -> AnswerLines:
    """Return the answer line of the interview; alternative i is a satisfaction of i + 1."""
    return (integers(1, 10, before=RATING_LABEL),)


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
        *(
            RATING_LABEL,
            WATCH,
            SKIP,
            "You rated ",
            *(f"{tag}: " for tag in TRAJECTORY_TAGS),
            WHY,
        ),
    ]
    pieces: dict[str, None] = {}
    for template in templates:
        for part in template.replace("{platform}", PLATFORM).split("{item_type}"):
            if len(part) > 1:
                pieces[part] = None
    return tuple(pieces)


FIXED_PHRASES: tuple[str, ...] = _fixed_phrases()
"""Each is one symbol in a vocabulary that is trained from scratch."""
