# needs: litellm==1.110.2
"""LiteLLM, which sends on what it is given."""

import sys

import litellm

url, model, question, expected = sys.argv[1:]
asked = {
    "model": f"openai/{model}",
    "api_base": f"{url}/v1",
    "api_key": "none-at-all-but-long",
    "messages": [{"role": "user", "content": question}],
    "temperature": 0,
}
whole = litellm.completion(**asked).choices[0].message.content
assert expected in whole
pieces = litellm.completion(**asked, stream=True)
assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == whole
