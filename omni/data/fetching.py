"""Public homes of data: a repository at a commit, a package at a version. Fetching one ends in a folder of the files that are wanted.

A download that was cut is continued where the server allows it. Whatever goes wrong is a DataError of one line.
"""

from __future__ import annotations

import gzip
import http.client
import shutil
import subprocess
import tarfile
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Protocol

from omni.errors import DataError

ARCHIVE = "https://codeload.github.com/{repository}/tar.gz/{commit}"
SILENCE_S = 60  # of a server, then we give up
DOWNLOAD_S = 2 * 3600
CLIENT_S = 1800
MAX_UNPACKED_BYTES = 8 * 2**30


class Home(Protocol):
    """Where the public keeps a data set. `str(home)` names it with its version."""

    def fetch(self, work: Path) -> Path:
        """The folder, within `work`, of the wanted files. Raises DataError when they cannot be had."""


@dataclass(frozen=True)
class GitHub:
    """A repository at a commit; of its files those below `keep`."""

    repository: str
    commit: str
    keep: tuple[str, ...]
    max_mb: int = 2000

    def __str__(self) -> str:
        return f"github.com/{self.repository} @ {self.commit}"

    def fetch(self, work: Path) -> Path:
        name = self.repository.replace("/", "_")
        archive = work / f"{name}.tar.gz"
        download(ARCHIVE.format(repository=self.repository, commit=self.commit), archive, max_bytes=self.max_mb * 10**6)
        with gzip.open(archive) as tar:
            return _unpacked(tar, archive, work / name, self.keep)


@dataclass(frozen=True)
class Npm:
    """A package of npm, fetched by `npm pack`."""

    package: str
    version: str
    keep: tuple[str, ...]

    def __str__(self) -> str:
        return f"npm package {self.package} {self.version}"

    def fetch(self, work: Path) -> Path:
        archive = work / f"{self.package}-{self.version}.tgz"
        if not archive.exists():
            run_client(["npm", "pack", "--silent", f"{self.package}@{self.version}"], work)
        with gzip.open(archive) as tar:
            return _unpacked(tar, archive, work / self.package, self.keep)


@dataclass(frozen=True)
class Debian:
    """A package of Debian, fetched by `apt-get download`."""

    package: str
    version: str
    keep: tuple[str, ...]

    def __str__(self) -> str:
        return f"Debian package {self.package} {self.version}"

    def fetch(self, work: Path) -> Path:
        archive = work / f"{self.package}_{self.version}_all.deb"
        if not archive.exists():
            run_client(["apt-get", "download", f"{self.package}={self.version}"], work)
        _need("dpkg-deb")
        with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(archive)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as unpacker:
            assert unpacker.stdout is not None
            return _unpacked(unpacker.stdout, archive, work / self.package, self.keep)


@dataclass(frozen=True)
class Made:
    """Not to be had from anybody: `how` tells how to make it."""

    how: str

    def __str__(self) -> str:
        return "made by a synthesizer"

    def fetch(self, work: Path) -> Path:
        raise DataError(self.how)


def download(url: str, path: Path, *, max_bytes: int) -> None:
    """The contents of `url` in `path`, whole or not at all; the part of an interrupted download is kept beside it and continued."""
    if path.exists():
        return
    part = path.with_name(f"{path.name}.part")
    done = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={done}-"} if done else {})
    deadline = time.monotonic() + DOWNLOAD_S
    try:
        with urllib.request.urlopen(request, timeout=SILENCE_S) as response:
            done = done if getattr(response, "status", None) == 206 else 0
            with open(part, "ab" if done else "wb") as file:
                while block := response.read(2**20):
                    done += len(block)
                    if done > max_bytes:
                        raise DataError(f"{url}: more than the {max_bytes / 1e6:.0f} MB that were expected")
                    if time.monotonic() > deadline:
                        raise DataError(f"{url}: not complete after {DOWNLOAD_S // 3600} hours; the same command continues")
                    file.write(block)
    except (OSError, http.client.HTTPException) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        raise DataError(f"{url}: cannot be fetched ({reason})") from None
    part.replace(path)


def run_client(command: Sequence[str], work: Path) -> None:
    """Run a package client in `work`. Raises DataError if it is missing or fails."""
    shown = " ".join(command)
    _need(command[0])
    try:
        result = subprocess.run(command, cwd=work, capture_output=True, text=True, timeout=CLIENT_S, check=False)
    except subprocess.TimeoutExpired:
        raise DataError(f"`{shown}` was not done after {CLIENT_S // 60} minutes") from None
    if result.returncode:
        said = [line for line in result.stderr.splitlines() if line.strip()] or ["it said nothing"]
        errors = [line for line in said if line.lower().startswith(("e:", "npm err", "error"))]
        raise DataError(f"`{shown}` failed: {(errors or said)[0].strip()}")


def _need(program: str) -> None:
    if shutil.which(program) is None:
        raise DataError(f"fetching it needs the program {program!r}, which is not installed")


def _unpacked(tar: gzip.GzipFile | IO[bytes], archive: Path, folder: Path, keep: tuple[str, ...]) -> Path:
    """The wanted files of a tar in `folder`: those whose paths, without the first folder, begin with one of `keep`.

    An archive that is damaged or holds nothing of it is removed, so that the next attempt fetches it again.
    """
    shutil.rmtree(folder, ignore_errors=True)
    try:
        _extract(tar, folder, [PurePosixPath(path).parts for path in keep])
        if not folder.exists():
            raise DataError(f"{archive.name}: holds none of {', '.join(keep)}")
    except (DataError, tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        archive.unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, DataError):
            raise
        raise DataError(f"{archive.name}: arrived damaged ({error}); the same command fetches it again") from None
    return folder


def _extract(tar: gzip.GzipFile | IO[bytes], folder: Path, keep: Sequence[tuple[str, ...]]) -> None:
    size = 0
    with tarfile.open(fileobj=tar, mode="r|") as members:
        for member in members:
            path = PurePosixPath(member.name).parts[1:]
            if member.isfile() and any(path[: len(wanted)] == wanted for wanted in keep):
                size += member.size
                if size > MAX_UNPACKED_BYTES:
                    raise DataError(f"unpacks to more than {MAX_UNPACKED_BYTES / 1e9:.0f} GB")
                if ".." in path:
                    raise DataError(f"{member.name}: leads out of its folder")
                content = members.extractfile(member)
                assert content is not None, "a file"
                target = folder.joinpath(*path)
                target.parent.mkdir(parents=True, exist_ok=True)
                with target.open("wb") as file:
                    shutil.copyfileobj(content, file)
    while tar.read(2**20):  # to its end, where gzip compares its checksum
        pass
