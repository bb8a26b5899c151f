"""OpenAI's shapes over what the native routes do, for the clients people have already. Unknown fields are ignored."""

from fastapi import APIRouter

from app.routes.openai import chat, files, fine_tuning, models

router = APIRouter(prefix="/v1", tags=["openai"])
for room in (models, chat, files, fine_tuning):
    router.include_router(room.router)
