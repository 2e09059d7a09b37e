"""The JSON interface with its OpenAPI page, and what stands before it and the page: the gate.

POST /api/predict      {"text": ..., "image": base64}, with ?explain=true all that is known of it
POST /api/predict_batch {"posts": [...]}: results in order, {"id", "error"} in the place of a post that cannot be read
GET  /api/health       what is served, and the limits
GET  /docs             this, as a page without a script; /openapi.json

Pictures come as base64 and not as multipart: a form's files would be written to disk while they are read.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

from experiments.web.answers import Answers, Limits, RefusedError
from tmrjax import __version__

# What the page needs of Gradio's own interface; the rest (uploads to disk, files, proxies, recordings) is closed.
OPEN = ("queue/join", "queue/data", "heartbeat/", "startup-events", "theme.css", "info", "app_id", "cancel", "reset")
GRADIO = "/gradio_api/"
# Nothing is fetched from elsewhere, whatever the page's libraries ask for.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' data: blob:; frame-ancestors 'self'; "
    "form-action 'self'; base-uri 'self'"
)
HEADERS = {
    "content-security-policy": POLICY, "x-content-type-options": "nosniff", "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}  # fmt: skip
_FROM_ELSEWHERE = re.compile(
    rb"<link\b[^>]*\bhref=\"https?://[^>]*>|<script\b[^>]*\bsrc=\"https?://[^>]*>\s*</script>"
    rb"|<meta\b[^>]*\bcontent=\"https?://[^>]*>",
    re.DOTALL,
)


class Post(BaseModel):
    """A post, as Predictor takes it."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"text": "Jordan at the harbour"}]})

    text: str | None = Field(None, description="The post as it was written; this or tokens.")
    tokens: list[str] | None = Field(None, description="The post's words.")
    id: str | int | float | None = Field(None, description="Comes back with the result.")
    image: str | None = Field(None, description="A picture's file as base64 or as a data URL.")
    regions: list[list[float]] | None = Field(None, description="Boxes x1, y1, x2, y2 in fractions of the picture.")
    phrases: list[str] | None = Field(None, description="Noun phrases of the text, for the coarse grain of Eq. 1.")
    scores: list[float] | None = Field(None, description="weaken, complement, strengthen of text and picture; sum 1.")
    generated_image: str | None = Field(None, description="A picture that was generated from the text, as base64.")
    generated_regions: list[list[float]] | None = Field(None, description="Boxes of it.")
    generated_scores: list[float] | None = Field(None, description="Scores of text and generated picture.")
    head: list[int] | None = Field(None, description="Relations: [start, end) in characters of text, or in tokens.")
    tail: list[int] | None = Field(None, description="The same of the other entity.")


class Batch(BaseModel):
    """Posts."""

    model_config = ConfigDict(extra="forbid")

    # Not as Post: a post that is not as described is an error in its place, not of the whole batch.
    posts: list[Any] = Field(description="Each as the post of /api/predict.")


