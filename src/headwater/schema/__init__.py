"""What goes in and out: strict ``msgspec`` structs for events, items, users, requests and configuration."""
