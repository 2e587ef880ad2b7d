"""`python -m fashion_nb` is the `fashion_nb` command."""
from fashion_nb.cli.main import main

main()
