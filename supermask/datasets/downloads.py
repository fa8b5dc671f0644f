"""Downloads of published datasets: from public mirrors, resumable, checked by SHA-256 before a file gets its name."""

from __future__ import annotations

import hashlib
import http.client
import os
import urllib.error
import urllib.parse
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from supermask import __version__
from supermask.core.errors import SystemFailure, UserError, check_one_of, quote
from supermask.core.files import write_atomic
from supermask.datasets.images import translate_os_errors
from supermask.datasets.progress import report_progress

MIRROR_VARIABLE = "SUPERMASK_MIRROR"
"""Address that replaces the public mirrors; files are expected at MIRROR/DATASET/FILE."""
TIMEOUT_SECONDS = 60.0
ATTEMPTS = 3
"""Connections per mirror; each resumes at the bytes that are here."""
MAX_BYTES = 1 << 30
"""Bytes of one file; the largest has half of that."""
_PART_SUFFIX = ".part"
_CHUNK = 1 << 18


@dataclass(frozen=True)
class RemoteFile:
    """A file of a published dataset."""

    name: str
    sha256: str


@dataclass(frozen=True)
class Source:
    """The files of a dataset and the places that have them."""

    mirrors: tuple[str, ...]
    """Addresses of folders, each ending in '/'."""
    files: tuple[RemoteFile, ...]
    folder: str
    """Folder below the data folder in which the files are stored."""
    members: tuple[str, ...] = ()
    """Names of the files that are unpacked from the one zip archive; empty if the files are used as they are."""


def _idx_files(*digests: str) -> tuple[RemoteFile, ...]:
    stems = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
    return tuple(RemoteFile(f"{stem}-ubyte.gz", digest) for stem, digest in zip(stems, digests, strict=True))


def _emnist(kind: str) -> Source:
    stems = ("train-images-idx3", "train-labels-idx1", "test-images-idx3", "test-labels-idx1")
    return Source(
        ("https://biometrics.nist.gov/cs_links/EMNIST/",),
        (RemoteFile("gzip.zip", "fb9bb67e33772a9cc0b895e4ecf36d2cf35be8b709693c3564cea2a019fcda8e"),),
        "emnist",
        tuple(f"emnist-{kind}-{stem}-ubyte.gz" for stem in stems),
    )


