"""Compile the answers of a request to a token automaton, and read decoded rows back as choices.

The tables are padded to `[Q, E]`, so that one compiled decode loop serves every answer. A free
state takes any token, the end of turn only if it is an edge. A token that is an edge follows
it; any other token leads where `onward` says: in free text to LINE after a newline, and to MID
elsewhere; in a line that has a limit, to a state that has counted one token more. States that
are not free take edges only. The answer may begin at LINE: while free text happens to spell an
alternative of the first line, the automaton follows it, and falls back to free text where it
departs. `forced[q]` is the state from which q continues once the limit of reasoning is reached.

Letters in shapes: Q states, E edges of a state.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

ACCEPT = 0
"""The state of a complete reply."""

LINE = 1
"""The state of free text at the start of a line."""

MID = 2
"""The state of free text in the middle of a line."""

LEAST_LINE = 2
"""A line with a limit has at least so many tokens after what it begins with."""

ANY_TEXT, LINE_TEXT, OPEN_LINE = 0, 1, 2
"""What free text a state takes: any; that of one line; that of a line which may not end yet."""

Path = tuple[int, ...]
"""The tokens of one alternative, with those that end its line."""


@dataclass(frozen=True)
class Automaton:
    """The tables of one answer. `compile_answer`, `compile_lines` and `free_text` make them.

    Attributes:
        token: int32 `[Q, E]`, the token of each edge; -1 where there is no edge.
        next: int32 `[Q, E]`, the state to which each edge leads.
        free: bool `[Q]`, whether the state takes any token.
        forced: int32 `[Q]`, where the state continues once the limit of reasoning is reached.
        onward: int32 `[Q, 2]`, where a token that is no edge leads: one that does not end a
            line, and one that does.
        within: int8 `[Q]`, which free text the state takes (`ANY_TEXT`, ...).
        start: The first state.
        longest: The most tokens that a reply takes after its reasoning; 0 for free text.
        lines: The number of alternatives of each answer line.
        leaf: int32 `[Q, E]`, the alternative that the edge completes, else -1.
        branch: int32 `[Q, E]`, the alternative of each edge of the only state at which a line
            branches, else -1.
        line: int32 `[Q]`, the answer line that a state belongs to, else -1.
        depth: int32 `[Q]`, how many tokens of that line come before the state.
    """

    token: np.ndarray
    next: np.ndarray
    free: np.ndarray
    forced: np.ndarray
    onward: np.ndarray
    within: np.ndarray
    start: int
    longest: int
    lines: tuple[int, ...]
    leaf: np.ndarray
    branch: np.ndarray
    line: np.ndarray
    depth: np.ndarray

    def read_choices(
        self, states: np.ndarray, edges: np.ndarray, edge_logprobs: np.ndarray
    ) -> tuple[tuple[int, ...], tuple[tuple[float, ...], ...], int]:
        """Return the choices of a decoded row of n tokens.

        Args:
            states: int32 `[n]`, the state before each token.
            edges: int32 `[n]`, the edge that each token followed; -1 for none.
            edge_logprobs: float32 `[n, E]`, the distribution over the state's edges.

        Returns:
            The alternative chosen in each line, each line's probabilities, and the number of
            tokens before the answer. The probabilities of a line that branches at more than one
            state are ().

        Raises:
            ValueError: The row did not complete its answer.
        """
        at = np.flatnonzero((edges >= 0) & (self.leaf[states, edges] >= 0))
        if len(at) != len(self.lines):
            raise ValueError(
                f"the reply completed {len(at)} of {len(self.lines)} answer lines in "
                f"{len(states)} tokens"
            )
        choices, probabilities = [], []
        answer_start = int(at[0] - self.depth[states[at[0]]]) if len(at) else len(states)
        begin = answer_start
        for count, end in zip(self.lines, at.tolist(), strict=True):
            choices.append(int(self.leaf[states[end], edges[end]]))
            line = slice(begin, end + 1)
            probabilities.append(self._probabilities(states[line], edge_logprobs[line], count))
            begin = end + 1
        return tuple(choices), tuple(probabilities), answer_start

    def _probabilities(
        self, states: np.ndarray, edge_logprobs: np.ndarray, count: int
    ) -> tuple[float, ...]:
        """Return the distribution over the `count` alternatives of one line."""
        if count == 1:
            return (1.0,)
        for state, logprobs in zip(states, edge_logprobs, strict=True):
            alternatives = self.branch[state]
            branches = np.flatnonzero(alternatives >= 0)
            if len(branches):
                values = np.zeros(count)
                values[alternatives[branches]] = np.exp(logprobs[branches].astype(float))
                return tuple(float(v) for v in values / values.sum())
        return ()


class _Builder:
    """The tables' rows while the number of states is still growing."""

    def __init__(self) -> None:
        self.edges: list[dict[int, int]] = []
        self.leaf: list[dict[int, int]] = []
        self.free: list[bool] = []
        self.forced: list[int] = []
        self.onward: list[tuple[int, int]] = []
        self.within: list[int] = []
        self.line: list[int] = []
        self.depth: list[int] = []
        self.branch: list[dict[int, int]] = []

    def state(
        self, *, free: bool = False, forced: int | None = None, line: int = -1, depth: int = 0
    ) -> int:
        """Add a state and return its number."""
        number = len(self.edges)
        self.edges.append({})
        self.leaf.append({})
        self.branch.append({})
        self.free.append(free)
        self.forced.append(number if forced is None else forced)
        self.onward.append((MID, LINE))
        self.within.append(ANY_TEXT)
        self.line.append(line)
        self.depth.append(depth)
        return number

    def chain(self, path: Path, end: int) -> int:
        """Add states that take exactly `path` and lead to `end`; return the first of them."""
        for token in reversed(path):
            state = self.state()
            self.edges[state][token] = end
            end = state
        return end

    def trie(
        self,
        paths: Sequence[Path],
        line: int,
        end: int,
        root: int,
        twins: Mapping[Path, int] | None = None,
    ) -> dict[Path, int]:
        """Add the states of one line below `root`; return them by the path that leads there.

        Args:
            paths: The line's alternatives.
            line: The line's number.
            end: The state after the line.
            root: The state before it.
            twins: The states of the same line without free text, by path. With them the new
                states are free, and each is forced to its twin.
        """
        nodes: dict[Path, int] = {(): root}
        for alternative, path in enumerate(paths):
            for depth, token in enumerate(path):
                node, longer = nodes[path[:depth]], path[: depth + 1]
                if depth == len(path) - 1:
                    self.edges[node][token] = end
                    self.leaf[node][token] = alternative
                elif longer not in nodes:
                    nodes[longer] = self.state(
                        free=twins is not None,
                        forced=twins[longer] if twins is not None else None,
                        line=line,
                        depth=depth + 1,
                    )
                    self.edges[node][token] = nodes[longer]
        branching = [prefix for prefix, node in nodes.items() if len(self.edges[node]) > 1]
        if len(branching) == 1:
            at = len(branching[0])
            self.branch[nodes[branching[0]]] = {p[at]: a for a, p in enumerate(paths)}
        return nodes

    def build(
        self, *, start: int, longest: int, lines: Iterable[int], states: int, edges: int
    ) -> Automaton:
        """Return the automaton, padded to `states` states of `edges` edges."""
        used, widest = len(self.edges), max(len(e) for e in self.edges)
        if used > states or widest > edges:
            raise ValueError(
                f"the answer needs {used} automaton states of at most {widest} edges; this "
                f"engine holds {states} of {edges}: give fewer or shorter alternatives, or "
                "raise EngineConfig.states / EngineConfig.edges"
            )
        token = np.full((states, edges), -1, np.int32)
        target = np.zeros((states, edges), np.int32)
        leaf = np.full((states, edges), -1, np.int32)
        branch = np.full((states, edges), -1, np.int32)
        for q, row in enumerate(self.edges):
            for e, (t, n) in enumerate(row.items()):
                token[q, e], target[q, e] = t, n
                leaf[q, e] = self.leaf[q].get(t, -1)
                branch[q, e] = self.branch[q].get(t, -1)

        def column(values: Sequence[int], dtype: type) -> np.ndarray:
            return np.array([*values, *[0] * (states - used)], dtype)

        return Automaton(
            token=token,
            next=target,
            free=column(self.free, bool),
            forced=column(self.forced, np.int32),
            onward=np.array([*self.onward, *[(0, 0)] * (states - used)], np.int32),
            within=column(self.within, np.int8),
            start=start,
            longest=longest,
            lines=tuple(lines),
            leaf=leaf,
            branch=branch,
            line=column(self.line, np.int32),
            depth=column(self.depth, np.int32),
        )


