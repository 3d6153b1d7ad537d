"""Off-policy evaluation: what a policy would have earned, from what another one was logged to show and with what probability."""
