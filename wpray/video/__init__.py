"""Videos of recorded episodes, rendered from their trajectories by actors on Ray and encoded for browsers."""
