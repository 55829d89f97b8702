"""Formulas: a block of ```math becomes MathML, which browsers draw by themselves."""

import re

import latex2mathml.converter

BLOCK = re.compile(r"^```math\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def on_page_markdown(markdown, **_):
    return BLOCK.sub(lambda match: block(match[1]), markdown)


def block(latex):
    """A formula on a line of its own, which may be wider than the page."""
    formula = latex2mathml.converter.convert(latex.strip(), display="block")
    return f'<div class="formula">{formula}</div>'
