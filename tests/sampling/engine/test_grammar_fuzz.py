"""Whatever ids and titles an answer holds, every reply that its automaton allows is legal.

Random valid sets of alternatives go through the engine's own preparation; random walks over
the automaton, reasoning with tokens chosen to confuse included, take the place of the model.
"""

import functools
import os
import unicodedata

import numpy as np
import pytest

from alignuser_jax.language import answer_token_paths, render, train_sentencepiece
from alignuser_jax.language.tokenizer import HuggingFaceTokenizer, SentencePieceTokenizer
from alignuser_jax.records import Message, Request
from alignuser_jax.sampling import EngineConfig
from alignuser_jax.sampling.engine.automaton import ACCEPT, LINE, MID
from alignuser_jax.sampling.engine.prepare import Preparation
from tests import llama_files

SETS = int(os.environ.get("FUZZ_SETS", "2000"))
"""Sets per tokenizer in the slow test; there are five. A fifth of them at each change."""

STATES, EDGES = 2048, 32
PIECES = (
    *("1", "12", "123", "0", "00", "-1", "3.5", "1", "11", "111", "[WATCH]"),
    *(
        "[",
        "]",
        "[[",
        "(",
        ")",
        "{",
        "}",
        "{{",
        "}}",
        "<",
        ">",
        "<-",
        "->",
        ",",
        ":",
        ": ",
        ";",
    ),
    *('"', "'", "\\", "\\n", '\\"', "`", "%s", "$", "#", "&amp;", "/5", "|", "a", "A", "the"),
    *("Heat (1995)", "Babe", "RATING: ", "BEST-ACTION: ", " [SKIP]", "[EXIT]", "[CLICK_ITEM:"),
    *("\U0001f3ac", "\U0001f469\u200d\U0001f469\u200d\U0001f467", "\U0001f1e9\U0001f1ea", "☺️"),
    *(
        "é",
        "e\u0301",
        "ß",
        "日本",
        "한국",
        "ไทย",
        "مرحبا",
        "שלום",
        "\u202eabc",
        "\u200f",
        "\u200b",
    ),
    *(" ", "  ", "\t", "\xa0", "\u2028", "\x85", "\r", "\x0b", "\x00", "\x7f", "\ufeff", "�"),
    *(
        "<|end|>",
        "<|user|>",
        "<|im_end|>",
        "<|im_start|>",
        "<pad>",
        "<unk>",
        "<0x0A>",
        "[INST]",
    ),
    *("\u2581", "\u2581a", "\ue0000\ue001", "\ue0001\ue001", "{{ x }}", "{% if %}", "</s>"),
)
TEXTS = (
    "PAGE 1\n[1] <- Heat (1995) -> <- History ratings: 3.87 -> <- Summary: Action ->",
    "a movie about a man who likes movies and rates them: 1 2 3 4 5 10 11 12 100",
    "BEST-ACTION: [CLICK_ITEM:1]\nRATING: 4\n1 [WATCH]\n2 [SKIP]",
    '{\n"watch": "yes",\n"rating": 3\n}\n\n  "so": [1, 2],\n',
    "日本 日本 مرحبا שלום é é \U0001f3ac \U0001f3ac",
) * 3
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def pieces(tmp_path_factory):
    return train_sentencepiece(TEXTS, 900, tmp_path_factory.mktemp("fuzz"))


@pytest.fixture(scope="module")
def bytes_():
    """A byte-level BPE with merges across newlines, quotes and brackets."""
    from tokenizers import Regex, pre_tokenizers

    qwen = r"\p{N}| ?\p{L}+| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    cut = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(qwen), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer = llama_files.byte_level(TEXTS, 600, cut)
    tokenizer.chat_template = CHATML
    return HuggingFaceTokenizer(tokenizer)


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    return llama_files.qwen_3(tmp_path_factory.mktemp("qwen"))


@pytest.fixture(scope="module")
def llama2(tmp_path_factory):
    return llama_files.llama_2(tmp_path_factory.mktemp("llama2"), TEXTS)


@pytest.fixture(scope="module")
def llama3(bytes_, tmp_path_factory):
    return llama_files.llama_3(tmp_path_factory.mktemp("llama3"), bytes_)


def some_text(rng) -> str:
    return "".join(rng.choice(PIECES) for _ in range(rng.integers(1, 5)))


def some_line(rng) -> tuple[str, ...]:
    """Distinct alternatives, some of them beginning others, some sharing a beginning."""
    shared = some_text(rng) if rng.random() < 0.4 else ""
    line = []
    for _ in range(rng.integers(1, 7)):
        if line and rng.random() < 0.35:
            line.append(line[rng.integers(len(line))] + some_text(rng))
        else:
            line.append(shared + some_text(rng))
    return tuple(dict.fromkeys(line))


