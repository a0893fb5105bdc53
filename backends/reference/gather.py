"""Unpack more openly licensed text out of Debian packages.

``python -m moesim.backends.reference.gather -o DIR`` fetches the packages below with ``apt-get
download`` and writes, for each source, one ``NAME.txt.xz`` whose documents are parted by a form
feed, and a ``manifest.json`` that ``texts.py`` reads. Nothing is installed. It needs a Debian
machine; the versions that apt offers are noted in the manifest.
"""

import argparse
import fnmatch
import gzip
import html.parser
import json
import lzma
import re
import subprocess
import tarfile
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

FORM_FEED = "\f"
SMALLEST_DOCUMENT_CHARS = 200


@dataclass(frozen=True)
class Source:
    """One domain's share of one Debian package.

    Attributes:
        name: File name of the result, without its ending.
        package: Debian package, or a pattern whose newest match is taken: names of kernel packages
            carry a version and vanish with the next one.
        members: Pattern that a member's path must contain to be read.
        domain: As in the corpora's manifest; texts of one domain train and are judged together.
        licence: As the package's copyright file says.
        largest_bytes: Members are read in order of their names until this much text is there.
    """

    name: str
    package: str
    members: str
    domain: str
    licence: str
    largest_bytes: int = 6_000_000


def _handbook(language: str, domain: str) -> Source:
    return Source(
        f"handbook_{language[:2]}",
        "debian-handbook",
        rf"/html/{language}/[^/]+\.html$",
        domain,
        "GPL-2.0+ or CC-BY-SA-3.0",
    )


SOURCES = (
    _handbook("en-US", "technical English"),
    _handbook("de-DE", "German"),
    _handbook("fr-FR", "French"),
    _handbook("es-ES", "Spanish"),
    _handbook("it-IT", "Italian"),
    _handbook("ru-RU", "Russian"),
    _handbook("zh-CN", "Chinese"),
    Source("perl_doc", "perl-doc", r"\.pod$", "technical English", "GPL-1+ or Artistic"),
    Source("python_doc", "python3.11-doc", r"\.info\.gz$", "technical English", "PSF-2.0"),
    Source("faq", "anarchism", r"/html/[^/]+\.html$", "English prose", "GPL-2", 9_000_000),
    Source("gcide", "dict-gcide", r"\.dict\.dz$", "English dictionary", "GPL-1+", 8_000_000),
    Source("deu_eng", "dict-freedict-deu-eng", r"\.dict\.dz$", "German-English", "GPL-2+"),
    Source("sympy", "python3-sympy", r"\.py$", "Python code", "BSD-3-Clause", 5_000_000),
    Source("django", "python3-django", r"\.py$", "Python code", "BSD-3-Clause", 4_000_000),
    Source("networkx", "python3-networkx", r"\.py$", "Python code", "BSD-3-Clause", 3_000_000),
    Source("go", "golang-1.19-src", r"(?<!_test)\.go$", "Go code", "BSD-3-Clause", 8_000_000),
    Source("linux", "linux-headers-*-common", r"/include/.*\.h$", "C code", "GPL-2"),
    Source("set_mm", "metamath-databases", r"/set\.mm", "formal mathematics", "CC0-1.0", 8_000_000),
)


class _Prose(html.parser.HTMLParser):
    """The text of a page, without scripts, styles and runs of blank lines."""

    def __init__(self) -> None:
        super().__init__()
        self.pieces: list[str] = []
        self.hidden = 0

    def handle_starttag(self, tag: str, attrs: object) -> None:
        del attrs
        self.hidden += tag in {"script", "style", "head"}

    def handle_endtag(self, tag: str) -> None:
        self.hidden -= tag in {"script", "style", "head"}

    def handle_data(self, data: str) -> None:
        if not self.hidden:
            self.pieces.append(data)


def _plain(path: str, raw: bytes) -> str:
    if path.endswith((".gz", ".dz")):
        raw = gzip.decompress(raw)
    text = raw.decode("utf-8", errors="replace")
    if path.endswith(".html"):
        parser = _Prose()
        parser.feed(text)
        text = re.sub(r"\s*\n\s*\n\s*", "\n\n", "".join(parser.pieces))
    return text.replace(FORM_FEED, "\n").replace("\x1f", "\n").strip()


def _members(archive: Path, pattern: re.Pattern[str]) -> Iterator[tuple[str, bytes]]:
    """Yield path and content of the package's files that match, in order of their paths."""
    with tempfile.TemporaryFile() as unpacked:
        command = ["dpkg-deb", "--fsys-tarfile", str(archive)]
        subprocess.run(command, stdout=unpacked, check=True)  # noqa: S603 - fixed words and our own file
        unpacked.seek(0)
        with tarfile.open(fileobj=unpacked) as files:
            found = [m for m in files.getmembers() if m.isfile() and pattern.search(m.name)]
            for member in sorted(found, key=lambda member: member.name):
                content = files.extractfile(member)
                if content is not None:
                    yield member.name, content.read()


def collect(source: Source, archive: Path) -> str:
    """Return the source's documents, parted by form feeds."""
    documents: list[str] = []
    size_bytes = 0
    for path, raw in _members(archive, re.compile(source.members)):
        text = _plain(path, raw)
        room_bytes = source.largest_bytes - size_bytes
        if room_bytes <= 0:
            break
        encoded = text.encode()
        if len(encoded) > room_bytes:
            text = encoded[:room_bytes].decode(errors="ignore").rpartition("\n")[0]
        if len(text) >= SMALLEST_DOCUMENT_CHARS:
            documents.append(text)
            size_bytes += len(text.encode())
    return FORM_FEED.join(documents)


def newest(names: Iterable[str], pattern: str) -> str:
    """Return the name that matches and has the highest numbers, compared as numbers.

    Raises:
        ValueError: None matches.
    """
    found = fnmatch.filter(names, pattern)
    if not found:
        raise ValueError(f"no package matches {pattern}; run apt-get update, or name another")
    return max(found, key=lambda name: ([int(run) for run in re.findall(r"\d+", name)], name))


def fetch(package: str, packages: Path) -> Path:
    """Return the package's archive in the folder, where apt-get puts it if it is not there yet."""
    if not list(packages.glob(f"{package}_*.deb")):
        command = ["apt-cache", "pkgnames", package.partition("*")[0]]
        listed = subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603 - fixed words
        command = ["apt-get", "download", newest(listed.stdout.split(), package)]
        subprocess.run(command, cwd=packages, check=True, capture_output=True)  # noqa: S603 - fixed words
    archives = {archive.name: archive for archive in packages.glob(f"{package}_*.deb")}
    return archives[newest(archives, f"{package}_*.deb")]


def main() -> None:
    """Fetch every package and write the texts and their manifest."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--packages", type=Path, help="folder for the packages; kept between runs")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    packages = options.packages or options.output / "packages"
    packages.mkdir(parents=True, exist_ok=True)
    manifest = []
    for source in SOURCES:
        archive = fetch(source.package, packages)
        text = collect(source, archive)
        path = options.output / f"{source.name}.txt.xz"
        path.write_bytes(lzma.compress(text.encode(), preset=6))
        manifest.append(
            {
                "file": path.name,
                "bytes": len(text.encode()),
                "domain": source.domain,
                "source": f"Debian {archive.name}",
                "licence": source.licence,
                "open_licence": True,
            }
        )
        print(f"{path.name}: {manifest[-1]['bytes']:,} bytes of {source.domain}")  # noqa: T201 - a script's report
    (options.output / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")


if __name__ == "__main__":
    main()
