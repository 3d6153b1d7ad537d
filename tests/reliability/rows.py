"""Every row of the reliability table, one command after the other: ``make reliability``.

``python -m tests.reliability.rows --rows 3,9 --short`` runs two of them in short. Each prints one JSON object; a table follows; exit code 1
when a target was missed. ``--save`` keeps what was seen in ``docs/runs/reliability`` and writes the table of ``docs/reliability.md`` anew.
"""

from __future__ import annotations

import argparse
import datetime
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reliability.md"
RUNS = ROOT / "docs" / "runs" / "reliability"
BEGIN, END = "<!-- rows: begin -->\n", "<!-- rows: end -->\n"


class Row(Struct, frozen=True):
    """``number`` in the table, the fault, the target, the check (a module of this folder, or a test file) and its arguments.

    ``short``: the arguments of the short form. ``shows``: figures of its outcome that stand in the table.
    """

    number: str
    fault: str
    asked: str
    check: str
    full: str = ""
    short: str = ""
    shows: tuple[str, ...] = ()

    def command(self, *, short: bool) -> list[str]:
        """What runs it, without the interpreter."""
        if self.check.endswith(".py"):
            return ["pytest", self.check]
        return [f"tests.reliability.{self.check}", *(self.short if short else self.full).split()]


ROWS = (
    Row("1", "300 × SIGKILL of ingest under load, ≥ 1e6 acknowledged", "lost 0", "kill",
        "--part writer --kills 300 --acked 1000000 --batch 200", "--part writer --kills 3", ("kills", "acked", "lost", "doubled")),
    Row("2", "power loss: unsynced bytes dropped at 300 random points", "lost 0; corrupt reads 0", "power",
        "--points 300", "--points 20 --commits 120", ("points", "acked_events", "lost", "corrupt", "halved", "unopened")),
    Row("3", "torn tail or bit flip in stored files, 1,000 seeds", "bad records served silently 0", "damage",
        "--seeds 1000", "--seeds 60", ("seeds", "silent", "refused", "crashed", "gone", "unharmed")),
    Row("4", "EIO from fdatasync", "acks after the error 0; stops within 1 s", "eio",
        "--rounds 30", "--rounds 2", ("rounds", "acked", "acked_after", "lost", "stop_max_s")),
    Row("5", "disk full (64-MB tmpfs)", "lost 0; 503 or 507; recovery ≤ 10 s; recommending goes on", "disk_full",
        "", "--disk-mb 32 --full-s 4", ("acked", "lost", "answers", "requests", "requests_failed", "recovery_s")),
    Row("6", "300 × SIGKILL of the fold mid-batch", "state identical to replay", "kill",
        "--part fold --kills 300", "--part fold --kills 3", ("kills", "acked", "lost", "state_equal")),
    Row("7, 8", "20% duplicates, retries across restarts; shuffled and late events", "double counts 0; identical state", "disorder",
        "", "--events 3000 --restarts 4", ("sent", "doubled", "lost", "state_equal")),
    Row("9", "10% malformed events in batches", "valid kept 100%; sums exact", "malformed",
        "", "--events 3000", ("sent", "malformed", "lost", "slipped_in", "unsaid", "metrics_off")),
    Row("10", "clock ± 1 h, backwards", "stalls, negative windows, wrong TTLs 0", "clocks",
        "", "--step-s 1", ("steps", "acked", "stall_s", "negative", "wrong_ttl", "mismatched_bytes")),
    Row("12", "ranker stalled 30 s", "≥ 99.9%; P95 < 100 ms; labelled 100%", "stalled",
        "--stall-s 30", "--stall-s 4", ("requests", "failed", "unlabelled", "p95_ms")),
    Row("13", "Redis killed 30 s", "≥ 99.9%; P95 < 100 ms; recovery ≤ 5 s, no stampede > 2×", "redis_down",
        shows=("requests", "failed", "unlabelled", "p95_ms", "recovery_s", "fresh_s")),
    Row("14", "Redis +200 ms, 5% loss", "P95 < 100 ms; retry ratio ≤ 1.1", "redis_slow",
        shows=("requests", "failed", "unlabelled", "p95_ms", "retry_ratio")),
    Row("15–18", "2, 5, 10 × C; low-priority flood; back to 0.8 C; slow connections",
        "goodput ≥ 0.9 C; P95 < 100 ms; users ≥ 99.5%; normal in 10 s", "overload",
        shows=("capacity_per_s", "recovery_s", "slow_others_p95_ms", "missed")),
    Row("19", "100-MB, gzip-bomb, 10k-deep bodies", "4xx; memory + < 20 MB", "tests/online/test_body_limits.py"),
    Row("20", "schemathesis, ≥ 1e5 cases; fuzzed parsers", "5xx, violations, crashes 0", "fuzz",
        "", "--cases 400 --texts 4000", ("cases", "server_errors", "violations", "texts", "crashes")),
    Row("21", "route × scope × key state", "wrongly allowed 0; secrets in logs 0", "tests/online/test_access.py"),
    Row("22", "pickle, truncated, wrong hash, external data, NaN models", "loaded 0; code run 0; old model serves", "bundles",
        shows=("served", "ran", "failed", "still_serving")),
    Row("23", "20 bundle swaps and 20 rolling restarts", "failed 0 of ≥ 1e5; mixed 0; P99 < 2 × baseline", "swaps",
        "", "--swaps 2 --restarts 1 --requests 400 --rate 50", ("swaps", "replaced", "requests", "failed", "mixed", "baseline_p99_ms", "p99_ms")),
    Row("24", "1 h soak at 70% C", "memory ≤ 1%/h; descriptors flat; P95 drift ≤ 10%", "soak",
        "", "--minutes 1 --rate 50", ("minutes", "requests", "failed", "memory_slope", "memory_slope_error", "p95_drift")),
    Row("25", "A/A, 2,000 simulations, 100 looks; SRM 20,000", "false positives ≤ 5%; SRM false alarms ≤ 0.1%", "experiments",
        "--part aa", "--part aa --tests 200 --splits 2000",
        ("tests", "looks", "false_positives", "naive", "srm_runs", "srm_false_alarms")),
    Row("26", "1% sample-ratio mismatch (50.5/49.5 for 50/50), n = 1e6", "detected ≥ 99%", "experiments",
        "--part mismatch", "--part mismatch --splits 2000", ("runs", "users", "found", "median_users")),
    Row("27", "1,000 windows without drift, 1,000 shifted by 0.2 σ, n = 10k", "false alarms ≤ 1%; detection ≥ 99%", "drift",
        "", "--windows 40 --scale 0.01", ("windows", "false_alarms", "false_alarms_of_users", "detected", "alarms_of")),
    Row("28", "served features against replay, 1e5 requests", "mismatched bytes 0", "replay"),
    Row("29", "100 users erased, every store, cache and model searched", "recoverable 0; ≤ 1 h", "erased",
        "", "--users 100 --erase 10", ("users", "erased", "recoverable", "known_again", "seconds")),
    Row("30", "seven faults in one running server", "each: alert, action, recovery; 99.9% answered", "acting",
        "", "--only duplicates --only damaged", ("faults", "requests", "failed", "monitor_share", "monitor_mb")),
)  # fmt: skip


