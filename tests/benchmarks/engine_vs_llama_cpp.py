"""Compare our engine with llama.cpp's server and with `generate`, on one pretrained model.

    python -m tests.benchmarks.engine_vs_llama_cpp --json=engine.json \
        --gguf=SmolLM2-135M-Instruct.Q4_1.gguf --llama_server=llama-server

All sides have the same model: llama.cpp the GGUF file, the others the folder that
`import-gguf` makes of it, ours in f32 and in bf16. All render the same conversations with the
model's chat template. The cases:

* prefill: a new prompt of 1,024 tokens and one token of reply.
* decode: 1, 4 and 16 rows that count upwards, greedily, 32 tokens each. Their prompts of some
  60 tokens are in the cache of those sides that have one.
* k4: 4 replies of 40 tokens to one new prompt of 1,024 tokens, at temperature 1.
* sessions: the agents' load of `sampling/workload.py`. All share a system prompt of 100
  tokens; each has 500 of persona and history, a page of 250, and at each page 4 replies of up
  to 40 tokens, of which the first stays in the conversation before the next page follows.

llama.cpp is no dependency of this project. `--llama_server` is the program `llama-server` (the
source package of llama-cpp-python holds it in vendor/llama.cpp: `cmake --build . --target
llama-server`); it has continuous batching, a prompt cache, and copies a prompt that it has read
to the other samples' slots. `--llama_python` is instead an interpreter in which
`llama_cpp.server` can be imported; that server answers one request after the other. With
neither, the side is left out, and the output says so.

Each side is a process of its own, the sides take turns, and medians of the rounds' ratios are
quoted; a ratio above 1 is in our favour. Every round has new texts. A machine that does other
work at the same time falsifies the figures: llama.cpp's threads wait for each other at every
operation, so it loses most; the load at the end is printed.
"""

import shutil
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

from absl import app, flags

from tests.benchmarks import sides

FLAGS = flags.FLAGS
flags.DEFINE_string("json", None, "File for the rows.", required=True)
flags.DEFINE_string("gguf", None, "The model; without it a tiny random one, for --quick.")
flags.DEFINE_string("llama_server", None, "The program llama-server.")
flags.DEFINE_string("llama_python", None, "Instead: an interpreter that has llama_cpp.server.")
flags.DEFINE_list("cases", ["prefill", "decode", "k4", "sessions"], "What is measured.")
flags.DEFINE_list("sides", ["float32", "bfloat16", "generate"], "Our types; transformers.")
flags.DEFINE_integer("rounds", 3, "Measured rounds of each side.")
flags.DEFINE_integer("threads", 2, "Threads of llama.cpp and of torch.")
flags.DEFINE_integer("sessions", 12, "Sessions of the agents' load.")
flags.DEFINE_integer("pages", 4, "Pages of a session, on average.")
flags.DEFINE_integer("slots", 32, "Rows in work at a time, ours and llama.cpp's.")
flags.DEFINE_integer("chunk", 64, "Our chunk.")
flags.DEFINE_integer("chunks", 8, "Chunks that we read together.")
flags.DEFINE_integer("group", 32, "Rows that we decode together.")
flags.DEFINE_integer("strips", 0, "Lengths of our strips; 0 decodes through pages.")
flags.DEFINE_integer("replicas", 1, "Our engines, each with its share of slots and group.")
flags.DEFINE_integer("batch", 2, "Prompts of a batch of `generate`.")
flags.DEFINE_bool("quick", False, "A tiny model and short texts, to try the program itself.")

PROMPT, REPLY, COUNTED = 1024, 40, 32
START_SECONDS = 120
"""How long llama.cpp's server may take to load the model."""


class Measured:
    """A generator and what is measured of it."""

    def __init__(self, generator, tokenizer):
        self._generator, self._tokenizer = generator, tokenizer

    def _ask(self, texts, tokens, **options):
        """The seconds of one request for each text, and their usage."""
        from alignuser_jax.records import Message, Request
        from alignuser_jax.sampling import generate

        requests = [
            Request((Message.of("user", text),), "benchmark", max_tokens=tokens, **options)
            for text in texts
        ]
        started = time.perf_counter()
        done = generate(self._generator, requests)
        seconds = time.perf_counter() - started
        if errors := [c.error for c in done if c.finish_reason == "error"]:
            raise RuntimeError(errors[0])
        return seconds, [completion.usage for completion in done]

    def _text(self, tokens, *name):
        from alignuser_jax.randomness import named_generator
        from alignuser_jax.sampling.workload import text_of

        return text_of(self._tokenizer, tokens, named_generator("side by side", *name))

    def prefill(self, number, tokens):
        """Prompt tokens a second."""
        text = self._text(tokens, "prefill", number)
        seconds, (usage,) = self._ask([text], 1, temperature=0.0)
        return usage.prompt_tokens / seconds

    def decode(self, number, rows, tokens):
        """Generated tokens a second of some rows together."""
        first = 1000 * number
        count = [
            self._counting(first + 10 * row) or self._text(8, "decode", first, row)
            for row in range(rows)
        ]
        self._ask(count, 1, temperature=0.0)  # now the prompts are in the cache
        seconds, usages = self._ask(count, tokens, temperature=0.0)
        return sum(usage.generated_tokens for usage in usages) / seconds

    def _counting(self, start):
        """A prompt to which the model goes on and on; none for a model without text."""
        from alignuser_jax.sampling.workload import NumberedWords

        if isinstance(self._tokenizer, NumberedWords):
            return None
        numbers = ", ".join(map(str, range(start, start + 12)))
        return f"Count to {start + 900}, all numbers, without any other word: {numbers},"

    def k4(self, number, tokens, reply):
        """Seconds of 4 replies to one prompt."""
        text = self._text(tokens, "k4", number)
        return self._ask([text], reply, temperature=1.0, samples=4, key=number)[0]

    def sessions(self, shape, name):
        """Sessions a second, the generated tokens of a page, and the share that was reused."""
        from alignuser_jax.sampling.workload import run_sessions

        done = run_sessions(self._generator, self._tokenizer, shape, name=name, say=sides.say)
        rates = done.rates
        return (
            rates["sessions/s"],
            done.usage.generated_tokens / done.pages,
            rates["prompt tokens saved"],
        )


