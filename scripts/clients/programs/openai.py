# needs: openai==3.57.0
"""OpenAI's own client: chat, streams, helpers for streams and classes, tools, responses, text completions, errors."""

import json
import sys

from openai import BadRequestError, NotFoundError, OpenAI, pydantic_function_tool
from pydantic import BaseModel

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
assert is_refused(BadRequestError, response_format={"type": "xml"})


class Answer(BaseModel):
    capital: bool


parsed = client.chat.completions.parse(**asked, max_tokens=60, response_format=Answer)
assert parsed.choices[0].message.parsed.capital in (True, False)
assert json.loads(
    client.responses.parse(model=model, input=question, text_format=Answer, max_output_tokens=60).output_text
)
called = {"tools": [pydantic_function_tool(Answer)], "tool_choice": "required", "parallel_tool_calls": False}
short = {**asked, "messages": [{"role": "user", "content": "Paris?"}], "max_tokens": 150}
[call] = client.chat.completions.parse(**short, **called).choices[0].message.tool_calls
assert call.function.parsed_arguments.capital in (True, False)
with client.chat.completions.stream(**short, **called) as stream:
    kinds = [event.type for event in stream]
    message = stream.get_final_completion().choices[0].message
assert "tool_calls.function.arguments.done" in kinds
back = [message.model_dump(exclude_none=True, include={"role", "content", "tool_calls"})]
back.append({"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "yes"})
more = client.chat.completions.create(**{**short, "messages": [*short["messages"], *back]})
assert more.choices[0].message.content is not None
