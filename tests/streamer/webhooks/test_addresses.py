import pytest

from streamer.errors import ErrorCode, StreamerError
from streamer.webhooks.addresses import WebhookAddresses


def code_of(url, hosts=()):
    with pytest.raises(StreamerError) as caught:
        WebhookAddresses(hosts).check(url)
    return caught.value.code


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/",
        "http://localhost:8080/hook",
        "http://[::1]/",
        "http://[::ffff:127.0.0.1]/",
        "http://0.0.0.0/",
        "http://10.1.2.3/",
        "http://192.168.1.20:8123/api/webhook/x",
        "http://172.16.0.1/",
        "http://100.64.0.1/",
        "http://[fd00::1]/",
        "http://169.254.169.254/latest/meta-data/",
        "http://[fe80::1]/",
        "http://224.0.0.1/",
        "http://2130706433/",
        "http://0x7f.1/",
    ],
)
def test_private_addresses_are_refused(url):
    assert code_of(url) is ErrorCode.WEBHOOK_URL_FORBIDDEN


def test_a_setting_allows_them():
    rules = WebhookAddresses(("10.1.0.0/16", "localhost", "192.168.1.20"))

    rules.check("http://10.1.2.3/")
    rules.check("http://localhost/")
    rules.check("https://192.168.1.20:8123/hook")
    assert code_of("http://10.2.0.1/", ("10.1.0.0/16",)) is ErrorCode.WEBHOOK_URL_FORBIDDEN


def test_public_addresses_are_allowed():
    assert WebhookAddresses().check("https://93.184.215.14/hook?a=b")
    assert WebhookAddresses().check("https://[2606:2800:21f:cb07:6820:80da:af6b:8b2c]/")


@pytest.mark.parametrize(
    "url",
    [
        "",
        "hook",
        "ftp://93.184.215.14/",
        "file:///etc/passwd",
        "http://",
        "http://user:password@93.184.215.14/",
        "http://93.184.215.14/#part",
        "http://93.184.215.14/a b",
        "http://93.184.215.14:99999/",
        "http://93.184.215.14/" + "x" * 2048,
        "http://no-such-name.invalid/",
    ],
)
def test_what_is_no_address_is_refused(url):
    assert code_of(url) is ErrorCode.INVALID_REQUEST
