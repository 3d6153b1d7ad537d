"""``headwater bench drift``: false alarms and power of the judgement on drift, on columns whose truth is known."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headwater.cli.bench.report import SeedOption, table
from headwater.cli.options import EXIT_CHECK_FAILED, JsonOption, print_json
from headwater.schema.errors import HeadwaterError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from headwater.monitoring.reference import Look

    Draw = Callable[[np.random.Generator, int, float], npt.NDArray[np.float32]]

MOST_ALARMS, LEAST_FOUND = 0.01, 0.99
COLUMNS = ("normal", "heavy_tailed", "discrete", "zero_inflated")
NAIVE = (0.1, 0.2)  # the usual thresholds of PSI
HOURS, HOUR_MS = 24, 3_600_000
LIST = 20
REFERENCES, LATE = 10, 1_000
POWER_AT = (500, 1_000, 2_000, 5_000, 10_000, 20_000)


def register(app: typer.Typer) -> None:
    """Add ``drift``."""
    app.command("drift")(drift)


def drift(
    windows: Annotated[int, typer.Option(min=10, help="Windows without drift, and as many with it.")] = 1_000,
    rows: Annotated[int, typer.Option(min=1_000, help="Rows of a window, and of the reference.")] = 10_000,
    shift: Annotated[float, typer.Option(min=0.0, help="How far means move, in standard deviations.")] = 0.2,
    power: Annotated[bool, typer.Option(help="Power against the number of rows too.")] = True,
    seed: SeedOption = 7,
    as_json: JsonOption = False,
) -> None:
    """False alarms of windows that have not drifted, and how many of those that have are found.

    Columns that are normal, heavy-tailed (Student, 3 degrees of freedom), discrete (Poisson) and zero-inflated (four fifths zeros) go through the
    judgement that a server's lists do, one window after the other against one reference of a day. Beside it: fixed thresholds of PSI, and what rows that
    are not independent do to a plain chi-square. Exit code 1: more than 1% false alarms, or less than 99% found.

    Example: headwater bench drift --windows 200 --no-power --json
    """
    from headwater.cli.bench.measure import machine, versions

    began = time.process_time()
    figures: dict[str, Any] = {
        "windows": windows,
        "rows": rows,
        "shift": shift,
        **judgements(windows, rows, shift, seed),
    }
    figures |= {"rows_of_users": lists_of_users(windows, rows, seed)}
    if power:
        figures["power"] = {str(n): found_at(n, max(windows // 5, 10), shift, seed) for n in POWER_AT}
    figures["missed"] = missed(figures)
    figures |= {"cpu_s": time.process_time() - began, "seed": seed, "machine": machine(), "versions": versions()}
    if as_json:
        print_json(figures)
    else:
        table("windows whose truth is known", figures)
    if figures["missed"]:
        raise typer.Exit(EXIT_CHECK_FAILED)


def missed(figures: dict[str, Any]) -> list[str]:
    """Which promises were not kept."""
    found = []
    if figures["false_alarms"] > MOST_ALARMS or figures["rows_of_users"]["false_alarms"] > MOST_ALARMS:
        found.append("false alarms")
    if figures["detected"] < LEAST_FOUND:
        found.append("detection")
    return found


def judgements(windows: int, rows: int, shift: float, seed: int) -> dict[str, Any]:
    """``windows`` of each column without drift, and as many with all means moved by ``shift`` standard deviations.

    They are spread over ten references. Those without drift are the first looks at each, when the least is needed for an alarm; those with drift come after a
    thousand looks, when the most is.
    """
    import numpy as np

    from headwater.monitoring.reference import Look

    calm, moved = list[Look](), list[Look]()
    for reference in range(REFERENCES):
        site = Trials(COLUMNS, drawn, rows, seed + 1_000 * reference)
        calm += [site.window(rows, 0.0) for _ in range(-(-windows // REFERENCES))]
        site.looked(LATE)
        moved += [site.window(rows, shift) for _ in range(-(-windows // REFERENCES))]
    by_column = {name: _rates(calm, moved, c, site.by_chance(rows)) for c, name in enumerate(COLUMNS)}
    return {
        "false_alarms": float(np.mean([any(column.drifted for column in look.columns) for look in calm])),
        "detected": min(each["detected"] for each in by_column.values()),
        "columns": by_column,
    }


def _rates(calm: list[Look], moved: list[Look], column: int, by_chance: Callable[[int], float]) -> dict[str, float]:
    """What became of one column, beside what fixed thresholds and the plain chi-square quantile of 1% say."""
    import numpy as np

    before, after = ([look.columns[column] for look in looks] for looks in (calm, moved))
    made = {
        "false_alarms": np.mean([one.drifted for one in before]), "detected": np.mean([one.drifted for one in after]),
        "psi_calm": np.median([one.psi for one in before]), "psi_shifted": np.median([one.psi for one in after]),
        "psi_null": before[-1].psi_null, "js_shifted": np.median([one.js for one in after]),
        "beyond_chance_of_1_percent": np.mean([one.psi > by_chance(one.bins) for one in before]),
    }  # fmt: skip
    for limit in NAIVE:
        made[f"psi_{limit}_false_alarms"] = np.mean([one.psi > limit for one in before])
        made[f"psi_{limit}_detected"] = np.mean([one.psi > limit for one in after])
    return {name: float(value) for name, value in made.items()}


def lists_of_users(windows: int, rows: int, seed: int) -> dict[str, float]:
    """A column of the user, the same on the twenty rows of a list: false alarms, and those of a chi-square for independent rows at 1%."""
    import numpy as np

    site = Trials(("of_users",), of_users, rows, seed + 1, together=LIST)
    seen = [site.window(rows, 0.0).columns[0] for _ in range(windows)]
    by_chance = site.by_chance(rows)
    return {
        "false_alarms": float(np.mean([one.drifted for one in seen])),
        "chi_square_false_alarms": float(np.mean([one.psi > by_chance(one.bins) for one in seen])),
        "effective_rows": float(np.median([one.effective_rows for one in seen])),
    }


def found_at(rows: int, windows: int, shift: float, seed: int) -> float:
    """The share of windows of ``rows`` rows in which a normal column that moved is found, after a thousand looks."""
    import numpy as np

    site = Trials(COLUMNS, drawn, 10_000, seed + rows, least=min(rows, 10_000))
    site.looked(LATE)
    return float(np.mean([site.window(rows, shift).columns[0].drifted for _ in range(windows)]))


class Trials:
    """A judge with a reference of ``rows`` rows over a day, and windows for it. ``together`` rows are of one user."""

    def __init__(
        self, names: tuple[str, ...], draw: Draw, rows: int, seed: int, *, together: int = 1, least: int | None = None
    ) -> None:  # fmt: skip
        import numpy as np

        from headwater.monitoring.reference import Compared, State
        from headwater.schema.drift import Drift

        self._draw, self._together, self._rng = draw, together, np.random.default_rng(seed)
        defaults: tuple[float | None, ...] = tuple(0.0 if name == "zero_inflated" else None for name in names)
        state = State(key="", names=names, defaults=defaults, ranges=(None,) * len(names))
        self._judge = Compared(state, Drift(reference="23h", window="1h", min_rows=least or rows))
        self._hour = 0
        for _ in range(HOURS):
            self._add(-(-rows // HOURS), 0.0)

    def looked(self, looks: int) -> None:
        """As if there had been so many looks."""
        self._judge.state.looks = looks

    def window(self, rows: int, shift: float) -> Look:
        """The next window, judged."""
        self._add(rows, shift)
        look = self._judge.close(self._hour * HOUR_MS + 1)
        if look is None:
            raise HeadwaterError(f"a window of {rows} rows was not judged")
        return look

    def by_chance(self, rows: int) -> Callable[[int], float]:
        """What PSI over so many bins passes in one window of a hundred when all rows are independent."""
        from scipy.special import chdtri

        scale = 1.0 / self._judge.state.reference_rows + 1.0 / rows
        return lambda bins: scale * float(chdtri(bins - 1, 0.01))

    def _add(self, rows: int, shift: float) -> None:
        import numpy as np

        from headwater.monitoring.reservoir import GROUPS, Cells

        groups = np.repeat(self._rng.integers(0, GROUPS, -(-rows // self._together)), self._together)[:rows]
        self._hour += 1
        self._judge.add(
            Cells(self._draw(self._rng, rows, shift), groups.astype(np.int64), (self._hour - 1) * HOUR_MS + 1)
        )


def drawn(rng: np.random.Generator, rows: int, shift: float) -> npt.NDArray[np.float32]:
    """Cells of ``COLUMNS``, float32[rows, 4], with means ``shift`` standard deviations above what they are."""
    import numpy as np

    mean, square, share = np.exp(0.5), np.exp(2.0), 0.2  # of the standard log-normal and of its square
    deviation = np.sqrt(share * square - (share * mean) ** 2)
    there = rng.random(rows) < share + shift * deviation / mean
    return np.column_stack((
        rng.normal(shift, 1.0, rows), rng.standard_t(3, rows) + shift * np.sqrt(3.0), rng.poisson(2.0 + shift * np.sqrt(2.0), rows),
        np.where(there, rng.lognormal(size=rows), 0.0),
    )).astype(np.float32)  # fmt: skip


def of_users(rng: np.random.Generator, rows: int, shift: float) -> npt.NDArray[np.float32]:
    """A normal column that is the same on the rows of a list, float32[rows, 1]."""
    import numpy as np

    return np.repeat(rng.normal(shift, 1.0, -(-rows // LIST)), LIST)[:rows, None].astype(np.float32)
