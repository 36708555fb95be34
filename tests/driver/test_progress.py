import io
import time

from alignuser_jax.driver.progress import Progress, waiting


def test_progress_in_a_log_is_a_plain_line_now_and_then():
    now = [0.0]
    stream = io.StringIO()
    progress = Progress(2, True, part="page", stream=stream, clock=lambda: now[0])
    progress.add_parts(5)
    now[0] = 10.0
    progress.finished(failed=True)
    progress.finished()
    progress.close()
    assert stream.getvalue().splitlines() == [
        "1/2 sessions (1 failed), 5 pages, 0.5 pages/s, 0:00:10 left",
        "2/2 sessions (1 failed), 5 pages, 0.5 pages/s",
    ]


def test_progress_on_a_terminal_is_a_bar():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    stream = Terminal()
    progress = Progress(2, True, part="page", stream=stream)
    progress.finished()
    progress.add_parts(1)
    progress.close()
    assert "1/2" in stream.getvalue()


def test_progress_without_parts_tells_the_rate_of_the_units():
    now = [0.0]
    stream = io.StringIO()
    progress = Progress(4, True, unit="user", stream=stream, clock=lambda: now[0])
    now[0] = 10.0
    progress.finished()
    progress.close()
    assert stream.getvalue().splitlines() == ["1/4 users, 0.1 users/s, 0:00:30 left"] * 2


def test_a_label_and_a_unit_that_ends_with_y():
    now, stream = [0.0], io.StringIO()
    clock = lambda: now[0]  # noqa: E731
    progress = Progress(3, True, unit="reply", label="agents", stream=stream, clock=clock)
    for _ in range(3):
        now[0] += 10.0
        progress.finished()
    progress.close()
    assert stream.getvalue().splitlines() == [
        "agents: 1/3 replies, 0.1 replies/s, 0:00:20 left",
        "agents: 2/3 replies, 0.1 replies/s, 0:00:10 left",
        *["agents: 3/3 replies, 0.1 replies/s"] * 2,
    ]


def test_waiting_says_that_something_goes_on_until_it_is_over():
    said = []
    with waiting("loading", said.append, seconds=0.01):
        while len(said) < 2:
            time.sleep(0.01)
    count = len(said)
    assert said[0].startswith("loading: 0 s so far")
    time.sleep(0.05)
    assert len(said) == count
    with waiting("nothing", None):
        pass


def test_hidden_progress_prints_nothing():
    stream = io.StringIO()
    progress = Progress(1, False, stream=stream)
    progress.finished()
    progress.close()
    assert stream.getvalue() == ""
