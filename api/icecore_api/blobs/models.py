"""Bodies of the routes of blobs, for OpenAPI and for reading requests."""

from __future__ import annotations

from pydantic import Field

from icecore.limits import most
from icecore_api.models import Command, Shape


class Digests(Command):
    """Blobs, by their digests."""

    digests: list[str] = Field(max_length=most("digests_per_request"))


class Missing(Shape):
    """Those that are not there."""

    missing: list[str]
    direct: bool = False
    """Large ones are to be sent to the bucket, by requests signed by `POST uploads/DIGEST/PART`."""


class Stored(Shape):
    """How many blobs came."""

    stored: int


class BlobAnswer(Shape):
    """A blob that is there."""

    digest: str
    size: int


class PartAnswer(Shape):
    """A part that is durable."""

    digest: str
    part: int


class UploadAnswer(Shape):
    """An upload that is under way; without a size where there is none."""

    digest: str
    size: int | None
    part_size: int | None
    parts: list[int]


class PartAsked(Command):
    """A part that is to be sent."""

    size: int = Field(ge=1, le=most("blob_bytes"))
    part_size: int = Field(ge=1, le=most("upload_part_bytes"))
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


class SignedAnswer(Shape):
    """How to send a part: `PUT url` with these headers; without a URL, through the server as any other."""

    url: str | None
    headers: dict[str, str]
    expires_s: int


class Completion(Command):
    """What an upload was made of."""

    size: int = Field(ge=1, le=most("blob_bytes"))
    part_size: int = Field(ge=1, le=most("upload_part_bytes"))
