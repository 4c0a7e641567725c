"""Keys and tokens, by the patterns of detect-secrets (Yelp).

Only its detectors of tokens that say whose they are. Those that judge by the entropy of a string or by the word before
it take code and examples for secrets; that of npm takes quadratic time.
"""

import re
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from typing import Any

from stillhouse.stages.personal.span import Span

DETECTORS = {
    "aws": "AWSKeyDetector",
    "azure_storage_key": "AzureStorageKeyDetector",
    "discord": "DiscordBotTokenDetector",
    "github_token": "GitHubTokenDetector",
    "gitlab_token": "GitLabTokenDetector",
    "jwt": "JwtTokenDetector",
    "mailchimp": "MailchimpDetector",
    "openai": "OpenAIDetector",
    "private_key": "PrivateKeyDetector",
    "pypi_token": "PypiTokenDetector",
    "sendgrid": "SendGridDetector",
    "slack": "SlackDetector",
    "square_oauth": "SquareOAuthDetector",
    "stripe": "StripeDetector",
    "telegram_token": "TelegramBotTokenDetector",
    "twilio": "TwilioKeyDetector",
}
"""Modules and classes of `detect_secrets.plugins`."""


_END_OF_KEY = re.compile(r"[A-Za-z0-9+/=\s\\:,.-]*?-----END[A-Z ]*-----")
_WORTH_A_LOOK = re.compile(r"[A-Za-z0-9+/=_-]{20}|PRIVATE KEY|PuTTY-User")
"""No token is shorter; most texts have no such word."""
_LETTERS = re.compile("[A-Za-z0-9]")
_REST_OF_TOKEN = re.compile(r"[A-Za-z0-9_=-]*")


@cache
def _detectors() -> list[tuple[str, Any]]:
    return [
        (module, getattr(import_module(f"detect_secrets.plugins.{module}"), name)())
        for module, name in DETECTORS.items()
    ]


def credentials(text: str) -> Iterator[Span]:
    """Tokens as a whole, and private keys from BEGIN to END."""
    if _WORTH_A_LOOK.search(text) is None:
        return
    for module, detector in _detectors():
        for pattern in detector.denylist:
            for match in pattern.finditer(text):
                start, end = match.span()
                if _LETTERS.match(text, start) and _LETTERS.match(text, max(0, start - 1), start):
                    continue  # a piece of something longer, such as an image in base64
                if next(detector.analyze_string(match[0]), None) is None:
                    continue
                if module == "private_key" and text[:start].endswith("-----"):
                    start -= 5
                rest = (_END_OF_KEY if module == "private_key" else _REST_OF_TOKEN).match(text, end)
                yield Span(start, rest.end() if rest else end)
