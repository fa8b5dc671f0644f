"""`python -m supermask` is `supermask`."""

from supermask.cli import main

main()
