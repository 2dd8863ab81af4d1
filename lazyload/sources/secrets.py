"""Secrets in addresses: what may be shown of a URL, and of what another library says about one."""

import re

_USER = re.compile(r"(\w+://)[^/\s@'\"]+@")
_QUERY = re.compile(r"(\w+://[^\s?#'\"]+)[?#][^\s'\"]+")


def without_secrets(text: str) -> str:
    """A text without the users, passwords, queries and fragments of the URLs in it.

    Example:
        >>> without_secrets("cannot read 's3://key:secret@bucket/model?X-Amz-Signature=abc'")
        "cannot read 's3://bucket/model'"
    """
    return _QUERY.sub(r"\1", _USER.sub(r"\1", text))
