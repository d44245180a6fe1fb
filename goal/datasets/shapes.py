"""What shape a data set has: each becomes the same rows, read as a stream (docs/data.md has the table)."""

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, islice
from pathlib import Path

from goal.datasets import captions_file, columnar, tars
from goal.datasets.captions_file import GZIP, Line
from goal.datasets.columns import SPLIT_NAMES, TURNS, URL, URLS, Columns, plain, shown, value
from goal.errors import UserError

CAPTIONS, METADATA = "captions", "metadata"
COLUMNAR = (".parquet", ".arrow")
TAR = ".tar"
# What `datasets` and img2dataset write beside the data.
ABOUT = re.compile(r"(dataset_info|dataset_infos|dataset_dict|state|.*_stats)\.json|cache-.*\.arrow")
COCO = re.compile(r"captions_(?P<split>\w+)\.json")
# Rows looked at before the reading begins.
HEAD = 20


@dataclass(frozen=True)
class Found:
    """A data set: the file or folder it was found in, its rows, and the folder their pictures are below.

    words: its shape, for people; columns: all columns, where the file's head says them.
    """

    file: Path
    words: str
    pictures: Path
    lines: Iterator[Line]
    columns: tuple[str, ...] = ()


# The rows of a file, whose path below the pictures' folder is given.
Read = Callable[[Path, str], Iterator[Line]]


def find(path: Path, columns: Columns, images: str = "", separator: str = "") -> Found:
    """The data set at `path`, a file or a folder.

    images: the folder of the pictures (data.images); "": found by the first rows. Raises UserError where
    there is no data set, or more than one, or where it has only addresses of pictures.
    """
    check_here(path)
    reads: dict[str, Read] = {
        **dict.fromkeys(captions_file.READERS, lambda file, _: captions_file.read(file, separator)),
        **dict.fromkeys(COLUMNAR, lambda file, place: columnar.read(file, place, columns)),
        TAR: tars.read,
    }
    if path.is_dir():
        found = _in_folder(path, reads)
    elif _kind(path) in reads:
        found = _file(path, reads)
    else:
        raise UserError(f"{path}: a captions file ends in {', '.join(reads)}, perhaps with {GZIP} behind it")
    if images:
        found = replace(found, pictures=Path(images))
    if _kind(found.file) in COLUMNAR:
        found = replace(found, columns=tuple(columnar.names(found.file)))
    head = list(islice(found.lines, HEAD))
    _check_addresses(found, head, columns)
    pictures = found.pictures if images else _pictures(found, head, columns)
    words = found.words + (f", pictures in {pictures}" if pictures != found.pictures else "")
    return replace(found, words=words, pictures=pictures, lines=chain(head, found.lines))


def check_here(path: Path) -> None:
    """Raise UserError where no file or folder is at `path`, with what else it may be."""
    if path.exists():
        return
    fix = "set data.path to a folder of pictures with captions, or to a file"
    # Path makes one slash of two.
    if re.match(r"[a-z][a-z0-9]+:/", str(path)):
        fix = "an address is not read here; download it, and set data.path to the folder"
    elif re.fullmatch(r"[\w.-]+/[\w.-]+", str(path)):
        command = f"hf download {path} --repo-type dataset --local-dir {path.name}"
        fix += f"; if it is a set of the Hugging Face Hub, download it first: `{command}`"
    raise UserError(f"{path}: not found; {fix}")


def _file(file: Path, reads: dict[str, Read]) -> Found:
    kind = _kind(file)
    words = f"a file of {'WebDataset' if kind == TAR else kind[1:].upper()}"
    return Found(file, words, file.parent, reads[kind](file, file.name))


def _in_folder(folder: Path, reads: dict[str, Read]) -> Found:
    top = [folder / name for name in sorted(os.listdir(folder))]
    own = [file for file in top if _stem(file) == CAPTIONS and _kind(file) in captions_file.READERS]
    if len(own) > 1:
        both = " and ".join(file.name for file in own)
        raise UserError(f"{folder}: both {both}; set data.path to the file to use")
    if own:
        return _file(own[0], reads)
    tables, pictures = _walk(folder)
    by_kind = {kind: [file for file in tables if _kind(file) == kind] for kind in reads}
    if metadata := [file for file in tables if _stem(file) == METADATA and _kind(file) != TAR]:
        words = f"imagefolder with {_counted(metadata)}"
        return Found(metadata[0], words, folder, _several(folder, metadata, partial(_beside_metadata, reads)))
    if by_kind[TAR]:
        words = f"WebDataset, {_counted(by_kind[TAR])}"
        return Found(folder, words, folder, _several(folder, by_kind[TAR], reads[TAR]))
    for kind in COLUMNAR:
        # img2dataset writes such a table for each folder of pictures.
        files = [file for file in by_kind[kind] if not file.with_suffix("").is_dir()]
        if files:
            words = f"{kind[1:].capitalize()}, {_counted(files)}"
            return Found(files[0], words, folder, _several(folder, files, reads[kind]))
    if coco := [file for file in by_kind[".json"] if COCO.fullmatch(file.name)]:
        words = f"COCO captions, {_counted(coco)}"
        return Found(coco[0], words, folder, _several(folder, coco, partial(_coco, folder, reads)))
    stems = {os.path.splitext(picture)[0] for picture in pictures}
    texts = [file for file in tables if file.relative_to(folder).with_suffix("").as_posix() not in stems]
    texts = [file for file in texts if _kind(file) in captions_file.READERS]
    if len(texts) == 1:
        return _file(texts[0], reads)
    beside = [one for one in pictures if _has_text(folder, one)]
    if beside:
        words = f"pictures with text of the same name, {len(beside):,} of {len(pictures):,}"
        return Found(folder, words, folder, tars.beside(folder, pictures))
    if texts:
        names = shown(file.relative_to(folder).as_posix() for file in texts)
        raise UserError(f"{folder}: several files could be the captions: {names}; set data.path to one")
    known = f"no {CAPTIONS}.jsonl or {CAPTIONS}.csv or another shape of docs/data.md"
    raise UserError(f"{folder}: {known} in it; set data.path to the folder that holds one, or to the file")