def free_text(end_ids: Sequence[int], *, states: int = 256, edges: int = 32) -> Automaton:
    """Return the automaton of any tokens, ended by one of `end_ids`."""
    builder = _Builder()
    builder.state()
    for _ in (LINE, MID):
        builder.edges[builder.state(free=True)] |= dict.fromkeys(end_ids, ACCEPT)
    return builder.build(start=LINE, longest=0, lines=(), states=states, edges=edges)


def compile_answer(
    lines: Sequence[Sequence[Path]],
    *,
    reasoning: bool = False,
    newline: Path = (),
    opening: Sequence[Path] = (),
    states: int = 256,
    edges: int = 32,
) -> Automaton:
    """Return the automaton of an answer, optionally after free reasoning.

    Args:
        lines: For each line the token paths of its alternatives, each with what ends the line:
            a newline, or end of turn in the last line.
        reasoning: Whether free text may come before the answer.
        newline: The tokens of a newline, which is put before an answer that is forced in the
            middle of a line. Needed with `reasoning`.
        opening: The first line's paths if no reasoning comes before it and they are others
            than in `lines` (a reply that opens with a space); () otherwise.
        states: The most states that the answer may need.
        edges: The most edges of a state.

    Raises:
        ValueError: The alternatives of a line cannot be told apart, or the answer needs more
            states or edges.

    Example:
        >>> answer = compile_answer([((5, 7, 0), (5, 8, 0))])  # 0 ends the turn
        >>> answer.longest, answer.lines
        (3, (2,))
    """
    if not lines:
        raise ValueError("an answer needs at least one line; use free_text for none")
    if reasoning and not newline:
        raise ValueError("reasoning before an answer needs the tokens of a newline")
    for number, paths in enumerate(lines):
        _check_paths(paths, number)
    if opening:
        _check_paths(opening, 0)
    builder = _Builder()
    for state in (ACCEPT, LINE, MID):
        builder.state(free=state != ACCEPT)
    root = ACCEPT
    for number in reversed(range(len(lines))):
        end, root = root, builder.state(line=number)
        nodes = builder.trie(lines[number], number, end, root)
    start = root
    if reasoning:
        builder.trie(lines[0], 0, end, LINE, twins=nodes)
        _force_answer(builder, root, newline)
        start = _add_opening(builder, opening, end) if opening else LINE
    first, *others = (max(map(len, paths)) for paths in lines)
    first += len(newline) if reasoning else 0
    return builder.build(
        start=start,
        longest=max(first, *map(len, opening), 0) + sum(others),
        lines=map(len, lines),
        states=states,
        edges=edges,
    )


