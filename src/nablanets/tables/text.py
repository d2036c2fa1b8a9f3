"""Text tables: what encoding, separator, decimal sign, comments and units a file uses is found out, and told.

In order: the bytes become text; comment lines go; the separator is the one that gives the header line and the lines
after it the same number of fields; a line below the names that holds no number holds units; then pandas parses the
rest. Lines with more fields than names are refused, since no one can know which fields belong to which names.
"""

from __future__ import annotations

import codecs
import csv
import io
import re
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pandas as pd

from nablanets.errors import DataFileError
from nablanets.tables.table_file import MOST_GROWTH, SMALL, TableFile, TextLayout, check_growth, check_names

#: What --separator takes, and the character; a blank stands for any run of blanks.
SEPARATORS: Final = {",": ",", ";": ";", "tab": "\t", "\\t": "\t", "\t": "\t", "|": "|", "space": " ", " ": " "}
_CANDIDATES: Final = (",", ";", "\t", "|")
#: Lines by which the separator is found.
_SAMPLE_LINES: Final = 50
#: Empty fields at the end of lines, as spreadsheets write them, that are left out.
_MOST_EMPTY: Final = 200
_BYTE_ORDER_MARKS: Final = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_NUMBER: Final = re.compile(r"[+-]?(\d+([.,]\d*)?|[.,]\d+)([eE][+-]?\d+)?")
_COMMENT: Final = re.compile(r"^[ \t]*#(.*)\n?", re.MULTILINE)
_PADDED: Final = re.compile(r"[+-]?0\d+|[+-]?\d{19,}")
#: pandas 3 reads decimal numbers exactly; before, only on request.
_EXACT: Final[dict[str, Any]] = {} if int(pd.__version__.split(".")[0]) >= 3 else {"float_precision": "round_trip"}


@dataclass(frozen=True)
class _Head:
    """What the first lines tell: names (with those of trailing empty columns), units, and how many lines it took."""

    names: list[str]
    units: dict[str, str]
    lines: int


def read_text(path: Path, *, separator: str | None = None) -> TableFile:
    """The columns of a CSV or TSV file, compressed with gzip or not."""
    if separator is not None and separator not in SEPARATORS:
        raise DataFileError(f"--separator: expected one of , ; | tab space, got {separator!r}.")
    content = path.read_bytes()
    if path.name.lower().endswith(".gz"):
        content = _decompressed(content, path)
    text, encoding, remarks = _decoded(content, path)
    text, comment = _without_comments(text)
    if not text or text.isspace():
        raise DataFileError(f"{path} cannot be read as a table: it is empty.")
    sample = _first_lines(text)
    if comment is not None and _is_header_of(comment, sample):
        # As numpy.savetxt writes it: the names stand in a comment.
        text, sample = f"{comment}\n{text}", [comment, *sample]
        remarks = (*remarks, "the names of the columns stand in a comment")
    chosen = SEPARATORS[separator] if separator is not None else _separator_of(sample, path)
    if separator is None and chosen != ",":
        told = {"\t": "tabs", " ": "blanks"}.get(chosen, repr(chosen))
        remarks = (*remarks, f"columns are separated by {told}")
    head = _head(text, chosen, path)
    body = _rest(text, head.lines)
    decimal = _decimal(body, chosen)
    if decimal == ",":
        remarks = (*remarks, "numbers have decimal commas")
    if head.units:
        remarks = (*remarks, f"units: {', '.join(f'{name} in {unit}' for name, unit in head.units.items())}")
    frame, padded = _parse(body, head.names, chosen, decimal, path)
    layout = TextLayout(chosen, decimal, encoding, bool(head.units))
    return TableFile(frame, layout, head.units, padded, remarks)


def _decompressed(content: bytes, path: Path) -> bytes:
    """What a gzip file holds, one part after the other, and no more of it than a plausible table."""
    limit = max(SMALL, MOST_GROWTH * len(content))
    parts: list[bytes] = []
    size = 0
    rest = content
    while rest:
        stream = zlib.decompressobj(zlib.MAX_WBITS | 16)
        part = stream.decompress(rest, limit - size + 1)
        size += len(part)
        check_growth(size, len(content), path)
        if not stream.eof:
            raise DataFileError(f"{path} is a gzip file that ends too early. Copy or write it again.")
        parts.append(part)
        rest = stream.unused_data.lstrip(b"\0")
    return b"".join(parts)


