"""A scripted reflection that every rule accepts."""

import re


def usable(request):
    """Names the item's genre; neither for nor against it, so it fits every rating."""
    genre = re.search(r"^Item: .*\((.+?)[,)]", request.messages[-1].content, re.M)[1]
    words = "abcdefghij"
    name = "".join(words[int(digit)] for digit in str(request.key)[:9])
    return (
        f"WHY: I see what {genre.lower()} films can do, and I enjoy some, but not every one.\n"
        f"LESSON: Films such as {name} need the right evening."
    )
