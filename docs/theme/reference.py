"""The reference: on its page a line ``::: NAME`` becomes the docstring of scoremle.NAME.

Signatures of functions are as in the source, so that they name the types of types.py; those of
classes are names and defaults. Examples are those that tests/test_docstrings.py runs. A name that
has no line comes last.
"""

import ast
import inspect
import operator
import re
import textwrap

NAME = re.compile(r"^::: ([\w.]+)$", re.MULTILINE)
# A default that is a function or a class, as Python prints it.
OBJECT = re.compile(r"<function (\w+) at 0x\w+>|<class '([\w.]+)'>")
WIDTH = 88
# Classes whose methods users call on what they hold.
WITH_METHODS = (
    "ScoreModel", "Scores", "anomaly.Detector", "anomaly.Anomalies", "weights.Reweighted",
)  # fmt: skip


def on_page_markdown(markdown, page, **_):
    if page.file.src_uri != "api.md":
        return markdown
    import scoremle  # JAX with it: for this page alone

    placed = {"__version__", *NAME.findall(markdown)}
    if free := [name for name in scoremle.__all__ if name not in placed]:
        markdown += "\n\n## Others\n\n" + "\n".join(f"::: {name}" for name in free)
    return NAME.sub(
        lambda match: entry(match[1], operator.attrgetter(match[1])(scoremle)), markdown
    )


def entry(name, what):
    """A name, with its methods where users call these."""
    parts = [f"### {name}", described(name, what)]
    for method, value in vars(what).items() if name in WITH_METHODS else ():
        if not method.startswith("_") and hasattr(value, "__get__"):
            value = value if isinstance(value, property) else getattr(what, method)
            parts += [f"#### {name}.{method}", described(method, value)]
    return "\n\n".join(parts)


def described(name, what):
    text = inspect.getdoc(what)
    return f"```python\n{signature(name, what)}\n```\n\n{in_markdown(text)}"


def signature(name, what):
    """A call, on one line where it fits and else an argument a line."""
    if isinstance(what, property):
        return f"{name}: {_type(_definition(what.fget).returns)}"
    if inspect.isclass(what):
        parameters = inspect.signature(what).parameters.values()
        # Of Flax's modules, all but what Flax adds.
        arguments = [OBJECT.sub(r"\1\2", str(p.replace(annotation=p.empty))) for p in parameters
                     if p.name not in ("name", "parent", "args", "kwargs")]  # fmt: skip
        given = ""
    else:
        node = _definition(what)
        arguments = _arguments(node.args)
        given = f" -> {_type(node.returns)}"
    call = f"{name}({', '.join(arguments)}){given}"
    if len(call) <= WIDTH:
        return call
    lines = "".join(f"    {argument},\n" for argument in arguments)
    return f"{name}(\n{lines}){given}"


def _definition(function):
    return ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(function)))).body[0]


def _type(annotation):
    """As in the source, without the quotes of what is defined later."""
    return ast.unparse(annotation).strip("'")


def _arguments(args):
    """Arguments in the words of the source."""
    lacking = len(args.args) - len(args.defaults)
    plain = zip(args.args, [None] * lacking + args.defaults, strict=True)
    named = zip(args.kwonlyargs, args.kw_defaults, strict=True)
    found = [_argument(*pair) for pair in plain if pair[0].arg not in ("self", "cls")]
    return [*found, *["*"] * bool(args.kwonlyargs), *(_argument(*pair) for pair in named)]


def _argument(argument, default):
    typed = f"{argument.arg}: {_type(argument.annotation)}"
    return typed if default is None else f"{typed} = {ast.unparse(default)}"


def in_markdown(text):
    """A docstring as Markdown: its arguments as a list, its example as code."""
    text = re.sub(r"``([^`]+)``", r"`\1`", text)
    before, args, after = text.partition("\nArgs:\n")
    if args:
        listed, _, after = after.partition("\n\n")
        listed = re.sub(r"^    (\w+): ", r"- `\1`: ", listed, flags=re.MULTILINE)
        before += "\n" + re.sub(r"^        ", "  ", listed, flags=re.MULTILINE) + "\n\n"
    head, example, code = (before + after).partition("Example:\n")
    fence = f"```pycon\n{textwrap.dedent(code).strip()}\n```" if example else ""
    return f"{head.strip()}\n\n{fence}"
