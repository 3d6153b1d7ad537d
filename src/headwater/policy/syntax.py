"""From text to a typed expression: ``category in ["shoes", "bags"] and not (price > 50 or age > "30d")``.

::

    either  = both {"or" both}
    both    = negated {"and" negated}
    negated = "not" negated | asked
    asked   = "(" either ")" | "true" | "false" | "has" field | "has" "(" field ")"
            | operand {order operand} | operand ["not"] "in" "[" constant {"," constant} "]"
    operand = field | number | "text" | 'text'

The kind of a field says what a text means: a time (``"2026-11-27"``), a duration (``"3d"``) or itself. Types are settled here,
so that nothing is left to ask per request.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

import numpy as np

from headwater.policy.expression import MIRRORED, Against, Among, Both, Compare, Either, Has, Node, Not, Truth, Value
from headwater.policy.fields import Field, Fields, Kind, UnknownFieldError
from headwater.schema.durations import parse_delay
from headwater.schema.errors import ConfigurationError
from headwater.schema.rules import moment_ms

MAX_DEPTH = 32

_TOKEN = re.compile(
    r"""\s*(?:(?P<number>-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)(?![\w.])
    |(?P<text>"[^"\n]*"|'[^'\n]*')
    |(?P<name>[A-Za-z_][\w-]*(?:\.[\w-]+)*)
    |(?P<sign><=|>=|==|!=|[<>()\[\],]))""",
    re.VERBOSE,
)
_WORDS = {"and", "or", "not", "in", "has", "true", "false"}
_ORDERS = {"<", "<=", ">", ">=", "==", "!="}


class ExpressionError(ConfigurationError):
    """An expression that cannot be understood; the message shows the place."""

    def __init__(self, text: str, at: int, why: str) -> None:
        line = " ".join(text.split("\n"))
        super().__init__(f"column {at + 1}: {why}\n    {line}\n    {' ' * at}^")


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str  # number, text, name, sign, end
    text: str
    at: int


def parse(text: str, fields: Fields, *, of_request: bool = False) -> Node:
    """The expression in ``text``; ``of_request``: it may ask about the request only.

    Raises:
        ExpressionError: it is not well formed, names a field that is not there, or compares what cannot be compared.
    """
    return _Parser(text, fields, of_request).whole()


class _Parser:
    def __init__(self, text: str, fields: Fields, of_request: bool) -> None:
        self._text, self._fields, self._of_request = text, fields, of_request
        self._tokens = self._split()
        self._next = 0
        self._depth = 0

    def whole(self) -> Node:
        node = self._either()
        token = self._peek()
        if token.kind != "end":
            raise self._error(token, f"Expected `and`, `or` or the end, got {_said(token)}")
        return node

    # -- grammar ---------------------------------------------------------------------------------------

    def _either(self) -> Node:
        parts = [self._both()]
        while self._take("or"):
            parts.append(self._both())
        return parts[0] if len(parts) == 1 else Either(tuple(parts))

    def _both(self) -> Node:
        parts = [self._negated()]
        while self._take("and"):
            parts.append(self._negated())
        return parts[0] if len(parts) == 1 else Both(tuple(parts))

    def _negated(self) -> Node:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise self._error(self._peek(), f"Nested more than {MAX_DEPTH} deep")
        try:
            return Not(self._negated()) if self._take("not") else self._asked()
        finally:
            self._depth -= 1

    def _asked(self) -> Node:
        if self._take("("):
            node = self._either()
            self._expect(")")
            return node
        if self._take("true"):
            return Truth(True)
        if self._take("false"):
            return Truth(False)
        if self._take("has"):
            bracket = self._take("(")
            token = self._peek()
            field = self._field()
            if not field.optional:
                raise self._error(token, f"{field.name} is always there{_always(field)}")
            if bracket:
                self._expect(")")
            return Has(field)
        return self._comparison()

    def _comparison(self) -> Node:
        first = self._peek()
        left = self._operand()
        denied = self._take("not")
        if denied or self._peek_is("in"):
            self._expect("in")
            return self._among(first, left, denied)
        parts: list[Node] = []
        while self._peek().text in _ORDERS and self._peek().kind == "sign":
            sign, token = self._pop(), self._peek()
            right = self._operand()
            parts.append(self._compared(first, left, sign, token, right))
            first, left = token, right
        if not parts:
            token = self._peek()
            raise self._error(token, f"Expected a comparison after {_said(first)}, got {_said(token)}")
        return parts[0] if len(parts) == 1 else Both(tuple(parts))

    def _among(self, first: _Token, left: Field | _Token, denied: bool) -> Node:
        if isinstance(left, _Token):
            raise self._error(first, 'Expected a field before `in`, such as category in ["shoes"]')
        self._expect("[")
        values = []
        while not self._take("]"):
            token = self._pop()
            if token.kind not in ("number", "text"):
                raise self._error(token, f"Expected a number or a text in the list, got {_said(token)}")
            values.append(self._value(left, token))
            if not self._peek_is("]"):
                self._expect(",")
        if not values:
            raise self._error(first, "The list behind `in` is empty, so nothing is in it")
        found = Among(left, tuple(dict.fromkeys(values)))
        return Not(found) if denied else found

    def _compared(
        self, first: _Token, left: Field | _Token, sign: _Token, token: _Token, right: Field | _Token
    ) -> Node:
        order = sign.text
        if isinstance(left, _Token) and isinstance(right, _Token):
            raise self._error(first, "Both sides are constants; one of them has to be a field")
        if isinstance(left, _Token):
            first, left, token, right = token, right, first, left
            order = MIRRORED.get(order, order)
        assert isinstance(left, Field)  # noqa: S101  (for the type checker: two constants were refused)
        if order not in ("==", "!=") and left.kind is Kind.TEXT:
            raise self._error(sign, f'{left.name} is a text: it can be ==, != or in a list, but not "{order}"')
        plain = "==" if order == "!=" else order
        node: Node
        if isinstance(right, Field):
            node = self._against(token, left, plain, right)
        elif plain == "==":
            node = Among(left, (self._value(left, right),))
        else:
            value = self._value(left, right)
            assert not isinstance(value, str)  # noqa: S101  (texts have no order)
            node = Compare(left, plain, value)
        return Not(node) if order == "!=" else node

    def _against(self, token: _Token, left: Field, order: str, right: Field) -> Node:
        if left.kind is not right.kind:
            raise self._error(
                token, f"{left.name} is a {left.kind}, {right.name} is a {right.kind}: they do not compare"
            )
        if left.kind is Kind.TEXT and (left.many or right.many or left.space != right.space):
            raise self._error(token, f"{left.name} and {right.name} are texts of different origin: they do not compare")
        return Against(left, order, right)

    # -- words -----------------------------------------------------------------------------------------

    def _operand(self) -> Field | _Token:
        token = self._peek()
        if token.kind in ("number", "text"):
            return self._pop()
        return self._field()

    def _field(self) -> Field:
        token = self._pop()
        if token.kind != "name" or token.text in _WORDS:
            raise self._error(token, f"Expected a field, got {_said(token)}")
        try:
            field = self._fields.find(token.text)
        except UnknownFieldError as error:
            raise self._error(token, str(error)) from None
        if self._of_request and field.per_item:
            raise self._error(token, f"{field.name} is a field of items; `when` asks about the request")
        return field

    def _value(self, field: Field, token: _Token) -> Value:
        """The constant ``token`` as what ``field`` compares with."""
        inside = token.text[1:-1] if token.kind == "text" else token.text
        if (token.kind == "text") == (field.kind is Kind.NUMBER):
            wanted = {
                Kind.NUMBER: "a number", Kind.TEXT: "a text in quotes", Kind.TIME: 'a time such as "2026-11-27"',
                Kind.DURATION: 'a duration such as "3d"',
            }[field.kind]  # fmt: skip
            raise self._error(token, f"{field.name} is a {field.kind}: expected {wanted}, got {_said(token)}")
        if field.kind is Kind.TEXT:
            if not inside:
                raise self._error(token, f"No text is empty; `has {field.name}` asks whether there is one")
            if field.choices and inside not in field.choices:
                close = difflib.get_close_matches(inside, field.choices, n=1)
                hint = f', did you mean "{close[0]}"?' if close else f"; there are {', '.join(field.choices)}"
                raise self._error(token, f'{field.name} is never "{inside}"{hint}')
            return inside
        if field.kind is Kind.NUMBER:
            if abs(float(inside)) > float(np.finfo(np.float32).max):
                raise self._error(token, f"{inside} is larger than any number of {field.name}")
            return float(np.float32(float(inside)))  # as the state holds it: 9.99 equals a price of 9.99
        try:
            return moment_ms(inside) if field.kind is Kind.TIME else parse_delay(inside)
        except ConfigurationError as error:
            raise self._error(token, f"{field.name} is a {field.kind}: {error}") from None

    # -- tokens ----------------------------------------------------------------------------------------

    def _split(self) -> list[_Token]:
        tokens, at = [], 0
        end = len(self._text.rstrip())
        while at < end:
            found = _TOKEN.match(self._text, at)
            if found is None:
                at += len(self._text[at:]) - len(self._text[at:].lstrip())
                raise ExpressionError(self._text, at, _unreadable(self._text[at:]))
            kind = found.lastgroup or ""
            tokens.append(_Token(kind, found[kind], found.start(kind)))
            at = found.end()
        return [*tokens, _Token("end", "", end)]

    def _peek(self) -> _Token:
        return self._tokens[self._next]

    def _peek_is(self, word: str) -> bool:
        return self._peek().kind in ("name", "sign") and self._peek().text == word

    def _pop(self) -> _Token:
        token = self._tokens[self._next]
        self._next = min(self._next + 1, len(self._tokens) - 1)
        return token

    def _take(self, word: str) -> bool:
        if self._peek_is(word):
            self._next += 1
            return True
        return False

    def _expect(self, word: str) -> None:
        if not self._take(word):
            raise self._error(self._peek(), f"Expected `{word}`, got {_said(self._peek())}")

    def _error(self, token: _Token, why: str) -> ExpressionError:
        return ExpressionError(self._text, token.at, why)


def _said(token: _Token) -> str:
    return "the end" if token.kind == "end" else token.text if token.kind == "text" else f"`{token.text}`"


def _always(field: Field) -> str:
    return f": {field.about}" if field.about else ""


def _unreadable(rest: str) -> str:
    if rest[0] == "=":
        return "Write == to compare"
    if rest[0] in "\"'":
        return "The text does not end: a quote is missing"
    if rest[:2] in ("&&", "||") or rest[0] == "!":
        return "Write `and`, `or`, `not`"
    if rest[0].isdigit() or rest[0] in "-.":
        return f"Not a number: {rest.split()[0]}"
    return f"Unexpected {rest[0]}"
