"""A real Alertmanager, seen with its own `amtool`. Debian's package `prometheus-alertmanager`."""

import json
import shutil
import socket
import subprocess
import time
from datetime import datetime, timedelta

import pytest

from streamer.alert_rule import AlertRule
from streamer.domain.timestamp import utc_now
from streamer.incidents import delivery
from streamer.incidents.alertmanager import Alertmanager
from streamer.incidents.delivery import Deliveries
from streamer.incidents.silences import Matcher, Silence
from streamer.timeline.results import Timeline
from tests.streamer.incidents.conftest import Alert

pytestmark = pytest.mark.clients

LIMIT = 60.0
CONFIG = """
route: {receiver: nobody, group_wait: 1s}
receivers: [{name: nobody}]
"""


class Running:
    """Alertmanager on loopback; without gossip, and with what it stores in a folder of its own."""

    def __init__(self, folder):
        self.folder = folder
        (folder / "alertmanager.yml").write_text(CONFIG)
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.starts = 0

    def start(self):
        self.starts += 1
        options = [
            f"--config.file={self.folder / 'alertmanager.yml'}",
            f"--storage.path={self.folder / f'data-{self.starts}'}",
            f"--web.listen-address=127.0.0.1:{self.port}",
            "--cluster.listen-address=",
        ]
        with (self.folder / "alertmanager.log").open("ab") as log:
            self.process = subprocess.Popen(
                ["prometheus-alertmanager", *options], stdout=log, stderr=log
            )
        deadline = time.monotonic() + LIMIT
        while self.amtool("config", "show", check=False).returncode:
            assert self.process.poll() is None, (self.folder / "alertmanager.log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def stop(self):
        self.process.terminate()
        self.process.wait()

    def amtool(self, *arguments, check=True):
        command = ["amtool", f"--alertmanager.url={self.url}", "--output=json", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT)
        assert not check or done.returncode == 0, done.stderr
        return done

    def alerts(self, *matchers):
        """What `amtool alert query` shows: the alerts that fire."""
        return json.loads(self.amtool("alert", "query", *matchers).stdout)


@pytest.fixture
def alertmanager(tmp_path):
    if shutil.which("amtool") is None or shutil.which("prometheus-alertmanager") is None:
        pytest.skip("Alertmanager is not installed: apt-get install prometheus-alertmanager")
    running = Running(tmp_path)
    running.start()
    yield running
    running.stop()


@pytest.fixture
def alert(tmp_path):
    timeline = Timeline(f"sqlite:///{tmp_path / 'timeline.db'}", upgrade=True)
    found = Alert(timeline)
    found.rule = AlertRule(severity="critical", title="Car", labels={"site": "north"})
    yield found
    timeline.close()


@pytest.fixture
def tell(alert, alertmanager, monkeypatch):
    """Do what the recorder does at its next resend."""
    sink = Alertmanager(alertmanager.url, "https://cameras.example")
    reported = Deliveries(
        alert.timeline.database, alert.incidents, lambda _: None, alertmanager=sink
    )
    monkeypatch.setattr(delivery, "RESEND", 0.0)  # it is always time for the next

    def step():
        reported.tell_events()
        reported.tell_alertmanager()

    return step


def test_an_incident_fires_in_alertmanager_until_it_is_over(
    alert, alertmanager, tell, eventually
) -> None:
    alert.see(0.9, 0.9)
    tell()
    (incident,) = alert.incidents.page().incidents
    eventually(alertmanager.alerts)
    # then amtool shows it, and finds it by its labels
    (fired,) = alertmanager.alerts("stream=lobby", "severity=critical", "site=north")
    assert fired["labels"]["alertname"] == "Car"
    assert fired["labels"]["incident"] == incident.id
    assert fired["annotations"]["summary"] == "Car"
    assert fired["generatorURL"] == f"https://cameras.example/incidents/{incident.id}"
    assert fired["status"]["state"] in ("active", "unprocessed")
    assert alertmanager.alerts("stream=yard") == []
    # and it does not expire while it is open
    before = datetime.fromisoformat(fired["endsAt"])
    tell()
    eventually(lambda: datetime.fromisoformat(alertmanager.alerts()[0]["endsAt"]) > before)
    # when the car has gone
    alert.see(0.1, 0.1, 0.1, first=2)
    tell()
    eventually(lambda: not alertmanager.alerts())


def test_an_alertmanager_that_has_forgotten_everything_is_told_again(
    alert, alertmanager, tell, eventually
) -> None:
    alert.see(0.9, 0.9)
    tell()
    eventually(alertmanager.alerts)
    alertmanager.stop()
    tell()  # nobody listens
    alertmanager.start()
    assert alertmanager.alerts() == []
    tell()
    eventually(alertmanager.alerts)
    assert alertmanager.alerts()[0]["labels"]["stream"] == "lobby"


def test_a_silence_on_our_side_ends_it_there(alert, alertmanager, tell, eventually) -> None:
    alert.see(0.9, 0.9)
    tell()
    eventually(alertmanager.alerts)
    matchers = [Matcher(name="stream", value="lobby")]
    alert.incidents.silence(Silence(matchers=matchers, ends_at=utc_now() + timedelta(hours=1)))
    (incident,) = alert.incidents.page().incidents
    alert.incidents.silence_again(incident.id)
    tell()
    eventually(lambda: not alertmanager.alerts())
