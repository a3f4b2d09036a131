"""The prose of the project uses plain English and the field's terms: a word list over pages, docstrings, comments and messages.

`language_allowed.json` counts, for each file that is not converted yet, the words of the list that it still holds. A file may
not get more of them, and an entry that is too high is an error, so that the list only shrinks. `python tests/test_language.py`
prints every place; with `--update` it also writes the counts.
"""

from __future__ import annotations

import io
import json
import re
import sys
import tokenize
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ALLOWED = Path(__file__).with_name("language_allowed.json")

# a pattern (whole words, any case) and what to write instead
WORDS = {
    r"mend(s|ed|ing)?": "fix",
    r"came": "got ...",
    r"told apart|tells? apart|(is|are) told|told (of|by|from|at|that|to)": "significant; distinguished; reported",
    r"(un)?trained, until told|unless told|as told": "by default; unless ... is set",
    r"kept aside|aside": "held out, validation",
    r"judge[sd]? by|judged|judgement(s)?": "rated, labeled; label, judgment; evaluated",
    r"trunk(s)?": "backbone",
    r"strip(s)?": "tile",
    r"portion(s)?": "chunk",
    r"goes on where|go on where|gone on with|goes on from|went on": "resumes; continues",
    r"after a kill|killed at any moment": "after an interruption",
    r"when it is whole|when they are whole": "atomically",
    r"picture(s)?": "image",
    r"way in|ways in|at hand": "input; available",
    r"recognition|recogni[sz]e[sd]?": "classification; identify",
    r"dear(er|est)?|thick(est)?|hott?(er|est)?|mild(er|est)?": "expensive, high, large, low",
    r"the house|rooms|a room of its own": "the repository; modules",
    r"the eye of|to the eye|the eye's": "feature extractor; visually",
    r"holds? zero": "the 95 % CI includes 0",
    r"foretell(s)?": "predict",
    r"twins?": "counterpart; model of the same shape",
    r"whole or not at all": "atomically",
    r"people said|people say|what people": "human ratings",
    r"in want of|for want of|lacks? of": "missing",
    r"takes? apart|taken apart": "split",
    r"nor is|nor does|nor do": "and ... not",
    r"plainly": "clearly",
    r"one's own": "your own",
    r"the dial|dials?": "severity parameter",
    r"optimis(e|es|ed|er|ers|ing|ation)": "American spelling: optimize",
    r"colour(s|ed|ing)?|grey|greys|centre|centred|neighbour(s|ing)?|behaviour|normalis\w+|quantis\w+|synchronis\w+|minimis\w+|"
    r"maximis\w+|initialis\w+|licence|artefacts?|labelled|favour\w*": "American spelling",
}
PATTERN = re.compile("|".join(rf"\b(?:{pattern})\b" for pattern in WORDS), flags=re.I)

CODE_FOLDERS = ("cpips", "bapps_eval", "benchmarks", "examples")


def files() -> list[Path]:
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "RELEASE.md", ROOT / "SECURITY.md", ROOT / "CHANGELOG.md",
             *sorted((ROOT / "docs").glob("*.md"))]
    code = [path for folder in CODE_FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
    return [*pages, *code, *sorted((ROOT / "configs").glob("*.toml")), ROOT / "setup.cfg"]


def prose(path: Path) -> list[tuple[int, str]]:
    """Line numbers and lines of what is written in English."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        lines = markdown(text, newest=path.name == "CHANGELOG.md")
    elif path.suffix == ".py":
        lines = python(text)
    else:
        lines = [(number, line.split("#", 1)[1]) for number, line in enumerate(text.splitlines(), 1) if "#" in line]
    return [(number, without_names(line)) for number, line in lines]


def markdown(text: str, newest: bool) -> list[tuple[int, str]]:
    """Everything but code blocks and generated blocks; of a changelog the first section alone."""
    lines, code, generated, sections = [], False, False, 0
    for number, line in enumerate(text.splitlines(), 1):
        sections += line.startswith("## ")
        if newest and sections > 1:
            break
        if re.match(r"<!-- /?\w+ -->", line):
            generated = not line.startswith("<!-- /")
        elif line.lstrip().startswith("```"):
            code = not code
        elif not code and not generated:
            lines.append((number, re.sub(r"\]\([^)]*\)", "]", line)))
    return lines


def python(text: str) -> list[tuple[int, str]]:
    """Comments, and strings of more than one word."""
    lines = []
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            lines.append((token.start[0], token.string))
        elif token.type == tokenize.STRING or tokenize.tok_name[token.type] == "FSTRING_MIDDLE":
            if re.search(r"\w\W* \W*\w", token.string):
                lines += [(token.start[0] + i, line) for i, line in enumerate(token.string.splitlines())]
    return lines


def without_names(line: str) -> str:
    """The line without what stands for itself: code, paths, placeholders, options, arguments that are documented."""
    line = re.sub(r"``[^`]*``|`[^`]*`|\{[^{}]*\}|'[\w.:/-]+'|\"[\w.:/-]+\"", " ", line)
    return re.sub(r"--?[\w-]+|[\w/]*[/_.][\w/.]*\w|^\s*[\w, ]+: |\w+=\S*|>>> .*|\b[A-Z_]{3,}\b", " ", line)


def found(path: Path) -> list[tuple[int, str]]:
    return [(number, match[0].lower()) for number, line in prose(path) for match in PATTERN.finditer(line)]


def counts() -> dict[str, int]:
    return {path.relative_to(ROOT).as_posix(): len(hits) for path in files() if (hits := found(path))}


def test_no_new_words_of_the_list():
    allowed, now = json.loads(ALLOWED.read_text(encoding="utf-8")), counts()
    more = {name: f"{count} words of the list, allowed {allowed.get(name, 0)}: {Counter(word for _, word in found(ROOT / name))}"
            for name, count in now.items() if count > allowed.get(name, 0)}
    assert not more, "write plainly (`python tests/test_language.py` prints every place and what to write)"
    fewer = {name: now.get(name, 0) for name, count in allowed.items() if now.get(name, 0) < count}
    assert not fewer, "the allowed counts must shrink with the files: run `python tests/test_language.py --update`"


def test_no_page_is_on_the_list():
    assert not [name for name in json.loads(ALLOWED.read_text(encoding="utf-8")) if name.endswith(".md")]


def test_the_list_sees_what_it_should(tmp_path):
    path = tmp_path / "module.py"
    path.write_text('"""The mend of it."""\nx = 1  # kept aside\nraise ValueError(f"came {x} strips")\ntrunk = settings["trunk"]\n'
                    'y = "a `trunk` of ``strips``"\n', encoding="utf-8")
    assert found(path) == [(1, "mend"), (2, "kept aside"), (3, "came"), (3, "strips")]
    page = tmp_path / "page.md"
    page.write_text("A picture.\n```sh\na picture\n```\n`picture=` [an image](picture.png)\n<!-- table -->\npicture\n<!-- /table -->\n",
                    encoding="utf-8")
    assert found(page) == [(1, "picture")]


if __name__ == "__main__":
    advice = {re.compile(rf"\b(?:{pattern})\b", flags=re.I): instead for pattern, instead in WORDS.items()}
    for path in files():
        lines = path.read_text(encoding="utf-8").splitlines()
        for number, word in found(path):
            instead = next(text for pattern, text in advice.items() if pattern.fullmatch(word))
            print(f"{path.relative_to(ROOT)}:{number}: {word!r}, write {instead!r}: {lines[number - 1].strip()}")
    if "--update" in sys.argv:
        ALLOWED.write_text(json.dumps(counts(), indent=1) + "\n", encoding="utf-8")
