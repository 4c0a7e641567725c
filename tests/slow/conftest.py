"""An S3 server and a proxy that fails on demand, for the tests of object stores; a Ray head, for those of clusters."""

from tests.ray.conftest import head  # noqa: F401 - a fixture
from tests.support.s3 import bucket, proxy  # noqa: F401 - fixtures
