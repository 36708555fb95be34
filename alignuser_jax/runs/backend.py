"""Open whoever answers the agents: the run's own policy, a server, or a recording.

What is opened says in a few plain values what it is. Manifests record these values, so that a
run goes on under the same back end only.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from alignuser_jax.datasets import Dataset
from alignuser_jax.driver import Backend, waiting
from alignuser_jax.language import TextTokenizer
from alignuser_jax.language.counting import TokenCounter
from alignuser_jax.records import CountTokens
from alignuser_jax.runs.experiment import Experiment
from alignuser_jax.runs.policy import (
    claim_devices,
    load_policy,
    make_engine,
    policy_note,
    tokenizer_of,
    warm_up,
)
from alignuser_jax.sampling import Recording, Replay, ServerConfig, ServerGenerator
from alignuser_jax.text import Say

METRICS_FILE = "metrics.jsonl"
"""File beside a result that holds what the back end did, one JSON object per opening."""

ESTIMATE = "estimated: UTF-8 bytes / 3"
"""How tokens of a served model are counted if no tokenizer is given."""

SERVED_CONTEXT = 8192
"""Context of a served model in tokens, if none is given (DEFAULT)."""


@dataclass(frozen=True)
class BackendChoice:
    """Who is to answer; with neither `server` nor `replay` the run's own policy does.

    Attributes:
        server: An OpenAI-compatible server and its model. Excludes `replay`.
        tokenizer: Folder of the served model's tokenizer; "" estimates token counts, rather too
            high than too low.
        context_tokens: Context of the served model in tokens.
        record: File that keeps every answer. An answer in it is not asked for again.
        replay: File of kept answers, which answers without any model.
        keep: Folder for a server's answers if `record` names no file; the file is named after
            the model and `part`. "" keeps none.
        part: Part of a program that has a recording of its own, such as "ratings".
        adapter: Folder of an adapter in place of the run's own; "" for the base model alone,
            `None` for the run's own. Only for the run's policy.
        reply_tokens: Tokens of a reply that a conversation must have room for beyond what a
            session needs. Only for the run's policy.

    Raises:
        ValueError: If `replay` comes with `server` or `record`, or `adapter` with either.

    Example:
        >>> BackendChoice(replay="answers.log").needs_run
        False
    """

    server: ServerConfig | None = None
    tokenizer: str = ""
    context_tokens: int = SERVED_CONTEXT
    record: str = ""
    replay: str = ""
    keep: str = ""
    part: str = ""
    adapter: str | Path | None = None
    reply_tokens: int = 0

    def __post_init__(self) -> None:
        """Refuse choices that exclude each other."""
        if self.replay and (self.server or self.record):
            raise ValueError("--replay answers from a file: give no --server or --record to it")
        if self.adapter and not self.needs_run:
            raise ValueError(
                f"--adapter={self.adapter} is for the policy of --run, not for a server or a "
                "replay: leave it out"
            )

    @property
    def needs_run(self) -> bool:
        """Whether the run's own policy answers."""
        return not (self.server or self.replay)

    def of_part(self, part: str) -> BackendChoice:
        """Return the choice for one part of a program, with recordings of its own."""
        record = f"{self.record}.{part}" if self.record else ""
        replay = f"{self.replay}.{part}" if self.replay else ""
        return replace(self, part=part, record=record, replay=replay)

    @property
    def recording(self) -> Path | None:
        """The file that keeps the answers, if any does."""
        if self.record or not (self.server and self.keep):
            return Path(self.record) if self.record else None
        model = re.sub(r"[^\w.@-]+", "-", self.server.model)
        return Path(self.keep) / ".".join(filter(None, (model, self.part, "log")))


class OpenedBackend(NamedTuple):
    """What `open_backend` yields.

    Attributes:
        backend: Who answers, and what manifests say of it.
        experiment: The experiment with the context length of what answers.
    """

    backend: Backend
    experiment: Experiment


