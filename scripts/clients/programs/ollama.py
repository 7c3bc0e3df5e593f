# needs: ollama==0.6.3
"""Ollama's own client: chat and prompts, whole and as streams, models."""

import sys

from ollama import Client

url, model, question, expected = sys.argv[1:]
client = Client(host=url)
cold = {"temperature": 0}
said = [{"role": "user", "content": question}]
assert client.list().models[0].model == model
assert client.show(model).modelinfo["swarm.context_length"] > 0
whole = client.chat(model=model, messages=said, options=cold).message.content
assert expected in whole
pieces = client.chat(model=model, messages=said, options=cold, stream=True)
assert "".join(piece.message.content for piece in pieces) == whole
assert client.generate(model=model, prompt=question, options=cold).response == whole
choice = client.chat(model=model, messages=said, options=cold, format={"enum": ["yes", "no"]})
assert choice.message.content in ('"yes"', '"no"')
tool = {"type": "function", "function": {"name": "go", "parameters": {"type": "object", "properties": {}}}}
short = [{"role": "user", "content": "1 + 2"}]
assert client.chat(model=model, messages=short, options={**cold, "num_predict": 5}, tools=[tool]).message
