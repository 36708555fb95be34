"""A peer simulator in its own environment: reads numbers of steps, answers with steps/s.

    PYTHON_OF_THE_PEER world_steps_peers.py recsim|recogym

Run by `world_steps`; it imports nothing of this project. Both packages stopped before today's
numpy, scipy and tensorflow; what is set up below before their import (and nothing of what they
do in a step) makes them run again.
"""

import sys
import time
import types
import warnings


def recsim(slate_size):
    """RecSim's interest evolution: a slate of documents to a user with a hidden interest."""
    import gin

    gin.tf = sys.modules["gin.tf"] = types.ModuleType("gin.tf")  # asks for tf.estimator
    from recsim.environments import interest_evolution

    env = interest_evolution.create_environment(
        {"num_candidates": 10, "slate_size": slate_size, "resample_documents": True, "seed": 0}
    )
    env.reset()

    def step():
        if env.step(env.action_space.sample())[2]:
            env.reset()

    return step


def recogym(slate_size):
    """RecoGym's v1: one product to a user between two organic sessions."""
    import numpy
    import scipy

    scipy.rand = numpy.random.rand  # gone from scipy
    from recogym import env_1_args
    from recogym.envs.reco_env_v1 import RecoEnv1

    env = RecoEnv1()
    env.init_gym(env_1_args)
    number = [0]

    def begin():
        env.reset()
        env.step(None)

    def step():
        number[0] += 1
        if env.step(number[0] % env_1_args["num_products"])[2]:
            begin()

    begin()
    return step


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    step = {"recsim": recsim, "recogym": recogym}[sys.argv[1]](4)
    for line in sys.stdin:
        started = time.perf_counter()
        for _ in range(int(line)):
            step()
        print(int(line) / (time.perf_counter() - started), flush=True)
