"""What the side-by-side programs of sampling share: processes, the model, the table."""

import json
import multiprocessing
import os
import statistics
import sys
import traceback
from pathlib import Path

COLUMNS = ("ours", "peer", "ratio")


QWEN3 = {
    "hidden_size": 512,
    "intermediate_size": 1536,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "rope_theta": 1e6,
    "tie_word_embeddings": True,
}
"""The small Qwen3 of all comparisons, as `transformers.Qwen3Config` takes it."""


class Side:
    """An object made by `make(*arguments)` in a process of its own; `side.ask(name, ...)` calls
    its method there and gives the result. An exception there is one here, with its trace."""

    def __init__(self, make, *arguments):
        context = multiprocessing.get_context("spawn")
        self._connection, other = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(other, make, arguments), daemon=True
        )
        self._process.start()

    def ask(self, name, *arguments, **named):
        self._connection.send((name, arguments, named))
        good, result = self._connection.recv()
        if not good:
            raise RuntimeError(f"{name} failed in its process:\n{result}")
        return result

    def close(self):
        self._connection.send(None)
        self._process.join()


def _serve(connection, make, arguments):
    side = None
    while (call := connection.recv()) is not None:
        name, positional, named = call
        try:
            side = side or make(*arguments)
            connection.send((True, getattr(side, name)(*positional, **named)))
        except Exception:
            connection.send((False, traceback.format_exc()))


def write_qwen3(directory, vocabulary, shape, never=()) -> str:
    """A random Qwen3 that both sides load. The embeddings (and with them the logits) of the ids
    in `never` are 0, so that greedy decoding does not choose them."""
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.Qwen3Config(vocab_size=vocabulary, **shape)
    model = transformers.Qwen3ForCausalLM(config)
    with torch.no_grad():
        model.model.embed_tokens.weight[list(never)] = 0
    model.save_pretrained(directory)
    return str(directory)


def say(*parts):
    print(*parts, file=sys.stderr, flush=True)


def row(case, metric, ours, theirs, ratio):
    """One row of the result; a ratio above 1 is in our favour."""
    made = {"case": case, "metric": metric, "ours": ours, "peer": theirs, "ratio": ratio}
    say(made)
    return made


def compared(case, metric, ours, theirs, *, more_is_better=True):
    """A row of two lists of rounds: both sides' medians and the median of the ratios."""
    pairs = list(zip(ours, theirs, strict=True))
    ratios = [a / b if more_is_better else b / a for a, b in pairs]
    middle = statistics.median
    return row(case, metric, middle(ours), middle(theirs), middle(ratios))


def save(rows, path):
    """Writes the rows so far: what a later case loses is that case only."""
    Path(path).write_text(json.dumps(rows, indent=1) + "\n")


def finish(rows, path):
    """Prints the table and writes the rows."""
    from tabulate import tabulate

    def shown(value):
        return "" if value is None else f"{value:.4g}"

    cells = [[r["case"], r["metric"], *(shown(r[k]) for k in COLUMNS)] for r in rows]
    headers = ["case", "metric", *COLUMNS]
    print(tabulate(cells, headers, tablefmt="github", disable_numparse=True))
    load = os.getloadavg()[0]
    print(f"load of the machine at the end: {load:.1f} on {os.cpu_count()} cores")
    save(rows, path)
