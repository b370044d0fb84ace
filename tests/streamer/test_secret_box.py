import base64
import secrets
from urllib.parse import unquote, urlsplit

import pytest
from cryptography.fernet import Fernet

from streamer import redis_keys
from streamer.domain.stream import StreamSpec
from streamer.errors import ErrorCode, StreamerError
from streamer.secret_box import SecretBox
from streamer.settings import Settings, load_settings
from streamer.sources.streams import StreamRegistry

URL = "rtsp://admin:p%40ss%2Fw%23r%25d%20x@camera/live"
PHRASE = "correct horse battery"

KEYS = {
    "passphrase": PHRASE,
    "fernet": Fernet.generate_key().decode(),
    "openssl": base64.b64encode(secrets.token_bytes(32)).decode(),
    "hex": secrets.token_hex(32),
}


@pytest.mark.parametrize("key", KEYS.values(), ids=KEYS)
def test_what_is_sealed_can_be_read_by_another_process_with_the_key_and_by_nobody_else(key):
    stored = SecretBox([key]).seal(URL)
    assert "admin" not in stored
    assert stored != SecretBox([key]).seal(URL)
    assert SecretBox([key]).unseal(stored, "it") == URL
    for wrong in ([], ["another passphrase"], [Fernet.generate_key().decode()]):
        with pytest.raises(StreamerError, match="STREAMER_SECRET_KEY") as caught:
            SecretBox(wrong).unseal(stored, "stream 'yard'")
        assert caught.value.code is ErrorCode.SECRET_UNREADABLE
        assert "stream 'yard'" in caught.value.message
        assert "\n" not in caught.value.message


def test_without_a_key_texts_stay_as_they_are():
    assert SecretBox().seal(URL) == URL
    assert SecretBox().unseal(URL, "it") == URL
    assert SecretBox().is_current(URL)


@pytest.mark.parametrize("damage", [lambda s: s[:-9], lambda s: s + "A", lambda s: s[:12]])
def test_a_damaged_secret_is_refused(damage):
    box = SecretBox([KEYS["fernet"]])
    with pytest.raises(StreamerError) as caught:
        box.unseal(damage(box.seal(URL)), "it")
    assert caught.value.code is ErrorCode.SECRET_UNREADABLE


@pytest.fixture
def stored(redis_client):
    """Return the secret of a stream as Redis holds it."""
    return lambda stream_id: redis_client.hget(redis_keys.SECRETS, stream_id)


def attach(registry, name="yard"):
    spec = StreamSpec(name=name, url="rtsp://admin:***@camera/live", live=True)
    return registry.create(spec, URL).id


def test_the_registry_keeps_sealed_urls(redis_client, stored):
    registry = StreamRegistry(redis_client, SecretBox([PHRASE]))
    stream_id = attach(registry)
    assert stored(stream_id).startswith(b"sealed:")
    password = urlsplit(URL).password or ""
    for shown in (password, unquote(password), "admin", "camera"):
        assert shown.encode() not in stored(stream_id)
        assert base64.b64encode(shown.encode())[:-3] not in stored(stream_id)
    assert registry.secret_url(stream_id) == URL
    registry.update(stream_id, secret_url=URL + "2")
    assert stored(stream_id).startswith(b"sealed:")
    assert registry.secret_url(stream_id) == URL + "2"


def test_a_key_is_changed_without_attaching_anything_again(redis_client, stored):
    # given a stream stored without a key, and one with the old key
    plain = attach(StreamRegistry(redis_client), "plain")
    sealed = attach(StreamRegistry(redis_client, SecretBox([PHRASE])), "sealed")
    # when a worker starts with the new key in front of the old one
    new = KEYS["fernet"]
    assert StreamRegistry(redis_client, SecretBox([new, PHRASE])).seal_all() == 0
    # then the new key suffices for both
    registry = StreamRegistry(redis_client, SecretBox([new]))
    assert registry.secret_url(plain) == registry.secret_url(sealed) == URL
    assert stored(plain).startswith(b"sealed:")


def test_reading_a_secret_seals_it_and_a_current_one_stays_untouched(redis_client, stored):
    stream_id = attach(StreamRegistry(redis_client))
    registry = StreamRegistry(redis_client, SecretBox([PHRASE]))
    assert registry.secret_url(stream_id) == URL
    sealed = stored(stream_id)
    assert sealed.startswith(b"sealed:")
    assert registry.secret_url(stream_id) == URL
    assert stored(stream_id) == sealed


def test_secrets_of_another_key_are_counted_and_left_alone(redis_client, stored):
    stream_id = attach(StreamRegistry(redis_client, SecretBox([PHRASE])))
    before = stored(stream_id)
    assert StreamRegistry(redis_client, SecretBox([KEYS["hex"]])).seal_all() == 1
    assert stored(stream_id) == before


@pytest.mark.parametrize("keys", [[], [KEYS["hex"]]], ids=["no key", "another key"])
def test_nothing_is_stored_that_the_ingest_workers_could_not_read(redis_client, stored, keys):
    # given an ingest worker with a key
    worker = StreamRegistry(redis_client, SecretBox([PHRASE]))
    attached = attach(worker, "before")
    assert worker.seal_all() == 0
    # when a client without the key attaches a stream, or changes a URL
    registry = StreamRegistry(redis_client, SecretBox(keys))
    for attempt in (
        lambda: attach(registry),
        lambda: registry.update(attached, secret_url=URL),
    ):
        with pytest.raises(StreamerError, match="STREAMER_SECRET_KEY") as caught:
            attempt()
        assert caught.value.code is ErrorCode.SECRET_UNREADABLE
    # then that is refused, and everything else continues
    assert [stream.name for stream in worker.list()] == ["before"]
    registry.update(attached, name="after")
    registry.delete("after")


def test_ingest_workers_that_are_given_another_key_decide(redis_client):
    StreamRegistry(redis_client, SecretBox([PHRASE])).seal_all()
    new = StreamRegistry(redis_client, SecretBox([KEYS["hex"]]))
    assert new.seal_all() == 0
    attach(new)
    # without any key, and nothing left encrypted, plain URLs are accepted again
    new.delete("yard")
    plain = StreamRegistry(redis_client)
    assert plain.seal_all() == 0
    attach(plain)


def test_keys_come_side_by_side_from_the_environment_and_are_never_shown(monkeypatch):
    monkeypatch.setenv("STREAMER_SECRET_KEY", f"{KEYS['hex']}, {PHRASE}")
    monkeypatch.setenv("STREAMER_REDIS_URL", "redis://:s3cret@host/0")
    settings = load_settings()
    assert settings.secret_key == [KEYS["hex"], PHRASE]
    for text in (repr(settings), str(settings)):
        assert PHRASE not in text
        assert "s3cret" not in text


def test_a_short_key_is_refused_without_being_repeated(monkeypatch):
    monkeypatch.setenv("STREAMER_SECRET_KEY", "hunter2")
    with pytest.raises(StreamerError, match="at least 12 characters") as caught:
        load_settings()
    assert "hunter2" not in caught.value.message
    assert Settings.model_fields["secret_key"].repr is False
