import pytest

from alignuser_jax.records import Item
from alignuser_jax.world import readable
from alignuser_jax.world.site.titles import TITLE_CHARS, readable_title


@pytest.mark.parametrize(
    ("title", "plain"),
    [
        ("Matrix, The (1999)", "The Matrix"),
        ("Heat", "Heat"),
        ("2001: A Space Odyssey (1968)", "2001: A Space Odyssey"),
        ("1984", "1984"),
        ("Boys, Les (1997)", "Les Boys"),
        ("Avventura, L' (1960)", "L'Avventura"),
        ("City of Lost Children, The (Cité des enfants perdus, La) (1995)",)
        + ("The City of Lost Children",),
        ("Paris, Texas (1984)", "Paris, Texas"),
        ("(1999)", "(1999)"),
        ("Last Klezmer: Leopold Kozlowski, His Life and Music, The (1995)",)
        + ("The Last Klezmer: Leopold Kozlowski, His Life",),
        ("", ""),
    ],
)
def test_a_title_as_people_read_it(title, plain):
    assert readable_title(title) == plain
    assert readable_title(plain) == plain and len(plain) <= TITLE_CHARS


def test_titles_that_would_be_the_same_stay_as_they_are():
    names = {"1": "Heat (1986)", "2": "Heat (1995)", "3": "Ran (1985)", "4": ""}
    items = {item_id: Item(item_id, name) for item_id, name in names.items()}
    shown = readable(items)
    assert [item.title for item in shown.values()] == ["Heat (1986)", "Heat (1995)", "Ran", ""]
    assert list(shown) == list(items) and items["3"].title == "Ran (1985)"