def _decoded(content: bytes, path: Path) -> tuple[str, str, tuple[str, ...]]:
    """The text with line ends as \\n, how to encode it again, and remarks."""
    remarks: tuple[str, ...] = ()
    for mark, name in _BYTE_ORDER_MARKS:
        if content.startswith(mark):
            text, encoding = content.decode(name), "utf-8-sig"
            break
    else:
        text, encoding = "", "utf-8"
        try:
            text = content.decode("utf-8")
        except UnicodeDecodeError:
            if b"\0" not in content:
                text = content.decode("cp1252", errors="replace")
                remarks = ("the text is not UTF-8; it is read as Windows-1252",)
        if b"\0" in content:
            raise DataFileError(
                f"{path} cannot be read as a table: it holds zero bytes. Text in UTF-16 needs a byte order mark; save "
                "it as UTF-8."
            )
    if "\0" in text:
        raise DataFileError(f"{path} cannot be read as a table: it holds zero characters. Save it as UTF-8 text.")
    return text.replace("\r\n", "\n").replace("\r", "\n"), encoding, remarks


def _without_comments(text: str) -> tuple[str, str | None]:
    """The text without lines that start with #, and the last one before the first other line."""
    if "#" not in text:
        return text, None
    comment = None
    position = 0
    while match := re.compile(r"[ \t\n]*#(.*)\n?").match(text, position):
        comment = match[1].strip()
        position = match.end()
    return _COMMENT.sub("", text[position:]), comment


def _lines(text: str) -> Iterator[str]:
    """Lines with their ends, one by one: most callers need the first few of a large file."""
    position = 0
    while position < len(text):
        end = text.find("\n", position) + 1 or len(text)
        yield text[position:end]
        position = end


def _first_lines(text: str) -> list[str]:
    lines: list[str] = []
    for line in _lines(text):
        if line.strip():
            lines.append(line.rstrip("\n"))
        if len(lines) > _SAMPLE_LINES:
            break
    return lines


def _fields(line: str, separator: str) -> list[str]:
    if separator == " ":
        return line.split()
    fields = next(csv.reader([line], delimiter=separator, skipinitialspace=True), [])
    return [field.strip() for field in fields]


def _without_trailing(fields: list[str]) -> list[str]:
    end = len(fields)
    while end > 0 and not fields[end - 1]:
        end -= 1
    return fields[:end]


def _is_number(field: str) -> bool:
    return _NUMBER.fullmatch(field) is not None or field.lower().lstrip("+-") in ("nan", "inf", "infinity")


def _is_header_of(comment: str, sample: list[str]) -> bool:
    """Whether a comment names the columns of lines that have no other names."""
    for separator in (*_CANDIDATES, " "):
        names, first = _fields(comment, separator), _fields(sample[0], separator)
        if len(names) == len(first) > 1 and all(map(_is_number, first)) and not any(map(_is_number, names)):
            return True
    return False


def _separator_of(sample: list[str], path: Path) -> str:
    """The separator by which the names are at least two and every line has as many fields, or fewer."""
    possible = [candidate for candidate in _CANDIDATES if len(_without_trailing(_fields(sample[0], candidate))) > 1]
    fitting = [candidate for candidate in possible if _fits(sample, candidate)]
    if len(fitting) > 1:
        raise DataFileError(f"{path}: columns may be separated by {' or '.join(map(repr, fitting))}. Give --separator.")
    if fitting or possible:
        return (fitting or possible)[0]
    return " " if len(sample[0].split()) > 1 and _fits(sample, " ") else ","


def _fits(sample: list[str], separator: str) -> bool:
    width = len(_without_trailing(_fields(sample[0], separator)))
    widths = [len(_without_trailing(_fields(line, separator))) for line in sample[1:]]
    return not widths or (max(widths) <= width and width in widths)


def _head(text: str, separator: str, path: Path) -> _Head:
    """Names and units from the first lines."""
    stream = _lines(text)
    rows: list[tuple[list[str], int]] = []
    if separator == " ":
        for count, line in enumerate(stream, start=1):
            if line.strip():
                rows.append((line.split(), count))
            if len(rows) == 3:
                break
    else:
        reader = csv.reader(stream, delimiter=separator, skipinitialspace=True, strict=False)
        for row in reader:
            if any(field.strip() for field in row):
                rows.append(([field.strip() for field in row], reader.line_num))
            if len(rows) == 3:
                break
    names, lines = rows[0]
    if all(_is_number(name) for name in names if name):
        raise DataFileError(
            f"{path}: the first line holds numbers ({', '.join(names[:5])}). Expected names of the columns there, such "
            "as x1,x2,g1,g2."
        )
    units = {}
    if len(rows) == 3 and _is_units(rows[1][0], rows[2][0], len(names)):
        units = {name: unit.strip("[]()") for name, unit in zip(names, rows[1][0], strict=False) if name and unit}
        lines = rows[1][1]
    return _Head(names, units, lines)


