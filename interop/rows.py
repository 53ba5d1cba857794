"""Files as they lie on the disk -> rows: JSON objects, lines of tables, parts of plain text.

A file is packed by gzip, bzip2, xz or not, is UTF-8 or UTF-16 with its mark, and holds JSON lines,
a JSON array, a table or plain text: its content decides, never its name. It is read in pieces:
only a JSON array, OASST's messages and any one line must fit into memory at once.

A row that cannot be read is handed on as the ValueError that says why; whoever makes records of the
rows (records.py) skips and counts it, or raises it.
"""
import bz2
import codecs
import csv
import functools
import gzip
import io
import itertools
import json
import lzma
import re
import zlib
from collections import Counter

from plumbing import inputs

PIECE = 2**20                     # bytes unpacked at once


class _Members(io.RawIOBase):
    """What bz2.open and lzma.open give, but that bytes which are no stream are an error: theirs
    end there without a word."""
    def __init__(self, make, packed):
        self.make, self.packed, self.stream, self.raw = make, packed, make(), b""

    def read(self, size):
        while not self.stream.eof or self.raw.strip(b"\0"):
            if self.stream.eof:
                self.stream = self.make()
            if self.stream.needs_input and not self.raw:
                self.raw = self.packed.read(PIECE)
                if not self.raw:
                    raise EOFError("it ends early")
            piece = self.stream.decompress(self.raw, size)
            self.raw = b""
            if self.stream.eof:
                self.raw = self.stream.unused_data or self.packed.read(PIECE)
            if piece:
                return piece
        return b""


# what files are, by their first bytes: packed ones, which are unpacked ...
PACKED = {b"\x1f\x8b": ("gzip", gzip.open),
          b"BZh": ("bzip2", functools.partial(_Members, bz2.BZ2Decompressor)),
          b"\xfd7zXZ\x00": ("xz", functools.partial(_Members, lzma.LZMADecompressor))}
