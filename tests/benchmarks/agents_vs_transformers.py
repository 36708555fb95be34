"""Compare sessions in our engine, in it without prefix reuse, and in `generate`.

    python -m tests.benchmarks.agents_vs_transformers --json=agents.json
    python -m tests.benchmarks.agents_vs_transformers --json=r.json --cases=200,2000 --rounds=1

A session's first prompt holds 600 tokens of persona and history (the first 100, the system
prompt, are everybody's) and a page of 250. At each page 4 replies of 40 tokens are sampled at
temperature 1; the first stays in the conversation and the next page follows. Sessions have 4 to
8 pages, 6 on average, by a seed, so that they end at different times. The model has random
weights, hidden 256 and 4 layers.

The first case, 24 sessions, is compared; every side gets all of them at once. The peer,
`generate` of transformers, has no scheduler: the prompts that wait are sorted by length,
left-padded to the longest of a batch and sampled with `num_return_sequences`; batch size and
cache are those that were fastest in its warm-up. Other cases are our engine alone beside its
own rate in the first case, which should stay flat.

Each side is a process of its own, the sides take turns, and medians of the rounds' ratios are
quoted; a ratio above 1 is in our favour. Every round has new personas and pages.
"""

import itertools
import tempfile
import time

from absl import app, flags

from tests.benchmarks import sides
from tests.benchmarks.hugging_face import Generate

FLAGS = flags.FLAGS
flags.DEFINE_string("json", None, "File for the rows.", required=True)
flags.DEFINE_list("cases", ["24"], "Numbers of sessions; only 24 is compared with the peer.")
flags.DEFINE_integer("rounds", 3, "Measured rounds of each side.")
flags.DEFINE_integer("vocabulary", 8192, "Vocabulary of the model.")
flags.DEFINE_integer("slots", 96, "Our slots.")
flags.DEFINE_integer("chunk", 64, "Our chunk.")
flags.DEFINE_integer("group", 16, "Our group.")
flags.DEFINE_list("batches", ["8", "24"], "Batch sizes, in prompts, that the peer may choose.")
flags.DEFINE_integer("threads", 2, "Threads of torch.")
flags.DEFINE_bool("quick", False, "A tiny model and short sessions, to try the program itself.")

COMPARED = 24
WORK = ("sessions/s", "pages/s", "generated tokens/s")  # what a prompt costs is each side's own
SHAPE = sides.QWEN3 | {
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
}
TINY = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 8}
SMALL = {"pages": 3, "persona_tokens": 24, "shared_tokens": 8, "page_tokens": 10}
SMALL |= {"reply_tokens": 4, "samples": 2}


class Here:
    """Two engines of one decoder, with and without prefix reuse."""

    def __init__(self, directory, geometry):
        from alignuser_jax.model import load_decoder
        from alignuser_jax.sampling import Engine, EngineConfig
        from alignuser_jax.sampling.workload import NumberedWords

        decoder = load_decoder(directory)
        self._tokenizer = NumberedWords(decoder.config.vocab_size)
        self._engines = {
            reuse: Engine(decoder, self._tokenizer, EngineConfig(reuse=reuse, **geometry))
            for reuse in (True, False)
        }

    def run(self, shape, name, reuse):
        """Return the rates of a run, its seconds, and the engine's own seconds in it."""
        from alignuser_jax.sampling.workload import run_sessions

        engine = self._engines[reuse]
        before = dict(engine.stats)
        done = run_sessions(engine, self._tokenizer, shape, name=name, say=sides.say)
        parts = {
            key: value - before.get(key, 0.0)
            for key, value in engine.stats.items()
            if key.endswith("seconds")
        }
        return done.rates, done.seconds, parts


class Peer:
    """`generate` of transformers, with the fastest batch size and cache."""

    def __init__(self, directory, threads):
        import torch
        import transformers

        from alignuser_jax.sampling.workload import NumberedWords

        torch.set_num_threads(threads)
        self._model = transformers.AutoModelForCausalLM.from_pretrained(directory).eval()
        self._model.generation_config.eos_token_id = None  # every reply has its full length
        self._tokenizer = NumberedWords(self._model.config.vocab_size)

    def choose(self, shape, batches):
        """Return the (batch, cache) that is fastest on one page, and the seconds of each."""
        ways, took = list(itertools.product(batches, ("dynamic", "static"))), {}
        for way in [ways[0], *ways]:  # the first of all warms up
            took[way] = self.run(shape, "choose", way)[1]
        return min(took, key=took.get), took

    def run(self, shape, name, how):
        from alignuser_jax.sampling.workload import run_sessions

        generator = Generate(self._model, self._tokenizer, *how)
        done = run_sessions(generator, self._tokenizer, shape, name=name, say=sides.say)
        return done.rates, done.seconds


