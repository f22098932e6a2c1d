import pytest

pytest_plugins = ["passy_proxy.testing"]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"
