"""A writer that hangs: whoever must know waits for it, pages wait once."""

from __future__ import annotations

import asyncio
import socket
import time
from pathlib import Path

from headwater.log.client import WriterClient
from headwater.online.answering import PING_S, REMEMBERED_S, WriterAnswers
from headwater.schema.errors import UnavailableError


def test_pages_wait_once_for_a_writer_that_takes_connections_and_says_nothing(tmp_path: Path) -> None:
    async def run() -> tuple[str, list[str], float, str]:
        server.bind(str(tmp_path / "writer.sock"))
        server.listen()  # and nobody accepts
        client = WriterClient(tmp_path / "writer.sock")
        answers = WriterAnswers(client.ping)
        first = await answers.known_problem()
        began = time.monotonic()
        pages = [await answers.known_problem() for _ in range(100)]
        took_s = time.monotonic() - began
        probe = await answers.problem()
        await answers.close()
        await client.close()
        return first, pages, took_s, probe

    with socket.socket(socket.AF_UNIX) as server:
        first, pages, took_s, probe = asyncio.run(run())
    assert first == probe == "writer: no answer (TimeoutError)"
    assert all(page.startswith("writer: no answer for ") and "it hangs" in page for page in pages)
    assert took_s < 100 * PING_S, "if each waited, it would be more"


def test_that_it_is_back_is_noticed_meanwhile_and_old_silence_says_nothing() -> None:
    now = [0.0]

    async def run() -> None:
        there, asked = asyncio.Event(), [0]

        async def ping() -> None:
            asked[0] += 1
            await there.wait()
            now[0] += 0.01

        answers = WriterAnswers(ping, lambda: now[0])
        assert await answers.known_problem() == "writer: no answer (TimeoutError)"
        now[0] = 3.0
        assert await answers.known_problem() == "writer: no answer for 3 s (it hangs; pages do not wait for it)"
        await asyncio.sleep(0)  # the ask of the last page is under way
        assert "for 3 s" in await answers.known_problem()
        assert asked[0] == 2, "one ask at a time"
        there.set()
        await asyncio.sleep(PING_S / 5)
        assert await answers.known_problem() == ""

        there.clear()
        assert await answers.known_problem() == "writer: no answer (TimeoutError)"
        there.set()
        now[0] += REMEMBERED_S + 1.0
        assert await answers.known_problem() == "", "it is asked before anything is said"
        await answers.close()

    asyncio.run(run())


def test_one_that_is_dead_is_known_at_once_and_not_remembered() -> None:
    dead = [True]

    async def ping() -> None:
        if dead[0]:
            raise UnavailableError("no socket")

    async def run() -> list[str]:
        answers = WriterAnswers(ping)
        said = [await answers.known_problem()]
        dead[0] = False
        return [*said, await answers.known_problem()]

    assert asyncio.run(run()) == ["writer: no answer (UnavailableError)", ""]
