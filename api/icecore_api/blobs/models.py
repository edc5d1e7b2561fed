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


class Completion(BaseModel):
    """What an upload was made of."""

    model_config = ConfigDict(extra="forbid", strict=True)
    size: int = Field(ge=1, le=most("blob_bytes"))
    part_size: int = Field(ge=1, le=most("upload_part_bytes"))
