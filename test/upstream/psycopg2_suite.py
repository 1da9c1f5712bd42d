"""
Runs psycopg2's suite. Options of a connection's own take the place of PGOPTIONS: who names a tenant there names it in both.
"""

import os

import tests
from tests.testutils import ConnectingTestCase

connect = ConnectingTestCase.connect


def connect_as_tenant(self, **kwargs):
    if "options" in kwargs:
        kwargs["options"] = f"{os.environ.get('PGOPTIONS', '')} {kwargs['options']}"
    return connect(self, **kwargs)


ConnectingTestCase.connect = connect_as_tenant
tests.unittest.main(module=tests, defaultTest="test_suite")
