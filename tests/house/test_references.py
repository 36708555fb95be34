"""What documents and docstrings point at exists: sections, decisions, files, modules, verbs.

94 lines once cited design documents that were in no checkout.
"""

import importlib.util
import re
from importlib import import_module
from pathlib import Path

import pytest

from launch.cli import verbs

ROOT = Path(__file__).parents[2]
FOLDERS = (
    *("alignuser_jax", "configs", "data_prep", "docs", "inference", "launch", "tests", ".ci"),
)
"""The folders that git tracks: run folders and environments beside them are left out."""
SUFFIXES = (".py", ".md", ".toml", ".sh", ".sbatch", ".yaml", ".cff")
FILES = sorted(
    path
    for path in (
        *ROOT.glob("*"),
        *(p for folder in FOLDERS for p in (ROOT / folder).rglob("*")),
    )
    if path.is_file() and path.suffix in SUFFIXES
)
TEXTS = {path.relative_to(ROOT): path.read_text(encoding="utf-8") for path in FILES}
MYSELF = Path(__file__).relative_to(ROOT)

DOCUMENTS = [path for path in TEXTS if path.suffix == ".md" and path.name != "CHANGELOG.md"]
"""Their paths, modules and verbs are checked; the changelog also names what is gone."""
SCRIPTS = [path for path in TEXTS if path.parts[0] in ("launch", "configs")]

GAP = r"[\s#]+"
"""Between two words of a reference, which may be on two lines of a comment."""
NUMBER = r"\d+(?:\.\d+)?"
REFERENCE = re.compile(
    rf"docs/(?P<name>\w+)\.md"
    rf"(?:{GAP}sections?{GAP}(?P<sections>{NUMBER}(?:(?:,|{GAP}and|{GAP}to){GAP}{NUMBER})*)"
    rf"|{GAP}decisions?{GAP}(?P<decision>\d+)"
    rf'|,{GAP}"(?P<title>[^"]+)")?'
)
DECISION = re.compile(rf"(?P<before>\S*){GAP}decision{GAP}\d")
OLD = re.compile(
    r"\b(?:METHOD|EVIDENCE|ARCHITECTURE|JAX|USERS|MOVES)\.md|shared/design|\bEVIDENCE\b"
)

PATH = re.compile(rf"(?<![\w/.$}}~-])(?:{'|'.join(map(re.escape, FOLDERS))})/[\w./*{{}},-]+")
QUOTED = re.compile(r"`([\w./-]+\.(?:py|md|sh|sbatch|yaml|toml))`")
MODULE = re.compile(r"\balignuser_jax(?:\.\w+)+")
VERB = re.compile(r"(?:^ *|`)alignuser ([a-z]+(?:-[a-z]+)*)\b", re.MULTILINE)
"""A verb where a command begins: in a line of its own, or quoted."""
RUN = re.compile(r"python -m ((?:launch|data_prep|inference|tests)(?:\.\w+)+)")

OF_OTHERS = {"performance-summary.mdx", "tiering.md", "gguf.md"}
"""Documents of other projects: NeMo Automodel, MaxText, ggml."""
PLANNED = {
    *("alignuser_jax/judges/", "judges/human_likeness.py"),
    *("alignuser_jax/agents/baselines/", "agents/baselines/agent4rec.py"),
    *("alignuser_jax/_programs/", "configs/NAME.py", "my_verb.py"),
}
"""Rooms that do not exist yet, a folder of wheels only, and patterns."""


def headings(name: str) -> list[str]:
    text = TEXTS[Path("docs", f"{name}.md")]
    return re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)


def numbers(name: str) -> set[str]:
    matches = (re.match(rf"({NUMBER})\.? ", heading) for heading in headings(name))
    return {match.group(1) for match in matches if match}


def decisions() -> set[str]:
    return set(re.findall(r"^(\d+)\. \*\*", TEXTS[Path("docs/architecture.md")], re.MULTILINE))


