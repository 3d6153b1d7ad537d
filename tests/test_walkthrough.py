"""docs/adding-a-feature.md works as it is written: its files, its commands, its order; the feature ends up in the model."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import lightgbm as lgb

from headwater.evaluation.checks import checks_dir
from headwater.features.plan import compile_plan
from headwater.ranking.gbdt import MODEL_FILE
from headwater.registry.registry import Registry
from headwater.schema.config import load_config

PAGE = Path(__file__).parent.parent / "docs" / "adding-a-feature.md"
TIMEOUT_S = 900  # on a busy machine


def script(page: str) -> str:
    """The page as one shell script: a block that begins with ``# NAME`` is that file, a console block its ``$`` lines."""
    lines = ["set -eu", "trap 'kill $(jobs -p) 2>/dev/null || true' EXIT"]
    for kind, body in re.findall(r"^```(\w+)\n(.*?)^```", page, re.DOTALL | re.MULTILINE):
        if kind == "console":
            commands = [line.removeprefix("$ ") for line in body.splitlines() if line.startswith("$ ")]
            assert commands, body
            for command in commands:
                lines += [f"echo {_quoted('$ ' + command)}", command]
        else:
            name = re.match(r"# ([a-z_]+\.(?:py|toml))\n", body)
            assert name is not None, f"a block that is no file: {body}"
            lines += [f"cat > {name[1]} <<'END OF FILE'", body.rstrip("\n"), "END OF FILE"]
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


def test_the_page_runs_and_the_model_uses_the_feature(tmp_path: Path) -> None:
    home = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    home = {name: value for name, value in home.items() if name not in ("HEADWATER_CONFIG", "HEADWATER_DATA")}
    done = subprocess.run(
        ["bash", "-c", script(PAGE.read_text(encoding="utf-8"))],
        cwd=tmp_path, env=home, capture_output=True, text=True, timeout=TIMEOUT_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"

    site = tmp_path / "shop"
    plan = compile_plan(load_config(site / "headwater.toml"))
    assert "topic_affinity" in plan.columns
    registry = Registry(site / "data" / "models")
    version = registry.current(plan.hash)
    assert version is not None
    bundle = registry.load(version, plan_hash=plan.hash)
    gain = lgb.Booster(model_str=bundle.files[MODEL_FILE].decode()).feature_importance("gain")
    assert gain[plan.columns.index("topic_affinity")] > 0
    assert (checks_dir(site / "data") / f"{plan.hash}.json").is_file()  # verify had lists to compare, and they agreed
    assert "0 mismatched bytes" in done.stdout
