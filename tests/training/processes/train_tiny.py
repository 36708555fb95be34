"""A short run on the tiny task: python train_tiny.py SHARDS TOKENIZER OUT [data=2,fsdp=2]"""

import os
import sys

from alignuser_jax.language import TextTokenizer
from alignuser_jax.model import DecoderConfig, LoraConfig, init_decoder
from alignuser_jax.parallel import make_mesh, start_hosts
from alignuser_jax.training.config import TrainConfig
from alignuser_jax.training.loop import RunOptions, train_decoder


def main():
    shards, tokens, out, *mesh = sys.argv[1:]
    if "PROCESS" in os.environ:
        start_hosts(os.environ["COORDINATOR"], 2, int(os.environ["PROCESS"]))
    tokenizer = TextTokenizer.load(tokens)
    shape = DecoderConfig(tokenizer.vocab_size, 16, 32, 2, 4, 2, 8)
    config = TrainConfig(
        steps=40, batch_size=8, seq_len=64, learning_rate=1e-2, save_every=3, b2=0.98
    )
    sizes = dict(size.split("=") for size in mesh[0].split(",")) if mesh else None
    over = make_mesh(**{axis: int(n) for axis, n in sizes.items()}) if sizes else None
    decoder = init_decoder(shape, LoraConfig(rank=2))
    train_decoder(config, decoder, shards, tokenizer, out, RunOptions(mesh=over))


if __name__ == "__main__":
    main()
