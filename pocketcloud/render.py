"""The only jinja2: environments for text, XML and installer answers. Decisions are made before rendering; templates only
substitute and loop. An undefined name is an error, XML is escaped by default.

Answers for installers are text that another program takes apart, and their templates may be a stranger's. So what is put in goes
through a filter for its place, which quoting.py has, and is refused without one unless it is a plain word; templates run in
jinja2's sandbox, and what is wrong with one is told with its file and line.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import jinja2.meta
from jinja2.sandbox import ImmutableSandboxedEnvironment

from pocketcloud.errors import BadDocument, Fault, NotFound
from pocketcloud.quoting import FILTERS, Quoted

_PLAIN = re.compile(r"[\w./:@+=,~-]*", re.ASCII)
_LONGEST = 1 << 20
_COMMON: Mapping[str, Any] = {
    "undefined": jinja2.StrictUndefined,
    "trim_blocks": True,
    "lstrip_blocks": True,
    "keep_trailing_newline": True,
}


@functools.cache
def _environment(folder: Path, *, xml: bool) -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        autoescape=xml,  # noqa: S701 - off only for plain text, whose callers quote for their own context
        **_COMMON,
    )


def render_xml(folder: Path, template: str, values: Mapping[str, object]) -> str:
    """Render an XML template of `folder` with every value escaped."""
    return _environment(folder, xml=True).get_template(template).render(**values)


def render_text(folder: Path, template: str, values: Mapping[str, object]) -> str:
    """Render a plain text template of `folder`; values are put in as they are."""
    return _environment(folder, xml=False).get_template(template).render(**values)


def _only_quoted(value: object) -> object:
    """What an expression of an answer's template may come to: something quoted, a number, or a word that needs no quotes."""
    if isinstance(value, (Quoted, jinja2.Undefined)) or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    if isinstance(value, str) and _PLAIN.fullmatch(value):
        return value
    raise ValueError(f"a value is put in as it is; give it the filter of its place: {', '.join(f'| {name}' for name in FILTERS)}")


class _Answers(ImmutableSandboxedEnvironment):
    """Templates of answers, from several folders, the first that has a file of the name."""

    def __init__(self, folders: Sequence[Path]) -> None:
        super().__init__(
            loader=jinja2.FileSystemLoader([str(folder) for folder in folders]),
            finalize=_only_quoted,
            autoescape=False,
            **_COMMON,
        )
        self.filters.update(FILTERS)


@functools.lru_cache(maxsize=8)
def _answers(folders: tuple[Path, ...]) -> _Answers:
    return _Answers(folders)


def render_answer(folders: Sequence[Path], template: str, values: Mapping[str, object]) -> str:
    """Render a template of an installer's answer from the first of `folders` that has it; so with what it includes.

    Raises NotFound if no folder has it, BadDocument with the template's file and line for whatever is wrong in one.
    """
    environment = _answers(tuple(folders))
    try:
        return "".join(_bounded(environment.get_template(template).generate(**values)))
    except jinja2.TemplateNotFound as error:
        if error.name == template:
            where = ", ".join(str(folder) for folder in folders)
            raise NotFound(f"no template {template!r} in {where}", hint="`template:` names a file of those folders") from None
        raise _bad(error, f"no template {error.name!r} to include") from None
    except jinja2.TemplateSyntaxError as error:
        raise BadDocument(error.filename or template, [Fault(error.lineno, "", f"template: {error.message}")]) from None
    except UnicodeDecodeError as error:
        raise BadDocument(template, [Fault(0, "", f"template: not UTF-8 text (byte {error.start})")]) from None
    except RecursionError as error:
        raise _bad(error, "includes itself, or is nested too deep") from None
    # A template may do anything with its values that an expression can say, and every error of it is the template's.
    except Exception as error:
        raise _bad(error, str(error) or type(error).__name__) from error


def template_files(folders: Sequence[Path], template: str) -> dict[str, bytes]:
    """A template and all that it includes, by file name, each from the first of `folders` that has it; what is not there, or not
    a template, is left out: rendering tells that."""
    environment, found, left = _answers(tuple(folders)), dict[str, bytes](), [template]
    while left:
        name = left.pop()
        path = next((folder / name for folder in folders if (folder / name).is_file()), None)
        if name in found or path is None or "/" in name:
            continue
        found[name] = path.read_bytes()
        try:
            parsed = environment.parse(found[name].decode())
        except (jinja2.TemplateSyntaxError, UnicodeDecodeError):
            continue
        left += [each for each in jinja2.meta.find_referenced_templates(parsed) if each]
    return found


def _bounded(pieces: Iterable[str]) -> Iterator[str]:
    length = 0
    for piece in pieces:
        length += len(piece)
        if length > _LONGEST:
            raise OverflowError(f"comes to more than {_LONGEST} characters")
        yield piece


def _bad(error: BaseException, message: str) -> BadDocument:
    """The error at the innermost line of a template that it went through; jinja2 writes those into tracebacks as their own."""
    name, line = "", 0
    at = error.__traceback__
    while at is not None:
        if "__jinja_exception__" in at.tb_frame.f_globals:
            name, line = at.tb_frame.f_code.co_filename, at.tb_lineno
        at = at.tb_next
    return BadDocument(name or "template", [Fault(line, "", f"template: {message}")])
