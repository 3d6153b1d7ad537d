"""The Python client in five calls. Run it against a server: ``python examples/first_calls.py URL``."""

from __future__ import annotations

import sys

from rich.console import Console

from headwater.client import Client
from headwater.schema.events import Event
from headwater.schema.items import Item
from headwater.schema.requests import RecommendRequest


def tour(client: Client, console: Console) -> None:
    """Add three items, click one, and ask what that changes."""
    items = [
        Item(id="ex-1", title="Linden Pour Over Kettle", categories=["Coffee"], tags=["pour over"], price=49.0),
        Item(id="ex-2", title="Linden Paper Filters", categories=["Coffee"], tags=["pour over"], price=6.0),
        Item(id="ex-3", title="Rowan Trail Shoe", categories=["Running"], tags=["trail running"], price=119.0),
    ]
    console.print(f"{client.put_items(items).accepted} items are in the catalogue")

    user = "example-user"
    before = client.recommend(RecommendRequest(user=user, k=5))
    console.print("Before:", [item.id for item in before.items])

    # The reply's token stands for this click: a request that carries it is answered with the click reflected.
    reply = client.send_events([Event(user=user, item="ex-1", type="click")])
    after = client.recommend(RecommendRequest(user=user, k=5, token=reply.token))
    for item in after.items:
        console.print(f"After:  {item.id}  from {item.source}: {item.reason}")
    console.print(f"Tier {after.tier}, model {after.model}, reflects the log up to {after.address.user_offset}")

    console.print("Similar to ex-1:", [item.id for item in client.similar("ex-1", k=3).items])
    client.delete_item("ex-3")


def main() -> None:
    """Entry point."""
    url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8080"
    with Client(url) as client:
        tour(client, Console())


if __name__ == "__main__":
    main()