def test_every_reference_to_a_document_leads_somewhere():
    broken = []
    for path, text in TEXTS.items():
        for match in REFERENCE.finditer(text):
            name, title = match["name"], match["title"]
            if Path("docs", f"{name}.md") not in TEXTS:
                ok = f"{name}.md" in OF_OTHERS
            elif match["sections"]:
                ok = set(re.findall(NUMBER, match["sections"])) <= numbers(name)
            elif match["decision"]:
                ok = name == "architecture" and match["decision"] in decisions()
            else:
                ok = title is None or " ".join(title.split()) in headings(name)
            if not ok:
                broken.append(f"{path}: {' '.join(match.group().split())}")
    assert broken == []


def test_the_documents_have_what_is_cited_by_number():
    assert {"0", "2.2", "8.3", "12.5", "13.3", "18"} <= numbers("method")
    assert decisions() == set("1234567")


def test_a_decision_is_cited_with_its_document():
    bare = [
        f"{path}: {' '.join(match.group().split())}"
        for path, text in TEXTS.items()
        if path != MYSELF
        for match in DECISION.finditer(text)
        if not match["before"].endswith("docs/architecture.md")
    ]
    assert bare == []


def test_nothing_cites_a_document_that_is_not_in_the_checkout():
    old = [
        f"{path}: {match.group()}"
        for path, text in TEXTS.items()
        if path != MYSELF
        for match in OLD.finditer(text)
    ]
    assert old == []


def exists(name: str, beside: Path) -> bool:
    """Whether a path that a text names is in the checkout."""
    name = name.rstrip(".,")
    if name in PLANNED or Path(name).name in OF_OTHERS:
        return True
    folders = (".", "alignuser_jax", "configs", beside.parent)
    places = [ROOT / folder for folder in folders]
    return any(
        list(place.glob(alternative)) for place in places for alternative in braces(name)
    )


def braces(name: str) -> list[str]:
    """`a/{b,c}.py` as `a/b.py`, `a/c.py`."""
    match = re.search(r"\{([\w,]+)\}", name)
    if not match:
        return [name]
    return [name.replace(match.group(), part) for part in match.group(1).split(",")]


def test_the_architecture_names_every_room():
    table = TEXTS[Path("docs/architecture.md")]
    rooms = [
        path for path in (ROOT / "alignuser_jax").glob("[a-z]*") if path.suffix != ".typed"
    ]
    names = [f"`{path.name}{'/' if path.is_dir() else ''}`" for path in rooms]
    assert [name for name in names if name not in table] == []


def test_the_readme_names_every_program():
    programs = {verb.replace("-", "_") for verb in verbs()}
    layout = TEXTS[Path("README.md")].partition("## Layout")[2]
    assert programs - set(re.findall(r"\w+", layout)) == set()


@pytest.mark.parametrize("path", DOCUMENTS + SCRIPTS, ids=str)
def test_the_files_that_a_text_names_exist(path):
    text = TEXTS[path]
    names = [*PATH.findall(text), *(QUOTED.findall(text) if path in DOCUMENTS else [])]
    assert [name for name in names if not exists(name, path)] == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=str)
def test_the_modules_that_a_document_names_exist(path):
    assert [name for name in MODULE.findall(TEXTS[path]) if not importable(name)] == []


def importable(name: str) -> bool:
    """Whether a dotted name is a module, or an attribute of one."""
    module, _, attribute = name.rpartition(".")
    try:
        if importlib.util.find_spec(name) is not None:
            return True
    except ModuleNotFoundError:  # the name before the last dot is no package
        pass
    return hasattr(import_module(module), attribute)


@pytest.mark.parametrize("path", [path for path in TEXTS if path != MYSELF], ids=str)
def test_commands_name_programs_that_exist(path):
    text = TEXTS[path]
    files = [ROOT / f"{name.replace('.', '/')}.py" for name in RUN.findall(text)]
    assert [file for file in files if not file.is_file()] == []
    assert set(VERB.findall(text)) - verbs().keys() - {"my-verb"} == set()