def as_decoded(tokenizer, alternative: str) -> str:
    """How an alternative comes out of its tokens: chat markers broken, U+2581 as a space where
    that is how a vocabulary writes one, accents composed where it does so (Qwen)."""
    if not isinstance(tokenizer, SentencePieceTokenizer):
        alternative = tokenizer.safe(alternative)
    spaced, composes = habits(tokenizer)
    alternative = alternative.replace("\u2581", " ") if spaced else alternative
    return unicodedata.normalize("NFC", alternative) if composes else alternative


@functools.cache
def habits(tokenizer) -> tuple[bool, bool]:
    texts = [tokenizer.decode(tokenizer.encode(text)) for text in ("a\u2581a", "e\u0301")]
    return texts[0] == "a a", texts[1] == "\xe9"


class Fuzz:
    """One tokenizer with the engine's preparation of requests."""

    def __init__(self, tokenizer):
        self.tokenizer, self.ends = tokenizer, [tokenizer.eot_id]
        config = EngineConfig(
            context=1 << 14, chunk=32, states=STATES, edges=EDGES, pages=1 << 9
        )
        self.prepare = Preparation(
            tokenizer, config, adapters=[], end_ids=self.ends, model="none"
        )
        texts = [tokenizer.decode([token]) for token in range(tokenizer.vocab_size)]
        self.ends_line = np.array([text.endswith("\n") for text in texts])
        self.free = np.array(
            [t for t in range(tokenizer.vocab_size) if t not in tokenizer.special_ids]
        )
        self.nasty = np.array(
            [
                t
                for t in self.free
                if self.ends_line[t] or "\n" in texts[t] or "�" in texts[t] or not texts[t]
            ]
        )

    def request(self, rng, answer) -> Request:
        return Request(
            (Message.of("user", "a"),),
            "fuzz",
            answer=answer,
            reasoning_tokens=int(rng.choice([0, 1, 2, 5, 12])),
            scored=len(answer) == 1 and rng.random() < 0.3,
        )

    def free_token(self, rng, edges) -> int:
        """A token of free reasoning, likely one that spells an answer, ends a line or is a part
        of a character; the end of the turn where it is an edge only."""
        kind = rng.random()
        if len(edges) and kind < 0.45:
            return int(rng.choice(edges))
        return int(rng.choice(self.nasty if kind < 0.85 else self.free))

    def walk(self, rng, row):
        """What `engine/decode.py` does with any model: tokens, states, edges."""
        automaton = row.automaton
        state, tokens, states, edges = automaton.start, [], [], []
        while state != ACCEPT:
            assert len(tokens) < row.limit, "the limit cut an answer off"
            if len(tokens) >= row.reasoning:
                state = int(automaton.forced[state])
            allowed = automaton.token[state][automaton.token[state] >= 0]
            free = automaton.free[state]
            assert free or len(allowed), "a state without a way on"
            assert not (free and len(tokens) >= row.reasoning), "reasoning past its limit"
            token = self.free_token(rng, allowed) if free else int(rng.choice(allowed))
            (edge,) = np.nonzero(automaton.token[state] == token)
            assert len(edge) <= 1
            tokens.append(token)
            states.append(state)
            edges.append(int(edge[0]) if len(edge) else -1)
            after = LINE if self.ends_line[token] else MID
            state = int(automaton.next[state, edge[0]]) if len(edge) else after
        return tokens, np.array(states), np.array(edges)


def check_set(fuzz: Fuzz, rng, answer) -> bool:
    """One random reply to `answer`; False for a set that was refused, rightly."""
    tokenizer, request = fuzz.tokenizer, fuzz.request(rng, answer)
    alike = [len({as_decoded(tokenizer, a) for a in line}) < len(line) for line in answer]
    try:
        (row,) = fuzz.prepare.rows(0, request)
        automaton, *_ = fuzz.prepare._answer(request)
    except ValueError:
        assert any(alike), "a set whose alternatives can be told apart was refused"
        return False
    assert not any(alike)
    if row.automaton is None:  # scored at once: the reply is the alternative itself
        check_scored(fuzz, row, answer)
        return True
    tokens, states, edges = fuzz.walk(rng, row)
    flat = np.zeros((len(tokens), EDGES))
    choices, probabilities, begin = automaton.read_choices(states, edges, flat)
    lines = [as_decoded(tokenizer, line[c]) for line, c in zip(answer, choices, strict=True)]
    expected, text = "\n".join(lines) + tokenizer.reply_closing, tokenizer.decode(tokens)
    assert text.endswith(expected)
    before = text.removesuffix(expected)
    if not request.reasoning_tokens:
        before = before.removeprefix(tokenizer.reply_opening)
    assert before == tokenizer.decode(tokens[:begin])
    assert before == "" or before.endswith("\n")
    assert request.reasoning_tokens or begin == 0
    assert tokenizer.eot_id not in tokens[:-1] and tokens[-1] == tokenizer.eot_id
    for line, p in zip(answer, probabilities, strict=True):
        assert p == () or (len(p) == len(line) and abs(sum(p) - 1) < 1e-9)
    if request.scored:
        check_scored(fuzz, row, answer)
    return True


