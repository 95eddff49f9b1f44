"""`python -m patchbay_operator` is the program."""

from patchbay_operator.cli import main

main()
