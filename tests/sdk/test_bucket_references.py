"""References into buckets, asked of a real S3 server."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from icecore import Artifact
from icecore.errors import UsageError
from s3_servers import BUCKET, Bucket


@pytest.fixture
def objects(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of a place with three objects, in a bucket that the environment leads to."""
    import obstore
    from obstore.store import from_url

    monkeypatch.setenv("AWS_ENDPOINT_URL", bucket.server.endpoint)
    store = from_url(f"s3://{BUCKET}", client_options={"allow_http": True})
    for name, content in {"raw/a.csv": b"1,2", "raw/deep/b.csv": b"3", "rawer.csv": b"4"}.items():
        obstore.put(store, f"{bucket.prefix}/{name}", content)
    return f"s3://{BUCKET}/{bucket.prefix}"


def etag(content: bytes) -> str:
    return f'etag:"{hashlib.md5(content).hexdigest()}"'


def test_an_object_is_added_with_what_its_bucket_says(objects: str, home: Path) -> None:
    """ETag and size are recorded, of one object or of each below a prefix; without a checksum nobody is asked."""
    del home
    draft = Artifact("refs", type="dataset")
    (one,) = draft.add_reference(f"{objects}/raw/a.csv")
    assert (one.digest, one.size, one.ref) == (etag(b"1,2"), 3, f"{objects}/raw/a.csv")
    draft.add_reference(f"{objects}/raw", name="all")
    draft.add_reference(f"{objects}/raw/deep/")
    found = {path: draft.get_entry(path) for path in ("all/a.csv", "all/deep/b.csv", "b.csv")}
    assert {path: (entry.digest, entry.size) for path, entry in found.items()} == {
        "all/a.csv": (etag(b"1,2"), 3),
        "all/deep/b.csv": (etag(b"3"), 1),
        "b.csv": (etag(b"3"), 1),
    }
    (unseen,) = draft.add_reference(f"{objects}/none.csv", checksum=False)
    assert (unseen.digest, unseen.size) == ("", None)


def test_what_is_not_there_is_said(objects: str, home: Path) -> None:
    """No object, too many, or keys that may not see it: the reference is refused, with what to do."""
    del home
    draft = Artifact("refs", type="dataset")
    with pytest.raises(UsageError, match="checksum=False"):
        draft.add_reference(f"{objects}/none.csv")
    with pytest.raises(UsageError, match="at most 1 objects"):
        draft.add_reference(f"{objects}/raw", max_objects=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
        with pytest.raises(UsageError, match="let see"):
            draft.add_reference(f"{objects}/raw/a.csv")


def test_where_nobody_can_be_asked_it_is_added_with_a_warning(
    home: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Scripts go on where a bucket does not answer; that the checksum is lacking is said."""
    del home
    for name, value in {"ENDPOINT_URL": "http://127.0.0.1:9", "ACCESS_KEY_ID": "a", "SECRET_ACCESS_KEY": "b"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    (entry,) = Artifact("refs", type="dataset").add_reference("s3://away/x.bin")
    assert (entry.digest, entry.size) == ("", None)
    assert "s3://away/x.bin is added without a checksum" in capfd.readouterr().err