def make_service(answers: Answers, about: Mapping[str, Any]) -> FastAPI:
    """The interface; ``about`` is what /api/health tells of the model."""
    service = FastAPI(
        title="tmrjax", version=__version__, docs_url=None, redoc_url=None, description=str(about["model"])
    )
    task = answers.predictor.system.task

    @service.exception_handler(RefusedError)
    def refused(_: Request, error: RefusedError) -> JSONResponse:
        return JSONResponse({"error": error.message}, error.status)

    @service.exception_handler(RequestValidationError)
    def not_as_described(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        place = ".".join(part for part in first["loc"][1:] if isinstance(part, str)) or "the request"
        said = "no JSON" if first["type"] == "json_invalid" else first["msg"][0].lower() + first["msg"][1:]
        return JSONResponse({"error": f"{place}: {said}; /docs says what is expected"}, 422)

    @service.exception_handler(HTTPException)
    def otherwise(_: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse({"error": str(error.detail)}, error.status_code)

    @service.post("/api/predict", summary={"ner": "Entities", "re": "Relations"}[task] + " of one post")
    def predict(post: Post, explain: bool = False) -> dict[str, Any]:
        """The result as Predictor gives it: spans in characters of the text, each with its probability.

        `explain`: also "explanation", with the answer without pictures, the scores and the attention of Eq. 1.
        """
        given = post.model_dump(exclude_none=True)
        if explain:
            return answers.explain(given).to_json()
        return answers.predict_one(given)

    @service.post("/api/predict_batch", summary="The same of many posts")
    def predict_batch(batch: Batch) -> dict[str, Any]:
        """{"results": [...]}, in the order of the posts."""
        return {"results": answers.predict(batch.posts)}

    @service.get("/api/health", summary="Whether it works, what is served, and the limits")
    def health() -> dict[str, Any]:
        """{"status": "ok", ...}."""
        return {"status": "ok", "version": __version__, **about, "limits": vars(answers.limits)}

    @service.get("/docs", include_in_schema=False, response_class=HTMLResponse)
    def docs() -> str:
        environment = jinja2.Environment(
            loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined
        )
        described = service.openapi()
        return environment.get_template("reference.html").render(
            api=described, schemas=described["components"]["schemas"], about=about, limits=vars(answers.limits)
        )

    return service


class Gate:
    """ASGI: bounds requests, closes what the page does not need, lets nothing be fetched from elsewhere."""

    def __init__(self, app: Any, limits: Limits):
        self.app, self.limits = app, limits

    async def __call__(self, scope, receive, send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = scope["path"]
        if path.startswith(GRADIO) and not path.removeprefix(GRADIO).startswith(OPEN):
            await _refuse(send, 404, "there is nothing here")
            return
        try:
            receive = await self._whole(scope, receive)
        except RefusedError as error:
            await _refuse(send, error.status, error.message)
            return
        rewrite, start, parts = path == "/" and scope["method"] == "GET", None, []

        async def guarded(message) -> None:
            nonlocal start
            if message["type"] == "http.response.start":
                headers = [(name, value) for name, value in message["headers"] if name.decode().lower() not in HEADERS
                           and not (rewrite and name.lower() == b"content-length")]  # fmt: skip
                keep = path.startswith("/assets/")  # files of Gradio, with their hashes as names
                ours = {name: value for name, value in HEADERS.items() if not (keep and name == "cache-control")}
                message = {**message, "headers": [*headers, *((n.encode(), v.encode()) for n, v in ours.items())]}
                if rewrite:
                    start = message
                    return
            elif rewrite and message["type"] == "http.response.body":
                parts.append(message.get("body", b""))
                if message.get("more_body"):
                    return
                body = _FROM_ELSEWHERE.sub(b"", b"".join(parts))
                start["headers"].append((b"content-length", str(len(body)).encode()))
                await send(start)
                message = {**message, "body": body}
            await send(message)

        await self.app(scope, receive, guarded)

    async def _whole(self, scope, receive) -> Any:
        """Reads the body, so many bytes and no longer; what receives it again."""
        if scope["method"] not in ("POST", "PUT", "PATCH"):
            return receive
        limit = self.limits.request_bytes
        too_large = RefusedError(
            413, f"a request of more than {limit / 1e6:g} MB: scale pictures down, shorten the text"
        )
        parts, size, more = [], 0, True
        try:
            async with asyncio.timeout(self.limits.seconds):
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return receive
                    part, more = message.get("body", b""), message.get("more_body", False)
                    size += len(part)
                    # A little more is taken in and thrown away: who still sends does not hear the answer.
                    if size <= limit:
                        parts.append(part)
                    elif size > 4 * limit:
                        break
        except TimeoutError:
            raise RefusedError(408, f"the request did not arrive within {self.limits.seconds:g} seconds") from None
        if size > limit:
            raise too_large
        whole = [{"type": "http.request", "body": b"".join(parts), "more_body": False}]

        async def again() -> Any:
            return whole.pop() if whole else await receive()

        return again


async def _refuse(send, status: int, message: str) -> None:
    body = json.dumps({"error": message}).encode()
    headers = {"content-type": "application/json", "content-length": str(len(body)), "connection": "close"} | HEADERS
    pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": pairs})
    await send({"type": "http.response.body", "body": body})
