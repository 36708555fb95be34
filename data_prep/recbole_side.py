"""Serve or export a RecBole model: copy this one file to where RecBole is installed.

It needs nothing of alignuser_jax.

    python recbole_side.py serve saved/BPR-….pth --port 8090    # --arms=bpr=http://HOST:8090
    python recbole_side.py export saved/BPR-….pth recs.tsv      # --arms=bpr=recs.tsv

`serve` speaks alignuser-recommend/1 (alignuser_jax/recommenders/http/protocol.py). Sequential
models are given the live history and session of each request. The others know their users by
id, and a user that they do not know gets the most popular items. `export` writes user, item and
score, without the items that RecBole masks as seen.

RecBole 1.2.1 with torch 2.6 or newer needs TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1 to load what it
saved, in training too; this file sets it. A checkpoint is a pickle: load none that you do not
trust.
"""

import argparse
import hashlib
import json
import os
import sys
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PROTOCOL = "alignuser-recommend/1"  # a copy: this file imports nothing of alignuser_jax


class SavedModel:
    """A model that RecBole saved, asked in the ids of the original data.

    Args:
        checkpoint: the .pth file.
    """

    def __init__(self, checkpoint):
        os.environ.setdefault("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
        from recbole.quick_start import load_data_and_model

        self.config, self.model, self.dataset, _, _, self.test = load_data_and_model(
            model_file=checkpoint
        )
        self.model.eval()
        self.uid, self.iid = self.dataset.uid_field, self.dataset.iid_field
        self.users = dict(self.dataset.field2token_id[self.uid])
        self.items = dict(self.dataset.field2token_id[self.iid])
        self.names = {code: str(token) for token, code in self.items.items()}
        counts = Counter(self.dataset.inter_feat[self.iid].tolist())
        codes = [code for code in sorted(self.names) if code != 0]  # 0 is RecBole's padding
        self.popular = sorted(codes, key=lambda code: -counts[code])
        self.sequential = hasattr(self.model, "ITEM_SEQ")
        self.name = type(self.model).__name__
        with open(checkpoint, "rb") as file:
            self.version = hashlib.blake2b(file.read(), digest_size=6).hexdigest()

    def scores(self, users, seen):
        """Return scores, a tensor [users, items].

        Args:
            users: RecBole's codes of the users.
            seen: for each user, the codes of the items in the live history, oldest first.
        """
        import torch
        from recbole.data.interaction import Interaction
        from recbole.utils.case_study import full_sort_scores

        device = self.config["device"]
        if not self.sequential:
            return full_sort_scores(users, self.model, self.test, device=device).cpu()
        longest = self.model.max_seq_length
        rows = torch.zeros(len(users), longest, dtype=torch.long)
        lengths = torch.ones(len(users), dtype=torch.long)
        for row, items in enumerate(seen):
            last = items[-longest:]
            rows[row, : len(last)] = torch.tensor(last, dtype=torch.long)
            lengths[row] = max(len(last), 1)
        interaction = Interaction(
            {
                self.uid: torch.tensor(users),
                self.model.ITEM_SEQ: rows,
                self.model.ITEM_SEQ_LEN: lengths,
            }
        ).to(device)
        with torch.no_grad():
            scores = self.model.full_sort_predict(interaction).view(len(users), -1)
        return scores.cpu()

    def recommend(self, requests):
        """Return one slate for each request, as the protocol writes them."""
        return [self.slate(request, self.ranked(request)) for request in requests]

    def ranked(self, request):
        """Return item codes, best first; none for a user of whom the model knows nothing."""
        past = [*request.get("history", ()), *request.get("session", ())]
        seen = [self.items[row[0]] for row in past if row[0] in self.items]
        user = self.users.get(request["user_id"])
        if not (seen if self.sequential else user is not None):
            return []
        scores = self.scores([user or 0], [seen])[0]  # alone: no slate depends on another
        order = scores.argsort(descending=True, stable=True).tolist()
        values = scores.tolist()
        return [c for c in order if c in self.names and c != 0 and values[c] > -1e30]

    def slate(self, request, ranked):
        """Return the first k of `ranked` that are not excluded, then the most popular ones."""
        excluded = {self.items.get(item) for item in request.get("exclude", ())}
        ids = []
        for code in [*ranked, *self.popular]:
            if len(ids) == request["k"]:
                break
            if code not in excluded:
                excluded.add(code)
                ids.append(self.names[code])
        return {"user_id": request["user_id"], "item_ids": ids}


def export(model, path, k):
    """Write the k best items of each user as tab-separated user, item and score."""
    from recbole.utils.case_study import full_sort_scores

    users = [(token, code) for token, code in model.users.items() if code != 0]
    with open(path, "w", encoding="utf-8") as out:
        for token, code in users:
            scores = full_sort_scores([code], model.model, model.test, model.config["device"])[
                0
            ]
            best = scores.cpu().topk(min(k, len(scores)))
            # RecBole's Python may be older than zip's strict=
            for item, score in zip(best.indices.tolist(), best.values.tolist()):  # noqa: B905
                if item in model.names and item != 0 and score > -1e30:
                    out.write(f"{token}\t{model.names[item]}\t{score!r}\n")
    print(f"{len(users)} users: {path}")


def serve(model, host, port):
    """Answer requests until the program is stopped."""
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1
        disable_nagle_algorithm = True

        def do_GET(self):
            about = {"name": model.name, "version": model.version, "stateful": False}
            self.send(200, {"protocol": PROTOCOL, **about})

        def do_POST(self):
            try:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                requests = json.loads(body)["requests"]
                with lock:
                    slates = model.recommend(requests)
            except Exception as error:
                self.send(500, {"error": f"{type(error).__name__}: {error}"})
                return
            self.send(200, {"protocol": PROTOCOL, "version": model.version, "slates": slates})

        def send(self, status, value):
            data = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format, *arguments):
            pass

    server = ThreadingHTTPServer((host, port), Handler)
    print(f"serving {model.name} at http://{host}:{server.server_address[1]}/", flush=True)
    server.serve_forever()


def main():
    """Read the command line and serve or export."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb in ("serve", "export"):
        of_verb = verbs.add_parser(verb)
        of_verb.add_argument("checkpoint", help="what RecBole saved, a .pth file")
        if verb == "serve":
            of_verb.add_argument("--host", default="127.0.0.1")
            of_verb.add_argument("--port", type=int, default=8090)
        else:
            of_verb.add_argument("output", help="the file to write, a .tsv")
            of_verb.add_argument("--k", type=int, default=200, help="items per user")
    flags = parser.parse_args()
    model = SavedModel(flags.checkpoint)
    if flags.verb == "serve":
        serve(model, flags.host, flags.port)
    else:
        export(model, flags.output, flags.k)


if __name__ == "__main__":
    sys.exit(main())
