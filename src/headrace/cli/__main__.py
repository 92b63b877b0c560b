"""Run the command line as `python -m headrace.cli`."""

from headrace.cli.main import main

main()
