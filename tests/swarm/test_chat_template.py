"""Chat templates: the text that transformers renders, and nothing that a hostile template could want."""

from __future__ import annotations

from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from protocol.errors import ConfigError, Malformed
from swarm.text.chat_template import ChatTemplate

TALK = [
    {"role": "system", "content": " Be brief. "},
    {"role": "user", "content": "Hi <b>you</b> & 'me' ☃"},
    {"role": "assistant", "content": "<think>\nhm\n</think>\n\nHello!"},
    {"role": "user", "content": "3 + 4 = ?\n\n"},
]
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}

TEMPLATES = {
    "chatml": """{% for message in messages %}
    {%- if loop.first and messages[0]['role'] != 'system' %}
        {{- '<|im_start|>system\\nYou help.<|im_end|>\\n' }}
    {%- endif %}
{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}
{% endfor %}
{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}""",
    "llama": """{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}{%- set system = "" %}{%- endif %}
{%- if tools is not none %}{{- tools | tojson(indent=4) }}{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" ~ system ~ "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim
            + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}""",
    "thinking": """{%- set ns = namespace(last=-1, seen=[], text='') %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if message.role == "user" and message.content is string
        and not message.content.startswith('<tool>') %}
        {%- set ns.last = index %}{%- break %}
    {%- endif %}
{%- endfor %}
{%- macro show(m) -%}[{{ m.role }}: {{ m.content.split('</think>')[-1].lstrip('\\n') }}]{%- endmacro %}
{%- for message in messages %}
    {%- set ns.seen = ns.seen + [message.role] %}
    {%- set ns.text = ns.text ~ loop.index ~ ',' %}
    {{- show(message) }}{% if not loop.last %}{{ "%s-%d" % (message.role, loop.revindex) }}{% endif %}
    {%- if message.role == 'assistant' %}{% generation %}{{ message.content }}{% endgeneration %}{% endif %}
{%- endfor %}
{{ ns.text }} {{ ns.seen | join('|') }} {{ ns.last }} {{ {'a': [1, 2.5, none, true]} | tojson }}
{{ messages | map(attribute='role') | unique | list }} {{ "a-b".replace('-', '+') | upper }} {{ 2 * 3 ** 2 }}
{% for k, v in {'x': 1, 'y': 2}.items() if v > 1 %}{{ k }}{{ v }}{% endfor %}
{% set block %}in a {{ 'block' }}{% endset %}{{ block * 2 }} {{ missing is defined }} {{ missing }}
{{ (messages | selectattr('role', 'equalto', 'user') | list | last).content | trim }}
{{ "%05d" | string }} {{ 'é' * 3 }} {{ strftime_now("%Y") | length }} {{ [1, 2] + [3] }} {{ (1, 2) }}""",
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_text_is_that_of_transformers(name: str) -> None:
    """Character for character, with trimmed blocks, loop controls, helpers and special tokens."""
    source = TEMPLATES[name]
    how: dict[str, Any] = {"add_generation_prompt": True, **SPECIAL}
    rendered: Any = render_jinja_template([TALK], chat_template=source, **how)  # annotated as it is not
    assert ChatTemplate(source).render(TALK, SPECIAL) == rendered[0][0]


def test_a_long_conversation_is_no_attack() -> None:
    """A thousand turns and a text of a megabyte stay within the bounds."""
    for talk in ([*TALK] * 250, [{"role": "user", "content": "word " * 200_000}]):
        for source in TEMPLATES.values():
            assert len(ChatTemplate(source).render(talk, SPECIAL)) > 1000


def test_a_refusal_is_told_as_one() -> None:
    """What a template raises on purpose is about the conversation, not about the peer."""
    source = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role here') }}{% endif %}"
    with pytest.raises(ConfigError, match="no system role here"):
        ChatTemplate(source).render(TALK, SPECIAL)


@pytest.mark.parametrize(
    "source",
    [
        "{{ raise_exception.__globals__ }}{{ ''.__class__.__mro__[1].__subclasses__()[0] }}",
        "{{ (messages | first).update(role='x') }}",
        "{{ messages.append(1) }}",
        "{% include '/etc/passwd' %}",
        "{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    ],
)
def test_a_template_stays_in_its_sandbox(source: str) -> None:
    """Nothing of Python, of this machine or of the conversation itself is within its reach."""
    with pytest.raises(Malformed):
        ChatTemplate(source).render(TALK, SPECIAL)


def test_a_template_that_fails_says_why() -> None:
    """An undefined thing's attribute, a wrong type: one line with the reason."""
    for source in ("{{ missing.deep.er }}", "{{ 1 + 'a' }}", "{{ [1][5].x }}", "{{ 'x' | nope }}"):
        with pytest.raises(Malformed, match="chat template"):
            ChatTemplate(source).render(TALK, SPECIAL)
