"""Where OpenAI's clients ask."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from swarm.http.dialects.chat import ChatFields, ChatWriter
from swarm.http.dialects.completions import CompletionFields, CompletionWriter
from swarm.http.dialects.fields import check_model
from swarm.http.dialects.openai import now
from swarm.http.dialects.responses import ResponseFields, ResponseWriter
from swarm.http.forms import json_response
from swarm.http.guard import asker_of
from swarm.http.replies import reply
from swarm.http.service import Service


def router(service: Service) -> APIRouter:
    """Models, chat and text completions, responses."""
    paths = APIRouter(prefix="/v1", tags=["OpenAI"])
    began = now()

    def model_fields() -> dict[str, object]:
        model = service.client.model
        meta = {"layers": model.blocks, "context": model.context, "digest": model.digest.hex()}
        return {"id": service.model, "object": "model", "created": began, "owned_by": "swarm", "meta": meta}

    @paths.get("/models")
    async def models() -> Response:
        return json_response({"object": "list", "data": [model_fields()]})

    @paths.get("/models/{id:path}")
    async def model(id: str) -> Response:
        check_model(id, service.model)
        return json_response(model_fields())

    @paths.post("/chat/completions")
    async def chat_completions(request: Request, fields: ChatFields) -> Response:
        fields.go_by(service.suggested)
        check_model(fields.model, service.model)
        writer = ChatWriter(service.model, fields)
        return await reply(
            request, service.ask(asker_of(request), fields.ask()), writer, stream=fields.stream
        )

    @paths.post("/completions")
    async def completions(request: Request, fields: CompletionFields) -> Response:
        fields.go_by(service.suggested)
        check_model(fields.model, service.model)
        writer = CompletionWriter(service.model, fields)
        return await reply(
            request, service.ask(asker_of(request), *fields.asks()), writer, stream=fields.stream
        )

    @paths.post("/responses")
    async def responses(request: Request, fields: ResponseFields) -> Response:
        fields.go_by(service.suggested)
        check_model(fields.model, service.model)
        writer = ResponseWriter(service.model, fields)
        return await reply(
            request, service.ask(asker_of(request), fields.ask()), writer, stream=fields.stream
        )

    return paths
