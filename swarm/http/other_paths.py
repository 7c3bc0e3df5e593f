"""Where clients of Anthropic's and Ollama's APIs ask, and of our own."""

from __future__ import annotations

from importlib import metadata

from fastapi import APIRouter, Request
from starlette.responses import Response

from swarm.http.dialects import ollama
from swarm.http.dialects.anthropic import CountFields, MessageFields, MessageWriter
from swarm.http.dialects.fields import check_model
from swarm.http.dialects.plain import (
    ContentFields,
    GenerateFields,
    GenerateWriter,
    InferFields,
    InferWriter,
    TokensFields,
)
from swarm.http.forms import json_response
from swarm.http.guard import asker_of
from swarm.http.replies import reply, until_gone
from swarm.http.service import Service


def router(service: Service) -> APIRouter:
    """All of them."""
    paths = APIRouter()
    _anthropic(paths, service)
    _ollama(paths, service)
    _own(paths, service)
    return paths


def _anthropic(paths: APIRouter, service: Service) -> None:
    @paths.post("/v1/messages", tags=["Anthropic"])
    async def messages(request: Request, fields: MessageFields) -> Response:
        fields.go_by(service.suggested)
        check_model(fields.model, service.model)
        writer = MessageWriter(service.model, fields)
        return await reply(
            request, service.ask(asker_of(request), fields.ask()), writer, stream=fields.stream
        )

    @paths.post("/v1/messages/count_tokens", tags=["Anthropic"])
    async def count_tokens(request: Request, fields: CountFields) -> Response:
        check_model(fields.model, service.model)
        tokens = await until_gone(request, service.tokens(fields.conversation()))
        return json_response({"input_tokens": len(tokens)})


def _ollama(paths: APIRouter, service: Service) -> None:
    async def answered(
        request: Request, fields: ollama.ChatFields | ollama.GenerateFields, *, chat: bool
    ) -> Response:
        fields.go_by(service.suggested)
        check_model(fields.model, service.model)
        writer, ask = ollama.OllamaWriter(service.model, chat=chat), fields.ask()
        if ask is None:
            return json_response(writer.loaded())
        return await reply(request, service.ask(asker_of(request), ask), writer, stream=fields.stream)

    @paths.get("/api/version", tags=["Ollama"])
    async def version() -> Response:
        return json_response({"version": metadata.version("inference-swarm")})

    @paths.get("/api/tags", tags=["Ollama"])
    async def tags() -> Response:
        return json_response(ollama.tags(service.client.model, service.model))

    @paths.post("/api/show", tags=["Ollama"])
    async def show(fields: ollama.ShowFields) -> Response:
        check_model(fields.model or fields.name, service.model)
        return json_response(ollama.show(service.client.model, chats=service.client.text.chats))

    @paths.post("/api/chat", tags=["Ollama"])
    async def chat(request: Request, fields: ollama.ChatFields) -> Response:
        return await answered(request, fields, chat=True)

    @paths.post("/api/generate", tags=["Ollama"])
    async def generate(request: Request, fields: ollama.GenerateFields) -> Response:
        return await answered(request, fields, chat=False)


def _own(paths: APIRouter, service: Service) -> None:
    @paths.post("/generate", tags=["swarm"])
    async def generate(request: Request, fields: GenerateFields) -> Response:
        fields.go_by(service.suggested)
        writer = GenerateWriter(service.model)
        return await reply(
            request, service.ask(asker_of(request), fields.ask()), writer, stream=fields.stream
        )

    @paths.post("/infer", tags=["swarm"])
    async def infer(request: Request, fields: InferFields) -> Response:
        fields.go_by(service.suggested)
        prompt = await until_gone(request, service.tokens(fields.prompt))
        writer = InferWriter(service.model)
        return await reply(request, service.ask(asker_of(request), fields.ask(prompt)), writer, stream=False)

    @paths.post("/tokenize", tags=["swarm"])
    async def tokenize(request: Request, fields: ContentFields) -> Response:
        return json_response({"tokens": await until_gone(request, service.tokens(fields.content))})

    @paths.post("/detokenize", tags=["swarm"])
    async def detokenize(request: Request, fields: TokensFields) -> Response:
        fields.check(service.client.model.manifest.vocab_size)
        return json_response({"content": await until_gone(request, service.text(fields.tokens))})
