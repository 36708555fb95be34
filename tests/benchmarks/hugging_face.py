"""`generate` of transformers as a `Generator`, for the side-by-side programs."""

import itertools


class Generate:
    """A `Generator` over transformers: `batch` of the prompts that wait at a time, padded."""

    def __init__(self, model, tokenizer, batch, cache="dynamic"):
        self._model, self._tokenizer = model, tokenizer
        self._batch, self._cache = batch, cache
        self._queue, self._tickets = [], itertools.count()

    def submit(self, request):
        from alignuser_jax.language import render

        ids = render(self._tokenizer, request.messages, generation=True).tokens.tolist()
        self._queue.append((next(self._tickets), request, ids))
        return self._queue[-1][0]

    def cancel(self, ticket):
        self._queue = [entry for entry in self._queue if entry[0] != ticket]

    def collect(self):
        import torch

        if not self._queue:
            return []
        self._queue.sort(key=lambda entry: len(entry[2]))
        now, self._queue = self._queue[: self._batch], self._queue[self._batch :]
        longest, request = len(now[-1][2]), now[0][1]
        ids = torch.zeros((len(now), longest), dtype=torch.long)
        mask = torch.zeros_like(ids)
        for place, (_, _, prompt) in enumerate(now):
            ids[place, longest - len(prompt) :] = torch.tensor(prompt)
            mask[place, longest - len(prompt) :] = 1
        options = {} if self._cache == "dynamic" else {"cache_implementation": self._cache}
        if request.temperature:
            options |= {"do_sample": True, "temperature": request.temperature, "top_k": 0}
        with torch.inference_mode():
            out = self._model.generate(
                ids,
                attention_mask=mask,
                num_return_sequences=request.samples,
                max_new_tokens=request.max_tokens,
                pad_token_id=0,
                **options,
            )
        replies = out[:, longest:].reshape(len(now), request.samples, -1).tolist()
        return [
            (ticket, self._completion(prompt, of_prompt))
            for (ticket, _, prompt), of_prompt in zip(now, replies, strict=True)
        ]

    def _completion(self, prompt, replies):
        """The replies up to their end token, which counts as generated."""
        from alignuser_jax.records import Completion, Usage
        from alignuser_jax.sampling.generate import with_samples

        ends = self._model.generation_config.eos_token_id
        ends = {ends} if isinstance(ends, int) else set(ends or ())
        completions = []
        for reply in replies:
            end = next((n for n, token in enumerate(reply) if token in ends), len(reply))
            usage = Usage(len(prompt), 0, min(end + 1, len(reply)))
            text = self._tokenizer.decode(reply[:end])
            completions.append(Completion(text, tokens=tuple(reply[:end]), usage=usage))
        return with_samples(completions)