def estimated_tokens(text: str) -> int:
    """Estimate the tokens of a text, rather too many.

    English prose has some four bytes a token, pages of brackets and numbers some three.
    """
    return -(-len(text.encode()) // 3)


@contextmanager
def open_backend(
    choice: BackendChoice,
    experiment: Experiment,
    dataset: Dataset,
    run: Path | None,
    *,
    say: Say | None = None,
    metrics: Path | None = None,
) -> Iterator[OpenedBackend]:
    """Open the chosen back end for the length of the block.

    Args:
        choice: Who answers.
        experiment: The run's experiment.
        dataset: The run's data set.
        run: The run folder. Needed for the run's own policy and for a replay of it.
        say: Is told what the back end did, when it closes.
        metrics: File to which the same figures are added as one line of JSON.

    Example:
        >>> with open_backend(BackendChoice(), experiment, dataset, run) as (backend, fitted):
        ...     events = simulate(fitted, dataset, view, arms, backend, "ab", settings)
    """
    say = say or (lambda text: None)
    if choice.replay:
        yield _replayed(choice, experiment, dataset, run)
        return
    if choice.server:
        opened = _served(choice, choice.server, experiment, dataset)
    else:
        assert run is not None
        opened = _own(choice, experiment, run, say)
    with recorded_backend(opened, choice, say, metrics) as opened:
        yield opened


@contextmanager
def recorded_backend(
    opened: OpenedBackend, choice: BackendChoice, say: Say, metrics: Path | None = None
) -> Iterator[OpenedBackend]:
    """Keep the answers of an opened back end where the choice says so, and close it.

    Args:
        opened: The back end.
        choice: Names the recording.
        say: Is told what was reused, and what the back end did.
        metrics: File to which the same figures are added as one line of JSON.
    """
    inner, recording = opened.backend.generator, None
    compiled = getattr(inner, "compilations", 0)
    try:
        if choice.recording:
            recording = Recording(inner, choice.recording, _identity(opened))
            opened = opened._replace(backend=replace(opened.backend, generator=recording))
        yield opened
    except BaseException:
        if recording and recording.answer_count:
            say(
                f"{recording.answer_count} answers are kept in {choice.recording}: the same "
                "command goes on from them"
            )
        raise
    finally:
        if recording:
            recording.close()
            if recording.reused:
                say(f"{recording.reused} answers were in {choice.recording} and not asked for")
        figures = _close(inner, compiled, say)
        if metrics:
            policy_id = opened.backend.policy_id
            _add_line(metrics, {"policy": policy_id, "part": choice.part, **figures})


def _close(generator: Any, compiled: int, say: Say) -> dict[str, Any]:
    """Close what was opened, say what it did, and return its figures."""
    if isinstance(generator, ServerGenerator):
        generator.close()
        figures: dict[str, Any] = dict(generator.stats)
        say(_server_summary(figures))
        return figures
    late = generator.compilations - compiled
    figures = generator.report() | {"compiled_ahead": compiled, "compiled_later": late}
    say(_engine_summary(figures))
    return figures


def _identity(opened: OpenedBackend) -> dict[str, Any]:
    """What a recording must agree on with the back end that adds to it."""
    return {
        "policy": opened.backend.policy_id,
        "engine": dict(opened.backend.engine),
        "dtype": opened.experiment.dtype,
        "note": opened.backend.note,
    }


def _own(choice: BackendChoice, experiment: Experiment, run: Path, say: Say) -> OpenedBackend:
    claim_devices(experiment.engine)
    with waiting("loading the policy", say):
        decoder, tokenizer, policy_id = load_policy(experiment, run, choice.adapter)
    geometry = experiment.engine
    room = geometry.context + choice.reply_tokens + -choice.reply_tokens % geometry.chunk
    geometry = replace(geometry, context=room)
    experiment = replace(experiment, engine=geometry)
    engine, note = make_engine(experiment, decoder, tokenizer), policy_note(experiment, decoder)
    del decoder  # the engine has its own copy; the cache takes this room
    warm_up(engine, say)
    backend = Backend(
        engine,
        TokenCounter(tokenizer),
        policy_id,
        engine=dataclasses.asdict(geometry),
        note=note,
        concurrency=engine.slots,
    )
    return OpenedBackend(backend, experiment)


def _served(
    choice: BackendChoice, server: ServerConfig, experiment: Experiment, dataset: Dataset
) -> OpenedBackend:
    count_tokens: CountTokens = estimated_tokens
    counted_by = ESTIMATE
    if choice.tokenizer:
        tokenizer = _tokenizer_of(choice)
        count_tokens, counted_by = TokenCounter(tokenizer), tokenizer.fingerprint
    generator = ServerGenerator(server)
    about = {"tokens": counted_by, "context_tokens": choice.context_tokens}
    note = f"{server.model}, served as it is and not trained here"
    backend = Backend(
        generator,
        count_tokens,
        f"server: {server.model}",
        engine=generator.about | about,
        note=f"SYNTHETIC data; {note}" if dataset.synthetic else note,
        concurrency=server.transport.concurrency * len(server.transport.urls),
    )
    return OpenedBackend(backend, with_context(experiment, choice.context_tokens))


def _tokenizer_of(choice: BackendChoice) -> TextTokenizer:
    """The tokenizer that --tokenizer names."""
    from alignuser_jax.model.files.backbone import backbone_tokenizer_directory

    return TextTokenizer.load(backbone_tokenizer_directory(choice.tokenizer))


def _replayed(
    choice: BackendChoice, experiment: Experiment, dataset: Dataset, run: Path | None
) -> OpenedBackend:
    replay = Replay(choice.replay)
    engine = replay.about["engine"]
    count_tokens = _counter_of(choice, engine.get("tokens"), experiment, dataset, run)
    if "context_tokens" in engine:
        experiment = with_context(experiment, engine["context_tokens"])
    backend = Backend(
        replay,
        count_tokens,
        replay.about["policy"],
        engine=engine,
        note=replay.about["note"],
        concurrency=experiment.engine.slots,
    )
    return OpenedBackend(backend, experiment)


def _counter_of(
    choice: BackendChoice,
    counted_by: str | None,
    experiment: Experiment,
    dataset: Dataset,
    run: Path | None,
) -> CountTokens:
    """The counter of tokens that a recording was made with (`counted_by` as it says)."""
    if counted_by == ESTIMATE:
        return estimated_tokens
    if counted_by is None:
        if run is None:
            raise ValueError(f"{choice.replay} is of a policy trained here: give its --run")
        return TokenCounter(tokenizer_of(experiment, dataset, run))
    if not choice.tokenizer:
        raise ValueError(
            f"{choice.replay} was made with a --tokenizer, of fingerprint {counted_by[:12]}: "
            "give its folder"
        )
    tokenizer = _tokenizer_of(choice)
    if tokenizer.fingerprint != counted_by:
        raise ValueError(
            f"--tokenizer={choice.tokenizer} has fingerprint {tokenizer.fingerprint[:12]}, "
            f"{choice.replay} was made with {counted_by[:12]}: give the folder of that one"
        )
    return TokenCounter(tokenizer)


def with_context(experiment: Experiment, tokens: int) -> Experiment:
    """Return the experiment with conversations of at most `tokens` tokens."""
    shards = {
        name: replace(config, session=replace(config.session, context_tokens=tokens))
        for name in ("align_shards", "pretrain_shards")
        if (config := getattr(experiment, name))
    }
    return replace(experiment, **shards)


def with_room(experiment: Experiment, tokens: int, states: int, edges: int) -> Experiment:
    """Return the experiment with an engine that has room for longer conversations.

    The cache keeps its size if four such conversations fit into it.

    Args:
        experiment: The experiment.
        tokens: Tokens of a conversation, rounded up to a multiple of the engine's chunk.
        states: States of an answer's automaton that the engine must hold.
        edges: Edges of one state that the engine must hold.
    """
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
    """Say in one line what an engine did."""
    parts = ", ".join(
        f"{part} {report[f'{part}_seconds']:.1f}"
        for part in ("prefill", "score", "decode", "host")
    )
    return (
        f"engine: {report['rows']:.0f} replies, {report['generated_tokens']:.0f} tokens "
        f"generated; {report['read_tokens']:.0f} prompt tokens read, "
        f"{report['cached_tokens']:.0f} reused ({report['saved_share']:.0%}; "
        f"{report['hit_rate']:.0%} of the replies found some); "
        f"seconds: {parts}; {report['compiled_later']:.0f} programs compiled after the start"
    )


def _server_summary(stats: Mapping[str, float]) -> str:
    """Say in one line what a server did."""
    n = Counter({name: round(value) for name, value in stats.items()})
    return (
        f"server: {n['requests']} requests in {n['calls']} calls, {n['retries']} retries, "
        f"{n['reprompts']} asked once more, {n['errors']} failed; "
        f"{n['prompt_tokens']} prompt tokens ({n['cached_tokens']} cached), "
        f"{n['generated_tokens']} generated, cost {stats['cost']:.4f}, {n['seconds']} s"
    )