# ... text that is not UTF-8 but says what it is ...
ENCODED = {b"\xff\xfe\x00\x00": "utf-32", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
# ... and others, which are named, with what makes text of them
BINARY = {
    b"PAR1": "Parquet; with pandas: pandas.read_parquet('{path}')"
             ".to_json('x.jsonl', orient='records', lines=True)",
    b"PK\x03\x04": "a zip archive (or a spreadsheet or a document, which are such): unpack it, or "
                   "save it as CSV or text",
    b"\x28\xb5\x2f\xfd": "packed by zstd: unpack it with zstd -d",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive: unpack it",
    b"ARROW1": "Arrow; with datasets: Dataset.from_file('{path}').to_json('x.jsonl')",
    b"SQLite format 3\x00": "an SQLite database: export the table as CSV",
    b"%PDF": "a PDF: pdftotext makes text of it",
    b"\x89PNG": "a picture",
}
MOST_PACKED = 100                 # text is packed to a tenth or a third of its size
DELIMITERS = (",", "\t", ";", "|")    # of tables
NAMES = {"text", "instruction", "question", "chosen", "messages", "conversations"}  # of columns
LOOKED_AT = 20                    # first lines that say what a file is
MOST_NESTED = 250                 # levels of a JSON value
TOO_DEEP = (f"{{where}}: lists and objects lie more than {MOST_NESTED} deep in one another: write "
            f"fewer levels")
PART = 2**11                      # characters of a part, at least; twice as many are two
# Where a document of plain text ends: a form feed, the end of text as tokenizers write it, or a
# line that is a mark of Project Gutenberg or of wikiextractor; and before a title of WikiText.
BORDER = re.compile(r"\f|<\|endoftext\|>|^\*\*\* ?(?:START|END) OF TH.*$|^</?doc\b[^>\n]*>$"
                    r"|(?<=\n)(?=[ ]=[ ][^=\n]+[ ]=[ ]?\n)", re.MULTILINE)
# what each of these holds, which is found in less time
HINTS = ("\f", "<|endoftext|>", "*** START OF", "***START OF", "*** END OF", "***END OF", "<doc",
         "</doc", "\n = ")
# before a space between two words, and before a newline behind a letter or a digit: no tokenizer
# joins these to what is before them
BETWEEN_WORDS = re.compile(r"(?<=\S)(?= \S)|(?<=[^\W_])(?=\n\S)")


class Part(str):
    """A text that goes on in the next row."""


# ---- text ---------------------------------------------------------------------------------------

def read_file(path):
    """The whole text of a file. Raises ValueError as `pieces` does."""
    return "".join(pieces(path))


def pieces(path):
    """Yield the text of a file, about PIECE characters at a time. Raises ValueError naming the
    file, and the line and byte that is not UTF-8."""
    found = _bytes_of(path)
    first = next(found, b"")
    binary = _by_first_bytes(first, BINARY)
    if first[257:262] == b"ustar":
        binary = "a tar archive: unpack it"
    if binary:
        raise ValueError(f"{path} is {binary.format(path=path)}")
    encoding = _by_first_bytes(first, ENCODED) or "utf-8"
    if encoding == "utf-8" and first.count(0) * 100 > len(first) + 200:
        raise ValueError(f"{path} holds NUL bytes, as no text does: if it is UTF-16 without its "
                         f"mark, convert it, e.g. iconv -f utf-16le -t utf-8")
    decoder, line, held = codecs.getincrementaldecoder(encoding)(), 1, ""
    at = 0                                       # bytes decoded so far
    for raw in itertools.chain([first], found, [b""]):
        begun = len(decoder.getstate()[0])       # bytes of a character that is not complete
        try:
            text = held + decoder.decode(raw, final=not raw)
        except UnicodeDecodeError as e:
            byte, line = at - begun + e.start, line + e.object[:e.start].count(b"\n")
            raise ValueError(_not_text(path, encoding, byte, line)) from e
        if at == 0:
            text = text.removeprefix("\ufeff")
        at += len(raw)
        # "\r\n" may be parted
        held = "\r" if raw and text.endswith("\r") else ""
        text = text.removesuffix(held).replace("\r\n", "\n")
        line += text.count("\n")
        if text:
            yield text


def _not_text(path, encoding, byte, line):
    if encoding != "utf-8":
        return (f"{path}: byte {byte} is not {encoding.upper()}, as the file's mark says it is: "
                f"save it as UTF-8")
    return (f"{path}, line {line}: byte {byte} is not UTF-8; convert it, e.g. "
            f"iconv -f latin1 -t utf-8")


def _bytes_of(path):
    """Yield what a file holds, unpacked, about PIECE bytes at a time. Raises ValueError."""
    inputs.check(path)
    try:
        with open(path, "rb") as f:
            packing = _by_first_bytes(f.peek(), PACKED)
            if packing:
                yield from _unpacked(path, f, *packing)
            else:
                yield from iter(lambda: f.read(PIECE), b"")
    except OSError as e:
        raise ValueError(f"{path} cannot be read ({e.strerror}): see who may read it") from e


def _by_first_bytes(raw, kinds):
    """What `kinds` has for the beginning of a file, if anything."""
    return next((kind for begins, kind in kinds.items() if raw.startswith(begins)), None)


def _unpacked(path, packed, name, unpack):
    """Yield what a packed file holds. Raises ValueError if it is damaged, or if it is made to fill
    the memory: megabytes can unpack to gigabytes."""
    size = 0
    try:
        with unpack(packed) as f:
            for piece in iter(lambda: f.read(PIECE), b""):
                size += len(piece)
                if size > MOST_PACKED * packed.tell() + PIECE:
                    raise ValueError(f"{path} unpacks to more than {MOST_PACKED} times its size, "
                                     f"which no text does: unpack it yourself if it is yours")
                yield piece
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as e:
        raise ValueError(f"{path} is a damaged {name} file ({e}): fetch it again") from e


def read_json(path):
    """What a JSON file holds. Raises ValueError, which repeats nothing of it."""
    text = read_file(path)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as e:
        raise ValueError(f"{path} is not readable JSON: fetch it again") from e


def shown(name):
    """A name that a stranger's file gives, as it can stand in a sentence."""
    return "".join(filter(str.isprintable, str(name)[:80]))


def form_of(value):
    """What a value is, in JSON's words."""
    forms = ((str, "a text"), (bool, "true or false"), ((int, float), "a number"), (list, "a list"),
             (dict, "an object"))
    return next((form for kind, form in forms if isinstance(value, kind)), "null")


def lines(text):
    """Yield the lines of a text that comes in pieces. str.splitlines would also cut at U+2028."""
    begun = []                                   # of a line that goes on in the next piece
    for piece in text:
        first, newline, rest = piece.partition("\n")
        begun.append(first)
        if newline:
            yield "".join(begun)
            *whole, last = rest.split("\n")
            yield from whole
            begun = [last]
    yield "".join(begun)


# ---- rows ---------------------------------------------------------------------------------------

def read_rows(path, renamed, separator=""):
    """Yield (where, row) of a file: a JSON value, the dict of a table's line, {"text": ...} of a
    document of plain text or, of a long one, of its parts (Part); or the ValueError that says what
    is wrong with it.

    renamed     {a field's name: the known name}
    separator   what parts the documents of plain text, instead of BORDER
    Raises ValueError where the file is damaged or of an unknown kind.
    """
    text = pieces(path)
    head, more = next(text, ""), next(text, "")
    text = itertools.chain([head, more], text)
    if more:                                     # the last line is cut off
        head = head[:head.rfind("\n") + 1] or head
    if "\r" in head and "\n" not in head:                    # line ends of old Macintoshes
        text = (piece.replace("\r", "\n") for piece in text)
        head = head.replace("\r", "\n")
    delimiter = _delimiter_of(head, renamed)
    if re.match(r'\s*\[\s*([{"]|\]\s*$)', head):             # [{  ["  [] : a text may begin "[1]"
        yield from _json_array(path, "".join(text))
    elif _is_json_lines(path, head):
        yield from _json_lines(path, text)
    elif delimiter:
        yield from _table_lines(path, text, delimiter)
    else:
        _refuse_structured(path, head, bool(more))
        for document in documents(text, separator):
            yield path, {"text": document}


def _first_lines(head):
    """The first lines that hold anything."""
    return [line.strip() for line in head.split("\n") if line.strip()][:LOOKED_AT]


def _is_json_lines(path, head):
    """Whether the first line begins as a JSON object, or half of the first lines are such. Raises
    ValueError if one goes on for lines."""
    first_lines = _first_lines(head)
    objects = [line for line in first_lines if line != "{}" and _is_json(line, (dict,))]
    if re.match(r'\s*\{\s*("\w+"\s*:\s*[\[{]\s*)?\n', head) and len(objects) < 2:
        raise ValueError(f"{path} is one JSON object of several lines: write the records in it one "
                         f"a line, or as an array")
    return bool(re.match(r'\s*\{\s*["}]', head)) or 2 * len(objects) >= max(2, len(first_lines))


def _refuse_structured(path, head, goes_on):
    """Raise ValueError for what is no text but lists, strings, or a table of names unknown here."""
    first_lines = _first_lines(head)
    first = shown(first_lines[0]) if first_lines else ""
    if len(first_lines) > 1 and all(map(_is_json, first_lines)) or _is_list(head, goes_on):
        raise ValueError(f"{path} is JSON, but of no objects with named fields: {first}; write "
                         f'one a line, e.g. {{"prompt": ..., "response": ...}}')
    form = _other_form(first_lines)
    if form:
        raise ValueError(f"{path} is {form}: {first}; write it as JSON lines")
    delimiter = _table_of(head)
    if delimiter:
        raise ValueError(f"{path} is a table, but no name in its first line is known: {first}; say "
                         f"which is which: --columns prompt={first.split(delimiter)[0]}")
    for before in (1, 2):
        rest = head.split("\n", before)[-1] if len(first_lines) > before + 1 else ""
        if _delimiter_of(rest, {}) and _table_of(rest):
            raise ValueError(f"{path} is a table behind another line: remove {first}")


def _other_form(first_lines):
    """What a file is by its first lines, if that is neither JSON nor a table nor text."""
    first, second = [*first_lines, "", ""][:2]
    if re.match(r"\{'\w+': ", first):
        return "written by Python"
    if re.match(r"(event|data): *\S", first) and re.match(r"(event|data|id): *\S", second):
        return "a stream of events"
    if first.startswith("|") and re.fullmatch(r"\|[\s:|-]+\|", second):
        return "a table of Markdown"
    keys = [line for line in first_lines if re.match(r'(- +)?"?\w+"?:( |$)|- |---|#', line)]
    named = re.compile(r'(- +)?"?(prompt|instruction|question|messages|conversations)"?:( |$)')
    return "YAML" if len(keys) == len(first_lines) and any(map(named.match, keys)) else ""


def _is_list(head, goes_on):
    """Whether a text is a JSON list, of which `head` is the beginning if it goes on."""
    decoder, between = json.JSONDecoder(), re.compile(r"[\s,]*")
    if not head.lstrip().startswith("["):
        return False
    at = head.index("[") + 1
    for n in range(LOOKED_AT):
        try:
            _, at = decoder.raw_decode(head, between.match(head, at).end())
        except (ValueError, RecursionError):
            return n > 0 and goes_on
        rest = head[at:at + 1000].lstrip()
        if not rest.startswith(","):
            return rest.startswith("]") and not head[at:].strip()[1:].strip()
    return True


def _is_json(text, kinds=(list, str)):
    try:
        return isinstance(json.loads(text), kinds)
    except (ValueError, RecursionError):
        return False


def _delimiter_of(head, renamed):
    """What parts the fields of a table, "" if the text is none: the first line of a table has a
    `prompt`, or several plain names of which one is known, or it is a table by all its lines."""
    first_line = head.lstrip("\n").partition("\n")[0][:10_000]
    if first_line in ("text", '"text"'):
        return ","
    for delimiter in DELIMITERS:
        try:
            header = next(csv.reader([first_line], delimiter=delimiter), [])
        except csv.Error:
            return ""                            # a carriage return in the midst of text
        names = [renamed.get(name, name) for name in header]
        if "prompt" in names:
            return delimiter
        if len(names) < 2 or not NAMES & set(names):
            continue
        # the first column, if it counts the rows, may be without a name
        named = names if names[0] else names[1:]
        if all(map(str.isidentifier, named)) or _table_of(head) == delimiter:
            return delimiter
    return ""


def _table_of(head):
    """What parts the fields of a text whose first lines are all of as many fields, the first of
    names; "" if there is nothing of the kind. A comma in prose has a space behind it."""
    first_lines = [line + "\n" for line in head.split("\n")[:200]]
    for delimiter in DELIMITERS:
        reader = csv.reader(first_lines, delimiter=delimiter)
        try:
            found = [row for row in itertools.islice(reader, LOOKED_AT) if row]
        except csv.Error:
            continue
        if len(found) < 2 or len(found[0]) < 2 or len({len(row) for row in found}) > 1:
            continue
        names = [name for name in found[0] if name]
        if len(names) > 1 and all(re.fullmatch(r"[\w#][\w .:/()#-]{0,40}", name) for name in names):
            return delimiter
    return ""


def _table_lines(path, text, delimiter):
    """The dicts of a table whose first line has the names."""
    csv.field_size_limit(1 << 30)
    whole_lines = (line + "\n" for line in lines(text))
    reader = csv.reader(whole_lines, strict=True, delimiter=delimiter)
    names, begins = [], 1                        # the line in which a row begins
    try:
        for row in reader:
            where = f"{path}, line {reader.line_num}"
            if not names:
                names = _header(where, row)
            elif row and len(row) != len(names):
                yield where, ValueError(
                    f"{where}: has {len(row):,} fields and the first line {len(names):,}: put a "
                    f"field that holds {delimiter!r} in quotation marks")
            elif row:
                yield where, dict(zip(names, row))
            begins = reader.line_num + 1
    except csv.Error as e:
        raise ValueError(f"{path}, line {begins}: not CSV ({e}): see to its quotation marks") from e


def _header(where, names):
    """The names of a table. Raises ValueError if two are one; those that are empty may be."""
    twice = [name for name, n in Counter(names).items() if name and n > 1]
    if twice:
        raise ValueError(f"{where}: two columns are named {twice[0]}: rename one")
    return names


def _json_lines(path, text):
    """One JSON value a line."""
    for n, line in enumerate(lines(text), 1):
        if not line.strip():
            continue
        where = f"{path}, line {n}"
        try:
            value = _parsed(where, json.loads, line)
            # half a character can only be written out, and few brackets cannot lie deep
            plain = "\\u" not in line and line.count("[") + line.count("{") < MOST_NESTED
            yield where, value if plain else _usable(where, value)
        except json.JSONDecodeError as e:
            yield where, ValueError(f"{where}: not JSON ({e.msg} at column {e.colno}); "
                                    f"write one object a line")
        except ValueError as e:
            yield where, e


def _json_array(path, text):
    """Element by element, so that each has its line. A string is a prompt."""
    decoder, between = json.JSONDecoder(), re.compile(r"[\s,]*")
    at = between.match(text, text.index("[") + 1).end()
    line, counted = 1, 0                         # the line of text[counted]
    while text[at:at + 1] != "]":
        line += text.count("\n", counted, at)
        counted = at
        where = f"{path}, line {line}"
        try:
            row, at = _parsed(where, decoder.raw_decode, text, at)
        except json.JSONDecodeError as e:
            raise ValueError(f"{path}, line {e.lineno}: not JSON ({e.msg} at column {e.colno}); "
                             f"was the file cut short?") from e
        yield where, _usable(where, {"prompt": row} if isinstance(row, str) else row)
        at = between.match(text, at).end()
    if text[at + 1:].strip():
        line = 1 + text.count("\n", 0, at)
        raise ValueError(f"{path}, line {line}: the array ends and something follows: "
                         f"write one array")


def _parsed(where, parse, *args):
    """parse(*args). Raises ValueError: a JSONDecodeError if it is no JSON, and another for what
    Python gives up on."""
    try:
        return parse(*args)
    except json.JSONDecodeError:
        raise
    except RecursionError as e:
        raise ValueError(TOO_DEEP.format(where=where)) from e
    except ValueError as e:
        raise ValueError(f"{where}: a number has thousands of digits: write a smaller one") from e


def _usable(where, value):
    """A JSON value, or the ValueError that says why nobody can work with it."""
    level = [value]
    try:
        for _ in range(MOST_NESTED):
            if not level:
                return value
            level = list(itertools.chain.from_iterable(map(_inside, level)))
    except UnicodeEncodeError as e:
        return ValueError(f"{where}: a text has half a character, \\u{ord(e.object[e.start]):x}, "
                          f"which no file can hold: remove it")
    return ValueError(TOO_DEEP.format(where=where)) if level else value


def _inside(value):
    """What is in a list or an object. Raises UnicodeEncodeError if a text is not UTF-8."""
    if isinstance(value, str):
        value.encode()
    if isinstance(value, dict):
        return [*value, *value.values()]
    return value if isinstance(value, (list, tuple)) else []


# ---- plain text ---------------------------------------------------------------------------------

def documents(text, separator=""):
    """Yield the documents of a plain text that comes in pieces; long ones in parts. They end at
    BORDER, or at `separator` if there is one; without a word they are none."""
    border = re.compile(re.escape(separator)) if separator else BORDER
    hints = (separator,) if separator else HINTS
    # of a document: what is not yielded yet, and whether a part of it is
    rest, begun = "", False
    for piece in _whole_lines(text):
        rest += piece
        if any(hint in rest for hint in hints):
            *whole, rest = border.split(rest)
            for document in whole:
                if document.strip() or begun:
                    yield from parts(document)
                begun = False
        *more, rest = parts(rest)
        yield from more
        begun = begun or bool(more)
    if rest.strip() or begun:
        yield rest


def _whole_lines(text):
    """Yield a text that comes in pieces in others, which end where a line ends, or the text, or a
    line that has more than PIECE characters."""
    begun = ""
    for piece in text:
        whole, newline, rest = piece.rpartition("\n")
        if newline or len(begun) > PIECE:
            yield begun + whole + newline
            begun = ""
        begun += rest
    yield begun


def parts(document):
    """A text -> [Part, ..., the last of it], each of PART characters or more. It is cut
    BETWEEN_WORDS, or anywhere if there is no such place in PART characters."""
    found, at = [], 0
    while len(document) - at > 2 * PART:
        cut = BETWEEN_WORDS.search(document, at + PART, at + 2 * PART)
        end = cut.start() if cut else at + 2 * PART
        found.append(Part(document[at:end]))
        at = end
    return [*found, document[at:]]
