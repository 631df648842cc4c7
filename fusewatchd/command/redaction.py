"""Taking secrets out of texts that are handed to others; pure.

What a support bundle has in it should hold no secret anyway.  This removes what other programs may
have written into mount tables and logs, and the secrets of this daemon's own files by their value.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

GONE = "<redacted>"
MIN_SECRET = 8
"""Characters of a secret that is looked for by its value: shorter ones would hit common words."""
_PATTERNS = (
    # PEM: private keys of every kind.
    re.compile(
        r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.S
    ),
    # JSON Web Tokens, as service accounts have them (RFC 7519): header.payload.signature.
    re.compile(r"\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*"),
    # Hashes of passwords, crypt(5).
    re.compile(r"\$(?:2[aby]|5|6|y|7|gy)\$[./\w$=,-]{20,}"),
    # Access keys of AWS and those who follow it.
    re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"),
)
_IN_URL = re.compile(r"(?<=://)[^\s/@]+(?=@)")
_BEARER = re.compile(r"(\b(?:bearer|basic)[ :=]+)[^\s\"',]+", re.I)
_NAMED = re.compile(
    r"((?:\"|\b|_|-)(?:pass(?:word|wd|phrase)?|secret|token|api_?key|access_?key(?:_?id)?"
    r"|secret_?(?:access_?)?key|account_?key|sas|credentials?|auth)\w*(?:\"?\s*[=:]\s*\"?))"
    r"(?![/{\[])[^\s,;\"'&]+",
    re.I,
)


def redacted(text: str, secrets: Iterable[str] = ()) -> str:
    """Return a text without what looks like a secret, and without these."""
    for secret in sorted(set(secrets), key=len, reverse=True):
        if len(secret) >= MIN_SECRET:
            text = text.replace(secret, GONE)
    for pattern in _PATTERNS:
        text = pattern.sub(GONE, text)
    text = _IN_URL.sub(GONE, text)
    text = _BEARER.sub(rf"\1{GONE}", text)
    return _NAMED.sub(rf"\1{GONE}", text)
