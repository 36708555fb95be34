"""Groups hold every piece of work once, in an order that a cache can follow."""

from types import SimpleNamespace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from alignuser_jax.language import render
from alignuser_jax.records import Message, Request
from alignuser_jax.sampling import EngineConfig
from alignuser_jax.sampling.engine.decode import JUMP
from alignuser_jax.sampling.engine.pack import cut_suffixes, pack_prompts, pack_suffixes, parts
from alignuser_jax.sampling.engine.prepare import Preparation

CHUNK = 4


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(
        st.integers(0, 30),
        st.tuples(st.integers(1, 40), st.integers(0, 9)),
        min_size=1,
        max_size=6,
    ),
    st.integers(1, 3),
)
def test_every_token_is_read_once_and_after_what_it_looks_back_to(sizes, group):
    rows, at, pieces = {}, {}, []
    for slot, (length, chunks) in sizes.items():
        tokens = 100 * slot + np.arange(length, dtype=np.int32)
        rows[slot] = SimpleNamespace(tokens=tokens, adapter=slot % 2)
        at[slot] = min(chunks, (length - 1) // CHUNK) * CHUNK
        pieces += [(slot, rows[slot], start) for start in range(at[slot], length, CHUNK)]
    calls = -(-len(pieces) // group) + 1
    chunks, ends, used = pack_prompts(pieces, calls=calls, group=group, chunk=CHUNK)
    assert chunks.tokens.shape == (calls, group, CHUNK) and ends.slot.shape == (calls, group)
    for w in range(used[0]):
        for g in range(group):
            slot, start, count = (int(a[w, g]) for a in chunks[1:4])
            if count:
                assert start == at[slot] and start % CHUNK == 0
                piece = rows[slot].tokens[start : start + count]
                assert chunks.tokens[w, g, :count].tolist() == piece.tolist()
                assert chunks.adapter[w, g] == slot % 2
                at[slot] += count
                assert chunks.final[w, g] == (at[slot] == len(rows[slot].tokens))
    assert not chunks.length[used[0] :].any() and not ends.active[used[1] :].any()
    finished = dict(
        zip(ends.slot[ends.active].tolist(), ends.position[ends.active].tolist(), strict=True)
    )
    assert finished == {slot: len(row.tokens) - 1 for slot, row in rows.items()}
    assert at == {slot: len(row.tokens) for slot, row in rows.items()}


def test_suffixes_are_cut_into_jumps():
    long = tuple(range(10, 10 + 2 * JUMP + 2))
    row = SimpleNamespace(tokens=np.arange(7), adapter=1), ((5,), long)
    assert cut_suffixes({0: row, 3: row}, 0) == []
    read = {0: [], 3: []}
    for part in parts(cut_suffixes({0: row, 3: row}, 1), 2):
        group = pack_suffixes(part, group=2)
        for i, (slot, *_) in enumerate(part):
            count = group.length[i]
            assert group.slot[i] == slot and group.start[i] == 7 + len(read[slot])
            read[slot] += zip(group.tokens[i, :count], group.targets[i, :count], strict=True)
    assert read[0] == read[3] == list(zip(long, long[1:], strict=False))


def test_prompts_are_rendered_as_training_does(tokenizer):
    config = EngineConfig(context=512, chunk=16, pages=32, states=64, edges=8)
    ends = [tokenizer.eot_id]
    preparation = Preparation(tokenizer, config, adapters=["policy"], end_ids=ends, model="m")
    messages = ()
    for role, text in zip(
        ("system", "user", "assistant", "user"), ("list", "a film", "[SKIP]\n", ""), strict=True
    ):
        messages += (Message.of(role, text),)
        if role != "assistant":
            for _ in range(2):  # looked up the second time
                (row,) = preparation.rows(0, Request(messages, "test", max_tokens=8))
                expected = render(tokenizer, messages, generation=True).tokens
                assert row.tokens.tolist() == expected.tolist() and row.tokens.dtype == np.int32
