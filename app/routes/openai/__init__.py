"""OpenAI's shapes over what the native routes do, for the clients people have already. Unknown fields are ignored."""

from fastapi import APIRouter

from app.routes.openai import chat, files, fine_tuning, models

# Each room has its whole prefix: metrics name routes by the path that they have there.
router = APIRouter(tags=["openai"])
for room in (models, chat, files, fine_tuning):
    router.include_router(room.router)