class Seen(Struct, frozen=True):
    """What came of a row."""

    row: str
    good: bool
    seconds: float
    date: str
    command: str
    outcome: dict[str, Any]


def run(row: Row, *, short: bool, more: str = "") -> Seen:
    """Run a row in a process of its own; ``more`` arguments override its own."""
    command = [*row.command(short=short), *more.split()]
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    lines = done.stdout.strip().splitlines()
    try:
        outcome = msgspec.json.decode(lines[-1], type=dict[str, Any])
    except (IndexError, msgspec.DecodeError):  # a test file, or a check that broke off: its own words
        outcome = {"exit": done.returncode, "said": lines[-1] if lines else ""}
    today = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    return Seen(
        row.number,
        done.returncode == 0,
        round(time.monotonic() - began, 1),
        today,
        f"python -m {' '.join(command)}",
        outcome,
    )


def figures(row: Row, seen: Seen) -> str:
    """What is shown of an outcome, in words."""
    if not row.shows:
        return str(seen.outcome.get("said", "")) or ("held" if seen.good else "missed")
    return ", ".join(f"{name.replace('_', ' ')} {_short(seen.outcome.get(name))}" for name in row.shows)


def _short(value: object) -> str:
    match value:
        case float():
            return f"{value:.3g}"
        case int() if not isinstance(value, bool):
            return f"{value:,}"
        case dict():
            return " ".join(f"{key}: {_short(part)}" for key, part in value.items()) or "none"
        case list():
            return " ".join(map(str, value)) or "none"
        case _:
            return str(value).lower()


def table(rows: list[tuple[Row, Seen | None]]) -> str:
    """The rows in Markdown."""
    lines = ["| # | fault | asked | seen | held | command | date |", "|---|---|---|---|---|---|---|"]
    for row, seen in rows:
        if seen is None:
            command = f"`python -m {' '.join(row.command(short=False))}`"
            lines.append(f"| {row.number} | {row.fault} | {row.asked} | not kept here | | {command} | |")
        else:
            lines.append(
                f"| {row.number} | {row.fault} | {row.asked} | {figures(row, seen)} | {'yes' if seen.good else 'no'} "
                f"| `{seen.command}` | {seen.date} |"
            )
    return "\n".join(lines) + "\n"


def saved() -> list[tuple[Row, Seen | None]]:
    """Every row with what ``--save`` kept of it."""
    found: list[tuple[Row, Seen | None]] = []
    for row in ROWS:
        path = RUNS / f"{_file(row)}.json"
        found.append((row, msgspec.json.decode(path.read_bytes(), type=Seen) if path.exists() else None))
    return found


def _file(row: Row) -> str:
    return row.number.replace(", ", "-").replace("–", "-")


def save(row: Row, seen: Seen) -> None:
    """Keep ``seen``, and write the table anew."""
    RUNS.mkdir(parents=True, exist_ok=True)
    (RUNS / f"{_file(row)}.json").write_bytes(msgspec.json.format(msgspec.json.encode(seen), indent=2) + b"\n")
    before, _, rest = PAGE.read_text().partition(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}{table(saved())}{END}{rest.partition(END)[2]}")


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", help="numbers, separated by commas [default: all]")
    parser.add_argument("--short", action="store_true", help="the forms that take seconds")
    parser.add_argument("--save", action="store_true", help="keep what is seen in docs/")
    parser.add_argument("--with", dest="more", default="", help="further arguments for each check")
    given = parser.parse_args()
    wanted = None if given.rows is None else {number.strip() for number in given.rows.split(",")}
    chosen = [row for row in ROWS if wanted is None or wanted & set(row.number.replace("–", ", ").split(", "))]
    if not chosen:
        parser.error(f"--rows: there are {', '.join(row.number for row in ROWS)}")
    done: list[tuple[Row, Seen | None]] = []
    for row in chosen:
        seen = run(row, short=given.short, more=given.more)
        sys.stdout.write(msgspec.json.encode(seen).decode() + "\n")
        sys.stdout.flush()
        if given.save:
            save(row, seen)
        done.append((row, seen))
    sys.stdout.write("\n" + table(done))
    return 0 if all(seen is not None and seen.good for _, seen in done) else 1


if __name__ == "__main__":
    sys.exit(main())
