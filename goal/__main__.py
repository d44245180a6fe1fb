"""`python -m goal`: the commands of goal.cli, with the code of the current folder."""

from goal.cli.main import main

if __name__ == "__main__":
    main()
