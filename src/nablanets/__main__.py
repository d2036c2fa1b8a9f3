"""`python -m nablanets`."""

from nablanets.cli import main

main()
