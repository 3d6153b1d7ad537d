"""The request pipeline: hydrate → fetch → eligibility → assemble → rank → respond, in one readable function."""
