"""Chat templates: small programs that strangers' nodes hand out, rendered within bounds.

Jinja2's immutable sandbox keeps a template from reaching Python. Here it is also kept from taking time and memory:
before compiling, whatever loops, compares, prints or makes a value in its syntax tree is led through a meter;
filters are a short list; operators and calls that could make much of little are looked at before they run.
"""

from __future__ import annotations

import datetime
import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from protocol.errors import ConfigError, Malformed, SwarmError, TooLarge

# The longest published templates, with tools and images, have some 30 KB.
TEMPLATE_CHARS: Final = 128 * 1024
# Characters and list items that one rendering may make in all. Some templates build their text by appending, so
# a long conversation makes many times its own size.
MADE: Final = 32_000_000
MADE_PER_INPUT: Final = 512
# Turns of loops and calls; usual templates need some ten per message.
TURNS: Final = 200_000
SECONDS: Final = 2.0
# Values in one value, lists in lists counted through: shared ones make much of little.
ITEMS: Final = 1_000_000
# A number above this is no width and no count.
NUMBER: Final = 10_000
# Whole numbers with more binary digits serve only to take time.
BITS: Final = 1024

FILTERS: Final = """
abs batch capitalize count d default dictsort e escape first float groupby indent int items join last length list
lower map max min reject rejectattr replace reverse round safe select selectattr sort string sum title tojson trim
unique upper
"""
# Filters and methods of strings whose result can be as long as the product of what they are given.
MULTIPLYING: Final = frozenset(
    [
        "batch",
        "center",
        "expandtabs",
        "format",
        "format_map",
        "indent",
        "join",
        "ljust",
        "replace",
        "rjust",
        "zfill",
    ]
)


class _Meter:
    """What one rendering may still do."""

    def __init__(self, given: int) -> None:
        self._left = MADE + MADE_PER_INPUT * given
        self._turns = TURNS
        self._until = time.monotonic() + SECONDS

    def turn(self) -> None:
        self._turns -= 1
        if self._turns < 0 or time.monotonic() > self._until:
            raise TooLarge("the model's chat template runs too long")

    def made(self, value: Any) -> None:
        """A value has been made: texts count by their length, containers by their items."""
        self.turn()
        self._left -= len(value) if isinstance(value, (str, list, tuple, dict)) else 0
        if self._left < 0:
            raise TooLarge("the model's chat template makes too much text")
        if not isinstance(value, str):
            self.size(value)

    def multiplied(self, values: Iterable[Any]) -> None:
        """A value is about to be made that can be as large as the product of the sizes of `values`."""
        product = 1
        for value in values:
            if isinstance(value, (int, float)):
                product *= max(1, int(min(abs(value), 1e18)))
            else:
                product *= 1 + self.size(value)
        if product > self._left:
            raise TooLarge("the model's chat template makes too much text")

    def size(self, value: Any) -> int:
        """Characters and items in a value and all that it holds, counted as often as it holds them."""
        total, items, rest = 0, 0, [value]
        while rest:
            items += 1
            item = rest.pop()
            total += len(item) if isinstance(item, (str, range)) else 1
            if isinstance(item, (list, tuple)):
                rest += item
            elif isinstance(item, dict):
                rest += item.keys()
                rest += item.values()
            if total > self._left or items + len(rest) > ITEMS:
                raise TooLarge("the model's chat template makes too much text")
        return total


class _Namespace(Namespace):
    def __repr__(self) -> str:
        return "<namespace>"  # not what it holds, which may be itself


class _Generation(Extension):
    """`{% generation %}` marks the assistant's words for training; here they are just the words."""

    tags = {"generation"}  # noqa: RUF012 -- the base class declares it so

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


class _Environment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
        )
        self.meter = _Meter(0)
        known = {**self.filters, "tojson": _to_json}
        self.filters = {name: _metered(name, known[name]) for name in FILTERS.split()}
        self.filters |= {"-loop": _loop, "-made": _made, "-show": _show, "-join": _join}
        self.globals = {
            "range": self.globals["range"],
            "dict": dict,
            "namespace": _Namespace,
            "raise_exception": _refuse,
            "strftime_now": _strftime_now,
        }

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "**" or (operator == "*" and isinstance(left, int) and isinstance(right, int)):
            _check_numbers(operator, left, right)
        elif operator == "*" or (operator == "%" and isinstance(left, str)):
            self.meter.multiplied((left, right))
            _check_format(left)
        value = super().call_binop(context, operator, left, right)
        self.meter.made(value)
        return value

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        self.meter.turn()
        method = getattr(obj, "__wrapped__", obj)  # the sandbox wraps str.format
        owner = getattr(method, "__self__", None)
        if isinstance(owner, str) and getattr(method, "__name__", "") in MULTIPLYING:
            self.meter.multiplied((owner, *_plain(args), *_plain(kwargs.values())))
            _check_format(owner)
        value = super().call(context, obj, *args, **kwargs)
        self.meter.made(value)
        return value


