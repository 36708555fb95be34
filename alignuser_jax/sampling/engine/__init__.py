"""The batched sampler on local devices: paged KV cache, prefill, constrained decode."""