def tokenizer_of(directory):
    """The folder's tokenizer; numbered words where it has none."""
    from alignuser_jax.language import TextTokenizer
    from alignuser_jax.model.files.hf_config import read_config
    from alignuser_jax.sampling.workload import NumberedWords

    try:
        return TextTokenizer.load(directory)
    except FileNotFoundError:
        return NumberedWords(read_config(directory).vocab_size)


class Ours(Measured):
    """Our engine, in one type."""

    def __init__(self, directory, dtype, geometry, replicas):
        import jax
        import jax.numpy as jnp

        from alignuser_jax.model import load_decoder
        from alignuser_jax.sampling import EngineConfig, make_replicas

        jax.config.update("jax_num_cpu_devices", replicas)

        decoder, tokenizer = (
            load_decoder(directory, dtype=jnp.dtype(dtype)),
            tokenizer_of(directory),
        )
        super().__init__(make_replicas(decoder, tokenizer, EngineConfig(**geometry)), tokenizer)
        self._generator.warm_up()

    def parts(self):
        """The engine's seconds so far, by part."""
        stats = self._generator.stats
        return {name: round(value, 1) for name, value in stats.items() if "seconds" in name}


class Transformers(Measured):
    """`generate` of transformers in f32, a batch of prompts at a time."""

    def __init__(self, directory, threads, batch):
        import torch
        import transformers

        from tests.benchmarks.hugging_face import Generate

        torch.set_num_threads(threads)
        self._model = transformers.AutoModelForCausalLM.from_pretrained(
            directory, dtype=torch.float32
        ).eval()
        tokenizer = tokenizer_of(directory)
        super().__init__(Generate(self._model, tokenizer, batch), tokenizer)

    def decode(self, number, rows, tokens):
        """All rows are one batch here, whatever the batch of the other cases is."""
        before, self._generator._batch = self._generator._batch, rows
        try:
            return super().decode(number, rows, tokens)
        finally:
            self._generator._batch = before


class LlamaServer(Measured):
    """llama.cpp behind one of its servers, which this process starts and `close` ends."""

    def __init__(self, command, directory, concurrency):
        from alignuser_jax.sampling import ServerConfig, ServerGenerator, TransportConfig

        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115
        address = ["--host", "127.0.0.1", "--port", str(port)]
        self._server = subprocess.Popen(
            [*command, *address], stdout=self._log, stderr=subprocess.STDOUT
        )
        url = f"http://127.0.0.1:{port}/v1"
        self._wait(f"{url}/models")
        transport = TransportConfig((url,), concurrency=concurrency, read_seconds=3600.0)
        config = ServerConfig("model", transport, structured="none")
        super().__init__(ServerGenerator(config), tokenizer_of(directory))

    def _wait(self, url):
        """Return when the server answers; raise with its last words when it does not."""
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self._server.poll() is None:
            try:
                with urllib.request.urlopen(url):
                    return
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.3)
        self._server.kill()
        self._log.seek(0)
        raise RuntimeError(f"llama.cpp's server does not answer: {self._log.read()[-2000:]}")

    def ask(self, name, *arguments):
        return getattr(self, name)(*arguments)

    def close(self):
        self._generator.close()
        self._server.terminate()
        self._server.wait()


def llama_command(context):
    """The server's command, or none with the reason."""
    if FLAGS.llama_server:
        if not shutil.which(FLAGS.llama_server):
            raise app.UsageError(f"--llama_server={FLAGS.llama_server}: no such program")
        rows, threads = str(FLAGS.slots), str(FLAGS.threads)
        return [
            *(FLAGS.llama_server, "-m", FLAGS.gguf, "-t", threads, "-tb", threads),
            *("-np", rows, "-kvu", "-c", str(context), "--no-webui", "--jinja"),
        ], ""
    if not FLAGS.llama_python:
        return None, "no --llama_server and no --llama_python is given"
    probe = [FLAGS.llama_python, "-c", "import llama_cpp.server"]
    if subprocess.run(probe, capture_output=True).returncode:
        return None, f"{FLAGS.llama_python} has no llama_cpp.server (llama-cpp-python[server])"
    return [
        *(FLAGS.llama_python, "-m", "llama_cpp.server", "--model", FLAGS.gguf),
        *("--n_threads", str(FLAGS.threads), "--n_threads_batch", str(FLAGS.threads)),
        *("--n_ctx", "8192", "--cache", "true", "--verbose", "false"),
    ], ""


