# needs: anthropic
"""Anthropic's own client: whole, as a stream, and counted."""

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
