"""The only jinja2: environments for text, XML and installer answers. Decisions are made before rendering; templates only
substitute and loop. An undefined name is an error, XML is escaped by default."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path

import jinja2


@functools.cache
def _environment(folder: Path, *, xml: bool) -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        autoescape=xml,  # noqa: S701 - off only for plain text, whose callers quote for their own context
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def render_xml(folder: Path, template: str, values: Mapping[str, object]) -> str:
    """Render an XML template of `folder` with every value escaped."""
    return _environment(folder, xml=True).get_template(template).render(**values)


def render_text(folder: Path, template: str, values: Mapping[str, object]) -> str:
    """Render a plain text template of `folder`; values are put in as they are."""
    return _environment(folder, xml=False).get_template(template).render(**values)
