"""Whether the service is alive, ready, and what it is doing."""

from fastapi import APIRouter, Response
from fastapi.responses import PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel
from starlette.requests import Request

from app.deps import ServicesDep

router = APIRouter(tags=["system"])


class Health(BaseModel):
    status: str = "ok"


class Check(BaseModel):
    ok: bool
    reason: str | None = None


class Readiness(BaseModel):
    """`checks`: base_model, redis, volume. `forward`: how the model is computed here, once it is loaded."""

    status: str
    forward: str | None = None
    checks: dict[str, Check]


@router.get("/health")
async def health() -> Health:
    """The process is alive."""
    return Health()


@router.get("/ready", responses={503: {"model": Readiness}})
def ready(services: ServicesDep, response: Response) -> Readiness:
    """Whether requests can be served: base model loaded, Redis and volume there; 503 with reasons if not."""
    checks = {
        name: Check(ok=reason is None, reason=reason) for name, reason in services.checks().items()
    }
    all_ok = all(check.ok for check in checks.values())
    if not all_ok:
        response.status_code = 503
        response.headers["Retry-After"] = "2"
    forward = services.serving.engine.way if services.serving else None
    return Readiness(status="ok" if all_ok else "not ready", forward=forward, checks=checks)


@router.get("/metrics", response_class=PlainTextResponse)
def metrics(request: Request) -> Response:
    """What Prometheus reads: requests, the engine, the jobs."""
    return Response(
        generate_latest(request.app.state.metrics.registry), media_type=CONTENT_TYPE_LATEST
    )
