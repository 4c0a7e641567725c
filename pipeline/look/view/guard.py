"""Who may ask. Any page in any browser on this machine can send requests to a local port, and with a name of its own
that leads to 127.0.0.1 it can even read the answers. So a request is answered only if

- it calls this server by a name of this machine and by its port (`Host`), which a page elsewhere cannot;
- no other page sent it (`Origin`, `Sec-Fetch-Site`);
- it brings the token that was printed at the start: once in the address, from then on in a cookie, which scripts cannot
  read and which the browser keeps from other sites' requests.
"""

import hmac
import secrets
from urllib.parse import urlencode

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
"""Of every answer. The page is our own files and calls nobody else; no other page may show it or read from it."""


class Guard:
    """Stands before the application; HTTP only, so that there is no other way in."""

    def __init__(self, app: ASGIApp, port: int) -> None:
        self._app = app
        self._hosts = {f"127.0.0.1:{port}", f"localhost:{port}"}
        self._cookie = f"stillhouse-view-{port}"  # cookies do not know ports: two servers would overwrite each other's
        self.token = secrets.token_urlsafe(32)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
            await send(message)

        if scope["type"] != "http":
            return
        answer = self._answer(Request(scope))
        await (answer or self._app)(scope, receive, send_with_headers)

    def _answer(self, request: Request) -> Response | None:
        """The guard's own answer; None where the application may have the request."""
        host = request.headers.get("host", "")
        if host not in self._hosts:
            return _refusal(
                "this server answers to 127.0.0.1 and localhost with its own port; use the address it printed"
            )
        if request.headers.get("origin", f"http://{host}") != f"http://{host}":
            return _refusal("requests of other pages are refused")
        if request.headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            return _refusal("links and requests of other pages are refused; copy the address into a tab of its own")
        given = request.query_params.get("token")
        if given is not None and self._is_token(given) and request.method == "GET":
            # Away from the address, which people share and browsers remember.
            rest = urlencode([pair for pair in request.query_params.multi_items() if pair[0] != "token"])
            response = RedirectResponse(request.url.path + (f"?{rest}" if rest else ""), 303)
            response.set_cookie(self._cookie, self.token, httponly=True, samesite="strict")
            return response
        if not self._is_token(request.cookies.get(self._cookie, "")):
            return _refusal(
                "open the address that `stillhouse view` printed when it started: it has a token, without "
                "which nobody may look"
            )
        return None

    def _is_token(self, text: str) -> bool:
        return hmac.compare_digest(text.encode(), self.token.encode())


def _refusal(reason: str) -> Response:
    return PlainTextResponse(f"Refused: {reason}.\n", 403)