_CIFAR_MIRRORS = ("https://www.cs.toronto.edu/~kriz/",)
SOURCES: dict[str, Source] = {
    "mnist": Source(
        ("https://ossci-datasets.s3.amazonaws.com/mnist/", "https://storage.googleapis.com/cvdf-datasets/mnist/"),
        _idx_files(
            "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
            "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
            "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
            "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        ),
        "mnist",
    ),
    "fashion-mnist": Source(
        (
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
            "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
        ),
        _idx_files(
            "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
            "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
            "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
            "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
        ),
        "fashion-mnist",
    ),
    "kmnist": Source(
        ("https://codh.rois.ac.jp/kmnist/dataset/kmnist/", "http://codh.rois.ac.jp/kmnist/dataset/kmnist/"),
        _idx_files(
            "51467d22d8cc72929e2a028a0428f2086b092bb31cfb79c69cc0a90ce135fde4",
            "e38f9ebcd0f3ebcdec7fc8eabdcdaef93bb0df8ea12bee65224341c8183d8e17",
            "edd7a857845ad6bb1d0ba43fe7e794d164fe2dce499a1694695a792adfac43c5",
            "20bb9a0ef54c7db3efc55a92eef5582c109615df22683c380526788f98e42a1c",
        ),
        "kmnist",
    ),
    "emnist-letters": _emnist("letters"),
    "emnist-balanced": _emnist("balanced"),
    "cifar10": Source(
        _CIFAR_MIRRORS,
        (RemoteFile("cifar-10-binary.tar.gz", "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"),),
        "cifar10",
    ),
    "cifar100": Source(
        _CIFAR_MIRRORS,
        (RemoteFile("cifar-100-binary.tar.gz", "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec"),),
        "cifar100",
    ),
    "svhn": Source(
        ("http://ufldl.stanford.edu/housenumbers/",),
        (
            RemoteFile("train_32x32.mat", "435e94d69a87fde4fd4d7f3dd208dfc32cb6ae8af2240d066de1df7508d083b8"),
            RemoteFile("test_32x32.mat", "cdce80dfb2a2c4c6160906d0bd7c68ec5a99d7ca4831afa54f09182025b6a75b"),
        ),
        "svhn",
    ),
}
"""Sources by the name of the dataset. `digits` comes with scikit-learn and needs no files."""


class DownloadFailed(SystemFailure):
    """A file that could not be downloaded from any mirror, or that is not the published one."""


def download(name: str, data_folder: Path, mirror: str | None = None) -> list[Path]:
    """Download the files of a dataset below `data_folder` and return them. Files that are there already are kept.

    `mirror`: address that replaces the public mirrors (default: `SUPERMASK_MIRROR`); files are expected at
    `MIRROR/DATASET/FILE`. An interrupted download resumes at the next call.

    Raises UserError for an unknown name, a mirror that is not http(s) and a file of another content that is there;
    DownloadFailed; SystemFailure if the disk fails.
    """
    check_one_of("a dataset to download", name, tuple(SOURCES))
    source = SOURCES[name]
    mirrors = _mirrors(name, source, mirror)
    folder = data_folder / source.folder
    with translate_os_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    paths = [_download_file(file, folder, mirrors) for file in source.files]
    return _unpack(paths[0], source.members) if source.members else paths


def _mirrors(name: str, source: Source, mirror: str | None) -> tuple[str, ...]:
    mirror = mirror or os.environ.get(MIRROR_VARIABLE)
    if not mirror:
        return source.mirrors
    parts = urllib.parse.urlsplit(mirror)
    if parts.scheme not in ("http", "https") or not parts.hostname or not mirror.isprintable():
        raise UserError(f"{quote(mirror)} is not a mirror: give an address that begins with http:// or https://.")
    return (f"{mirror.rstrip('/')}/{name}/",)


def _download_file(file: RemoteFile, folder: Path, mirrors: Sequence[str]) -> Path:
    path = folder / file.name
    with translate_os_errors(path):
        if path.exists():
            if _sha256(path) == file.sha256:
                return path
            raise UserError(
                f"{path} is there and is not the published file (SHA-256 {_sha256(path)[:12]}, {file.sha256[:12]} "
                "expected): move or remove it, then give the same command again."
            )
    problems: list[str] = []
    for base in mirrors:
        for _ in range(ATTEMPTS):
            part = path.with_name(file.name + _PART_SUFFIX)
            try:
                _fetch(base + urllib.parse.quote(file.name), part, file.name)
            except (OSError, http.client.HTTPException) as error:
                if isinstance(error, _DiskError):
                    raise SystemFailure(
                        f"{part} cannot be written: {error}; free some space, then run again."
                    ) from error
                reason = getattr(error, "reason", None) or error
                problems.append(f"{base}: {' '.join(str(reason).split())[:200] or type(error).__name__}")
                if isinstance(error, urllib.error.HTTPError) and error.code in (403, 404, 410):
                    break
                continue
            with translate_os_errors(part):
                actual = _sha256(part)
                if actual == file.sha256:
                    part.replace(path)
                    return path
                part.unlink()
            problems.append(f"{base}: its file has SHA-256 {actual[:12]}, not {file.sha256[:12]}")
    raise DownloadFailed(
        f"{file.name} could not be downloaded: {'; '.join(dict.fromkeys(problems))}. Give the same command again to "
        f"resume, or another mirror (--mirror or {MIRROR_VARIABLE})."
    )


class _DiskError(OSError):
    """An error of writing the file, not of the network."""


def _fetch(address: str, part: Path, name: str) -> None:
    """Append the missing bytes of a file to `part`. Raises OSError, HTTPException."""
    present = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": f"supermask/{__version__}", "Accept-Encoding": "identity"}
    if present:
        headers["Range"] = f"bytes={present}-"
    request = urllib.request.Request(address, headers=headers)  # noqa: S310 - http or https: checked, or a constant
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS)  # noqa: S310
    except urllib.error.HTTPError as error:
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and present:
            return  # Nothing is missing, or other bytes are here: the checksum tells.
        raise
    with response:
        if present and not _continues(response, present):
            present = 0  # A server without ranges sends the whole file.
        _write(response, part, present, name)


def _continues(response: http.client.HTTPResponse, present: int) -> bool:
    begins = (response.headers.get("Content-Range") or "").startswith(f"bytes {present}-")
    return response.status == http.HTTPStatus.PARTIAL_CONTENT and begins


def _write(response: http.client.HTTPResponse, part: Path, present: int, name: str) -> None:
    length = response.headers.get("Content-Length") or ""
    total = present + int(length) if length.isascii() and length.isdecimal() else 0
    if total > MAX_BYTES:
        raise OSError(f"{total:,} bytes, more than the {MAX_BYTES:,} that any of the files has")
    try:
        file = part.open("ab" if present else "wb")
    except OSError as error:
        raise _DiskError(error.strerror or str(error)) from error
    with file:
        while chunk := response.read(_CHUNK):
            try:
                file.write(chunk)
            except OSError as error:
                raise _DiskError(error.strerror or str(error)) from error
            present += len(chunk)
            if present > MAX_BYTES:
                raise OSError(f"more than {MAX_BYTES:,} bytes")
            report_progress(f"downloading {name}", present, total)
    if total and present < total:
        raise OSError(f"the connection ended after {present:,} of {total:,} bytes")


def _unpack(archive: Path, members: Sequence[str]) -> list[Path]:
    """Write the members of a checked zip archive beside it; only their own names become paths."""
    paths = [archive.with_name(name) for name in members]
    with translate_os_errors(archive):
        try:
            with zipfile.ZipFile(archive) as file:
                by_name = {info.filename.rsplit("/", 1)[-1]: info for info in file.infolist()}
                for path in paths:
                    if path.name not in by_name or by_name[path.name].file_size > MAX_BYTES:
                        raise DownloadFailed(f"{archive} does not hold {path.name}.")
                    if path.exists() and path.stat().st_size == by_name[path.name].file_size:
                        continue
                    with file.open(by_name[path.name]) as member:
                        write_atomic(path, iter(_reader(member), b""), durable=True)
        except (zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise DownloadFailed(f"{archive} cannot be unpacked ({error}): remove it, then run again.") from error
    return paths


def _reader(member: IO[bytes]) -> Callable[[], bytes]:
    return lambda: member.read(_CHUNK)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
