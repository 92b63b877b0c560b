"""Reach object storage that speaks the S3 API, as Arrow and delta-rs each want it said."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace.core.settings import S3Settings

if TYPE_CHECKING:
    from pyarrow import fs

S3 = "s3://"
CONNECT_SECONDS, REQUEST_SECONDS = 5, 30
RETRIES = 3


def file_system(settings: S3Settings) -> fs.FileSystem:
    """Return the object storage as a file system of Arrow."""
    from pyarrow import fs

    scheme, _, host = (settings.endpoint or "").rpartition("://")
    return fs.S3FileSystem(
        access_key=settings.access_key,
        secret_key=settings.secret_key,
        session_token=settings.session_token,
        region=settings.region,
        endpoint_override=host or None,
        scheme=scheme or "https",
        request_timeout=REQUEST_SECONDS,
        connect_timeout=CONNECT_SECONDS,
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=RETRIES),
    )


def storage_options(settings: S3Settings) -> dict[str, str]:
    """Return the settings as delta-rs names them; a commit is a put that fails where another writer came first."""
    given = {
        "AWS_ENDPOINT_URL": settings.endpoint,
        "AWS_REGION": settings.region,
        "AWS_ACCESS_KEY_ID": settings.access_key,
        "AWS_SECRET_ACCESS_KEY": settings.secret_key,
        "AWS_SESSION_TOKEN": settings.session_token,
        "AWS_ALLOW_HTTP": "true" if (settings.endpoint or "").startswith("http://") else None,
        "conditional_put": "etag",
        "max_retries": str(RETRIES),
        "retry_timeout": f"{REQUEST_SECONDS}s",
        "connect_timeout": f"{CONNECT_SECONDS}s",
        "timeout": f"{REQUEST_SECONDS}s",
    }
    return {name: value for name, value in given.items() if value is not None}