def compile_lines(
    openings: Sequence[Path],
    line_tokens: int,
    newline: Path,
    end_ids: Sequence[int],
    *,
    started: bool = False,
    states: int = 256,
    edges: int = 32,
) -> Automaton:
    """Return the automaton of one line of free text per opening, each of limited length.

    A line ends with a token whose text ends with a newline, the last one with the end of turn
    too. At its limit it is ended. Every token of a line has a state of its own, so that the
    limit is a part of the automaton.

    Args:
        openings: The tokens that each line begins with.
        line_tokens: The most tokens of a line after its opening.
        newline: The tokens of a newline.
        end_ids: Ids that end the last line, and with it the reply.
        started: Whether the first opening, and the beginning of its line, is already there.
        states: The most states that the automaton may need.
        edges: The most edges of a state.

    Raises:
        ValueError: There is no line, or more states or edges are needed.

    Example:
        >>> lines = compile_lines([(5, 6), (7,)], 4, (1,), [0])
        >>> int(lines.token[lines.start, 0])
        5
    """
    if not openings or not all(openings) or line_tokens < 1:
        raise ValueError(
            f"{len(openings)} lines of {line_tokens} tokens: expected at least one line with "
            "an opening, and at least one token for it"
        )
    builder = _Builder()
    builder.state()  # ACCEPT
    following = forced = first = ACCEPT
    for opening in reversed(openings):
        text, last = forced, following == ACCEPT
        for place in reversed(range(line_tokens)):
            at = builder.state(free=True)
            may_end = place >= min(LEAST_LINE, line_tokens - 1)
            builder.onward[at] = text, following
            builder.within[at] = LINE_TEXT if may_end else OPEN_LINE
            if last and may_end:
                builder.edges[at] |= dict.fromkeys(end_ids, ACCEPT)
            text = at
        first = text
        following = builder.chain(opening, text)
        forced = builder.chain(newline, following)
    start = first if started else following
    return builder.build(start=start, longest=0, lines=(), states=states, edges=edges)


