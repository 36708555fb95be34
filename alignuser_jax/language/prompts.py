"""What is said to a model, and what it may answer: prompts in our own wording (METHOD.md 14).

A turn is said hundreds of thousands of times, so turns are short and the reply formats are
explained once, in the system prompt. Every fixed phrase is in `FIXED_PHRASES`: the tokenizer
that is trained for scratch models holds each as one symbol. A change of wording or layout that
makes old shards differ from new prompts must raise `PROMPT_LAYOUT_VERSION`.
"""

from __future__ import annotations

from collections.abc import Sequence

from alignuser_jax.language.answers import AnswerLines, integers
from alignuser_jax.records import RATINGS, Action, Message, Persona, Span
from alignuser_jax.text import one_line

PROMPT_LAYOUT_VERSION = 3
PLATFORM = "a recommendation site for {item_type}"
SHOP = "a web shop"

UNKNOWN = "Unknown"
NEXT_STATE = "[NEXT STATE]"
ACTION = "ACTION: "
BEST_ACTION = "BEST-ACTION: "
RATING = "RATING: "
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
"""Not in `FIXED_PHRASES`, as all that is said in a shop: there it would change every vocabulary
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
"""Of matched and given personas only, so not in `FIXED_PHRASES`: there they would change every
vocabulary that is trained from scratch."""
MEAN_RATING = "Average rating: "
RATING_SHARES = "Ratings 1 to 5: "
GENRES = "Favourite genres: "
HISTORY = "Past ratings:"


def system_prompt(item_type: str = "movies", recall: bool = False) -> str:
    """Platform, task and reply formats: the same for all users. `recall` explains the lines of
    `screen_recall` and `rate_recall`."""
    lines = "\n".join((*SYSTEM, RECALL) if recall else SYSTEM)
    return lines.format(platform=PLATFORM.format(item_type=item_type))


def persona_block(persona: Persona | None, item_type: str = "movies") -> str:
    """Who the user is, in METHOD.md 4.5's order; "" for no persona (the ablation). Unknown
    demographics say so; what else is unknown is left out."""
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
        OCCUPATION + (one_line(persona.occupation) or UNKNOWN),
        AGE + (one_line(persona.age) or UNKNOWN),
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
        lines.append(GENRES + one_line(", ".join(persona.favourite_genres)))
    return turn(*lines)


def opening(persona: Persona | None, history: str, item_type: str = "movies") -> str:
    """How the first user message begins: persona, then past ratings.

    `history` is text, fixed at session start: `EpisodicMemory.summary` in the memory room.
    """
    return turn(persona_block(persona, item_type), HISTORY, history)


def turn(*parts: str) -> str:
    """One user message of several parts (opening, page, instruction): one below the other,
    empty parts left out."""
    return "\n".join(part for part in parts if part)


# --- the calls of a session: (what is asked, what may be answered) ------------------------


def screen_recall(target: str, match: str, popularity: str) -> str:
    """One line per item before a screening; the levels of `Recall`, one digit each, so that
    they stand at fixed distances from the answers."""
    return f"{target}{MATCH}{match}{POPULARITY}{popularity}"


def rate_recall(target: str, others: str, similar: str) -> str:
    """One line before a rating; levels too, or a word where there is nothing to tell."""
    return f"{target}{OTHERS}{others}{SIMILAR}{similar}"


def screen_turn(page_text: str, *recalled: str) -> str:
    """A new page, what is recalled of its items, and the question which of them to watch."""
    return turn(page_text, *recalled, SCREEN)


def screen_answer(slate_size: int) -> AnswerLines:
    """Watch is alternative 0, skip is 1."""
    ids = (f"ITEM_{n}" for n in range(1, slate_size + 1))
    return tuple((item + WATCH, item + SKIP) for item in ids)


def rate_turn(target: str, feedback: str = "", recalled: str = "") -> str:
    """`target` is the page-local id, `feedback` the echo of what was done before (or the page
    itself, where it is new), `recalled` a `rate_recall` line."""
    return turn(feedback, recalled, f"{RATE}{target}.")


def rate_answer() -> AnswerLines:
    """Alternative i is a rating of i + 1."""
    return (integers(RATINGS[0], RATINGS[-1], before=RATING),)


def act_turn(actions: Sequence[Action], feedback: str = "") -> str:
    return turn(feedback, ACTIONS + " ".join(action.token for action in actions))


def act_answer(actions: Sequence[Action]) -> AnswerLines:
    return (tuple(BEST_ACTION + action.token for action in actions),)


def interview_turn(state_text: str = "") -> str:
    return turn(state_text, INTERVIEW)


def interview_answer() -> AnswerLines:
    """Alternative i is a satisfaction of i + 1."""
    return (integers(1, 10, before=RATING),)


# --- a visit to a web shop (METHOD.md 13.3) -----------------------------------------------


def shop_system_prompt() -> str:
    return "\n".join(SHOP_SYSTEM).format(platform=SHOP)


def shop_opening(persona: Persona | None, goal: str, done: Sequence[str]) -> str:
    """Persona, what the person is looking for ("": nobody knows), and the action tokens of
    this visit so far."""
    wanted = GOAL + one_line(goal) if goal else ""
    return turn(persona_block(persona, "products"), wanted, DONE, *(done or (NOTHING_YET,)))


def shop_act_turn(actions: Sequence[Action], page_text: str) -> str:
    """The ids to click stand on the page, so only the texts to type are listed."""
    texts = " ".join(action.token for action in actions if action.kind == "input")
    return turn(page_text, TEXTS + texts if texts else "", SHOP_ACT)


# --- the world model (METHOD.md equation 2) -----------------------------------------------


def world_model_messages(
    state_text: str,
    action: Action,
    next_state_text: str | None = None,
    item_type: str = "movies",
    platform: str = PLATFORM,
) -> tuple[Message, ...]:
    """The prompt to predict the next state; with `next_state_text` the trained reply too.
    `platform` is `PLATFORM` or `SHOP`."""
    system = SIMULATE.format(platform=platform.format(item_type=item_type))
    messages = (
        Message.of("system", system),
        Message.of("user", turn(state_text, ACTION + action.token)),
    )
    if next_state_text is None:
        return messages
    reply = Span(f"{NEXT_STATE}\n{next_state_text}", trained=True)
    return (*messages, Message("assistant", (reply,)))


# --- alternatives and reflections (METHOD.md section 8) -----------------------------------


def alternatives_messages(
    state_text: str,
    persona_text: str,
    history: str,
    action: str,
    valid: Sequence[str],
    k: int,
    item_type: str = "movies",
) -> tuple[Message, ...]:
    """Asks for `k` other actions that this user could have taken; `action` and `valid` are
    answer tokens. `parsing.parse_alternatives` reads the reply."""
    system = (
        f"You know how people use {PLATFORM.format(item_type=item_type)}. "
        "Given what a user did, "
        f"propose exactly {k} other actions, one per line, each copied from the valid actions "
        "and nothing else. Each must differ from what the user did, be plausible for this "
        "persona and make a real difference."
    )
    asked = turn(
        persona_text,
        HISTORY,
        history,
        "State:",
        state_text,
        f"The user did: {action}",
        f"Valid actions: {' '.join(valid)}",
    )
    return Message.of("system", system), Message.of("user", asked)


def trajectory_reflection_messages(
    state_text: str,
    persona_text: str,
    history: str,
    action: str,
    next_state: str,
    alternative: str,
    alternative_next_state: str,
    item_type: str = "movies",
) -> tuple[Message, ...]:
    """Asks why the user's action was better than one alternative (METHOD.md 8.3). Several
    steps ahead are joined by the caller as `s1 -> [a2] -> s2`."""
    system = (
        f"You are a user of {PLATFORM.format(item_type=item_type)} and think about a choice. "
        "Write in the first person, as a thought before acting; do not speak of an expert or "
        "of the other action as such. Use concrete differences between the two next states. "
        "Reply with exactly four lines:\n"
        "CONTEXT-ADVANTAGE: why my action fits the state better\n"
        "PERSONA-ALIGNMENT: why it suits who I am\n"
        "FUTURE-OUTCOMES: why what follows is better\n"
        "LESSON: one sentence to keep"
    )
    asked = turn(
        persona_text,
        HISTORY,
        history,
        "State:",
        state_text,
        f"My action: {action}",
        "Its next state:",
        next_state,
        f"Other action: {alternative}",
        "Its next state:",
        alternative_next_state,
    )
    return Message.of("system", system), Message.of("user", asked)


def rating_reflection_messages(
    title: str,
    description: str,
    persona_text: str,
    history: str,
    rating: int,
    signal: str,
    alternative: int,
    alternative_signal: str,
    item_type: str = "movies",
) -> tuple[Message, ...]:
    """Asks why the user's rating of one item fits better than another rating. The signals are
    what speaks for each rating in words, next states included."""
    system = (
        f"You are a user of {PLATFORM.format(item_type=item_type)} and think about how to "
        "rate an item. Write in the first person, faithful to the persona and the item, before "
        "any number is given: do not name a rating and do not speak of an expert. Reply with "
        "exactly two lines:\n"
        "WHY: one to three sentences\n"
        "LESSON: one sentence to keep"
    )
    asked = turn(
        persona_text,
        HISTORY,
        history,
        f"Item: {title}",
        f"About it: {description or '(none)'}",
        f"My rating: {rating}/5. {signal}",
        f"Other rating: {alternative}/5. {alternative_signal}",
    )
    return Message.of("system", system), Message.of("user", asked)


def _fixed_phrases() -> tuple[str, ...]:
    """Every fixed stretch of the prompts above, cut where something is filled in."""
    templates = [
        *SYSTEM,
        *(RECALL, SIMULATE),
        *(*PICKINESS, *ENGAGEMENT, *CONFORMITY, *VARIETY),
        *(MATCH, POPULARITY, OTHERS, SIMILAR),
        *(PLATFORM, SCREEN, RATE, ACTIONS, INTERVIEW, OCCUPATION, AGE),
        *(MEAN_RATING, RATING_SHARES, GENRES, HISTORY, NEXT_STATE, ACTION, BEST_ACTION),
        *(RATING, WATCH, SKIP, "You rated ", *(f"{tag}: " for tag in TRAJECTORY_TAGS), WHY),
    ]
    pieces: dict[str, None] = {}
    for template in templates:
        for part in template.replace("{platform}", PLATFORM).split("{item_type}"):
            if len(part) > 1:
                pieces[part] = None
    return tuple(pieces)


FIXED_PHRASES: tuple[str, ...] = _fixed_phrases()
