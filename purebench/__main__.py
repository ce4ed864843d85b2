"""`python -m purebench` is `purebench`."""

from purebench.cli import main

if __name__ == "__main__":
    main()
