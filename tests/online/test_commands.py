"""``headwater recommend`` and ``headwater features``, as they are typed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec

from headwater.cli.options import EXIT_CHECK_FAILED, EXIT_INPUT
from headwater.log.batch import events_to_batch
from headwater.log.writer import open_writer
from headwater.schema.events import Event
from headwater.schema.items import Item
from tests.online.conftest import Site


def headwater(*arguments: str, folder: Path) -> tuple[int, str, str]:
    """Run the command; (exit code, stdout, stderr)."""
    done = subprocess.run(
        [sys.executable, "-m", "headwater.cli.main", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def last_json(text: str) -> Any:
    return msgspec.json.decode(text.splitlines()[-1])


def test_the_running_server_is_asked(server: Site) -> None:
    code, out, err = headwater("recommend", "--user", "ann", "--k", "4", "--json", folder=server.folder)
    assert code == 0, err
    answer = last_json(out)
    assert len(answer["items"]) == 4
    assert answer["model"] == server.version
    code, out, err = headwater("recommend", "--url", server.url, "--k", "2", folder=server.folder)
    assert code == 0, err
    assert "item-" in out


def test_without_a_server_the_log_is_read(tmp_path: Path) -> None:
    with open_writer(tmp_path / "data") as writer:
        writer.put_items([Item(id=name, categories=["c"]) for name in ("a", "b", "c")])
        writer.append_events(events_to_batch([Event(user="ann", item="a", type="click")], ()))
    code, out, err = headwater("recommend", "--user", "ann", "--json", folder=tmp_path)
    assert code == 0, err
    answer = last_json(out)
    assert {item["id"] for item in answer["items"]} == {"b", "c"}
    assert "no server: read from the log" in answer["reasons"]
    code, _, err = headwater("recommend", "--surface", "hom", folder=tmp_path)
    assert code == EXIT_INPUT
    assert 'did you mean "home"' in err


def test_an_empty_list_is_exit_code_1_and_no_data_2(tmp_path: Path) -> None:
    code, _, err = headwater("recommend", folder=tmp_path)
    assert code == EXIT_INPUT
    assert "no data" in err
    open_writer(tmp_path / "data").close()
    code, out, _ = headwater("recommend", folder=tmp_path)
    assert code == EXIT_CHECK_FAILED
    assert "the catalogue is empty" in out


def test_features_are_listed_and_verified(server: Site) -> None:
    for turn in range(5):
        server.recommend(user=f"verified-{turn}", k=5)
    code, out, _ = headwater("features", "show", "--no-cost", "--json", folder=server.folder)
    assert code == 0
    columns = [column["name"] for column in last_json(out)["columns"]]
    code, out, err = headwater("features", "verify", "--json", folder=server.folder)
    assert code == 0, out + err
    report = last_json(out)
    assert report["requests"] > 0
    assert report["mismatched_bytes"] == 0
    assert list(report["by_feature"]) == columns
