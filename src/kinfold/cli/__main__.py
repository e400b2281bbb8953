"""`python -m kinfold.cli`, for where the script is not on the path."""

from kinfold.cli import main

main()