def _force_answer(builder: _Builder, root: int, newline: Path) -> None:
    """Let LINE and MID continue at `root`, the answer, once the reasoning is over."""
    builder.forced[LINE] = root
    node = builder.state()
    builder.forced[MID] = node
    for token in newline[:-1]:
        following = builder.state()
        builder.edges[node][token] = following
        node = following
    builder.edges[node][newline[-1]] = root


def _add_opening(builder: _Builder, opening: Sequence[Path], end: int) -> int:
    """Add the first line's paths for a reply without reasoning, and return the new start."""
    forced_root = builder.state(line=0)
    twins = builder.trie(opening, 0, end, forced_root)
    start = builder.state(free=True, forced=forced_root)
    builder.trie(opening, 0, end, start, twins=twins)
    return start


def _check_paths(paths: Sequence[Path], number: int) -> None:
    if not paths or any(not path for path in paths):
        raise ValueError(f"answer line {number + 1} has no alternative, or one without tokens")
    ordered = sorted(enumerate(paths), key=lambda pair: tuple(pair[1]))
    for (i, shorter), (j, longer) in zip(ordered, ordered[1:], strict=False):
        if tuple(longer[: len(shorter)]) == tuple(shorter):
            raise ValueError(
                f"answer line {number + 1}: the tokens of alternative {i + 1} begin those of "
                f"alternative {j + 1}; alternatives must differ and end with a newline or "
                "end-of-turn"
            )


@dataclass(frozen=True)
class ClosedSet:
    """One answer line whose alternatives are scored.

    Attributes:
        prefix: The tokens that all alternatives begin with.
        suffixes: The tokens that each alternative adds to it, at least one.
    """

    prefix: Path
    suffixes: tuple[Path, ...]

    @property
    def single(self) -> bool:
        """Whether the logits after the prefix are enough to score every alternative."""
        return all(len(suffix) == 1 for suffix in self.suffixes)


def closed_set(paths: Sequence[Path], eot_id: int) -> ClosedSet:
    """Return the scored form of an answer line whose paths end with the end of turn.

    The end of turn is scored only if the tokens of one alternative begin those of another.
    """
    _check_paths(paths, 0)
    bare = [tuple(p[:-1]) if p[-1] == eot_id and len(p) > 1 else tuple(p) for p in paths]
    ordered = sorted(bare)
    if any(b[: len(a)] == a for a, b in zip(ordered, ordered[1:], strict=False)):
        bare = [tuple(path) for path in paths]
    shared = 0
    shortest = min(len(path) for path in bare)
    while shared < shortest - 1 and len({path[shared] for path in bare}) == 1:
        shared += 1
    return ClosedSet(bare[0][:shared], tuple(path[shared:] for path in bare))
