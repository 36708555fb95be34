"""A reply's shape as a token automaton of fixed size, and the way back from its states to
choices.

Tables are padded to `[Q, E]` so that one compiled decode loop serves every grammar. A state
with `free` set takes any token (end-of-turn only where it is an edge); a token that is an edge
follows it, any other leads to LINE after a newline and to MID elsewhere. Other states take
edges only. The answer may begin at LINE: while free text happens to spell one of the first
line's alternatives the automaton follows it, and falls back to free text where it departs.
`forced[q]` is where a state continues once the reasoning limit is reached.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

ACCEPT, LINE, MID = 0, 1, 2

Path = tuple[int, ...]


@dataclass(frozen=True)
class Automaton:
    token: np.ndarray  # int32[Q, E], -1 = no edge
    next: np.ndarray  # int32[Q, E]
    free: np.ndarray  # bool[Q]
    forced: np.ndarray  # int32[Q]
    start: int
    longest: int  # the most tokens a reply takes after its reasoning; 0 for free text
    lines: tuple[int, ...]  # number of alternatives of each answer line
    leaf: np.ndarray  # int32[Q, E], the alternative that this edge completes, else -1
    branch: np.ndarray  # int32[Q, E], the alternative of each edge where a line branches once
    line: np.ndarray  # int32[Q], the answer line a state belongs to, else -1
    depth: np.ndarray  # int32[Q], tokens of that line already taken

    def read(
        self, states: np.ndarray, edges: np.ndarray, edge_logprobs: np.ndarray
    ) -> tuple[tuple[int, ...], tuple[tuple[float, ...], ...], int]:
        """Choices, their probabilities and where the answer starts, from a decoded row.

        `states[n]` and `edges[n]` are the state before each token and the edge taken (-1:
        none), `edge_logprobs[n, E]` the distribution over the state's edges. A line that
        branches at more than one node has `()` for probabilities. Raises `ValueError` if the
        row did not complete its answer.
        """
        at = np.flatnonzero((edges >= 0) & (self.leaf[states, edges] >= 0))
        if len(at) != len(self.lines):
            raise ValueError(
                f"the reply completed {len(at)} of {len(self.lines)} answer lines in "
                f"{len(states)} tokens"
            )
        choices, probabilities = [], []
        begin = answer_start = (
            int(at[0] - self.depth[states[at[0]]]) if len(at) else len(states)
        )
        for count, end in zip(self.lines, at, strict=True):
            choices.append(int(self.leaf[states[end], edges[end]]))
            probabilities.append(self._line(states, edge_logprobs, begin, end + 1, count))
            begin = end + 1
        return tuple(choices), tuple(probabilities), answer_start

    def _line(self, states, edge_logprobs, begin, end, count) -> tuple[float, ...]:
        if count == 1:
            return (1.0,)
        for step in range(begin, end):
            alternatives = self.branch[states[step]]
            taken = np.flatnonzero(alternatives >= 0)
            if len(taken):
                values = np.zeros(count)
                values[alternatives[taken]] = np.exp(edge_logprobs[step, taken].astype(float))
                return tuple(float(v) for v in values / values.sum())
        return ()


class _Builder:
    """Rows of the tables while the number of states is not known."""

    def __init__(self):
        self.edges: list[dict[int, int]] = []
        self.leaf: list[dict[int, int]] = []
        self.free: list[bool] = []
        self.forced: list[int] = []
        self.line: list[int] = []
        self.depth: list[int] = []
        self.branch: list[dict[int, int]] = []

    def state(self, *, free=False, forced=None, line=-1, depth=0) -> int:
        number = len(self.edges)
        self.edges.append({})
        self.leaf.append({})
        self.branch.append({})
        self.free.append(free)
        self.forced.append(number if forced is None else forced)
        self.line.append(line)
        self.depth.append(depth)
        return number

    def trie(self, paths, line: int, end: int, root: int, twins=None) -> dict[Path, int]:
        """Adds one line below `root`; with `twins` its states are free, each forced to its
        twin."""
        nodes = {(): root}
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

    def build(self, *, start: int, longest: int, lines, states: int, edges: int) -> Automaton:
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

        def column(values, dtype):
            return np.array(list(values) + [0] * (states - used), dtype)

        return Automaton(
            token=token,
            next=target,
            free=column(self.free, bool),
            forced=column(self.forced, np.int32),
            start=start,
            longest=longest,
            lines=tuple(lines),
            leaf=leaf,
            branch=branch,
            line=column(self.line, np.int32),
            depth=column(self.depth, np.int32),
        )


def free_text(ends: Sequence[int], *, states: int = 256, edges: int = 32) -> Automaton:
    """Any tokens, ended by one of `ends`."""
    builder = _Builder()
    builder.state()
    for _ in (LINE, MID):
        builder.edges[builder.state(free=True)] |= dict.fromkeys(ends, ACCEPT)
    return builder.build(start=LINE, longest=0, lines=(), states=states, edges=edges)


def compile_answer(
    lines: Sequence[Sequence[Path]],
    *,
    reasoning: bool = False,
    newline: Path = (),
    at_once: Sequence[Path] = (),
    states: int = 256,
    edges: int = 32,
) -> Automaton:
    """The automaton of an answer, optionally after free reasoning.

    `lines[i]` holds the token paths of line i's alternatives, each with what ends the line (a
    newline, end-of-turn in the last line). `newline` is put before an answer that is forced in
    the middle of a line. `at_once` are the paths of the first line where no reasoning comes
    before it, if they are others (a reply that opens with a space). Raises `ValueError` for
    paths that cannot be told apart and for answers that need more than `states` states or
    `edges` edges.
    """
    if not lines:
        raise ValueError("an answer needs at least one line; use free_text for none")
    for number, paths in enumerate(lines):
        _check_paths(paths, number)
    if at_once:
        _check_paths(at_once, 0)
    builder = _Builder()
    for state in (ACCEPT, LINE, MID):  # forced below, once their targets exist
        builder.state(free=state != ACCEPT)
    target, roots = ACCEPT, []
    for number in reversed(range(len(lines))):
        root = builder.state(line=number)
        nodes = builder.trie(lines[number], number, target, root)
        roots.append(root)
        target = root
    root, start = target, target
    if reasoning:
        if not newline:
            raise ValueError("reasoning before an answer needs the tokens of a newline")
        end = roots[-2] if len(roots) > 1 else ACCEPT
        builder.trie(lines[0], 0, end, LINE, twins=nodes)
        builder.forced[LINE] = root
        node = builder.state()
        builder.forced[MID] = node
        for token in newline[:-1]:
            following = builder.state()
            builder.edges[node][token] = following
            node = following
        builder.edges[node][newline[-1]] = root
        start = LINE
        if at_once:
            opened = builder.state(line=0)
            twins = builder.trie(at_once, 0, end, opened)
            start = builder.state(free=True, forced=opened)
            builder.trie(at_once, 0, end, start, twins=twins)
    first, *others = (max(map(len, paths)) for paths in lines)
    first += len(newline) if reasoning else 0
    return builder.build(
        start=start,
        longest=max(first, *map(len, at_once), 0) + sum(others),
        lines=(len(paths) for paths in lines),
        states=states,
        edges=edges,
    )


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
    """One answer line for scoring: what all alternatives share, and what each adds to it."""

    prefix: Path
    suffixes: tuple[Path, ...]

    @property
    def single(self) -> bool:
        """Whether the logits after the prefix tell everything."""
        return all(len(suffix) == 1 for suffix in self.suffixes)


def closed_set(paths: Sequence[Path], eot: int) -> ClosedSet:
    """The scored form of an answer line whose `paths` end with end-of-turn.

    End-of-turn is part of what is scored only where one alternative's tokens begin another's.
    """
    _check_paths(paths, 0)
    bare = [tuple(p[:-1]) if p[-1] == eot and len(p) > 1 else tuple(p) for p in paths]
    ordered = sorted(bare)
    if any(b[: len(a)] == a for a, b in zip(ordered, ordered[1:], strict=False)):
        bare = [tuple(path) for path in paths]
    shared = 0
    shortest = min(len(path) for path in bare)
    while shared < shortest - 1 and len({path[shared] for path in bare}) == 1:
        shared += 1
    return ClosedSet(bare[0][:shared], tuple(path[shared:] for path in bare))
