"""What the Python drivers' programs share: where the target is, what they send, and how they say what came of it."""

import contextlib
import hashlib
import json
import os
import traceback

HOST = os.environ["PGHOST"]
PORT = int(os.environ["PGPORT"])
USER = os.environ["PGUSER"]
PASSWORD = os.environ["PGPASSWORD"]
DATABASE = os.environ["PGDATABASE"]
SCHEMA = os.environ["SCHEMA"]
SCHEMA_PARAMETER = os.environ["SCHEMA_PARAMETER"]

CLIENTS = 4
ROUNDS = 30
LARGE = "0123456789" * 524288
NUMERIC = "12345678901234567890.0123456789"
UNICODE = "Grüße, 𝄞 und 日本"
TEXTS = ['a"b', "c,d", "", None]
JSON = {"a": [1, {"b": None}]}
BYTES = bytes([0x00, 0xFF, 0x5C, 0x27])

SETTINGS = (
    "SELECT current_setting('application_name'), current_setting('TimeZone'), current_setting('DateStyle'), "
    "'2026-02-03 04:05:06Z'::timestamptz::text"
)
SETTING_NAMES = ["application_name", "TimeZone", "DateStyle", "text"]


def statement(client, turn, placeholder):
    """One of the three statements of a client's own."""
    return f"SELECT {placeholder} * {10 ** turn} + {client}"


def digest(text):
    return hashlib.md5(text.encode()).hexdigest()


def instant(value):
    """A timestamptz as JavaScript writes it."""
    return value.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def say(scenario, result):
    print(json.dumps([scenario, result]), flush=True)


@contextlib.contextmanager
def told(scenario):
    """A scenario that fails says why, and the next one is done all the same."""
    try:
        yield
    except Exception:
        say(scenario, traceback.format_exc())
