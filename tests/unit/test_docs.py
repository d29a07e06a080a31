"""Documents that can be read: lines of a width for people, files that exist."""

import re

import pytest

from tests.support.runs import ROOT

DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
MOST = 120


def name_of(path):
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_lines_are_short_outside_of_tables_and_code(path):
    fenced = False
    for number, line in enumerate(path.read_text().splitlines(), 1):
        fenced ^= line.lstrip().startswith("```")
        if not fenced and not line.startswith(("|", "    ", "![")):
            assert len(line) <= MOST, f"line {number}"


def test_links_of_the_readme_exist():
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", (ROOT / "README.md").read_text())
    assert len(links) > 10
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_every_page_is_in_the_site():
    nav = (ROOT / "mkdocs.yml").read_text()
    pages = [str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")]
    assert [page for page in pages if page not in nav] == []


def test_the_page_of_all_fields_includes_them():
    page = (ROOT / "docs/reference/config.md").read_text()
    assert '\n--8<-- "tssr_jax/config/default.py"\n' in page  # a formatter may add spaces


def test_the_results_of_the_readme_are_those_of_the_site():
    readme, site = ((ROOT / path).read_text() for path in ("README.md", "docs/results/index.md"))
    start = readme.index("| test NDCG@10")
    table = readme[start : readme.index("\n\n", start)]
    assert table.count("\n") > 7 and table in site
