"""Prose of studies: templates by sections, filled in strictly, and those of all experiments."""

from __future__ import annotations

import jinja2
import pytest

from nablanets.errors import UnknownNameError
from nablanets_studies.catalog import EXPERIMENTS
from nablanets_studies.machinery.findings import Lead, Summary
from nablanets_studies.machinery.prose import Prose, make_environment

_SOURCE = """{% macro twice(x) %}{{ 2 * x }}{% endmacro %}
# Protocol

{{ config.steps | number(",") }} steps
of {{ twice(3) }}.

{% if config.steps > 100 %}
Many.
{% endif %}

# Conclusions

{% for name in found.names %}
{{ name }} is there.

{% endfor %}
In short: {{ found.names | listing }}.
"""


def _prose(source: str) -> Prose:
    shared = jinja2.PackageLoader("nablanets_studies.machinery", "templates")
    return Prose(make_environment(shared), source, "test")


def test_sections_become_paragraphs():
    prose = _prose(_SOURCE)
    assert prose.paragraphs("protocol", config={"steps": 1000}) == ["1,000 steps of 6.", "Many."]
    assert prose.paragraphs("protocol", config={"steps": 10}) == ["10 steps of 6."]
    found = {"names": ["a", "b"]}
    assert prose.paragraphs("conclusions", found=found) == ["a is there.", "b is there.", "In short: a, b."]
    assert prose.paragraphs("conclusions", found={"names": []}) == ["In short: none."]
    assert "protocol" in prose
    assert "methods" not in prose


def test_misspelled_names_and_sections_are_errors():
    with pytest.raises(jinja2.UndefinedError, match="steps"):
        _prose(_SOURCE).paragraphs("protocol", config={"stepz": 1000})
    with pytest.raises(jinja2.UndefinedError, match="sheets"):
        _prose("# Conclusions\n{% if sheets %}Something.{% endif %}").paragraphs("conclusions")
    with pytest.raises(UnknownNameError, match="'protocol'"):
        _prose(_SOURCE).paragraphs("protocl")


def test_a_lead_in_words_turns_with_the_numbers():
    prose = _prose('{% from "sentences.md.j2" import lead %}\n# Conclusions\nIt is {{ lead(found, "dB") }}, of all.')

    def said(ours: Summary, theirs: Summary) -> str:
        (text,) = prose.paragraphs("conclusions", found=Lead.of(ours, theirs))
        return text

    ahead = said(Summary(-50.0, 1.0, 5), Summary(-40.0, 1.0, 5))
    behind = said(Summary(-40.0, 3.0, 5), Summary(-41.0, 1.0, 5))
    assert ahead == "It is ahead by 10.0 dB, more than the spread over seeds, of all."
    assert behind == "It is behind by 1.0 dB, within the spread over seeds, of all."
    assert said(Summary(-50.0, 0.0, 1), Summary(-40.0, 1.0, 5)) == "It is ahead by 10.0 dB, from one seed, of all."


@pytest.mark.parametrize("name", list(EXPERIMENTS))
def test_every_experiment_says_what_it_does(name):
    experiment = EXPERIMENTS[name]
    for config in experiment.presets.values():
        notes = experiment.notes(config)
        assert notes
        assert not any("{{" in note or "{%" in note or "\n" in note for note in notes)
