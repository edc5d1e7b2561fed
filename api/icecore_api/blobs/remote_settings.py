"""How a bucket for blobs is named: `s3://BUCKET/PREFIX?endpoint=…`, with keys from the environment.

A key has no place in an address: addresses are shown in status, logs and errors. `AWS_*`, `AZURE_*` and `GOOGLE_*` are
read by obstore, as other programs read them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final, Literal, cast
from urllib.parse import parse_qs, parse_qsl, unquote, urlsplit

import obstore
from obstore.store import AzureStore, GCSStore, ObjectStore, S3Store, from_url

from icecore.errors import SettingsError
from icecore_api.blobs.remote_signing import EXPIRES_S, Keys, S3Signer

SCHEMES: Final = ("s3", "az", "gs")
PARAMETERS: Final[Mapping[str, str]] = {
    "endpoint": "where the service is, if not the provider's own: http://HOST:PORT; else AWS_ENDPOINT_URL",
    "region": "of an S3 bucket; else AWS_REGION",
    "public": "the endpoint as clients reach it, where that is another one",
    "direct": "yes (the default): clients send large blobs to the bucket themselves and fetch them there; "
    "no: every byte goes through the server",
    "verify": "whole (the default): the server reads a blob of several parts once before it is there; "
    "parts: it trusts the bucket's own check of every part",
}
"""What may follow the `?`, and what it means."""

Verify = Literal["whole", "parts"]
Signing = S3Store | AzureStore | GCSStore
_TIMEOUT: Final = {"connect_timeout": "3s", "timeout": "60s", "read_timeout": "15s"}
_RETRY: Final[Any] = {
    "max_retries": 4,
    "retry_timeout": timedelta(seconds=15),
    "backoff": {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=2)},
}
_TRUE: Final = {"1": True, "yes": True, "true": True, "on": True, "0": False, "no": False, "false": False, "off": False}


def is_remote(where: str) -> bool:
    """Whether it names a bucket rather than a folder."""
    return where.split("://", 1)[0] in SCHEMES and "://" in where


@dataclass(frozen=True, slots=True)
class Bucket:
    """A bucket, or a part of one below a prefix, that holds the blobs of one server."""

    scheme: str
    name: str
    prefix: str = ""
    endpoint: str = ""
    region: str = ""
    public: str = ""
    direct: bool = True
    verify: Verify = "whole"

    @classmethod
    def parse(cls, address: str) -> Bucket:
        """Read an address.

        Raises:
            SettingsError: it is none, or says what is not known.
        """
        parts = urlsplit(address)
        name = parts.netloc
        if parts.scheme not in SCHEMES or not name or "@" in name:
            shown = f"{parts.scheme}://…" if parts.scheme else "no scheme"
            raise SettingsError(
                f"expected a bucket such as s3://BUCKET/PREFIX, az://… or gs://…, got {shown}",
                hint="keys come from the environment: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
            )
        asked = dict(parse_qsl(parts.query))
        for word in asked:
            if word not in PARAMETERS:
                raise SettingsError(f"expected {', '.join(PARAMETERS)} in a bucket's address, got {word!r}")
        direct, verify = _TRUE.get(asked.get("direct", "yes").lower()), asked.get("verify", "whole")
        if direct is None or verify not in ("whole", "parts"):
            raise SettingsError("expected direct=yes or no, and verify=whole or parts, in a bucket's address")
        rest = {word: asked.get(word, "").rstrip("/") for word in ("endpoint", "region", "public")}
        prefix = unquote(parts.path).strip("/")
        return cls(parts.scheme, name, prefix, direct=direct, verify=cast("Verify", verify), **rest)

    def __str__(self) -> str:
        return f"{self.scheme}://{self.name}/{self.prefix}".rstrip("/")

    def open(self, *, public: bool = False) -> ObjectStore:
        """The bucket, to work with; `public`: by the endpoint that clients use, to sign for them.

        Raises:
            SettingsError: the environment's settings make no sense.
        """
        endpoint = (self.public if public else "") or self.endpoint
        config: dict[str, Any] = {}
        if endpoint:
            config["endpoint"] = endpoint
        if self.region and self.scheme == "s3":
            config["region"] = self.region
        plain = (endpoint or _endpoint(os.environ)).startswith("http://")
        options: Any = {**_TIMEOUT, **({"allow_http": True} if plain else {})}
        try:
            return from_url(str(self), config=cast("Any", config), client_options=options, retry_config=_RETRY)
        except Exception as error:  # the library's own kinds, and ValueError
            raise SettingsError(
                f"expected settings for {self} in its address and the environment, got: {_first_line(error)}",
                hint="docs/artifacts.md says which; AWS_REGION, AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID …",
            ) from error

    def signing(self) -> Signing | None:
        """The bucket by the endpoint that clients use; None where they do not."""
        store = self.open(public=True) if self.direct else None
        return store if isinstance(store, S3Store | AzureStore | GCSStore) else None

    def signer(self, environment: Mapping[str, str], *, public: bool = True) -> S3Signer | None:
        """Signs uploads with their checksum; None where the keys are not in the environment, or it is no S3.

        Args:
            environment: has AWS_SECRET_ACCESS_KEY.
            public: by the endpoint that clients use.
        """
        store = self.open(public=public)
        secret = environment.get("AWS_SECRET_ACCESS_KEY", "")
        if not isinstance(store, S3Store) or not secret:
            return None
        url = urlsplit(obstore.sign(store, "GET", "x", timedelta(seconds=EXPIRES_S)))
        query = {word: values[0] for word, values in parse_qs(url.query).items()}
        access, _day, region, *_ = query["X-Amz-Credential"].split("/")
        if access != environment.get("AWS_ACCESS_KEY_ID"):  # keys of a role: obstore has them, and keeps them
            return None
        base = f"{url.scheme}://{url.netloc}{url.path.removesuffix('/x')}"
        return S3Signer(base, region, Keys(access, secret, query.get("X-Amz-Security-Token", "")))


def _endpoint(environment: Mapping[str, str]) -> str:
    return environment.get("AWS_ENDPOINT_URL_S3", "") or environment.get("AWS_ENDPOINT_URL", "")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
