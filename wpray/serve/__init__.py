"""A policy of wpray as a server of openpi's protocol, for robots and other harnesses."""
