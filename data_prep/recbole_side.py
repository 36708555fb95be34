"""The RecBole side: run this one file where RecBole is installed; it needs nothing of ours.

    python recbole_side.py serve saved/BPR-….pth --port 8090    # --arms=bpr=http://HOST:8090
    python recbole_side.py export saved/BPR-….pth recs.tsv      # --arms=bpr=recs.tsv

`serve` speaks alignuser-recommend/1. Sequential models are given the live history and session
of each request; the others know their users, and a user that they do not know gets the most
popular items. `export` writes user, item, score, without the items that RecBole masks as seen.

RecBole 1.2.1 with a torch of 2.6 or newer needs TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1 to load what
it saved, in training too; here it is set. A checkpoint is a pickle: load none you do not trust.
"""

import argparse
import hashlib
import json
import os
import sys
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PROTOCOL = "alignuser-recommend/1"


class Side:
    """A saved model with what it takes to ask it in original ids."""

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
        """float [len(users), items]; `users` are codes, `seen` lists of item codes."""
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
        asked = Interaction(
            {
                self.uid: torch.tensor(users),
                self.model.ITEM_SEQ: rows,
                self.model.ITEM_SEQ_LEN: lengths,
            }
        ).to(device)
        with torch.no_grad():
            scores = self.model.full_sort_predict(asked).view(len(users), -1)
        return scores.cpu()

    def recommend(self, requests):
        slates = [None] * len(requests)
        asked = []
        for n, request in enumerate(requests):
            done = [*request.get("history", ()), *request.get("session", ())]
            seen = [self.items[row[0]] for row in done if row[0] in self.items]
            user = self.users.get(request["user_id"])
            if (self.sequential and seen) or (not self.sequential and user is not None):
                asked.append((n, user or 0, seen))
            else:
                slates[n] = self.slate(request, [])
        for n, user, seen in asked:  # one by one: no slate depends on its neighbours
            best = self.scores([user], [seen])[0]
            order = best.argsort(descending=True, stable=True).tolist()
            values = best.tolist()
            ranked = [c for c in order if c in self.names and c != 0 and values[c] > -1e30]
            slates[n] = self.slate(requests[n], ranked)
        return slates

    def slate(self, request, ranked):
        """The first k of `ranked` that are not excluded, then the most popular ones."""
        taken = {self.items.get(item) for item in request.get("exclude", ())}
        ids = []
        for code in [*ranked, *self.popular]:
            if len(ids) == request["k"]:
                break
            if code not in taken:
                taken.add(code)
                ids.append(self.names[code])
        return {"user_id": request["user_id"], "item_ids": ids}


def export(side, path, k):
    from recbole.utils.case_study import full_sort_scores

    users = [(token, code) for token, code in side.users.items() if code != 0]
    with open(path, "w", encoding="utf-8") as out:
        for token, code in users:
            scores = full_sort_scores([code], side.model, side.test, side.config["device"])[0]
            best = scores.cpu().topk(min(k, len(scores)))
            # RecBole's Python may be older than zip's strict=
            for item, score in zip(best.indices.tolist(), best.values.tolist()):  # noqa: B905
                if item in side.names and item != 0 and score > -1e30:
                    out.write(f"{token}\t{side.names[item]}\t{score!r}\n")
    print(f"{len(users)} users: {path}")


def serve(side, host, port):
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1
        disable_nagle_algorithm = True

        def do_GET(self):
            about = {"name": side.name, "version": side.version, "stateful": False}
            self.send(200, {"protocol": PROTOCOL, **about})

        def do_POST(self):
            try:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                requests = json.loads(body)["requests"]
                with lock:
                    slates = side.recommend(requests)
            except Exception as error:
                self.send(500, {"error": f"{type(error).__name__}: {error}"})
                return
            self.send(200, {"protocol": PROTOCOL, "version": side.version, "slates": slates})

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
    print(f"serving {side.name} at http://{host}:{server.server_address[1]}/", flush=True)
    server.serve_forever()


def main():
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
    side = Side(flags.checkpoint)
    if flags.verb == "serve":
        serve(side, flags.host, flags.port)
    else:
        export(side, flags.output, flags.k)


if __name__ == "__main__":
    sys.exit(main())
