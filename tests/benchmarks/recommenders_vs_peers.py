"""Compare MF, LightGCN and MultVAE with other libraries' on MovieLens-1M: Recall and nDCG.

    alignuser import-logs --input=../shared/data/ml-1m --output=runs/ml-1m
    python -m tests.benchmarks.recommenders_vs_peers --dataset=runs/ml-1m --out=peers.json

The split is chronological per user, 80/10/10. Every side is fitted on train and stopped by
nDCG@20 on validation. It then ranks, for every user from the train history, the items that are
in neither part; the test part is the truth. Differences are paired by user, with a percentile
bootstrap over users.

- multvae: Cornac's VAECF with the same widths, rate, batch and KL weight (it has no dropout and
  no annealing), and with its own defaults; the one that is better on validation counts. Ours
  runs with the dropout of --multvae and with none, by the same rule.
- mf: `implicit`'s BPR (rate 0.01 or 0.05, the one that is better on validation), and its ALS.
- lightgcn: the same model in NumPy and scipy.sparse, with gradients and an Adam of its own. It
  gets the same initial vectors and batches, so that only the code differs.
- published: ratings of 3 or more, random 80/10/10, at 10, beside RecBole-GNN's table for
  MovieLens-1M (results/general/ml-1m.md of its repository, embedding 64).
"""

import sys
import time

import numpy as np
from absl import app, flags
from scipy.sparse import diags

from alignuser_jax.datasets import load_dataset
from alignuser_jax.randomness import named_generator
from alignuser_jax.recommenders import ALS, MF, LightGCN, MultVAE, held_out_ranking
from alignuser_jax.recommenders.checks.ranking import interaction_matrix, recall_ndcg, top_codes

PUBLISHED = {"mf": (0.1776, 0.2401), "lightgcn": (0.1861, 0.2538)}
"""Recall@10 and nDCG@10 of BPR and LightGCN there."""
FLAGS = flags.FLAGS
flags.DEFINE_string("dataset", None, "Folder of an imported MovieLens-1M.", required=True)
flags.DEFINE_string("out", None, "JSON file of the figures.")
flags.DEFINE_list("cases", ["mf", "multvae", "lightgcn", "published"], "What to compare.")
flags.DEFINE_list("mf", [], "Settings of MF as name=value.")
flags.DEFINE_list("lightgcn", [], "Settings of LightGCN.")
flags.DEFINE_list("multvae", [], "Settings of MultVAE.")
flags.DEFINE_integer("resamples", 2000, "Bootstrap resamples of the users.")


def say(*parts):
    print(*parts, file=sys.stderr, flush=True)


def settings_of(name):
    """Return the settings of a flag, as numbers."""
    values = dict(part.split("=", 1) for part in getattr(FLAGS, name))
    return {key: float(v) if set(v) & set(".e") else int(v) for key, v in values.items()}


def interval(difference):
    """Return the 95 % interval of the mean over resampled users."""
    draw = named_generator("bootstrap")
    means = [
        difference[draw.integers(len(difference), size=len(difference))].mean()
        for _ in range(FLAGS.resamples)
    ]
    return np.percentile(means, [2.5, 97.5])


