"""Signing requests to a store: boto3 owns credentials, endpoints and signatures.

Requests are presigned URLs (AWS Signature Version 4); one that is signed with headers must be sent
with exactly these.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

import boto3
from botocore.config import Config
from botocore.exceptions import NoCredentialsError

if TYPE_CHECKING:
    from collections.abc import Mapping

ProfileName = Literal["auto", "aws", "oss", "generic"]

EXPIRES = 3600
"""Seconds a request stays valid: long, so that a clock ten minutes off does no harm."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """What kinds of stores differ in.

    ``checksum`` is how a body is proven to have arrived: ``sha256`` (``x-amz-checksum-sha256``,
    which the store keeps) or ``md5`` (``Content-MD5``, which it only checks). ``conditional``:
    whether it knows ``If-None-Match: *``.
    """

    addressing: Literal["path", "virtual"]
    checksum: Literal["sha256", "md5"] = "sha256"
    conditional: bool = True


PROFILES: Mapping[str, Profile] = {
    "aws": Profile(addressing="virtual"),
    # Alibaba OSS, "Use Amazon S3 SDKs to access OSS": virtual-hosted only, 501 for conditions
    "oss": Profile(addressing="virtual", checksum="md5", conditional=False),
    "generic": Profile(addressing="path"),
}


def choose_profile(name: ProfileName, endpoint: str) -> str:
    """The profile's name; ``auto`` goes by the host of ``endpoint``."""
    if name != "auto":
        return name
    host = urlsplit(endpoint).hostname or ""
    if host.endswith((".amazonaws.com", ".amazonaws.com.cn")):
        return "aws"
    return "oss" if host.endswith(".aliyuncs.com") else "generic"


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Request:
    """A signed request. Its repr would show the signature."""

    method: str
    url: str
    headers: Mapping[str, str]
    ca_bundle: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Signer:
    """A boto3 client that only signs, and the credentials it uses."""

    boto: Any
    credentials: Any
    profile_name: str
    profile: Profile
    ca_bundle: str | None

    @property
    def waits(self) -> bool:
        """Whether the next signature may fetch credentials over the network."""
        needed = getattr(self.credentials, "refresh_needed", None)
        return needed is not None and bool(needed())

    def sign(self, call: str, params: Mapping[str, Any], expires: int = EXPIRES) -> Request:
        """Sign a request."""
        url = self.boto.generate_presigned_url(call, Params=dict(params), ExpiresIn=expires)
        model = self.model(call)
        headers = {}
        for name, value in params.items():
            place = model.input_shape.members[name].serialization
            if place.get("location") == "header":
                headers[place["name"]] = str(value)
            elif place.get("location") == "headers":
                headers |= {place["name"] + key: str(text) for key, text in value.items()}
        return Request(
            method=model.http["method"], url=url, headers=headers, ca_bundle=self.ca_bundle
        )

    def model(self, call: str) -> Any:
        """What boto3 knows about a call."""
        meta = self.boto.meta
        return meta.service_model.operation_model(meta.method_to_api_mapping[call])


def make_signer(bucket: str, profile: ProfileName) -> Signer:
    """Find credentials and endpoint, as boto3 does; may take a while.

    Raises botocore's errors, and ``ValueError`` for a malformed endpoint.
    """
    session = boto3.session.Session()
    credentials = session.get_credentials()
    if credentials is None:
        raise NoCredentialsError
    # the endpoint decides the profile, and is known only once there is a client
    endpoint = str(session.client("s3", config=_config("path")).meta.endpoint_url)
    name = choose_profile(profile, endpoint)
    # the certificate of a virtual host covers no name with more dots
    style: Literal["path", "virtual"] = (
        "path" if "." in bucket and name == "aws" else PROFILES[name].addressing
    )
    return Signer(
        boto=session.client("s3", config=_config(style)),
        credentials=credentials,
        profile_name=name,
        profile=PROFILES[name],
        ca_bundle=session._session.get_config_variable("ca_bundle"),  # boto3 offers no other way
    )


def _config(style: Literal["path", "virtual"]) -> Config:
    return Config(
        signature_version="s3v4",
        s3={"addressing_style": style},
        # the default, trailing checksums, is refused by OSS and others
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
