"""Where a task's objects are in the bucket: the keys and addresses of files and manifests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import quote

from worker.core import keys

if TYPE_CHECKING:
    from collections.abc import Mapping

    from worker.core.jsontext import Json

_SUFFIX = ".json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """The bucket as the settings lay it out.

    ``prefix`` and ``manifest_prefix`` end with ``/`` or are empty. ``public_base`` is the bucket's
    public address, or ``None`` if it has none. ``upstream`` is the host whose addresses in replies
    are outputs.
    """

    bucket: str = ""
    prefix: str = ""
    manifest_prefix: str = "manifests/"
    public_base: str | None = None
    upstream: str = ""

    @property
    def manifests(self) -> str:
        """The beginning of every manifest's key."""
        return self.prefix + self.manifest_prefix

    def manifest_key(self, task_id: str) -> str:
        """The key of a task's manifest."""
        return f"{self.manifests}{task_id}{_SUFFIX}"

    def task_of(self, key: str) -> str | None:
        """The task whose manifest has this key, or ``None`` if it is not a manifest's key."""
        if not (key.startswith(self.manifests) and key.endswith(_SUFFIX)):
            return None
        return key.removeprefix(self.manifests).removesuffix(_SUFFIX) or None

    def folder(self, task_id: str, options: Mapping[str, Json]) -> str:
        """The beginning of the keys of one task's files; ``options`` are those of its record."""
        return f"{self.prefix}{options.get('prefix', '')}{task_id}/"

    def file_base(self, task_id: str, options: Mapping[str, Json], name: str) -> str:
        """The key of the file called ``name``, without its extension."""
        return keys.object_base(self.folder(task_id, options), name)

    def uri(self, key: str) -> str:
        """The ``s3://`` URI of an object."""
        return f"s3://{self.bucket}/{key}"

    def url(self, key: str) -> str | None:
        """The public URL of an object, percent-encoded; ``None`` if the bucket is not public."""
        if self.public_base is None:
            return None
        return self.public_base.removesuffix("/") + "/" + quote(key, safe="/")
