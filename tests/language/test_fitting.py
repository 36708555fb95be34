"""What fits into a row of the training is built; the rest is counted, and said."""

import json

from alignuser_jax.language.counting import TokenCounter
from alignuser_jax.language.fitting import RowFit, fit_lines
from alignuser_jax.records import Example, Message, Span


def example(task, name, words):
    reply = Message("assistant", (Span("RATING: 4", trained=True, action=True),))
    return Example(task, (Message.of("user", "movie " * words), reply), name, "u")


def rows_of(tokenizer, one):
    return TokenCounter(tokenizer).trained(one.messages)


def test_what_is_too_long_is_refused_and_counted(each):
    """`left_truncated` and `refused` were counted, and shown nowhere."""
    examples = [example("visit", f"visit/u/0/{n}", 10 * n) for n in range(4)]
    examples.append(example("imitation", "imitation/u/7", 5))
    sizes = [rows_of(each, one) for one in examples]
    fit = RowFit(sizes[2], TokenCounter(each))
    kept = list(fit.fitting(examples))
    assert kept == [*examples[:3], examples[4]]  # one of exactly the row's length fits
    counts = json.loads(json.dumps(fit.report))["tasks"]
    assert counts["visit"] | {"lengths": 0} == {
        "built": 3, "restarted": 2, "too_long": 1, "longest": sizes[2], "lengths": 0,
    }  # fmt: skip
    assert counts["imitation"]["restarted"] == 0
    assert sum(counts["visit"]["lengths"].values()) == 3

    tasks = {"visit": {"count": 3}, "imitation": {"count": 1}}
    manifest = {"tasks": tasks, "fit": fit.report}
    visit, imitation = fit_lines(manifest, each.fingerprint, sizes[2])
    assert visit == (
        "visit: 3 examples, 2 of them after a restart, 1 refused as too long when they were "
        f"built, longest {sizes[2]} of {sizes[2]} tokens: raise train.seq_len, or lower "
        "session.context_tokens or history_items"
    )
    assert "raise" not in imitation and "0 refused" in imitation
    visit, _ = fit_lines(manifest, each.fingerprint, 1)
    assert "; 3 more are too long now and are left out: raise train.seq_len" in visit
    *_, last = fit_lines(manifest, "another tokenizer", 512)
    assert "not counted with this tokenizer: those of more than 512 tokens" in last
    *_, last = fit_lines({"tasks": tasks}, "", 512)  # nothing is known of older shards
    assert "not counted" in last


def test_without_a_tokenizer_nothing_is_refused():
    fit = RowFit(1, len)
    examples = [example("visit", "visit/u/0/0", 10)]
    assert list(fit.fitting(examples)) == examples
    assert fit.report["tasks"] == {"visit": {"built": 1, "restarted": 0, "too_long": 0}}
    assert fit.report["counted_by"] is None
