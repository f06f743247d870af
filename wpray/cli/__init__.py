"""Command line: parser, types of arguments, exit codes, live display."""