class ChatTemplate:
    """A compiled template. Raises: Malformed or TooLarge, if it is none or beyond the bounds."""

    def __init__(self, source: str) -> None:
        if len(source) > TEMPLATE_CHARS:
            raise TooLarge(f"a chat template of {len(source)} characters")
        self._environment = _Environment()
        try:
            tree = _LeadThroughMeter().visit(self._environment.parse(source))
            code = self._environment.compile(tree.set_environment(self._environment))
        except (
            jinja2.TemplateError,
            RecursionError,
            SyntaxError,
            MemoryError,
            ValueError,
            OverflowError,
        ) as error:
            raise Malformed(f"the model's chat template cannot be compiled: {error}") from error
        self._template = jinja2.Template.from_code(
            self._environment, code, self._environment.make_globals(None)
        )

    def render(self, messages: Sequence[Mapping[str, Any]], special: Mapping[str, str]) -> str:
        """The prompt for the assistant's next words. `special`: bos_token, eos_token and the like.

        Raises: ConfigError, if the template refuses these messages; Malformed or TooLarge, if it fails.
        """
        self._environment.meter = _Meter(sum(len(str(value)) for m in messages for value in m.values()))
        variables = {"tools": None, "documents": None, **special, "messages": [dict(m) for m in messages]}
        try:
            return self._template.render(variables, add_generation_prompt=True)
        except SwarmError:
            raise
        except Exception as error:
            raise Malformed(f"the model's chat template fails: {type(error).__name__}: {error}") from error


class _LeadThroughMeter(NodeTransformer):
    """Puts metering filters around the parts of a syntax tree that take time or make something."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.iter = _filter("-loop", _expression(node.iter))
        return node

    def visit_Output(self, node: nodes.Output) -> nodes.Node:
        self.generic_visit(node)
        # The template's own words are wrapped as well: within loops they add up.
        node.nodes = [_filter("-show", _expression(part)) for part in node.nodes]
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _filter("-join", nodes.List(list(node.nodes), lineno=node.lineno))

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        self.generic_visit(node)
        return _filter("-made", node) if node.ctx == "load" else node

    def _made(self, node: nodes.Expr) -> nodes.Node:
        self.generic_visit(node)
        return _filter("-made", node)

    visit_List = visit_Dict = visit_Getitem = visit_Compare = visit_Test = _made


def _filter(name: str, value: nodes.Expr) -> nodes.Filter:
    return nodes.Filter(value, name, [], [], None, None, lineno=value.lineno)


def _expression(node: nodes.Node) -> nodes.Expr:
    """The node itself, as an expression that a filter may stand around."""
    if isinstance(node, nodes.TemplateData):
        return nodes.Const(node.data, lineno=node.lineno)
    assert isinstance(node, nodes.Expr)
    return node


@jinja2.pass_context
def _loop(context: Context, values: Iterable[Any]) -> Iterator[Any]:
    meter = _meter_of(context)
    for value in values:
        meter.turn()
        yield value


@jinja2.pass_context
def _made(context: Context, value: Any) -> Any:
    _meter_of(context).made(value)
    return value


@jinja2.pass_context
def _show(context: Context, value: Any) -> str:
    return _join(context, [value])


@jinja2.pass_context
def _join(context: Context, parts: list[Any]) -> str:
    meter = _meter_of(context)
    meter.size(parts)
    text = "".join(map(str, parts))
    meter.made(text)
    return text


def _meter_of(context: Context) -> _Meter:
    environment = context.environment
    assert isinstance(environment, _Environment)
    return environment.meter


def _metered(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
    # Jinja marks functions that want the context, its evaluation part or the environment. Nothing is folded through
    # a filter that wants the context, so none runs while a template is compiled.
    wanted = getattr(original, "jinja_pass_arg", None)

    @jinja2.pass_context
    def metered(context: Context, *args: Any, **kwargs: Any) -> Any:
        meter = _meter_of(context)
        meter.turn()
        args = tuple(list(arg) if isinstance(arg, Iterator) else arg for arg in args)
        if name in MULTIPLYING:
            meter.multiplied((*_plain(args), *_plain(kwargs.values())))
        given = {"context": context, "eval_context": context.eval_ctx, "environment": context.environment}
        extra = () if wanted is None else (given[wanted.name],)
        value = original(*extra, *args, **kwargs)
        meter.made(value)
        return value

    return metered


def _plain(values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        if isinstance(value, (int, float)) and abs(value) > NUMBER:
            raise TooLarge("the model's chat template counts too far")
        yield value


def _check_numbers(operator: str, left: Any, right: Any) -> None:
    if not isinstance(left, int) or not isinstance(right, int):
        return  # floats overflow with an error
    bits = left.bit_length() * abs(right) if operator == "**" else left.bit_length() + right.bit_length()
    if bits > BITS:
        raise TooLarge("the model's chat template counts too far")


def _check_format(text: object) -> None:
    # Widths and precisions: "%99999d", "{:>99999}", "%*d", "{:{}}".
    if isinstance(text, str) and re.search(r"\d{5}|%[^a-zA-Z%]*\*|\{[^}]*\{", text):
        raise TooLarge("the model's chat template formats too wide")


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **how: Any) -> str:
    # Not Jinja's own, which escapes HTML.
    separators, sort_keys = how.get("separators"), bool(how.get("sort_keys", False))
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _refuse(message: object) -> None:
    raise ConfigError(f"the model's chat template refuses this conversation: {message}")


def _strftime_now(layout: str) -> str:
    return datetime.datetime.now().strftime(layout)
