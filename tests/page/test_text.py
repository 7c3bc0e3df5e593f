"""What strangers say on the page: Markdown becomes nodes, all else stays text, in time that grows with it alone."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page

from tests.http.swarm import api
from tests.page.browser import open_page

pytestmark = [pytest.mark.net, pytest.mark.process, pytest.mark.timeout(120)]

SHOW = """async texts => {
  const { Prose } = await import("/page/markdown.js");
  const node = document.createElement("div");
  const prose = new Prose(node);
  for (const text of texts) prose.show(text);
  return node.innerHTML;
}"""


@pytest.fixture(scope="module")
def page(looking: Browser) -> Iterator[Page]:
    """Any page of ours, for its modules."""
    with api() as found, open_page(looking, found.url) as opened:
        yield opened


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a **b** *c* `d<e` ~~f~~", "<p>a <strong>b</strong> <em>c</em> <code>d&lt;e</code> <s>f</s></p>"),
        ("# One\ntwo", "<h3>One</h3><p>two</p>"),
        ("- a\n- b\n  - c", "<ul><li>a</li><li><p>b</p><ul><li>c</li></ul></li></ul>"),
        ("3. a\n4. b", '<ol start="3"><li>a</li><li>b</li></ol>'),
        ("> a\n> b", "<blockquote><p>a\nb</p></blockquote>"),
        ("snake_case_name 2*3*4 a * b", "<p>snake_case_name 2<em>3</em>4 a * b</p>"),
        ("**not closed", "<p>**not closed</p>"),
        ("\\*plain\\*", "<p>*plain*</p>"),
        ("---", "<hr>"),
        ("<img src=x onerror=alert(1)>", "<p>&lt;img src=x onerror=alert(1)&gt;</p>"),
        ("[x](javascript:alert(1))", "<p>[x](javascript:alert(1))</p>"),
        ("![x](https://evil.example/x.png)", "!<a"),
        ("[your bank](https://evil.example/)", '<span class="host"> (evil.example)</span>'),
        ("a | b\n--|--\n1 | 2", '<th scope="col">b</th></tr></thead><tbody><tr><td>1</td><td>2</td>'),
        ("```python\nif a < b:\n    pass\n```\nafter", "if a &lt; b:\n    pass</code></pre></div><p>after</p>"),
        ("```\nnot closed", "not closed</code></pre>"),
    ],
)  # fmt: skip
def test_markdown(page: Page, text: str, expected: str) -> None:
    """What models write; and whatever it is, it is no markup."""
    assert expected in page.evaluate(SHOW, [text])


def test_a_text_that_grows_ends_as_if_it_had_come_at_once(page: Page) -> None:
    """Letter by letter, through all that is half open on the way."""
    text = "# A\n\n1. **b**\n2. `c`\n   - d\n\n```js\ne()\n```\n> f\n\n| g | h |\n|---|---|\n| i | j |\n"
    grown = page.evaluate(SHOW, [text[:end] for end in range(1, len(text) + 1)])
    assert grown == page.evaluate(SHOW, [text])


@pytest.mark.parametrize(
    "text", ["*a " * 9000, "[" * 30_000, "> " * 15_000, "`" * 9000 + "a" + " `" * 9000, "# " + " " * 30_000 + "x",
             "- " * 15_000, "_*" * 15_000, "|-" * 15_000 + "\n" + "|-" * 15_000 + " x", "http://" * 5000]
)  # fmt: skip
def test_hostile_texts_take_no_longer(page: Page, text: str) -> None:
    """Nothing is nested without end, and nothing is looked for twice: the browser's own limit is far away."""
    page.set_default_timeout(10_000)
    assert page.evaluate(f"async texts => (await ({SHOW})(texts)).length > 0", [text])


def test_names_of_peers_and_words_of_nodes_are_text(page: Page) -> None:
    """The map and the timeline take markup for what it is: letters."""
    script = """async evil => {
      const { el } = await import("/page/dom.js");
      const { describe } = await import("/page/words.js");
      const event = {kind: "rerouted", lost: evil, layers: evil, replacements: [evil], seconds: 1, reason: evil};
      const said = describe(event);
      const node = el("p", {title: evil}, said.text, said.more);
      return [node.children.length, node.textContent.includes("<b>")];
    }"""
    assert page.evaluate(script, "<b>x</b><script>y</script>") == [0, True]


def test_markup_cannot_be_made_of_text(looking: Browser) -> None:
    """The browser itself refuses it here, by Trusted Types, and says so."""
    script = "() => { try { document.body.innerHTML = '<b>x</b>'; return false; } catch { return true; } }"
    with api() as found, open_page(looking, found.url, complains=True) as page:
        assert page.evaluate(script)
