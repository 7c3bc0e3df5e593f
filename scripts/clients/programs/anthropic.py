# needs: anthropic==2.14.0
"""Anthropic's own client: whole, as a stream, counted, and with a tool."""

import sys

from anthropic import Anthropic

url, model, question, expected = sys.argv[1:]
client = Anthropic(base_url=url, api_key="none", max_retries=0)
asked = {"model": model, "max_tokens": 100, "messages": [{"role": "user", "content": question}]}
whole = client.messages.create(**asked, extra_body={"temperature": 0})
assert expected in whole.content[0].text
with client.messages.stream(**asked, extra_body={"temperature": 0}) as stream:
    assert stream.get_final_text() == whole.content[0].text
assert client.messages.count_tokens(model=model, messages=asked["messages"]).input_tokens > 0
tool = {"name": "go", "input_schema": {"type": "object", "properties": {}, "additionalProperties": False}}
short = {
    "model": model,
    "max_tokens": 100,
    "messages": [{"role": "user", "content": "1 + 2"}],
}
must = {"type": "tool", "name": "go", "disable_parallel_tool_use": True}
with client.messages.stream(**short, tools=[tool], tool_choice=must, extra_body={"temperature": 0}) as stream:
    [call] = stream.get_final_message().content
assert (call.type, call.name, call.input) == ("tool_use", "go", {})
