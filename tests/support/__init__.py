"""What several test modules share: fixtures are in `conftest.py`, the rest is here."""
