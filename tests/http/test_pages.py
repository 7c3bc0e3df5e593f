"""What a browser is given: all of the page and nothing else, to everybody, and only when it has changed."""

from __future__ import annotations

from importlib import resources

import pytest

from swarm.http.guard import Head, refusal
from swarm.http.pages import PAGE_PATHS, pages
from swarm.http.settings import Settings
from tests.http.swarm import api

HTML = {"accept": "text/html,application/xhtml+xml,*/*;q=0.8"}


def test_the_table_has_every_file() -> None:
    """None is forgotten, in the table or in the folder."""
    folder = resources.files("swarm.http") / "page"
    names = {f"/page/{each.name}" for each in folder.iterdir()} - {"/page/index.html"}
    assert set(pages()) == set(PAGE_PATHS) == names | {"/", "/favicon.ico"}


def test_nothing_is_loaded_from_elsewhere_or_from_within() -> None:
    """No address of others, no script or style between the lines, and no file of more than 400 lines."""
    for path, page in pages().items():
        text = page.content.decode()
        assert "http://" not in text.replace("http://www.w3.org/2000/svg", ""), path
        assert "<script>" not in text, path
        assert "style=" not in text, path
        assert "innerHTML" not in text, path
        assert len(text.splitlines()) <= 400, path


@pytest.mark.parametrize("path", sorted(PAGE_PATHS))
def test_pages_need_no_key(path: str) -> None:
    """They ask for it; other sites load none of them."""
    settings = Settings(keys=("a-key-of-some-length",))
    assert refusal(Head("GET", path, {"host": "localhost"}), settings) is None
    cross = {"host": "localhost", "sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}
    assert refusal(Head("GET", path, cross), settings) is not None


def test_browsers_get_the_page_and_programmes_a_word() -> None:
    """By what they accept; what has not changed is not sent again."""
    with api() as found, found.client() as client:
        page = client.get("/", headers=HTML)
        assert page.headers["content-type"].startswith("text/html")
        assert "require-trusted-types-for 'script'" in page.headers["content-security-policy"]
        again = client.get("/", headers={**HTML, "if-none-match": page.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
        assert "base URL" in client.get("/").text
        for name in ("app.js", "page.css", "icon.svg"):
            assert client.get(f"/page/{name}").status_code == 200
        assert client.get("/page/..%2fstate.py").status_code == 404
        assert client.get("/page/nothing.js").status_code == 404
