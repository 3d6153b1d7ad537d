"""The file of a new experiment with one variant beside the control, from what the command line says."""

from __future__ import annotations

import json
import tomllib
from dataclasses import dataclass

import typer

CANARY_SHARE, SHADOW_SHARE = 0.01, 0.05
CANARY_GUARDRAILS = (("clicks_per_user", 0.05), ("clicks_per_list", 0.05))


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be written. ``share`` None: what suits the kind, of users, or of requests for a shadow."""

    name: str
    layer: str
    share: float | None
    hypothesis: str
    metrics: list[str]
    changes: list[str]
    bundle: str
    canary: str
    shadow: str
    interleave: bool = False
    when: str = ""

    def text(self) -> str:
        """The file, in TOML.

        Raises:
            ExperimentError: it would change nothing, or more than its kind does.
        """
        from headwater.experiments.definitions import ExperimentError

        bundle = self.bundle or self.canary or self.shadow
        if not (self.changes or bundle):
            raise ExperimentError(
                "Say what the variant changes: --set KEY=VALUE, --bundle VERSION, --canary VERSION or --shadow VERSION; or give a "
                "definition with --from FILE"
            )
        if sum(map(bool, (self.canary, self.shadow, self.changes or self.bundle))) > 1:
            raise ExperimentError(
                "--canary and --shadow are about one bundle and nothing else; leave the other options out"
            )
        if self.interleave and (self.canary or self.shadow):
            raise ExperimentError(
                "--interleave puts both variants into one list, and a canary or a shadow keeps them apart: give the bundle with --bundle"
            )
        hypothesis = self.hypothesis or (f"bundle {bundle} does no harm" if self.canary or self.shadow else "")
        lines = [
            f"name = {json.dumps(self.name)}", f"layer = {json.dumps(self.layer)}", f"hypothesis = {json.dumps(hypothesis)}",
        ]  # fmt: skip
        if self.shadow:
            lines.append(f"shadow = {SHADOW_SHARE if self.share is None else self.share!r}")
        else:
            share = self.share if self.share is not None else CANARY_SHARE if self.canary else 1.0
            lines += [f"share = {share!r}", f"metrics = {json.dumps(self.metrics)}"]
            lines += ["interleave = true"] if self.interleave else []
        lines += [f"when = {json.dumps(self.when)}"] if self.when else []
        for metric, bound in CANARY_GUARDRAILS if self.canary else ():
            lines += ["", "[[guardrails]]", f'metric = "{metric}"', 'direction = "decrease"', f"bound = {bound!r}"]
        variant = "canary" if self.canary else "shadow" if self.shadow else "treatment"
        lines += ["", "[[variants]]", 'name = "control"', "", "[[variants]]", f'name = "{variant}"']
        if bundle:
            lines.append(f"bundle = {json.dumps(bundle)}")
        if self.changes:
            lines.append("set = {" + ", ".join(_change(text) for text in self.changes) + "}")
        return "\n".join(lines) + "\n"


def _change(text: str) -> str:
    """``KEY=VALUE`` as TOML; what is no value of TOML is a text."""
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise typer.BadParameter(f'"{text}" is not KEY=VALUE', param_hint="--set")
    try:
        tomllib.loads(f"value = {value}")
    except tomllib.TOMLDecodeError:
        value = json.dumps(value)
    return f"{json.dumps(key)} = {value}"