def _is_units(second: list[str], third: list[str], width: int) -> bool:
    """Whether a line below the names holds units: text alone, where the line after it has numbers."""
    texts = [i for i, field in enumerate(second) if field]
    if not texts or len(second) > width or any(_is_number(second[i]) and second[i] != "1" for i in texts):
        return False
    below = [third[i] for i in texts if i < len(third) and third[i]]
    is_plain_one = all(second[i] == "1" for i in texts)
    return not is_plain_one and len(below) > 0 and all(map(_is_number, below))


def _rest(text: str, lines: int) -> str:
    """The text after so many lines."""
    position = 0
    for _ in range(lines):
        end = text.find("\n", position)
        if end < 0:
            return ""
        position = end + 1
    return text[position:]


def _decimal(body: str, separator: str) -> str:
    """A comma if fields are numbers with one, and none has a point; a point otherwise."""
    if separator == "," or "," not in body:
        return "."
    edge = r"\s" if separator in " \t" else rf"[\s{re.escape(separator)}\"]"
    if re.search(rf"(?:^|{edge})[+-]?\d*,\d+(?:[eE][+-]?\d+)?(?={edge}|$)", body) is None:
        return "."
    if "." not in body:
        return ","
    with_point = re.search(rf"(?:^|{edge})[+-]?(?:\d+\.\d*|\.\d+)(?:[eE][+-]?\d+)?(?={edge}|$)", body)
    return "," if with_point is None else "."


def _parse(
    body: str, raw_names: list[str], separator: str, decimal: str, path: Path
) -> tuple[pd.DataFrame, frozenset[str]]:
    """The columns, and those that are integers with leading zeros."""
    names = _without_trailing(raw_names)
    check_names(names, path)
    width = len(raw_names) + 1
    sample = [_fields(line, separator) for line in _first_lines(body)]
    longest = max((len(_without_trailing(fields)) for fields in sample), default=0)
    if longest > len(names):
        raise _too_wide(longest, names, separator, decimal, path)
    # Trailing separators may be more in the lines than below the names.
    width = max([width, *(len(fields) for fields in sample)])
    if width > len(names) + _MOST_EMPTY:
        raise _too_wide(width, names, separator, decimal, path)
    places = [i for i in range(len(names)) if any(len(f) > i and _PADDED.fullmatch(f[i]) for f in sample)]
    with warnings.catch_warnings():
        warnings.simplefilter("error", pd.errors.ParserWarning)
        frame = pd.read_csv(
            io.BytesIO(body.encode()),
            sep=r"\s+" if separator == " " else separator,
            decimal=decimal,
            header=None,
            names=range(width),
            index_col=False,
            dtype=dict.fromkeys(places, str),
            keep_default_na=False,
            na_values=[""],
            skipinitialspace=True,
            low_memory=False,
            engine="c",
            encoding="utf-8",
            **_EXACT,
        )
    for place in range(len(names), width):
        beyond = frame[place].notna()
        if beyond.any():
            row = int(beyond.to_numpy().argmax())
            raise _too_wide(place + 1, names, separator, decimal, path, f"data row {row + 1} has")
    frame = frame.iloc[:, : len(names)]
    frame.columns = pd.Index(names)
    digits = [i for i in places if frame.iloc[:, i].dropna().astype(str).str.fullmatch(r"[+-]?\d+").all()]
    return frame, frozenset(names[i] for i in digits)


def _too_wide(
    fields: int, names: list[str], separator: str, decimal: str, path: Path, who: str = "a line has"
) -> DataFileError:
    shown = ", ".join(names[:10])
    hint = "Name every column, that of line numbers too"
    if separator == ",":
        hint += "; separate columns with ';' where numbers have decimal commas"
    return DataFileError(f"{path}: {who} {fields} fields, but there are {len(names)} names ({shown}). {hint}.")
