"""`python -m fasthook` is `fasthook`."""

from fasthook.cli import main

if __name__ == "__main__":
    main()
