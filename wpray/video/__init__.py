"""Videos of recorded episodes, rendered after the fact: chosen, rendered by actors on Ray, encoded for browsers."""
