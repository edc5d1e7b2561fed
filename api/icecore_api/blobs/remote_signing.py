"""Requests that somebody else may send to S3 in our name: signed here, so that our keys never leave.

obstore signs an address and nothing else. For an upload that is not enough: the SHA-256 of the bytes must be under the
signature too, as the header `x-amz-checksum-sha256`, so that S3 refuses every other content. So these are signed here
(AWS Signature Version 4, in the query); everything else is signed by obstore.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import quote, urlsplit

EXPIRES_S: Final = 900
"""How long a signed request may be sent."""
CHECKSUM: Final = "x-amz-checksum-sha256"
_ALGORITHM: Final = "AWS4-HMAC-SHA256"


@dataclass(frozen=True, slots=True)
class SignedRequest:
    """A request for somebody else to send: its address, and the headers without which it is refused."""

    url: str = field(repr=False)
    headers: Mapping[str, str] = field(default_factory=dict)
    expires_s: int = EXPIRES_S


@dataclass(frozen=True, slots=True)
class Keys:
    """Who signs. Shown without its secrets.

    Args:
        access: the access key's id.
        secret: the key itself.
        token: of a session, or empty.
    """

    access: str
    secret: str = field(repr=False)
    token: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class S3Signer:
    """Signs uploads to one bucket.

    Args:
        base: the bucket's address without a slash at the end, as those who will send the requests reach it.
        region: the bucket's.
        keys: who signs.
        clock: seconds since 1970.
    """

    base: str
    region: str
    keys: Keys
    clock: Callable[[], float] = time.time

    def put(self, key: str, sha256: bytes) -> SignedRequest:
        """An upload of just these bytes to a key.

        Args:
            key: the object's.
            sha256: of the bytes.
        """
        checksum = {CHECKSUM: base64.b64encode(sha256).decode()}
        return SignedRequest(self._url("PUT", key, checksum), checksum)

    def _url(self, method: str, key: str, headers: Mapping[str, str]) -> str:
        at = urlsplit(self.base)
        path = f"{at.path}/{quote(key, safe='/-_.~')}"
        moment = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(self.clock()))
        scope = f"{moment[:8]}/{self.region}/s3/aws4_request"
        signed = {"host": at.netloc, **headers}
        names = ";".join(sorted(signed))
        query = {
            "X-Amz-Algorithm": _ALGORITHM,
            "X-Amz-Credential": f"{self.keys.access}/{scope}",
            "X-Amz-Date": moment,
            "X-Amz-Expires": str(EXPIRES_S),
            "X-Amz-SignedHeaders": names,
            **({"X-Amz-Security-Token": self.keys.token} if self.keys.token else {}),
        }
        text = "&".join(f"{quote(name, safe='-_.~')}={quote(query[name], safe='-_.~')}" for name in sorted(query))
        lines = "".join(f"{name}:{signed[name]}\n" for name in sorted(signed))
        request = f"{method}\n{path}\n{text}\n{lines}\n{names}\nUNSIGNED-PAYLOAD"
        what = f"{_ALGORITHM}\n{moment}\n{scope}\n{hashlib.sha256(request.encode()).hexdigest()}"
        return f"{at.scheme}://{at.netloc}{path}?{text}&X-Amz-Signature={self._signature(moment[:8], what)}"

    def _signature(self, day: str, what: str) -> str:
        key = f"AWS4{self.keys.secret}".encode()
        for word in (day, self.region, "s3", "aws4_request"):
            key = hmac.digest(key, word.encode(), "sha256")
        return hmac.new(key, what.encode(), "sha256").hexdigest()
