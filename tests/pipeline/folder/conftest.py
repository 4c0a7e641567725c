"""An S3 server and a proxy that fails on demand, for the tests of object stores."""

from tests.support.s3 import bucket, proxy  # noqa: F401 - fixtures
