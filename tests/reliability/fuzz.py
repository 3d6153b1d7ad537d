"""Requests that nobody planned for: schemathesis on the OpenAPI document, and random texts for every parser (table row 20).

``python -m tests.reliability.fuzz --cases 100000 --texts 100000`` prints one JSON object. Half of the cases fit the document, half break it. A
failure is an answer of 5xx, one whose status, content type or body the document does not have, or one that took back what the
document allows; for a parser, any exception but the one that says what is wrong.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pyarrow as pa
from msgspec import Struct

from headwater.features.plan import compile_plan
from headwater.offline.importing.events import parse_lines, parse_table
from headwater.offline.importing.files import CsvTable
from headwater.offline.importing.lines import RecordReader
from headwater.offline.importing.mapping import EVENT_FIELDS, EVENT_REQUIRED, ImportFailedError, Mapping, resolve
from headwater.online.bodies import BatchDecoder, decode_one
from headwater.online.cursor import shown_before
from headwater.online.errors import RefusalError
from headwater.policy.syntax import parse
from headwater.schema.config import Config, parse_config
from headwater.schema.errors import HeadwaterError
from headwater.schema.events import Event
from headwater.schema.items import Item
from headwater.schema.requests import RecommendRequest
from headwater.schema.template import config_template
from headwater.schema.users import UserProfile
from headwater.serving.rule_fields import rule_fields
from tests.online.running import Running, catalogue, publish_ranker

SHOWN = 12
# Refusals of what JSON Schema allows: 1.0 as a whole number, two ids that must differ, times in the wrong order, a cursor that no answer gave.
DELIBERATE = (
    "`, got `float`",
    "Expected two different ids",
    "Expected `expires` at or after `published`",
    "Not a cursor",
)
TOO_MUCH = 413  # a refusal, though schemathesis knows it as none


class Outcome(Struct, frozen=True):
    """``server_errors`` and ``violations`` by operation and check, ``crashes`` by parser and exception."""

    seed: int
    cases: int
    statuses: dict[str, int]
    server_errors: int
    violations: int
    texts: int
    refused_texts: int
    crashes: int
    found: dict[str, int]

    @property
    def good(self) -> bool:
        """Whether nothing failed, and both good and bad requests were among the cases."""
        return not (self.server_errors or self.violations or self.crashes)


class Http(Struct):
    """What came of the cases."""

    cases: int = 0
    server_errors: int = 0
    violations: int = 0
    statuses: Counter[str] = msgspec.field(default_factory=Counter)
    found: Counter[str] = msgspec.field(default_factory=Counter)


def _described(found: Any) -> Any:
    """An operation of the document; one that cannot be read is an error of ours."""
    from schemathesis.core.result import Err

    if isinstance(found, Err):
        raise found.err()
    return found.ok()


def fuzz_http(url: str, *, cases: int, seed: int) -> Http:
    """Send about ``cases`` generated requests to the server at ``url``, the same number to each operation."""
    import hypothesis
    import requests
    import schemathesis
    from schemathesis.generation import GenerationMode
    from schemathesis.specs.openapi import checks as rules

    document = httpx.get(url + "/schema/openapi.json").json()
    # a server without keys, as this one, answers everybody; rows 19 and 21 have keys
    for path in document["paths"].values():
        for described in path.values():
            described.pop("security", None)
    schema = schemathesis.openapi.from_dict(document)
    schema.config.update(base_url=url)
    operations = [_described(found) for found in schema.get_all_operations()]
    wanted = [
        schemathesis.checks.not_a_server_error, rules.status_code_conformance, rules.content_type_conformance,
        rules.response_schema_conformance, rules.negative_data_rejection, rules.positive_data_acceptance,
    ]  # fmt: skip
    done = Http()
    with requests.Session() as session:

        def asking(label: str) -> Callable[[Any], None]:
            def ask(case: Any) -> None:
                answer = case.call(session=session, timeout=60)  # the server gives an explanation up after 30
                done.cases += 1
                done.statuses[str(answer.status_code)] += 1
                try:
                    case.validate_response(answer, checks=wanted)
                except schemathesis.core.failures.FailureGroup as group:
                    for failure in group.exceptions:
                        _note(done, label, failure, answer)

            return ask

        def pass_over(each: int, seed: int) -> None:
            for number, operation in enumerate(operations):
                for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
                    if mode is GenerationMode.NEGATIVE and not (
                        operation.body or operation.query or operation.path_parameters
                    ):
                        continue

                    settings = hypothesis.settings(
                        max_examples=each, deadline=None, database=None, phases=[hypothesis.Phase.generate],
                        suppress_health_check=list(hypothesis.HealthCheck), print_blob=False,
                    )  # fmt: skip
                    try:
                        fuzzed: Any = hypothesis.given(operation.as_strategy(generation_mode=mode))
                        hypothesis.seed(seed + number)(settings(fuzzed(asking(operation.label))))()
                    except hypothesis.errors.Unsatisfiable:  # nothing about this operation can be wrong
                        continue

        before = -1
        while before < done.cases < cases:  # some operations have few cases: the others make up for them
            before = done.cases
            pass_over(max(1, (cases - done.cases) // (2 * len(operations))), seed)
            seed += len(operations)
    return done


def _refused(answer: Any) -> bool:
    """Whether an answer refuses after all: a batch that is too large, or parts of one (200, the good part is taken)."""
    said = answer.json() if answer.status_code == 200 else None
    return answer.status_code == TOO_MUCH or (isinstance(said, dict) and bool(said.get("rejected")))


def _note(done: Http, operation: str, failure: Any, answer: Any) -> None:
    status: int = answer.status_code
    if type(failure).__name__ == "AcceptedNegativeData" and _refused(answer):
        return
    if status == 400 and any(reason in answer.text for reason in DELIBERATE):
        return
    if status >= 500:
        done.server_errors += 1
    else:
        done.violations += 1
    done.found[
        f"{operation}: {status} {type(failure).__name__}: {str(failure).splitlines()[0][:120]}: {answer.text[:200]}"
    ] += 1


# -- parsers: a good text, changed at random ---------------------------------------------------------------

_EVENT = b'[{"user":"u1","item":"i-9","type":"click","time":1772000000000,"value":1.5,"attributes":{"a":true}}]'
_ITEM = (
    b'{"id":"a","title":"T","categories":["c"],"published":1772000000000,"attributes":{"price":3.5},"available":true}'
)
_USER = b'{"id":"ada","country":"DE","timezone":"Europe/Berlin","attributes":{"age":40}}'
_ASKED = (
    b'{"user":"ada","surface":"home","k":10,"token":"42","context":{"country":"DE"},"exclude":["a"],"cursor":"AQAAAA"}'
)
_RULE = (
    'category in ["shoes", "bags"] and not (price > 50 or age > "30d") and has published and context.country == "DE"'
)
_CSV = b"user,item,type,time,value\nu1,i1,click,1772000000000,1\nu2,i2,view,2026-11-27T10:00:00Z,\n"
_LINES = b'{"user":"u1","item":"i1","type":"click","time":1772000000000}\n{"user":"u2","item":"i2","type":"view","time":"2026-11-27"}'
_PIECES = (
    b"[", b"]", b"{", b"}", b'"', b",", b":", b"\\u0000", b"\\ud800", b"null", b"true", b"1e999", b"-0", b"9" * 40, b"\x00", b"\xff",
    b"\xed\xa0\x80", b"not ", b"(", b")", b" in ", b"<=", b"=", b"\n", b"\r", b"''", b"[[", b"]]", b"'''", b"inf", b"nan", b"0x1", b"\xc3\xa9",
)  # fmt: skip


def changed(text: bytes, draw: random.Random) -> bytes:
    """``text`` with a few random changes: pieces put in, taken out, repeated, swapped, bytes replaced."""
    out = bytearray(text)
    for _ in range(draw.choice((1, 1, 2, 4, 16))):
        at = draw.randrange(len(out) + 1)
        to = min(len(out), at + draw.choice((1, 1, 2, 8, 40)))
        match draw.randrange(6):
            case 0:
                out[at:at] = draw.choice(_PIECES)
            case 1:
                del out[at:to]
            case 2:
                out[at:at] = out[at:to] * draw.choice((1, 2, 50))
            case 3:
                out[at:to] = draw.choice(_PIECES)
            case 4 if at < len(out):
                out[at] = draw.randrange(256)
            case _:
                other = draw.randrange(len(out) + 1)
                out[at:to] = out[other : other + to - at]
    return bytes(out[:200_000])


Parser = tuple[str, bytes, Callable[[bytes], object], tuple[type[Exception], ...]]


def parsers(folder: Path) -> Sequence[Parser]:
    """(name, a good text, the parser, the exceptions that say what is wrong)."""
    config = Config()
    fields, types = rule_fields(config, compile_plan(config)), [kind.name for kind in config.events]
    events, items, users = BatchDecoder(Event), BatchDecoder(Item), BatchDecoder(UserProfile)
    asked = msgspec.json.Decoder(RecommendRequest)
    mapping = Mapping()
    reader = RecordReader(
        mapping, resolve(mapping, None, EVENT_FIELDS, EVENT_REQUIRED), fields=EVENT_FIELDS,
        ids=("user", "item", "event_id", "request_id", "session"), times=("time",),
    )  # fmt: skip
    file = folder / "import.csv"

    def csv(text: bytes) -> object:
        file.write_bytes(text)
        table = CsvTable(file, delimiter=None, encoding="utf-8")
        resolved = resolve(mapping, table.columns, EVENT_FIELDS, EVENT_REQUIRED)
        chunks = list(table.chunks([name for name in resolved.columns if name in table.columns], 1_000))
        return [parse_table(chunk, resolved, mapping, types, ()) for chunk in chunks if isinstance(chunk, pa.Table)]

    text = bytes.decode
    return (
        ("events", _EVENT, events.decode, (RefusalError,)),
        ("item", _ITEM, items.decode, (RefusalError,)),
        ("user", _USER, users.decode, (RefusalError,)),
        ("request", _ASKED, lambda body: decode_one(asked, body), (RefusalError,)),
        ("cursor", b"AQAAAAIAAAADAAAA", lambda body: shown_before(body.decode("latin-1")), (RefusalError,)),
        ("rule", _RULE.encode(), lambda body: parse(text(body, "utf-8", "replace"), fields), (HeadwaterError,)),
        (
            "configuration",
            config_template().encode(),
            lambda body: parse_config(text(body, "utf-8", "replace")),
            (HeadwaterError,),
        ),
        ("import of lines", _LINES, lambda body: parse_lines(body.split(b"\n"), reader, types, ()), (HeadwaterError,)),
        ("import of a table", _CSV, csv, (ImportFailedError,)),
    )


def _of_arrow(raised: Any) -> None:
    """Arrow shows a row of the wrong width to our handler as text. Where it is none it says so here, and ends the read."""
    if not isinstance(raised.exc_value, UnicodeDecodeError):
        sys.__unraisablehook__(raised)


def fuzz_parsers(folder: Path, *, texts: int, seed: int) -> tuple[int, int, Counter[str]]:
    """Give each parser its share of ``texts``: (texts, how many were refused, crashes by parser and exception)."""
    draw, found = random.Random(seed), Counter[str]()
    given = refused = 0
    chosen = parsers(folder)
    hook, sys.unraisablehook = sys.unraisablehook, _of_arrow
    try:
        for name, good, parser, says in chosen:
            parser(good)
            for _ in range(texts // len(chosen)):
                given += 1
                spoiled = changed(good, draw)
                try:
                    parser(spoiled)
                except says:
                    refused += 1
                except Exception as error:  # noqa: BLE001  (whatever it is, it is a finding)
                    found[f"{name}: {type(error).__name__}: {str(error)[:100]} for {spoiled[:80]!r}"] += 1
    finally:
        sys.unraisablehook = hook
    return given, refused, found


def run(running: Running, folder: Path, *, cases: int, texts: int, seed: int) -> Outcome:
    """Both, on ``running``; ``folder`` for files."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what schemathesis and hypothesis have to say about their own
        http = fuzz_http(running.url, cases=cases, seed=seed)
    given, refused, crashed = fuzz_parsers(folder, texts=texts, seed=seed)
    return Outcome(
        seed=seed, cases=http.cases, statuses=dict(sorted(http.statuses.items())), server_errors=http.server_errors,
        violations=http.violations, texts=given, refused_texts=refused, crashes=sum(crashed.values()),
        found=dict((http.found + crashed).most_common(SHOWN)),
    )  # fmt: skip


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--texts", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=7)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="headwater-fuzz-") as name, Running(Path(name)) as running:
        running.ingest("/v1/items", catalogue(100))
        publish_ranker(running.data, running.config, seed=given.seed, created_ms=1_772_000_000_000)
        outcome = run(running, Path(name), cases=given.cases, texts=given.texts, seed=given.seed)
        assert running.stop() == 0
    sys.stdout.write(msgspec.json.encode(outcome).decode() + "\n")
    return 0 if outcome.good else 1


if __name__ == "__main__":
    sys.exit(main())
