"""What a page may show: training statistics and the user's own past, nothing held out."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from alignuser_jax.datasets.formats import synthetic
from alignuser_jax.recommenders import Random
from alignuser_jax.records import Interaction, Item
from alignuser_jax.world import RecommendationSite, SiteConfig, advance, fill, site_of_dataset


@pytest.fixture(scope="module")
def dataset():
    config = synthetic.SyntheticConfig(users=30, items=40, ratings_per_user=12)
    return synthetic.generate(config)


def with_other_ratings(dataset, splits):
    """The same log, but every rating of `splits` is turned round (1 becomes 5)."""
    table = dataset.interaction_table
    rating = table["rating"].to_numpy()
    changed = pc.is_in(table["split"], pa.array(splits)).to_numpy(zero_copy_only=False)
    column = pa.array(np.where(changed, 6 - rating, rating).astype(np.float32))
    place = table.schema.get_field_index("rating")
    return replace(dataset, interaction_table=table.set_column(place, "rating", column))


def pages_of(dataset, site):
    """The text of three pages, details and feedback, of every user."""
    recommender = Random(dataset.item_ids)
    states = fill(site, recommender, [site.reset(user, 1) for user in dataset.user_ids])
    texts = [state.text for state in states]
    for place in (2, 0, 0, 4):
        acts = [s.actions[min(place, len(s.actions) - 1)] for s in states if not s.terminal]
        open_states = [s for s in states if not s.terminal]
        states = advance(site, recommender, list(zip(open_states, acts, strict=True)))
        texts += [state.text for state in states]
    return texts


@pytest.mark.parametrize(
    ("splits", "held_out"),
    [(("train",), ["validation", "test"]), (("train", "validation"), ["test"])],
)
@pytest.mark.parametrize("similar", [False, True])
def test_held_out_ratings_change_no_page(dataset, splits, held_out, similar):
    other = with_other_ratings(dataset, held_out)
    config = SiteConfig(similar_items=similar, search=True)
    here, there = (site_of_dataset(d, config, splits) for d in (dataset, other))
    for user in dataset.user_ids:
        for item in dataset.item_ids:
            assert here.rating_text(user, item) == there.rating_text(user, item)
    assert pages_of(dataset, here) == pages_of(other, there)
    # the test can fail: ratings that may be shown do change pages
    changed = site_of_dataset(with_other_ratings(dataset, list(splits)), config, splits)
    assert pages_of(dataset, changed) != pages_of(dataset, here)


def test_own_ratings_then_the_mean_of_the_training_part(dataset):
    site = site_of_dataset(dataset)
    log = dataset.log
    train = log.of_split("train")
    own = {(u, i): r for u, i, r in zip(train.user, train.item, train.rating, strict=True)}
    for user, item in zip(*np.nonzero(np.ones((30, 40))), strict=True):
        ratings = train.rating[train.item == item]
        expected = own.get((user, item), ratings.mean() if len(ratings) else None)
        text = site.rating_text(dataset.user_ids[user], dataset.item_ids[item])
        assert text == ("none" if expected is None else f"{expected:.1f}")


def test_a_held_out_part_is_refused(dataset):
    for splits in (("train", "test"), (), ("all",)):
        with pytest.raises(ValueError, match="held-out"):
            site_of_dataset(dataset, splits=splits)


def test_similar_items_of_a_graph():
    items = {n: Item(n, f"Film {n}", ("Drama",)) for n in "abcdef"}
    site = RecommendationSite(
        items,
        {"u": (Interaction("c", 4.0),)},
        {"a": 3.0, "b": 3.8666, "d": 2.0},
        SiteConfig(similar_items=True),
        neighbours={"a": ("a", "gone", "e", "c", "b", "d"), "b": ()},
    )
    # itself, unknown ids and items nobody rated are left out; own rating before the mean
    ending = " | like Film c 4, Film b 3.9"
    assert site.item_line("u", 1, "a").endswith(ending)
    assert site.item_line("v", 1, "a").endswith(" | like Film b 3.9, Film d 2")
    for item in "bf":
        assert " | like " not in site.item_line("u", 1, item)
    hidden = replace(site, config=replace(site.config, show_mean_rating=False))
    assert hidden.item_line("u", 1, "a").endswith(" | like Film c 4")
