from tests.runtime.conftest import convnet, rng  # noqa: F401 - the same fixtures
