# needs: langchain-openai==1.7.4
"""LangChain over OpenAI's API: whole, as a stream, several at once, and by classes in both of its ways."""

import sys

from langchain_openai import ChatOpenAI
from pydantic import BaseModel

url, model, question, expected = sys.argv[1:]
chat = ChatOpenAI(base_url=f"{url}/v1", api_key="none", model=model, temperature=0, max_tokens=200)
whole = chat.invoke(question)
assert expected in whole.content
assert whole.usage_metadata["output_tokens"] > 0
assert "".join(piece.content for piece in chat.stream(question)) == whole.content
assert [each.content for each in chat.batch([question, question])] == [whole.content] * 2


class Answer(BaseModel):
    capital: bool


for method in ("json_schema", "function_calling"):
    structured = chat.with_structured_output(Answer, method=method, strict=True)
    assert structured.invoke("Paris?").capital in (True, False)
