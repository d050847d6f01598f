"""The fixtures of the commands' tests, here too."""

from tests.commands.conftest import bnpass, normed, plain

__all__ = ["bnpass", "normed", "plain"]
