"""Bodies of the routes of blobs, for OpenAPI and for reading requests."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from icecore.limits import most


class Digests(BaseModel):
    """Blobs, by their digests."""

    model_config = ConfigDict(extra="forbid", strict=True)
    digests: list[str] = Field(max_length=most("digests_per_request"))


class Missing(BaseModel):
    """Those that are not there."""

    missing: list[str]
    direct: bool = False
    """Large ones are to be sent to the bucket, by requests signed by `POST uploads/DIGEST/PART`."""


class Stored(BaseModel):
    """How many blobs came."""

    stored: int


class BlobAnswer(BaseModel):
    """A blob that is there."""

    digest: str
    size: int


class PartAnswer(BaseModel):
    """A part that is durable."""

    digest: str
    part: int


class UploadAnswer(BaseModel):
    """An upload that is under way; without a size where there is none."""

    digest: str
    size: int | None
    part_size: int | None
    parts: list[int]


class PartAsked(BaseModel):
    """A part that is to be sent."""

    model_config = ConfigDict(extra="forbid", strict=True)
    size: int = Field(ge=1, le=most("blob_bytes"))
    part_size: int = Field(ge=1, le=most("upload_part_bytes"))
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


class SignedAnswer(BaseModel):
    """How to send a part: `PUT url` with these headers; without a URL, through the server as any other."""

    url: str | None
    headers: dict[str, str]
    expires_s: int


class Completion(BaseModel):
    """What an upload was made of."""

    model_config = ConfigDict(extra="forbid", strict=True)
    size: int = Field(ge=1, le=most("blob_bytes"))
    part_size: int = Field(ge=1, le=most("upload_part_bytes"))
