"""Chat templates: the text that transformers renders, and nothing that a hostile template could want."""

from __future__ import annotations

import time
from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from protocol.errors import ConfigError, Malformed, RemoteProtocolError, TooLarge
from swarm.chat_template import ChatTemplate

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


HOSTILE = {
    "nested loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "loops over text": "{% set s = 'x' * 9999 %}{% for a in s %}{% for b in s %}{% for c in s %}{% endfor %}"
    "{% endfor %}{% endfor %}",
    "big range": "{{ range(10 ** 9) | list }}",
    "repeated text": "{{ 'a' * 10 ** 12 }}",
    "repeated list": "{{ [0] * 10 ** 10 }}",
    "power": "{{ 10 ** 9999999 }}",
    "power tower": "{% set ns = namespace(x=2) %}{% for i in range(99999) %}{% set ns.x = ns.x * ns.x %}{% endfor %}",
    "doubling by +": "{% set ns = namespace(x='ab') %}"
    "{% for i in range(99) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "doubling by ~": "{% set ns = namespace(x='ab') %}"
    "{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "doubling by capture": "{% set ns = namespace(x='ab') %}{% for i in range(99) %}{% set y %}{{ ns.x }}{{ ns.x }}"
    "{% endset %}{% set ns.x = y %}{% endfor %}",
    "doubling by join": "{% set ns = namespace(x='ab') %}{% for i in range(99) %}"
    "{% set ns.x = [ns.x, ns.x] | join %}{% endfor %}",
    "doubling by replace": "{% set ns = namespace(x='a') %}{% for i in range(99) %}"
    "{% set ns.x = ns.x.replace('a', 'aa') %}{% endfor %}",
    "squaring by replace": "{% set s = 'a' * 9999 %}{{ s.replace('a', s).replace('a', s) }}",
    "squaring by join": "{% set s = 'a' * 9999 %}{{ s.join(s).join(s) }}",
    "shared lists": "{% set ns = namespace(x=[1]) %}{% for i in range(99) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}"
    "{{ ns.x }}",
    "shared dicts": "{% set ns = namespace(x={}) %}{% for i in range(99) %}"
    "{% set ns.x = {'a': ns.x, 'b': ns.x} %}{% endfor %}{{ ns.x == ns.x | tojson }}",
    "shared dict calls": "{% set ns = namespace(x=dict()) %}{% for i in range(99) %}"
    "{% set ns.x = dict(a=ns.x, b=ns.x) %}{% endfor %}{{ ns.x }}",
    "namespace of namespaces": "{% set ns = namespace() %}{% set ns.a = ns %}"
    "{% set ns.b = [ns, ns] %}{{ ns.b * 99999999 }}",
    "wide format": "{{ '%9999999999d' % 1 }}",
    "wide format method": "{{ '{:>9999999999}'.format(1) }}",
    "starred format": "{{ '%*d' % (999999999, 1) }}",
    "nested format": "{{ '{:>{w}}'.format(1, w=999999999) }}",
    "ljust": "{{ 'a'.ljust(10 ** 10) }}",
    "zfill": "{{ 'a'.zfill(9999999999) }}",
    "indent": "{{ 'a\\na' | indent(9999999999) }}",
    "batch": "{{ [1] | batch(9999999999, 'x') | list }}",
    "centre": "{{ 'a' | center(9999999999) }}",
    "recursion": "{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}",
    "include": "{% include '/etc/passwd' %}",
    "deep nesting": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "comparisons": "{% set s = 'a' * 9999999 %}{% set t = 'a' * 9999998 ~ 'a' %}"
    + "{% if s == t and s + 'b' == t + 'c' %}{% endif %}" * 2000,
    "globals": "{{ raise_exception.__globals__ }}{{ ''.__class__.__mro__[1].__subclasses__()[0] }}",
    "mutation": "{{ messages.append(1) }}",
    "own words in loops": "{% for i in range(99999) %}" + "x" * 9999 + "{% endfor %}",
    "slices": "{% set s = 'a' * 9999999 %}" + "{% set t = s[1:] %}" * 50,
    "format_map": "{{ ('{a}' * 3000).format_map({'a': 'b' * 99999}) }}",
    "percent": "{{ ('%(a)s' * 3000) % {'a': 'b' * 99999} }}",
    "indirect call": "{% set f = 'a'.ljust %}{% for i in range(9) %}{{ f(99999999) }}{% endfor %}",
    "map": "{{ range(99999) | map('string') | map('replace', '9', 'a' * 99999) | join }}",
    "sorting": "{% for i in range(99999) %}{{ range(99999) | list | sort | length }}{% endfor %}",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_template_is_stopped(name: str) -> None:
    """Within seconds and a bounded memory, as the peer's fault."""
    began = time.monotonic()
    with pytest.raises(RemoteProtocolError):
        ChatTemplate(HOSTILE[name]).render(TALK, SPECIAL)
    assert time.monotonic() - began < 10


def test_a_template_that_fails_says_why() -> None:
    """An undefined thing's attribute, a wrong type: one line with the reason."""
    for source in ("{{ missing.deep.er }}", "{{ 1 + 'a' }}", "{{ [1][5].x }}", "{{ 'x' | nope }}"):
        with pytest.raises(Malformed, match="chat template"):
            ChatTemplate(source).render(TALK, SPECIAL)


def test_a_template_can_be_used_again_after_a_failure() -> None:
    """The meter is new for every rendering."""
    template = ChatTemplate("{% for i in range(messages|length * 60000) %}{% endfor %}ok")
    for _ in range(3):
        assert template.render(TALK[:1], SPECIAL) == "ok"
        with pytest.raises((TooLarge, Malformed)):
            template.render(TALK, SPECIAL)
