"""What may be shown: rules that hold whatever the ranker thinks."""