def compare(here, peer, shape, one_page):
    """Yield the rows of the compared case."""
    case = f"{shape.sessions} sessions"
    how, took = peer.ask("choose", one_page, sorted({int(b) for b in FLAGS.batches}))
    sides.say(f"the peer's best of {took}: {how}")
    for reuse in (True, False):
        here.ask("run", one_page, "warm up", reuse)
    rates = {"ours": [], "reuse off": [], "generate": []}
    started = time.perf_counter()
    for number in range(FLAGS.rounds):
        for side, side_rates in rates.items():
            if side == "generate":
                got, seconds = peer.ask("run", shape, number, how)
            else:
                got, seconds, parts = here.ask("run", shape, number, side == "ours")
                sides.say(f"{side}: {', '.join(f'{k} {v:.1f}' for k, v in parts.items())}")
            side_rates.append(got)
            sides.say(f"{case}: round {number + 1}: {side}: {seconds:.1f} s, {got}")
        if number == 0:
            minutes = (time.perf_counter() - started) / 60
            sides.say(f"a round takes {minutes:.1f} minutes; {FLAGS.rounds} will be run")
    ours = rates.pop("ours")
    for side, theirs in rates.items():
        for metric in ours[0]:
            a, b = ([rate[metric] for rate in both] for both in (ours, theirs))
            if metric in WORK:
                yield sides.compared(case, f"{metric}; peer: {side}", a, b)
            elif side == "reuse off":
                yield sides.row(case, f"{metric}; peer: {side}", a[0], b[0], None)


def alone(here, shape, one_page, few):
    """Yield rows of our engine with `shape.sessions` sessions beside its rate with `few`."""
    here.ask("run", one_page, "warm up", True)
    rates = {"ours": [], "few": []}
    for number in range(FLAGS.rounds):
        for side, what in (("few", few), ("ours", shape)):
            got, seconds, parts = here.ask("run", what, f"alone {number}", True)
            rates[side].append(got)
            sides.say(f"{what.sessions} sessions: {seconds:.1f} s, {got}, {parts}")
    for metric in ("sessions/s", "prompt tokens saved"):
        a, b = ([rate[metric] for rate in rates[side]] for side in ("ours", "few"))
        case = f"{shape.sessions} sessions"
        yield sides.compared(case, f"{metric}; peer: ours, {few.sessions} sessions", a, b)


def main(argv):
    from dataclasses import replace

    from alignuser_jax.sampling.workload import NumberedWords, SessionShape

    if bad := [case for case in FLAGS.cases if not case.isdecimal() or not int(case)]:
        raise app.UsageError(f"--cases: {bad} are no numbers of sessions", exitcode=2)
    few = SessionShape(sessions=COMPARED)
    model = SHAPE
    if FLAGS.quick:
        few, model = SessionShape(sessions=COMPARED, **SMALL), SHAPE | TINY
        FLAGS.vocabulary, FLAGS.chunk, FLAGS.rounds = 256, 16, 1
        FLAGS.slots, FLAGS.batches, FLAGS.threads = 12, ["24"], 1
    geometry = {
        "slots": FLAGS.slots,
        "context": -(-few.context // FLAGS.chunk) * FLAGS.chunk,
        "chunk": FLAGS.chunk,
        "group": FLAGS.group,
    }
    one_page, rows = replace(few, pages=1), []
    with tempfile.TemporaryDirectory() as folder:
        marks = range(NumberedWords.FIRST)
        directory = sides.write_qwen3(folder, FLAGS.vocabulary, model, never=marks)
        here = sides.Side(Here, directory, geometry)
        for sessions in map(int, FLAGS.cases):
            if sessions == COMPARED:
                peer = sides.Side(Peer, directory, FLAGS.threads)
                rows += compare(here, peer, few, one_page)
                peer.close()
            else:
                rows += alone(here, replace(few, sessions=sessions), one_page, few)
            sides.save(rows, FLAGS.json)
        here.close()
    sides.finish(rows, FLAGS.json)


if __name__ == "__main__":
    app.run(main)
