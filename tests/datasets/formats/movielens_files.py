"""Small MovieLens folders, byte for byte in the formats of the originals."""

import gzip

RATINGS_1M = (  # user 2 before user 1, the times unsorted, a tie (10 and 20 of user 1)
    "2::10::5::978298413",
    "1::20::4::978302268",
    "1::10::3::978302268",
    "1::30::1::978300019",
    "2::30::2::978299000",
)
MOVIES_1M = (
    "10::Toy Story (1995)::Animation|Children's|Comedy",
    "20::Misérables, Les (1995)::Drama|Musical",
    "30::Never Rated 1: The Film (1999)::Film-Noir",
    "40::Nobody Saw It (2000)::Drama",
)
USERS_1M = ("1::F::1::10::48067", "2::M::56::16::70072", "3::M::25::15::55117")


def write_1m(folder, ratings=RATINGS_1M, movies=MOVIES_1M, users=USERS_1M, gzipped=False):
    folder.mkdir(exist_ok=True)
    for name, lines in (("ratings", ratings), ("movies", movies), ("users", users)):
        if lines is None:
            continue
        data = "".join(line + "\n" for line in lines).encode("latin-1")
        if gzipped:
            (folder / f"{name}.dat.gz").write_bytes(gzip.compress(data))
        else:
            (folder / f"{name}.dat").write_bytes(data)
    return folder


def write_100k(folder):
    def item(number, title, released, url, *genres):
        marks = "|".join("1" if n in genres else "0" for n in range(19))
        return f"{number}|{title}|{released}||{url}|{marks}"

    folder.mkdir(exist_ok=True)
    (folder / "u.data").write_text(
        "196\t242\t3\t881250949\n186\t302\t3\t891717742\n196\t302\t5\t881250000\n"
    )
    url = "http://us.imdb.com/M/title-exact?K%F6lya%20(1996)"
    lines = (
        item(242, 'Kölya, "the" film\'s (1996)', "24-Jan-1997", url, 5),
        item(302, "L.A. Confidential (1997)", "01-Jan-1997", url, 6, 10, 13, 16),
        item(267, "unknown", "", "", 0),
    )
    (folder / "u.item").write_bytes("".join(f"{line}\n" for line in lines).encode("latin-1"))
    (folder / "u.user").write_text("196|49|M|writer|55105\n186|39|F|executive|00000\n")
    return folder


def write_latest(folder, newline="\n"):
    folder.mkdir(exist_ok=True)
    files = {
        "ratings.csv": [
            "userId,movieId,rating,timestamp",
            "1,11,4.0,964982703",
            "1,150,3.5,964982000",
            "7,11,0.5,1106635946",
        ],
        "movies.csv": [
            "movieId,title,genres",
            '11,"American President, The (1995)",Comedy|Drama|Romance',
            '150,"""Great Performances"" Cats (1998)",(no genres listed)',
            "152,Léon: The Professional (1994),Crime",
        ],
        "tags.csv": ["userId,movieId,tag,timestamp", "1,11,funny,1445714994"],
        "links.csv": ["movieId,imdbId,tmdbId", "11,0112346,9087"],
    }
    for name, lines in files.items():
        text = "".join(line + newline for line in lines)
        (folder / name).write_bytes(text.encode("utf-8"))
    return folder
