"""Who answers the agents: the run's own policy, a server, or a recording; and what manifests
say of it, so that a run goes on under the same one only.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from alignuser_jax.datasets import Dataset
from alignuser_jax.language import TextTokenizer
from alignuser_jax.records import Generator
from alignuser_jax.runs.experiment import Experiment
from alignuser_jax.runs.policy import load_policy, make_engine, tokenizer_of, warm_up
from alignuser_jax.sampling import Recording, Replay, ServerConfig, ServerGenerator
from alignuser_jax.text import Say

METRICS = "metrics.jsonl"
ESTIMATE = "estimated: UTF-8 bytes / 3"
SERVED_CONTEXT = 8192
"""Tokens of a served model's context, if nothing else is said."""


@dataclass(frozen=True)
class Choice:
    """What is asked for. At most one of `server` and `replay`; with neither the run's own
    policy answers. `record` keeps every answer in that file; without it those of a server are
    kept in a file of the folder `keep`, named by the model and the program's `part`. For a
    server, `tokenizer` is the folder of its model's tokenizer ("": tokens are estimated, rather
    too many) and `context_tokens` its context."""

    server: ServerConfig | None = None
    tokenizer: str = ""
    context_tokens: int = SERVED_CONTEXT
    record: str = ""
    replay: str = ""
    keep: str = ""
    part: str = ""

    def __post_init__(self) -> None:
        if self.replay and (self.server or self.record):
            raise ValueError("--replay answers from a file: give no --server or --record to it")

    @property
    def needs_run(self) -> bool:
        return not (self.server or self.replay)

    def of_part(self, part: str) -> Choice:
        """The same with files of their own for a part of a program."""
        names = {"record": self.record, "replay": self.replay}
        named = {k: f"{name}.{part}" for k, name in names.items() if name}
        return replace(self, part=part, **named)

    @property
    def recording(self) -> Path | None:
        """The file that keeps the answers, if any does."""
        if self.record or not (self.server and self.keep):
            return Path(self.record) if self.record else None
        model = re.sub(r"[^\w.@-]+", "-", self.server.model)
        return Path(self.keep) / ".".join(filter(None, (model, self.part, "log")))


@dataclass(frozen=True)
class Backend:
    """`experiment` is the run's, with the context of what answers; `policy_id` and `engine` are
    for manifests, `concurrency` is how many sessions keep it busy."""

    generator: Generator
    count_tokens: Callable[[str], int]
    experiment: Experiment
    policy_id: str
    engine: Mapping[str, Any]
    note: str
    concurrency: int


