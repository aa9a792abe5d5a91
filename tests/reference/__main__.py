"""`python -m tests.reference`: write docs/reference."""

from tests.reference import write

if __name__ == "__main__":
    write()