def check_scored(fuzz, row, answer):
    """Prefix and suffix of each alternative are its tokens, after reasoning and at once."""
    tokenizer = fuzz.tokenizer
    newline, alternatives = (
        tokenizer.encode("\n"),
        [as_decoded(tokenizer, a) for a in answer[0]],
    )
    sets = [(row.opening_set, tokenizer.reply_opening)]
    sets.append((row.closed, "" if row.reasoning else tokenizer.reply_opening))
    for closed, opening in sets:
        texts = [tokenizer.decode([*newline, *closed.prefix, *s]) for s in closed.suffixes]
        closing = tokenizer.reply_closing
        assert texts == [f"\n{opening}{text}{closing}" for text in alternatives]
        assert len(set(closed.suffixes)) == len(answer[0])


def run_fuzz(tokenizer, count, seed):
    fuzz, refused = Fuzz(tokenizer), 0
    for number in range(count):
        rng = np.random.default_rng([seed, number])
        answer = tuple(some_line(rng) for _ in range(rng.integers(1, 4)))
        try:
            refused += not check_set(fuzz, rng, answer)
        except Exception as error:
            raise AssertionError(f"set {number} of seed {seed}: {answer!r}: {error}") from error
    assert refused < 0.2 * count, f"{refused} of {count} sets were refused"


KINDS = ["pieces", "bytes_", "llama2", "llama3", "qwen"]


@pytest.mark.parametrize("kind", KINDS)
def test_sets_of_each_vocabulary(kind, request):
    run_fuzz(request.getfixturevalue(kind), SETS // 5, 1 + KINDS.index(kind))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_many_sets_of_each_vocabulary(kind, request):
    run_fuzz(request.getfixturevalue(kind), SETS, 11 + KINDS.index(kind))


@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_right_at_the_start_of_a_reply_that_might_reason(kind, request):
    """Llama 2 opens a reply with a space: its first line has other tokens than later ones."""
    fuzz = Fuzz(request.getfixturevalue(kind))
    answer = (("RATING: 1", "RATING: 2", "RATING: 21"), ("BEST-ACTION: [EXIT]",))
    reasoned = Request((Message.of("user", "a"),), "fuzz", answer=answer, reasoning_tokens=9)
    (row,) = fuzz.prepare.rows(0, reasoned)
    automaton, reply = row.automaton, "RATING: 21\nBEST-ACTION: [EXIT]"
    prompt = render(fuzz.tokenizer, reasoned.messages, generation=True).tokens.tolist()
    whole = render(fuzz.tokenizer, [*reasoned.messages, Message.of("assistant", reply)]).tokens
    tokens = whole[len(prompt) :].tolist()
    tokens = tokens[: tokens.index(fuzz.tokenizer.eot_id) + 1]
    for cut in range(len(tokens)):  # after so many tokens the reasoning is over
        state, states, edges = automaton.start, [], []
        for number, token in enumerate(tokens):
            state = int(automaton.forced[state]) if number >= cut > 0 else state
            (edge,) = np.nonzero(automaton.token[state] == token)
            states.append(state)
            edges.append(int(edge[0]))
            state = int(automaton.next[state, edge[0]])
        flat = np.zeros((len(tokens), EDGES))
        choices, _, begin = automaton.read_choices(np.array(states), np.array(edges), flat)
        assert (choices, begin, state) == ((2, 0), 0, ACCEPT)


def test_a_newline_after_a_broken_character(llama2):
    """Reasoning that is cut off inside a character, and the newline before a forced answer."""
    broken = llama2.encode("\U0001f9ff")[:1]  # the first of four bytes
    newline = llama2.encode("\n")
    assert llama2.decode(broken + newline + llama2.encode("1")) == "\ufffd\n1"
    assert llama2.decode(llama2.encode(" a\n  b")) == "a\n  b"
    assert llama2.decode(llama2.encode("\U0001f9ff\n")) == "\U0001f9ff\n"


@pytest.mark.parametrize("kind", KINDS)
def test_the_tokens_of_a_reply_are_those_of_its_turn(kind, request):
    """A reply that stays in the conversation is rendered with the tokens that were sampled."""
    tokenizer, ask = request.getfixturevalue(kind), Message.of("user", "a")
    prompt = render(tokenizer, [ask], generation=True).tokens.tolist()
    for number in range(500):
        rng = np.random.default_rng([3, number])
        reply = [line[0].strip() or "x" for line in (some_line(rng), some_line(rng))]
        paths = [
            answer_token_paths(tokenizer, [line], last, first)[0]
            for line, last, first in zip(reply, (False, True), (True, False), strict=True)
        ]
        whole = render(tokenizer, [ask, Message.of("assistant", "\n".join(reply))]).tokens
        sampled = prompt + paths[0] + paths[1]
        assert whole[: len(sampled)].tolist() == sampled, reply
