"""The slow reference: one forward pass over the whole sequence for every token."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from alignuser_jax.language import answer_token_paths, render


class Reference:
    """One forward pass over the whole sequence for every token: no cache, no batch."""

    def __init__(self, decoder, tokenizer, length=192):
        self.decoder, self.tokenizer, self.length = decoder, tokenizer, length
        graph, state = nnx.split(decoder)

        @jax.jit
        def forward(state, tokens, at, adapter):
            model = nnx.merge(graph, state)
            positions = jnp.arange(length, dtype=jnp.int32)[None]
            hidden = model(tokens[None], positions, adapter=adapter)
            return model.logits(hidden[:, at][:, None])[0, 0]

        self._forward = lambda tokens, at, adapter: forward(state, tokens, at, adapter)

    def prompt(self, request):
        return render(self.tokenizer, request.messages, generation=True).tokens.tolist()

    def logprobs(self, tokens, adapter=1):
        """Of the next token, float64 [V]."""
        padded = np.zeros(self.length, np.int32)
        padded[: len(tokens)] = tokens
        logits = np.asarray(self._forward(padded, len(tokens) - 1, adapter), np.float64)
        return logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())

    def paths(self, request):
        last = len(request.answer) - 1
        return [
            [tuple(p) for p in answer_token_paths(self.tokenizer, line, i == last)]
            for i, line in enumerate(request.answer)
        ]

    def answer(self, tokens, request, adapter=1):
        """Greedy constrained reply: (tokens, choices, per line the distribution by chain rule
        over the restricted steps)."""
        reply, choices, distributions = [], [], []
        for paths in self.paths(request):
            path, step = (), {}
            while path not in paths:
                allowed = sorted({p[len(path)] for p in paths if p[: len(path)] == path})
                logprobs = self.logprobs(tokens + reply, adapter)
                p = np.exp(logprobs[allowed])
                if len(allowed) > 1:
                    step[path] = dict(zip(allowed, p / p.sum(), strict=True))
                token = allowed[int(np.argmax(p))]
                path, reply = (*path, token), [*reply, token]
            choices.append(paths.index(path))
            distributions.append(step)
        return reply, tuple(choices), distributions

    def text(self, tokens, limit, adapter=1):
        """Greedy free text."""
        reply = []
        while len(reply) < limit:
            logprobs = self.logprobs(tokens + reply, adapter)[: self.tokenizer.vocab_size]
            logprobs[list(self.tokenizer.special_ids - {self.tokenizer.eot_id})] = -np.inf
            reply.append(int(np.argmax(logprobs)))
            if reply[-1] == self.tokenizer.eot_id:
                break
        return reply

    def distribution(self, tokens, request, adapter=1):
        """Over the alternatives of a scored request, by whole sequences."""
        (paths,) = self.paths(request)
        bare = [p[:-1] for p in paths]
        if any(a != b and b[: len(a)] == a for a in bare for b in bare):
            bare = paths
        totals = np.zeros(len(bare))
        for i, path in enumerate(bare):
            for j, token in enumerate(path):
                totals[i] += self.logprobs(tokens + list(path[:j]), adapter)[token]
        p = np.exp(totals - totals.max())
        return p / p.sum()
