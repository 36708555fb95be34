"""What the tests of formats compare."""


def rows(dataset):
    """(user, item, rating, timestamp) of each interaction, in the dataset's order."""
    log = dataset.log
    return [
        (dataset.user_ids[u], dataset.item_ids[i], float(r), int(t))
        for u, i, r, t in zip(log.user, log.item, log.rating, log.timestamp, strict=True)
    ]
