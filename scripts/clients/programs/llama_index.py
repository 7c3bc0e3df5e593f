# needs: llama-index-llms-openai-like==0.8.1
"""LlamaIndex's client for servers that are like OpenAI's; it asks for text completions unless told otherwise."""

import sys

from llama_index.core.llms import ChatMessage
from llama_index.llms.openai_like import OpenAILike

url, model, question, expected = sys.argv[1:]
like = {"model": model, "api_base": f"{url}/v1", "api_key": "none", "temperature": 0, "max_tokens": 60}
chat = OpenAILike(**like, is_chat_model=True)
whole = chat.chat([ChatMessage(role="user", content=question)]).message.content
assert expected in whole
assert list(chat.stream_chat([ChatMessage(role="user", content=question)]))[-1].message.content == whole
assert OpenAILike(**like).complete("1, 2, 3,").text
