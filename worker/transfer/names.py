"""What a file should be by its names in the reply, before any byte has come."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from urllib.parse import unquote, urlsplit

_EXTENSION = re.compile(r"[a-z0-9]{1,15}")  # with its dot it fits a key
_MEDIA_TYPE = re.compile(r"(image|audio|video|model|text)(?:/([\w.+-]+)|\Z)")
_KINDS = frozenset({"image", "audio", "video"})  # as a format, and no extension
_STYLE = re.compile(r"[!@?;#]")  # what follows names a variant of the file, such as a thumbnail
_IN_QUERY = re.compile(r"[?&]filename=([^&#]+)")  # ComfyUI's own addresses


def _set(names: str) -> frozenset[str]:
    return frozenset(names.split())


# Pictures, clips, sounds, models and archives that are never text.
_SEALED = _set(
    "png apng jpg jpeg jpe jfif webp gif avif bmp dib tif tiff heic heics heif heifs ico cur icns "
    "psd psb exr hdr tga dds ktx ktx2 qoi jxl jp2 j2k jpx dng cr2 nef arw svgz "
    "mp4 m4v mov qt webm mkv avi mpg mpeg m2ts mts ts flv f4v wmv asf 3gp 3g2 ogv mxf vob "
    "mp3 mp2 wav wave flac ogg oga opus weba m4a m4b m4r aac ac3 aif aiff aifc caf amr wma mka "
    "mid midi "
    "glb vrm ply splat ksplat spz sog usdc usdz 3mf 3ds blend vdb lottie "
    "safetensors sft gguf ggml ckpt pt pth onnx tflite latent npy npz h5 hdf5 pb "
    "zip 7z rar gz tgz bz2 tbz2 xz txz zst lz4 br tar pdf epub docx xlsx pptx odt ods odp"
)
# Pictures and models that are text, or may be.
_DRAWN = _set(
    "svg eps ps xpm xbm pbm pgm ppm pnm pam pfm "
    "obj gltf stl dae fbx usd usda x3d wrl vrml off pcd step stp iges igs dxf bvh "
    "gcode mtl cube"
)
_PAGES = _set("html htm xhtml mhtml mht xml txt text md markdown")
# All other text.
_TEXT = _PAGES | _set(
    "srt vtt ass ssa lrc sub sbv smi ttml dfxp "
    "json jsonl ndjson geojson csv tsv yaml yml toml ini cfg conf properties "
    "log rst rtf tex bib rss atom css js mjs jsx tsx py ipynb sh sql lua glsl hlsl wgsl frag vert "
    "m3u m3u8 mpd cue edl kml gpx xsl xsd wsdl plist musicxml ics vcf prompt caption tags diff "
    "patch"
)
_DRAWN_TYPES = _set("svg+xml gltf+json obj mtl stl vnd.collada+xml x-portable-pixmap step")


class What(Enum):
    """What a file must be."""

    SEALED = "a picture, clip, sound, model or archive that is never text"
    DRAWN = "a picture or model that is text, or may be"
    TEXT = "some other text"
    NOTHING = "whatever it is"


@dataclass(frozen=True, slots=True)
class Promise:
    """What a file must be, and the extension (``png``) that says so, if one does."""

    what: What
    extension: str = ""

    @property
    def filled(self) -> bool:
        """Whether the file cannot be empty."""
        return self.what in (What.SEALED, What.DRAWN)

    @property
    def page(self) -> bool:
        """Whether the file may be a web page."""
        return not self.extension or self.extension in _PAGES


def named_extension(filename: str, format: str, url: str) -> str:
    """The first extension (``.png``) among a file's names; empty if there is none."""
    first = next(iter(_extensions(filename, format, url)), "")
    return f".{first}" if first else ""


def promised(filename: str, format: str, url: str, *, entry: bool = False) -> Promise:
    """What a file must be by its names; the first one with a known extension decides.

    Without any, an ``entry`` of ``images`` must not be text.
    """
    for extension in _extensions(filename, format, url):
        for what, known in ((What.SEALED, _SEALED), (What.DRAWN, _DRAWN), (What.TEXT, _TEXT)):
            if extension in known:
                return Promise(what, extension)
    if media := _MEDIA_TYPE.match(format.strip().lower()):
        if media[1] == "text":
            return Promise(What.TEXT)
        return Promise(What.DRAWN if media[2] in _DRAWN_TYPES else What.SEALED)
    return Promise(What.SEALED if entry else What.NOTHING)


def is_text(extension: str) -> bool:
    """Whether files of an extension (``.srt``) are text, or may be."""
    return extension.removeprefix(".") in _TEXT | _DRAWN


def _extensions(filename: str, format: str, url: str) -> list[str]:
    try:
        path = unquote(urlsplit(url).path)
    except ValueError:
        path = ""
    named = _IN_QUERY.search(url)
    candidates = (
        _suffix(filename),
        format.strip().removeprefix("."),
        _suffix(path),
        _suffix(unquote(named[1])) if named else "",
    )
    names = map(str.lower, candidates)
    return [name for name in names if _EXTENSION.fullmatch(name) and name not in _KINDS]


def _suffix(path: str) -> str:
    stem, dot, suffix = re.split(r"[/\\]", path)[-1].rpartition(".")
    return _STYLE.split(suffix.rstrip())[0] if dot and stem else ""
