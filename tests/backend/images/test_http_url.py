import pytest

from backend.images.fetch import Fetcher
from backend.images.http_url import HttpUrl
from backend.images.studio_urls import Server
from model.types import ImageError
from tests.support.fake_web import Web


def test_f16_the_scheme_and_port_of_a_token_count() -> None:
    studio = "http://studio.example"
    assert HttpUrl.parse("http://Studio.Example:80/data/x").has_origin_of(studio)
    for url in ("https://studio.example/", "http://studio.example:8080/", "http://studio.example.org/"):
        assert not HttpUrl.parse(url).has_origin_of(studio)
    assert not HttpUrl.parse(studio).has_origin_of("garbage")


@pytest.mark.parametrize(
    "source",
    [
        "file:///etc/hostname",
        "ftp://127.0.0.1/x.png",
        "gopher://127.0.0.1/x.png",
        "hdfs://pets/dog.png",
        "http:///nowhere",
        "dog.png",
        "http://[::1/x",
        "http://me:sesame@{host}/x.png",
        "http://me@{host}/x.png",
        "http://{host}\\@dog.example/x.png",
        "http:\\\\{host}\\x.png",
        "http://{host}/x.png\r\nHost: dog.example",
        "http://{host}/\ud800",
        "//{host}/data/x.png",
        "/etc/hostname",
        "/data/../api/users",
        "/data/%2e%2e/api/users",
        "/api/current-user/token",
    ],
)
def test_f14_addresses_that_are_not_fetched(web: Web, fetcher: Fetcher, source: str) -> None:
    with pytest.raises(ImageError) as caught:
        fetcher.fetch(source.format(host=f"127.0.0.1:{web.port}"), Server(web.url, "secret"))
    assert web.seen == [] or "\ud800" in source
    assert "\n" not in str(caught.value)
    assert "sesame" not in str(caught.value)
