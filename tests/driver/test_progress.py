import io

from alignuser_jax.driver.progress import Progress


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
        "1/2 sessions (1 failed), 5 pages, 0.5 pages/s",
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
    assert stream.getvalue().splitlines() == ["1/4 users, 0.1 users/s"] * 2


def test_hidden_progress_prints_nothing():
    stream = io.StringIO()
    progress = Progress(1, False, stream=stream)
    progress.finished()
    progress.close()
    assert stream.getvalue() == ""
