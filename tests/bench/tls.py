"""TLS for the benches: each server speaks it itself, with a certificate made for the run.

Python's sockets hand OpenSSL's records of 16 KiB to the client, as nginx does. SeaweedFS, in Go,
begins with smaller ones, which matters little for a store that is mostly written to.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import trustme

from worker.sandbox.servers import SeaweedFS

_VARIABLES = ("SSL_CERT_FILE", "AWS_CA_BUNDLE", "CURL_CA_BUNDLE", "RCLONE_CA_CERT")


@dataclass(frozen=True)
class Certificate:
    """Files: the authority's certificate, and certificate and key of the loopback address."""

    authority: Path
    chain: Path
    key: Path

    @property
    def environ(self) -> dict[str, str]:
        """What makes every client of the benches trust it."""
        return dict.fromkeys(_VARIABLES, str(self.authority))


def certify(directory: str | os.PathLike[str]) -> Certificate:
    """A certificate for 127.0.0.1, written to ``directory``."""
    authority, folder = trustme.CA(), Path(directory)
    made = authority.issue_cert("127.0.0.1", "localhost")
    found = Certificate(folder / "authority.pem", folder / "chain.pem", folder / "key.pem")
    authority.cert_pem.write_to_path(found.authority)
    found.chain.write_bytes(b"".join(blob.bytes() for blob in made.cert_chain_pems))
    found.key.touch(mode=0o600)
    made.private_key_pem.write_to_path(found.key)
    return found


class SecureSeaweedFS(SeaweedFS):
    """SeaweedFS whose S3 port speaks TLS."""

    def __init__(self, directory: str | os.PathLike[str], bucket: str, made: Certificate) -> None:
        super().__init__(directory, bucket)
        self._certificate = made

    @property
    def endpoint(self) -> str:
        """URL of the S3 endpoint."""
        return super().endpoint.replace("http:", "https:")

    def _arguments(self) -> list[str]:
        made = self._certificate
        return [
            *super()._arguments(),
            f"-s3.cert.file={made.chain}",
            f"-s3.key.file={made.key}",
        ]
