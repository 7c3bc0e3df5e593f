# needs: openai
"""OpenAI's own client: chat, streams and their helpers, responses, text completions, errors."""

import sys

from openai import BadRequestError, NotFoundError, OpenAI

url, model, question, expected = sys.argv[1:]
client = OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
asked = {"model": model, "messages": [{"role": "user", "content": question}], "temperature": 0}

assert [each.id for each in client.models.list()] == [model]
assert client.models.retrieve(model).owned_by == "swarm"
whole = client.chat.completions.create(**asked)
assert expected in whole.choices[0].message.content
assert whole.usage.completion_tokens > 0
pieces = client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
assert (
    "".join(c.choices[0].delta.content or "" for c in pieces if c.choices) == whole.choices[0].message.content
)
with client.chat.completions.stream(**asked) as stream:
    assert stream.get_final_completion().choices[0].message.content == whole.choices[0].message.content
told = client.chat.completions.create(**asked, logprobs=True, top_logprobs=2).choices[0].logprobs.content
assert "".join(token.token for token in told) == whole.choices[0].message.content
assert len(client.chat.completions.create(**{**asked, "temperature": 1}, n=2).choices) == 2
assert expected in client.responses.create(model=model, input=question, temperature=0).output_text
with client.responses.stream(model=model, input=question, temperature=0) as stream:
    assert expected in stream.get_final_response().output_text
assert client.completions.create(model=model, prompt="1, 2, 3,", max_tokens=5).choices[0].text


def is_refused(error: type[Exception], **wrong: object) -> bool:
    try:
        client.chat.completions.create(**{**asked, **wrong})
    except error:
        return True
    return False


assert is_refused(NotFoundError, model="gpt-4")
assert is_refused(BadRequestError, response_format={"type": "json_object"})
