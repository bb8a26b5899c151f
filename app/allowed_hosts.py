"""Which names the server answers to, and whose pages may call it: DRAGOMAN_ALLOWED_HOSTS.

A page whose own name is made to lead here (DNS rebinding) shows itself by the Host that its browser sends; a page that sends
a form here, by its Origin. Starlette's TrustedHostMiddleware looks at the Host alone, and answers in plain text.
"""

from urllib.parse import urlsplit

from fastapi import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from app.problems import problem

_LOOPBACK = ("localhost", "127.0.0.1", "::1")  # no page from elsewhere is called so


class AllowedHostsMiddleware:
    """Answers 403 where Host or Origin names none of `hosts` (comma-separated; `*.example.org`: all below), nor loopback."""

    def __init__(self, app: ASGIApp, hosts: str) -> None:
        self._app = app
        names = (host.strip(" []").lower() for host in hosts.split(","))
        self._hosts = list(dict.fromkeys([*_LOOPBACK, *filter(None, names)]))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            request = Request(scope)
            host = request.headers.get("host", "")
            origin = request.headers.get("origin")
            for name, value, url in (("Host", host, f"//{host}"), ("Origin", origin, origin)):
                if url is not None and not self._allows(url):
                    accepted = ", ".join(self._hosts)
                    refusal = problem(
                        request,
                        403,
                        f"{name.lower()}_not_allowed",
                        f"{name} is {value!r:.200}; accepted are {accepted} (DRAGOMAN_ALLOWED_HOSTS)",
                    )
                    await refusal(scope, receive, send)
                    return
        await self._app(scope, receive, send)

    def _allows(self, url: str) -> bool:
        try:
            name = urlsplit(url).hostname or ""
        except ValueError:
            return False
        return any(
            name == host or (host.startswith("*.") and name.endswith(host[1:]))
            for host in self._hosts
        )
