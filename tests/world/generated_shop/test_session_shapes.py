import gzip

import numpy as np
import pytest
from scipy.stats import ks_2samp

from alignuser_jax.world.generated_shop.session_shapes import (
    SessionShapes,
    compare_shapes,
    read_online_shoppers,
)

HEADER = "Administrative,Informational,ProductRelated,Month,Revenue"


def write(folder, *rows, header=HEADER, zipped=False):
    text = "\n".join([header, *rows]) + "\n"
    path = folder / ("s.csv.gz" if zipped else "s.csv")
    path.write_bytes(gzip.compress(text.encode()) if zipped else text.encode())
    return path


@pytest.mark.parametrize("zipped", [False, True])
def test_the_file_is_read(tmp_path, zipped):
    rows = (
        "1,0,3,Feb,TRUE",
        "0,2,0,May,False",
        "0,0,0,May,FALSE",
        "0,0,7,Nov,0",
        "2,0,1,May,1",
    )
    shapes = read_online_shoppers(write(tmp_path, *rows, zipped=zipped))
    assert shapes.pages.tolist() == [[1, 0, 3], [0, 2, 0], [0, 0, 7], [2, 0, 1]]
    assert shapes.purchase.tolist() == [True, False, False, True]
    assert shapes.total.tolist() == [4, 2, 7, 3]


@pytest.mark.parametrize(
    "row",
    ["-1,0,3,Feb,1", "1.5,0,3,Feb,1", "1,0,x,Feb,1", "1,0,3,Feb,maybe", "1,0", "1e9,0,1,F,1"],
)
def test_bad_rows_name_their_line(tmp_path, row):
    with pytest.raises(ValueError, match=r"s\.csv, line 3: .*expected whole numbers"):
        read_online_shoppers(write(tmp_path, "1,0,3,Feb,1", row))


def test_other_files_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file"):
        read_online_shoppers(tmp_path / "none.csv")
    with pytest.raises(ValueError, match="no column Informational, Revenue"):
        read_online_shoppers(write(tmp_path, header="Administrative,ProductRelated"))
    with pytest.raises(ValueError, match="has no session"):
        read_online_shoppers(write(tmp_path))
    path = write(tmp_path, "1,0,3,Feb,1", zipped=True)
    path.write_bytes(path.read_bytes()[:-12])
    with pytest.raises(ValueError, match="cannot be read"):
        read_online_shoppers(path)
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="cannot be read"):
        read_online_shoppers(tmp_path / "binary.csv")


def test_a_comparison_by_hand():
    rng = np.random.default_rng(0)
    human = SessionShapes(rng.integers(0, 30, (200, 3)), rng.random(200) < 0.2)
    other = SessionShapes(rng.integers(0, 10, (100, 3)), np.zeros(100, bool))
    compared = compare_shapes(human, other)
    everything, *kinds = compared.pages
    assert everything.ks == pytest.approx(ks_2samp(human.total, other.total).statistic)
    assert everything.human_mean == pytest.approx(human.pages.sum() / 200)
    assert kinds[2].simulated_quantiles[2] == np.median(other.pages[:, 2])
    assert compared.human_purchase == pytest.approx(human.purchase.mean())
    assert compared.simulated_purchase == 0
    low = dict((name, (a, b)) for name, a, b in compared.by_length)["10 to 19"]
    inside = (other.total >= 10) & (other.total < 20)
    assert inside.sum() >= 20 and low[1] == 0
    assert np.isnan(low[0]) == (((human.total >= 10) & (human.total < 20)).sum() < 20)
    same = compare_shapes(human, human)
    assert all(row.ks == 0 for row in same.pages)
    text = str(compared)
    assert "200 human sessions, 100 simulated" in text and "simulated 0.00 %" in text


def test_the_real_file(shared_data):
    path = shared_data / "sessions" / "online_shoppers_intention.csv.gz"
    if not path.is_file():
        pytest.skip("no UCI sessions in ../shared/data/sessions")
    shapes = read_online_shoppers(path)
    assert len(shapes.purchase) == 12_330 - 6  # six sessions have no page
    assert shapes.purchase.sum() == 1_908
    assert np.quantile(shapes.total, 0.5) == 20
