"""Where one looks at the swarm and at this server."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request
from starlette.responses import Response

from swarm.http.forms import json_response
from swarm.http.metrics import Metrics
from swarm.http.pages import pages
from swarm.http.replies import Gone, Streamed, as_api_error, until_gone
from swarm.http.service import Service
from swarm.http.state import NewsWriter


def router(service: Service, metrics: Metrics) -> APIRouter:
    """Health, state, metrics, and the pages."""
    paths = APIRouter(tags=["state"])

    @paths.get("/health")
    async def health() -> Response:
        return json_response(await service.health())

    @paths.get("/ready")
    async def ready() -> Response:
        return json_response(await service.ready())

    @paths.get("/swarm/status")
    async def status() -> Response:
        return json_response(await service.status())

    @paths.get("/swarm/events")
    async def events(request: Request) -> Response:
        news = service.watch()
        try:
            early = await until_gone(request, news.take())
        except (Gone, asyncio.CancelledError):
            news.close()
            raise
        except Exception as raised:
            news.close()
            raise as_api_error(raised) from raised
        return Streamed(news, early, NewsWriter())

    @paths.get("/metrics")
    async def all_metrics() -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    for path, page in pages().items():
        paths.add_api_route(path, page.respond, include_in_schema=False)
    return paths