def estimated_tokens(text: str) -> int:
    """Rather too many: English prose has four bytes a token, pages of brackets and numbers
    some three."""
    return -(-len(text.encode()) // 3)


@contextmanager
def open_backend(
    choice: Choice,
    experiment: Experiment,
    dataset: Dataset,
    run: Path | None,
    *,
    adapter: str | Path | None = None,
    reply: int = 0,
    say: Say | None = None,
    metrics: Path | None = None,
) -> Iterator[Backend]:
    """The chosen back end, open until the block ends; `say` is then told what it did, and
    figures of that are added to the file `metrics` as a line of JSON.

    `run` is needed for the run's own policy (`adapter` as in `load_policy`; `reply` makes room
    for so many tokens more than a session needs) and for the replay of one."""
    say = say or (lambda text: None)
    if adapter and not choice.needs_run:
        raise ValueError(f"--adapter={adapter} is for the policy of --run, not for a back end")
    if choice.replay:
        yield _replayed(choice, experiment, dataset, run)
        return
    if choice.server:
        backend = _served(choice, choice.server, experiment, dataset)
    else:
        assert run is not None
        backend = _own(experiment, run, adapter, reply, say)
    inner, recording = backend.generator, None
    compiled = getattr(inner, "compilations", 0)
    try:
        if choice.recording:
            recording = Recording(inner, choice.recording, _identity(backend))
            backend = replace(backend, generator=recording)
        yield backend
    except BaseException:
        if recording and recording.kept:
            say(
                f"{recording.kept} answers are kept in {choice.recording}: the same command "
                "goes on from them"
            )
        raise
    finally:
        if recording:
            recording.close()
            if recording.reused:
                say(f"{recording.reused} answers were in {choice.recording} and not asked for")
        if isinstance(inner, ServerGenerator):
            inner.close()
            figures: dict[str, Any] = dict(inner.stats)
            say(_server_summary(figures))
        else:
            late = inner.compilations - compiled
            figures = inner.report() | {"compiled_ahead": compiled, "compiled_later": late}
            say(_engine_summary(figures))
        if metrics:
            _add_line(metrics, {"policy": backend.policy_id, "part": choice.part, **figures})


def _identity(backend: Backend) -> dict[str, Any]:
    return {
        "policy": backend.policy_id,
        "engine": dict(backend.engine),
        "dtype": backend.experiment.dtype,
        "note": backend.note,
    }


def _own(
    experiment: Experiment,
    run: Path,
    adapter: str | Path | None,
    reply: int,
    say: Say,
) -> Backend:
    decoder, tokenizer, policy_id = load_policy(experiment, run, adapter)
    geometry = experiment.engine
    room = geometry.context + reply + -reply % geometry.chunk
    geometry = replace(geometry, context=room)
    experiment = replace(experiment, engine=geometry)
    engine = make_engine(experiment, decoder, tokenizer)
    del decoder
    warm_up(engine, say)
    return Backend(
        engine,
        tokenizer.count,
        experiment,
        policy_id,
        dataclasses.asdict(geometry),
        experiment.note,
        engine.slots,
    )


def _served(
    choice: Choice, server: ServerConfig, experiment: Experiment, dataset: Dataset
) -> Backend:
    count_tokens, counted_by = estimated_tokens, ESTIMATE
    if choice.tokenizer:
        tokenizer = TextTokenizer.load(choice.tokenizer)
        count_tokens, counted_by = tokenizer.count, tokenizer.fingerprint
    generator = ServerGenerator(server)
    about = {"tokens": counted_by, "context_tokens": choice.context_tokens}
    note = f"{server.model}, served as it is and not trained here"
    return Backend(
        generator,
        count_tokens,
        with_context(experiment, choice.context_tokens),
        f"server: {server.model}",
        generator.about | about,
        f"SYNTHETIC data; {note}" if dataset.synthetic else note,
        server.transport.concurrency * len(server.transport.urls),
    )


def _replayed(
    choice: Choice, experiment: Experiment, dataset: Dataset, run: Path | None
) -> Backend:
    replay = Replay(choice.replay)
    about = replay.about
    engine = about["engine"]
    counted_by = engine.get("tokens")
    if counted_by == ESTIMATE:
        count_tokens = estimated_tokens
    elif counted_by is None and run is None:
        raise ValueError(f"{choice.replay} is of a policy trained here: give its --run")
    elif counted_by is None:
        count_tokens = tokenizer_of(experiment, dataset, run).count
    elif not choice.tokenizer:
        raise ValueError(
            f"{choice.replay} was made with a --tokenizer, of fingerprint {counted_by[:12]}: "
            "give its folder"
        )
    else:
        tokenizer = TextTokenizer.load(choice.tokenizer)
        if tokenizer.fingerprint != counted_by:
            raise ValueError(
                f"--tokenizer={choice.tokenizer} has fingerprint {tokenizer.fingerprint[:12]}, "
                f"{choice.replay} was made with {counted_by[:12]}: give the folder of that one"
            )
        count_tokens = tokenizer.count
    if "context_tokens" in engine:
        experiment = with_context(experiment, engine["context_tokens"])
    return Backend(
        replay,
        count_tokens,
        experiment,
        about["policy"],
        engine,
        about["note"],
        experiment.engine.slots,
    )


def with_context(experiment: Experiment, tokens: int) -> Experiment:
    """The experiment with conversations of at most so many tokens."""
    shards = {
        name: replace(config, session=replace(config.session, context_tokens=tokens))
        for name in ("align_shards", "pretrain_shards")
        if (config := getattr(experiment, name))
    }
    return replace(experiment, **shards)


def with_room(experiment: Experiment, tokens: int, states: int, edges: int) -> Experiment:
    """The experiment with conversations of `tokens` tokens and an engine that holds them, and
    automata of so many states and edges. The cache keeps its size where it has room for four
    such conversations."""
    engine = experiment.engine
    tokens += -tokens % engine.chunk
    engine = replace(
        engine,
        context=tokens,
        pages=max(engine.all_pages, 4 * tokens // engine.chunk),
        states=max(engine.states, states),
        edges=max(engine.edges, edges),
    )
    return replace(with_context(experiment, tokens), engine=engine)


def _add_line(path: Path, record: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def _engine_summary(report: Mapping[str, float]) -> str:
    """What an engine did, in a line."""
    parts = ", ".join(
        f"{part} {report[f'{part}_seconds']:.1f}"
        for part in ("prefill", "score", "decode", "host")
    )
    return (
        f"engine: {report['rows']:.0f} replies, {report['generated_tokens']:.0f} tokens "
        f"generated; {report['saved_share']:.0%} of {report['prompt_tokens']:.0f} prompt "
        f"tokens were there already ({report['hit_rate']:.0%} of the replies found some); "
        f"seconds: {parts}; {report['compiled_later']:.0f} programs compiled after the start"
    )


def _server_summary(stats: Mapping[str, float]) -> str:
    """What a server did, in a line."""
    n = Counter({name: round(value) for name, value in stats.items()})
    return (
        f"server: {n['requests']} requests in {n['calls']} calls, {n['retries']} retries, "
        f"{n['reprompts']} asked once more, {n['errors']} failed; "
        f"{n['prompt_tokens']} prompt tokens ({n['cached_tokens']} cached), "
        f"{n['generated_tokens']} generated, cost {stats['cost']:.4f}, {n['seconds']} s"
    )
