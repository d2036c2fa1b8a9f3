"""The prose of a study: a Markdown template beside it, filled in with its configuration and its results.

A template is Markdown with Jinja's expressions and conditions. Headings of the first level divide it into sections::

    # Protocol

    {{ config.steps | number(",") }} steps of Adam; the best of {{ config.starts }} starts.

    # Conclusions

    {% if found.ratio <= 0.5 %}
    The error is at most half.
    {% else %}
    The error is more than half, {{ found.ratio | number(".2f") }} times.
    {% endif %}

Paragraphs are separated by empty lines; a line break within one is a space. What stands above the first heading, such as
an import of macros, belongs to every section. A name that the template misspells is an error, never an empty string.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

import jinja2

from nablanets.errors import unknown_name

_HEADING = re.compile(r"^# +(.+?) *$", flags=re.MULTILINE)
_EMPTY_LINES = re.compile(r"\n\s*\n")
#: Where templates that all studies share are; a template beside a study comes before one of the same name here.
_SHARED = jinja2.PackageLoader("nablanets_studies.machinery", "templates")


class Prose:
    """A template by its sections.

    Args:
        environment: where its imports and includes are looked for.
        source: its text.
        name: for messages.
    """

    def __init__(self, environment: jinja2.Environment, source: str, name: str) -> None:
        self.name = name
        self._sections: dict[str, jinja2.Template] = {}
        headings = list(_HEADING.finditer(source))
        preamble = source[: headings[0].start()] if headings else source
        ends = [heading.start() for heading in headings[1:]] + [len(source)]
        for heading, end in zip(headings, ends, strict=True):
            body = source[heading.end() : end]
            title = heading.group(1).lower()
            self._sections[title] = environment.from_string(preamble + body)

    @classmethod
    def of(cls, package: str, name: str) -> Prose:
        """The template of that file name in a package; it can include others of the package, and the shared ones."""
        return _prose(package, name)

    def __contains__(self, section: str) -> bool:
        return section in self._sections

    def paragraphs(self, section: str, **names: object) -> list[str]:
        """The paragraphs of a section, filled in.

        Args:
            section: its heading in lower case.
            names: what the template can refer to.

        Raises:
            UnknownNameError: the template has no such section.
            jinja2.UndefinedError: it refers to a name that is not there.
        """
        if section not in self._sections:
            raise unknown_name(f"section of {self.name}", section, self._sections)
        text = self._sections[section].render(**names)
        return paragraphs(text)


def paragraphs(text: str) -> list[str]:
    """Text between empty lines, each part in one line.

    >>> paragraphs("One,\\n  two.\\n\\n\\nThree.\\n")
    ['One, two.', 'Three.']
    """
    parts = _EMPTY_LINES.split(text)
    lines = [" ".join(part.split()) for part in parts]
    return [line for line in lines if line]


def number(value: float, spec: str) -> str:
    """A number in words of :func:`format`: the filter ``number``.

    >>> number(0.256, ".0%"), number(20000, ",")
    ('26%', '20,000')
    """
    if isinstance(value, jinja2.Undefined):
        str(value)  # raises jinja2.UndefinedError with the name, where format would not say which it is
    return format(value, spec)


def listing(names: Sequence[str], none: str = "none") -> str:
    """Names with commas, or the word for no names: the filter ``listing``.

    >>> listing(["a", "b"]), listing([])
    ('a, b', 'none')
    """
    return ", ".join(names) if names else none


def make_environment(loader: jinja2.BaseLoader) -> jinja2.Environment:
    """Where prose is rendered: as plain text, with our filters, and strictly."""
    environment = jinja2.Environment(
        loader=loader,
        undefined=jinja2.StrictUndefined,
        autoescape=False,  # the page escapes the paragraphs when it takes them
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = number
    environment.filters["listing"] = listing
    return environment


@lru_cache(maxsize=64)
def _prose(package: str, name: str) -> Prose:
    own = jinja2.PackageLoader(package, "")
    environment = make_environment(jinja2.ChoiceLoader([own, _SHARED]))
    source, _, _ = own.get_source(environment, name)
    return Prose(environment, source, f"{package}/{name}")
