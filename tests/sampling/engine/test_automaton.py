"""The automaton accepts exactly the answers, and reads back what was chosen."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignuser_jax.sampling.engine.automaton import (
    ACCEPT,
    LINE,
    MID,
    ClosedSet,
    closed_set,
    compile_answer,
    free_text,
)

EOT, NEWLINE, VOCABULARY = 0, 1, 8  # tokens 2.. are letters


def walk(automaton, rng, *, reasoning=0, eot=EOT):
    """A random reply: any allowed token at each step, as the decode loop does it."""
    state, tokens, states, edges = automaton.start, [], [], []
    while state != ACCEPT:
        if len(tokens) >= reasoning:
            state = int(automaton.forced[state])
        allowed = [int(t) for t in automaton.token[state] if t >= 0]
        if automaton.free[state]:
            allowed = sorted(set(allowed) | {t for t in range(VOCABULARY) if t != eot})
        token = int(rng.choice(allowed))
        edge = np.flatnonzero(automaton.token[state] == token)
        states.append(state)
        edges.append(int(edge[0]) if len(edge) else -1)
        tokens.append(token)
        if len(edge):
            state = int(automaton.next[state, edge[0]])
        else:
            state = LINE if token == NEWLINE else MID
        assert len(tokens) <= reasoning + automaton.longest
    return tokens, np.array(states), np.array(edges)


def line_of(end):
    """Distinct alternatives of letters, among them ones that begin others, each ended by
    `end`."""
    word = st.lists(st.integers(2, VOCABULARY - 1), max_size=4).map(tuple)
    return st.lists(word, min_size=1, max_size=6, unique=True).map(
        lambda words: tuple((*word, end) for word in words)
    )


answers = st.lists(line_of(NEWLINE), max_size=2).flatmap(
    lambda lines: line_of(EOT).map(lambda last: (*lines, last))
)


@settings(max_examples=60, deadline=None)
@given(answers, st.integers(0, 2**32), st.sampled_from([0, 3, 12]))
def test_every_reply_is_legal_and_read_back(lines, seed, reasoning):
    rng = np.random.default_rng(seed)
    automaton = compile_answer(
        lines, reasoning=reasoning > 0, newline=(NEWLINE,), states=128, edges=8
    )
    tokens, states, edges = walk(automaton, rng, reasoning=reasoning)
    flat = np.zeros((len(states), 8))
    choices, probabilities, begin = automaton.read_choices(states, edges, flat)
    spelled = [t for line, c in zip(lines, choices, strict=True) for t in line[c]]
    assert tokens[begin:] == spelled
    assert EOT not in tokens[:begin]
    assert begin == 0 or tokens[begin - 1] == NEWLINE
    assert begin <= reasoning + 1
    for line, p in zip(lines, probabilities, strict=True):
        assert p == () or (len(p) == len(line) and abs(sum(p) - 1) < 1e-12)
        assert p if len(line) <= 2 else True


def test_probabilities_come_from_the_one_node_where_a_line_branches():
    automaton = compile_answer([((2, 3, 4, EOT), (2, 3, 5, EOT), (2, 3, 6, EOT))], edges=4)
    states, edges = [automaton.start], []
    for token in (2, 3, 5, EOT):
        edges.append(int(np.flatnonzero(automaton.token[states[-1]] == token)[0]))
        states.append(int(automaton.next[states[-1], edges[-1]]))
    logprobs = np.full((4, 4), -50.0)
    logprobs[2, :3] = np.log([0.2, 0.5, 0.3])
    choices, (p,), begin = automaton.read_choices(
        np.array(states[:-1]), np.array(edges), logprobs
    )
    assert (choices, begin) == ((1,), 0)
    np.testing.assert_allclose(p, [0.2, 0.5, 0.3])


def test_reasoning_may_spell_part_of_an_answer_and_go_on():
    automaton = compile_answer([((2, 3, EOT),)], reasoning=True, newline=(NEWLINE,))
    state = LINE
    for token in (2, 3):  # the answer but for its end
        (edge,) = np.flatnonzero(automaton.token[state] == token)
        state = int(automaton.next[state, edge])
        assert automaton.free[state]
    assert EOT in automaton.token[state]  # it may end here, or any other token leads back
    twin = int(automaton.forced[state])  # and at the limit it must end
    assert not automaton.free[twin]
    assert [t for t in automaton.token[twin] if t >= 0] == [EOT]
    assert not (automaton.token[MID] >= 0).any()


def test_an_unfinished_answer_is_an_error():
    automaton = compile_answer([((2, NEWLINE), (3, NEWLINE)), ((2, EOT),)])
    with pytest.raises(ValueError, match="completed 1 of 2"):
        walked = walk(automaton, np.random.default_rng(0))
        automaton.read_choices(walked[1][:2], walked[2][:2], np.zeros((2, 32)))


def test_paths_that_cannot_be_told_apart_are_refused():
    with pytest.raises(ValueError, match="alternative 2 begin those of alternative 1"):
        compile_answer([((2, 3, EOT), (2, 3))])
    with pytest.raises(ValueError, match="begin those"):
        compile_answer([((2, EOT), (2, EOT))])
    with pytest.raises(ValueError, match="no alternative"):
        compile_answer([()])
    with pytest.raises(ValueError, match="at least one line"):
        compile_answer([])


def test_an_answer_too_large_for_the_tables_says_so():
    wide = tuple((t, EOT) for t in range(2, 40))
    with pytest.raises(ValueError, match="at most 38 edges; this engine holds 256 of 32"):
        compile_answer([wide])
    deep = (tuple(range(2, 40)) + (EOT,),)
    with pytest.raises(ValueError, match="EngineConfig.states"):
        compile_answer([deep], states=16)


def test_free_text_ends_with_end_of_turn_only():
    automaton = free_text([EOT], states=8, edges=4)
    for state in (LINE, MID):
        assert automaton.free[state] and automaton.token[state].tolist() == [EOT, -1, -1, -1]
        assert automaton.next[state, 0] == ACCEPT and automaton.forced[state] == state


def test_closed_sets():
    assert closed_set(((5, 2, EOT), (5, 3, EOT)), EOT) == ClosedSet((5,), ((2,), (3,)))
    assert closed_set(((5, 2, EOT), (5, 3, EOT)), EOT).single
    # "1" begins "10": only then does the end of the turn tell them apart
    ambiguous = closed_set(((5, 2, EOT), (5, 2, 3, EOT), (5, 4, EOT)), EOT)
    assert ambiguous == ClosedSet((5,), ((2, EOT), (2, 3, EOT), (4, EOT)))
    assert not ambiguous.single
    assert closed_set(((5, 2, EOT),), EOT) == ClosedSet((5,), ((2,),))
