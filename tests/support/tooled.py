"""The shipped model with a chat template that knows tools, as Qwen's and Hermes' do; it was taught neither."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

from swarm.cli.demo_nodes import shipped_model

# A conversation without tools reads as in the template that ships.
TEMPLATE: Final = """\
{{- '<|bos|>' -}}
{%- if tools %}<|user|>{% for tool in tools %}{{ tool | tojson }}
{% endfor %}Call by <tool_call>
{"name": ..., "arguments": ...}
</tool_call><|end|>{% endif -%}
{%- for message in messages -%}
{%- if message.role == 'tool' -%}<|user|><tool_response>{{ message.content }}</tool_response><|end|>
{%- elif message.role != 'system' -%}<|{{ message.role }}|>{{ message.content | trim }}
{%- for call in message.tool_calls or [] %}
<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>{% endfor -%}<|end|>{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}<|assistant|>{%- endif -%}
"""


def tooled_model(folder: Path) -> Path:
    """Where it is then."""
    made = folder / "tiny"
    shutil.copytree(shipped_model(), made)
    (made / "chat_template.jinja").write_text(TEMPLATE)
    return made
