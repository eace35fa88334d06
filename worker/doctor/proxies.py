"""The remark about proxies if a service is out of reach: the fleet uses none."""

from __future__ import annotations

from collections.abc import Mapping

_VARIABLES = ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY")


def remark(environ: Mapping[str, str]) -> str:
    """A sentence that names the proxy variables that are set; empty without any."""
    named = [
        name
        for variable in _VARIABLES
        for name in (variable, variable.lower())
        if environ.get(name, "").strip()
    ]
    if not named:
        return ""
    are = "is set, which is" if len(named) == 1 else "are set, which are"
    return f"{', '.join(named)} {are} not used: the fleet connects without a proxy."
