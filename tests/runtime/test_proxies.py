"""Loopback is reached without a proxy, whatever the environment excludes already."""

import urllib.request

import pytest

from goal.runtime import proxies

PROXY = {"http_proxy": "http://proxy.example:3128"}


@pytest.mark.parametrize(
    ("given", "direct", "by_proxy"),
    [
        ({}, ["127.0.0.1", "localhost"], ["files.example"]),
        ({"NO_PROXY": "a.example, b.example"}, ["a.example", "b.example", "127.0.0.1"], ["files.example"]),
        ({"no_proxy": "a.example", "NO_PROXY": "other"}, ["a.example", "localhost"], ["files.example"]),
        ({"NO_PROXY": "*"}, ["files.example", "127.0.0.1"], []),
    ],
)
def test_what_python_then_reaches_directly(given, direct, by_proxy, monkeypatch) -> None:
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    for name, value in (PROXY | given | proxies.bypassing(given)).items():
        monkeypatch.setenv(name, value)
    assert all(urllib.request.proxy_bypass(host) for host in direct)
    assert not any(urllib.request.proxy_bypass(host) for host in by_proxy)
    assert proxies.bypassing(proxies.bypassing(given)) == proxies.bypassing(given)
