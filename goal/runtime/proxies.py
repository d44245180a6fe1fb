"""Proxies named in the environment: servers on this machine are reached without one."""

from collections.abc import Mapping

LOOPBACK = ("127.0.0.1", "localhost")


def bypassing(environment: Mapping[str, str]) -> dict[str, str]:
    """NO_PROXY in both spellings that libraries read: what `environment` has in it, and loopback."""
    given = environment.get("no_proxy") or environment.get("NO_PROXY") or ""
    hosts = [host.strip() for host in given.split(",") if host.strip()]
    # "*", which bypasses all, is understood only when it stands alone.
    value = "*" if "*" in hosts else ",".join(dict.fromkeys([*hosts, *LOOPBACK]))
    return {"NO_PROXY": value, "no_proxy": value}