def _walk(folder: Path) -> tuple[list[Path], list[str]]:
    """The files below a folder that may hold rows, and its pictures, relative to it; both in order."""
    tables, pictures, seen = [], [], set()
    for top, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(top)
        if real in seen:  # a link to a folder above
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            file = Path(top, name)
            if file.suffix[1:].lower() in tars.PICTURES:
                pictures.append(file.relative_to(folder).as_posix())
            elif _kind(file) and not ABOUT.fullmatch(name):
                tables.append(file)
    return tables, pictures


def _several(folder: Path, files: list[Path], read: Read) -> Iterator[Line]:
    """The rows of several files, with the split that a file's path names, where train and test are named."""
    named = {file: _split(file.relative_to(folder).as_posix()) for file in files}
    used = {"train", "test"} <= set(named.values())
    for file in files:
        for line in read(file, file.relative_to(folder).as_posix()):
            if used and named[file]:
                line.values.setdefault("split", named[file])
            yield line


def _beside_metadata(reads: dict[str, Read], file: Path, place: str) -> Iterator[Line]:
    """The rows of a metadata file, whose pictures are named from its own folder."""
    above = os.path.dirname(place)
    for line in reads[_kind(file)](file, place):
        for name, found in line.values.items():
            if above and plain(name) == "file_name" and isinstance(found, str):
                line.values[name] = f"{above}/{found}"
        yield line


def _coco(folder: Path, reads: dict[str, Read], file: Path, place: str) -> Iterator[Line]:
    """The rows of captions_<split>.json: pictures in <split>/, boxes in instances_<split>.json, if there."""
    split = COCO.fullmatch(file.name)["split"]
    own, instances = folder / split, file.with_name(f"instances_{split}.json")
    found = captions_file.coco(instances) if instances.exists() else None
    boxes = captions_file.coco_boxes(found) if found else {}
    for line in reads[_kind(file)](file, place):
        if (name := line.values.get("image_id")) in boxes:
            line.values["regions"] = boxes[name]
        if own.is_dir() and isinstance(name := line.values.get("file_name"), str):
            line.values["file_name"] = f"{own.name}/{name}"
        yield line


def _check_addresses(found: Found, head: list[Line], columns: Columns) -> None:
    """Raise UserError where the pictures are only on the web, with the command that downloads them."""
    rows = [{plain(name): one for name, one in line.values.items()} for line in head if not line.fault]
    named = [
        (name, one)
        for row in rows
        if (name := value(row, map(plain, columns.images))[0])
        for one in [row[name]]
    ]
    column = ""
    if named and all(isinstance(one, str) and URL.match(one) for _, one in named):
        column = named[0][0]
    elif rows and not named:
        column = next((name for name in URLS if any(row.get(name) for row in rows)), "")
    if not column:
        return
    names = {plain(name): name for name in (*found.columns, *head[0].values)}
    column = names.get(column, column)
    captions = [name for name in columns.texts if plain(name) in rows[0] and name not in TURNS]
    chosen = names.get(plain(captions[-1]), "caption") if captions else "caption"
    kind = (_kind(found.file) + GZIP * (found.file.suffix.lower() == GZIP))[1:]
    out = f"{found.file.parent / _stem(found.file)}-pictures"
    raise UserError(
        f"{found.file}: its pictures are only addresses (column {column!r}); download them: img2dataset "
        f"--url_list {found.file} --input_format {kind} --url_col '{column}' --caption_col '{chosen}' "
        f"--output_format webdataset --output_folder {out}, and set data.path to {out}"
    )


def _pictures(found: Found, head: list[Line], columns: Columns) -> Path:
    """The folder that the first rows' pictures are below: the usual one, or the first beside it that fits."""
    rows = ({plain(name): one for name, one in line.values.items()} for line in head)
    named = [value(row, map(plain, columns.images))[1] for row in rows]
    named = [name for name in named if isinstance(name, str) and not os.path.isabs(name)]
    above = found.pictures.parent
    others = [place / name for place in (found.pictures, above) for name in ("images", "")]
    for place in (found.pictures, *others):
        if any(os.path.lexists(os.path.join(place, name.partition("#")[0])) for name in named):
            return place
    return found.pictures


def _kind(file: Path) -> str:
    return captions_file.kind(file) or (s if (s := file.suffix.lower()) in (*COLUMNAR, TAR) else "")


def _stem(file: Path) -> str:
    return file.name.lower().removesuffix(GZIP).rpartition(".")[0]


def _counted(files: list[Path]) -> str:
    return files[0].name if len(files) == 1 else f"{len(files):,} files, the first {files[0].name}"


def _split(place: str) -> str:
    words = re.split(r"[^a-z]+", place.lower())
    return next((SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES), "")


def _has_text(folder: Path, picture: str) -> bool:
    stem = os.path.splitext(os.path.join(folder, picture))[0]
    return any(os.path.exists(f"{stem}.{ending}") for ending in tars.TEXTS)