def started_sides(directory, shape):
    """Start every side; the first is ours in its first type."""
    context = -(-max(shape.context, 2 * PROMPT) // FLAGS.chunk) * FLAGS.chunk
    geometry = {
        name: FLAGS[name].value for name in ("slots", "chunk", "chunks", "group", "strips")
    }
    geometry["context"] = context
    pages = (shape.sessions + 8) * context // FLAGS.chunk  # samples share their prompt's pages
    for name in ("slots", "group"):
        geometry[name] //= FLAGS.replicas
    geometry["pages"] = min(pages, geometry["slots"] * context // FLAGS.chunk)
    made = {}
    for name in FLAGS.sides:
        if name == "generate":
            made[name] = sides.Side(Transformers, directory, FLAGS.threads, FLAGS.batch)
        else:
            made[f"ours {name}"] = sides.Side(Ours, directory, name, geometry, FLAGS.replicas)
    command, why_not = llama_command((shape.sessions + 8) * context)
    if command:
        made["llama.cpp"] = LlamaServer(command, directory, shape.sessions)
    else:
        sides.say(f"SKIPPED: the side of llama.cpp: {why_not}")
    return made


def cases(shape):
    """Yield case, metric, whether more is better, and the call of round `n`."""
    prompt, reply, counted = (64, 4, 4) if FLAGS.quick else (PROMPT, REPLY, COUNTED)
    if "prefill" in FLAGS.cases:
        yield "prefill", "tokens/s", True, lambda n: ("prefill", n, prompt)
    if "decode" in FLAGS.cases:
        for rows in (1, 4, 16):
            case = f"decode, {rows} rows"
            yield case, "tokens/s", True, lambda n, rows=rows: ("decode", n, rows, counted)
    if "k4" in FLAGS.cases:
        yield f"4 replies to {prompt} tokens", "s", False, lambda n: ("k4", n, prompt, reply)
    if "sessions" in FLAGS.cases:
        yield "agents", "sessions/s", True, lambda n: ("sessions", shape, f"round {n}")


def compare(made, shape):
    """Yield the rows of every case: the first side beside each other one."""
    first, *others = made
    for case, metric, more, call in cases(shape):
        figures = {name: [] for name in made}
        for number in range(FLAGS.rounds + 1):
            if not number and case == "agents":
                continue  # everything is warm by now, or warms up in its first pages
            for name, side in made.items():
                figure = side.ask(*call(number))
                sides.say(f"{case}: round {number}: {name}: {figure}")
                if number:  # round 0 warms up
                    figures[name].append(figure)
        if case == "agents":
            for name, told in figures.items():
                for at, what in ((1, "generated tokens a page"), (2, "prompt tokens saved")):
                    yield sides.row(case, f"{what}: {name}", told[-1][at], None, None)
            figures = {name: [figure[0] for figure in told] for name, told in figures.items()}
        for other in others:
            named = f"{metric}; {first}, peer: {other}"
            yield sides.compared(
                case, named, figures[first], figures[other], more_is_better=more
            )


def main(argv):
    from alignuser_jax.model.files.backbone import backbone_directory
    from alignuser_jax.sampling.workload import NumberedWords, SessionShape

    if bad := set(FLAGS.cases) - {"prefill", "decode", "k4", "sessions"}:
        raise app.UsageError(f"--cases: {sorted(bad)} are unknown", exitcode=2)
    if not FLAGS.gguf and not FLAGS.quick:
        raise app.UsageError("--gguf: give the model's file, or --quick", exitcode=2)
    shape = SessionShape(sessions=FLAGS.sessions, pages=FLAGS.pages)
    if FLAGS.quick:
        FLAGS.rounds, FLAGS.slots, FLAGS.group, FLAGS.chunk, FLAGS.sides = (
            1,
            8,
            4,
            16,
            ["float32"],
        )
        FLAGS.sides = ["float32", "generate"]
        small = {"persona_tokens": 24, "shared_tokens": 8, "page_tokens": 10}
        shape = SessionShape(sessions=3, pages=2, reply_tokens=4, samples=2, **small)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        if FLAGS.gguf:
            directory = str(backbone_directory(Path(FLAGS.gguf), "float32"))
        else:
            tiny = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
            never = range(NumberedWords.FIRST)
            directory = sides.write_qwen3(folder, 256, sides.QWEN3 | tiny, never=never)
        made = started_sides(directory, shape)
        try:
            for row in compare(made, shape):
                rows.append(row)
                sides.save(rows, FLAGS.json)
        finally:
            for side in made.values():
                side.close()
    sides.finish(rows, FLAGS.json)


if __name__ == "__main__":
    app.run(main)