class Bench:
    """The split as matrices, and every side's ranking of the test part."""

    def __init__(self, dataset):
        self.dataset = dataset
        parts = ("train", "validation", "test")
        self.logs = {part: dataset.log.of_split(part) for part in parts}
        self.train, self.validation, self.test = (
            interaction_matrix(self.logs[part]) for part in parts
        )
        self.users = np.flatnonzero(np.diff(self.test.indptr))
        self.rows = []

    def ours(self, recommender):
        start = time.process_time()
        recommender.fit(self.dataset, self.logs["train"], self.logs["validation"])
        took = time.process_time() - start
        say(recommender.name, recommender.settings, recommender.summary, f"{took:.0f} s")
        return self.judged(recommender), took, recommender.summary["epochs"]

    def judged(self, recommender, k=20):
        """Return (recall, nDCG) per user of the slates of `recommend`."""
        ids = [self.dataset.user_ids[code] for code in self.users]
        ranking = held_out_ranking(recommender, self.dataset, ids, k)
        return ranking.recall, ranking.ndcg

    def ranked(self, scores, truth, seen, k=20):
        """Return (recall, nDCG) per user of `scores(codes)` over the items not in `seen`."""
        users = np.flatnonzero(np.diff(truth.indptr))
        metrics = []
        for some in np.array_split(users, -(-len(users) // 512)):
            top = top_codes(np.array(scores(some), np.float32), seen[some], k)
            metrics.append(recall_ndcg(top, truth[some]))
        return [np.concatenate(part) for part in zip(*metrics, strict=True)]

    def validated(self, scores):
        return float(self.ranked(scores, self.validation, self.train)[1].mean())

    def tested(self, scores):
        return self.ranked(scores, self.test, self.train + self.validation)

    def compare(self, case, ours, peer, **about):
        for metric, mine, theirs in zip(("recall@20", "ndcg@20"), ours, peer, strict=True):
            low, high = interval(mine - theirs)
            self.rows.append(
                {
                    "case": case,
                    "metric": metric,
                    "ours": mine.mean(),
                    "peer": theirs.mean(),
                    "difference": (mine - theirs).mean(),
                    "low": low,
                    "high": high,
                    **about,
                }
            )
            say(self.rows[-1])


def patient(name, steps, bench, patience):
    """Return the best validation nDCG and the test metrics of the step that reached it.

    `steps` yields a score function every few epochs; the search ends when `patience` of them
    brought nothing better.
    """
    best, waited, tested = -1.0, 0, None
    for epoch, scores in steps:
        value = bench.validated(scores)
        say(f"{name} epoch {epoch}: validation ndcg@20 {value:.4f}")
        if value > best:
            best, waited, tested = value, 0, bench.tested(scores)
        elif (waited := waited + 1) >= patience:
            break
    return best, tested


def vaecf(bench, chunk=10, epochs=300, **settings):
    import cornac
    import torch

    log = bench.logs["train"]
    triples = zip(log.user.tolist(), log.item.tolist(), [1.0] * len(log), strict=True)
    data = cornac.data.Dataset.build(triples)
    users = np.array([data.uid_map.get(u, -1) for u in range(log.n_users)])
    items = np.array([data.iid_map.get(i, -1) for i in range(log.n_items)])
    model = cornac.models.VAECF(n_epochs=chunk, likelihood="mult", seed=101, **settings)

    def scores(some):
        logits = np.full((len(some), log.n_items), -1.0, np.float32)
        with torch.no_grad():
            rows = data.matrix[users[some]]
            rows.data[:] = 1
            mean, _ = model.vae.encode(torch.tensor(rows.toarray(), dtype=torch.float32))
            logits[:, items >= 0] = model.vae.decode(mean).numpy()[:, items[items >= 0]]
        return logits

    def steps():
        for epoch in range(chunk, epochs + 1, chunk):
            model.fit(data)
            model.seed = None  # the next epochs go on with other noise
            yield epoch, scores

    return patient(f"VAECF {settings}", steps(), bench, 2)


def implicit_bpr(bench, rate, chunk=10, epochs=300):
    from implicit.cpu.bpr import BayesianPersonalizedRanking

    model = BayesianPersonalizedRanking(
        factors=64, learning_rate=rate, iterations=chunk, random_state=101, num_threads=1
    )

    def steps():
        for epoch in range(chunk, epochs + 1, chunk):
            model.fit(bench.train, show_progress=False)
            yield epoch, lambda some: model.user_factors[some] @ model.item_factors.T

    return patient(f"implicit BPR {rate}", steps(), bench, 2)


def scipy_lightgcn(bench, settings):
    """Train LightGCN with gradients written by hand.

    The loss is Σ softplus(-x_u·(y_p - y_n)) / b + l2 / 2 of the triples' initial vectors. Its
    gradient by the final vectors is a sparse sum over the batch; the one by the initial vectors
    is the same (symmetric) propagation of it.
    """
    from alignuser_jax.recommenders.models.bpr import epoch_batches, initial_vectors

    n_users, n_items = bench.train.shape
    user_scale = np.maximum(np.diff(bench.train.indptr), 1) ** -0.5
    item_scale = np.maximum(np.asarray(bench.train.sum(0)).ravel(), 1) ** -0.5
    graph = (diags(user_scale) @ bench.train @ diags(item_scale)).tocsr().astype(np.float32)
    back = graph.T.tocsr()

    def propagate(x):
        total, layer = x, x
        for _ in range(settings.layers):
            layer = np.vstack([graph @ layer[n_users:], back @ layer[:n_users]])
            total = total + layer
        return total / (settings.layers + 1)

    first = initial_vectors(n_users, n_items, settings.factors, settings.seed)
    x = np.vstack([first["users"], first["items"]]).astype(np.float32)
    moment, square, step = np.zeros_like(x), np.zeros_like(x), 0

    def gradient(x, user, positive, negative):
        final = propagate(x)
        size = len(user)
        margin = np.einsum("bd,bd->b", final[user], final[positive] - final[negative])
        slope = (-1 / (1 + np.exp(margin)) / size)[:, None].astype(np.float32)
        by_final, by_first = np.zeros_like(x), np.zeros_like(x)
        np.add.at(by_final, user, slope * (final[positive] - final[negative]))
        np.add.at(by_final, positive, slope * final[user])
        np.add.at(by_final, negative, -slope * final[user])
        for part in (user, positive, negative):
            np.add.at(by_first, part, settings.l2 / size * x[part])
        return propagate(by_final) + by_first

    def steps():
        nonlocal x, moment, square, step
        for epoch in range(1, settings.epochs + 1):
            drawn = epoch_batches(bench.train, settings.batch_size, settings.seed, epoch)
            for user, positive, negative, weight in zip(*drawn.values(), strict=True):
                real = weight > 0
                offset = n_users
                g = gradient(x, user[real], positive[real] + offset, negative[real] + offset)
                step += 1
                moment = 0.9 * moment + 0.1 * g
                square = 0.999 * square + 0.001 * g * g
                rate = settings.learning_rate * np.sqrt(1 - 0.999**step) / (1 - 0.9**step)
                x = x - np.float32(rate) * moment / (np.sqrt(square) + np.float32(1e-8))
            final = propagate(x)
            yield epoch, lambda some, f=final: f[some] @ f[n_users:].T

    return patient("scipy LightGCN", steps(), bench, settings.patience)


def multvae(bench):
    start = time.process_time()
    settings = settings_of("multvae")
    models = [MultVAE(**settings), MultVAE(**(settings | {"dropout": 0.0}))]
    tested = {model: bench.ours(model) for model in models}
    model = max(models, key=lambda m: m.summary["validation_ndcg@20"])
    say(f"on validation dropout {model.settings.dropout} is better")
    ours, _, epochs = tested[model]
    seconds = time.process_time() - start
    same = {
        "k": model.settings.latent,
        "autoencoder_structure": [model.settings.hidden],
        "batch_size": model.settings.batch_size,
        "learning_rate": model.settings.learning_rate,
        "beta": model.settings.kl_cap,
    }
    start = time.process_time()
    sides = [vaecf(bench, **same), vaecf(bench)]
    theirs = max(sides, key=lambda side: side[0])[1]
    about = {"our_cpu_seconds": seconds, "our_epochs": epochs}
    about["peer_cpu_seconds"] = time.process_time() - start
    bench.compare("MultVAE - Cornac VAECF", ours, theirs, **about)


def mf(bench):
    ours, seconds, epochs = bench.ours(MF(**settings_of("mf")))
    about = {"our_cpu_seconds": seconds, "our_epochs": epochs}
    start = time.process_time()
    sides = [implicit_bpr(bench, rate) for rate in (0.01, 0.05)]
    about["peer_cpu_seconds"] = time.process_time() - start
    theirs = max(sides, key=lambda side: side[0])[1]
    bench.compare("MF - implicit BPR", ours, theirs, **about)
    als = bench.judged(ALS().fit(bench.dataset, bench.logs["train"]))  # fitted by implicit
    bench.compare("MF - implicit ALS", ours, als, our_cpu_seconds=seconds)


def lightgcn(bench):
    model = LightGCN(**settings_of("lightgcn"))
    ours, seconds, epochs = bench.ours(model)
    start = time.process_time()
    _, theirs = scipy_lightgcn(bench, model.settings)
    about = {"our_cpu_seconds": seconds, "our_epochs": epochs}
    about["peer_cpu_seconds"] = time.process_time() - start
    bench.compare("LightGCN - scipy", ours, theirs, **about)


def published(bench):
    """Run the published protocol: ratings of 3 or more, a random split per user, cut at 10."""
    log = bench.dataset.log
    log = log.where(log.rating >= 3)
    shuffled = np.lexsort((named_generator("published split").random(len(log)), log.user))
    first = np.searchsorted(log.user, log.user)
    count = np.searchsorted(log.user, log.user, "right") - first
    place = (np.arange(len(log)) - first) / count
    log = log.where(shuffled)  # still by user: the sort's first key
    train, rest = log.where(place < 0.8), log.where(place >= 0.8)
    later = place[place >= 0.8] >= 0.9
    validation, truth = (
        interaction_matrix(rest.where(~later)),
        interaction_matrix(rest.where(later)),
    )
    matrix = interaction_matrix(train)
    seen = matrix + validation
    for name, make in (("mf", MF), ("lightgcn", LightGCN)):
        model = make(**settings_of(name)).fit(bench.dataset, train, rest.where(~later))
        say(name, model.settings, model.summary)
        vectors = model.model
        counts = np.maximum(np.diff(matrix.indptr), 1)
        sums = (matrix @ vectors.fold) / np.sqrt(counts)[:, None]
        users = vectors.base + sums
        metrics = bench.ranked(
            lambda some, u=users, v=vectors: u[some] @ v.items.T, truth, seen, 10
        )
        for metric, value, theirs in zip(
            ("recall@10", "ndcg@10"), metrics, PUBLISHED[name], strict=True
        ):
            low, high = interval(value)
            row = {"case": f"{name} - published", "metric": metric, "ours": value.mean()}
            row |= {"peer": theirs, "difference": value.mean() - theirs}
            bench.rows.append(row | {"low": low - theirs, "high": high - theirs})
            say(bench.rows[-1])


CASES = {"mf": mf, "multvae": multvae, "lightgcn": lightgcn, "published": published}


def main(argv):
    from tabulate import tabulate

    from tests.benchmarks.sides import save

    bench = Bench(load_dataset(FLAGS.dataset))
    for case in FLAGS.cases:
        CASES[case](bench)
        if FLAGS.out:
            save(bench.rows, FLAGS.out)
    headers = ["case", "metric", "ours", "peer", "ours - peer", "95 %"]
    cells = [
        [r["case"], r["metric"], f"{r['ours']:.4f}", f"{r['peer']:.4f}"]
        + [f"{r['difference']:+.4f}", f"[{r['low']:+.4f}, {r['high']:+.4f}]"]
        for r in bench.rows
    ]
    print(tabulate(cells, headers, tablefmt="github", disable_numparse=True))


if __name__ == "__main__":
    app.run(main)
